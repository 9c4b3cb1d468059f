//! Counting what passed and failed, and saying so.

use crate::process;
use anyhow::Result;
use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

/// Numbers of tests that passed, that failed, and that this machine could not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) passed: usize,
    pub(super) failed: usize,
    /// With a reason that was printed. They prove nothing.
    pub(super) skipped: usize,
}

impl Count {
    /// One check that is not a test program: a pass or a failure.
    pub(super) fn one(passed: bool) -> Self {
        Self { passed: usize::from(passed), failed: usize::from(!passed), skipped: 0 }
    }

    /// Reads libtest's `test result: ok. 3 passed; 0 failed; 0 ignored; …`. What is ignored was skipped.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |name: &str| {
            let mut counts = counts.split(';').map(str::trim);
            counts.find_map(|count| count.strip_suffix(name))?.trim().parse().ok()
        };
        Some(Self { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
    }

    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// The tests that ran so far.
#[derive(Default)]
pub(super) struct Report {
    total: Count,
    lines: Vec<String>,
    started: Option<Instant>,
}

impl Report {
    /// Says on stderr what starts now.
    pub(super) fn start(&mut self, name: &str) -> Instant {
        eprintln!("== {name}");
        let now = Instant::now();
        self.started.get_or_insert(now);
        now
    }

    /// Notes the outcome of what was started.
    pub(super) fn done(&mut self, name: &str, count: Count, took: Duration) {
        let mark = match count {
            Count { failed: 1.., .. } => "FAILED",
            Count { passed: 0, skipped: 1.., .. } => "skip  ",
            _ => "ok    ",
        };
        let skipped = if count.skipped == 0 { String::new() } else { format!("  {} skipped", count.skipped) };
        let line = format!(
            "{mark}  {name:<44} {:>4} passed {:>3} failed  {:>12}{skipped}",
            count.passed,
            count.failed,
            process::human(took)
        );
        eprintln!("{line}");
        self.lines.push(line);
        self.total.add(count);
    }

    /// Runs a command whose exit code is its verdict.
    pub(super) fn check(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let started = self.start(name);
        let status = process::status(command)?;
        if !status.success() {
            eprintln!("`{}` failed ({status})", process::line(command));
        }
        self.done(name, Count::one(status.success()), started.elapsed());
        Ok(())
    }

    /// Prints the summary, which ends with the line that scripts read.
    pub(super) fn finish(self) -> ExitCode {
        println!();
        for line in &self.lines {
            println!("{line}");
        }
        let took = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        println!("\nin {}", process::human(took));
        if self.total == Count::default() {
            println!("no test ran, which proves nothing: is the name after `--` right?");
        }
        let skipped = match self.total.skipped {
            0 => String::new(),
            skipped => {
                println!(
                    "{skipped} skipped: this machine cannot run them, and why was printed; they prove nothing"
                );
                format!(", {skipped} skipped")
            }
        };
        println!("{} passed, {} failed{skipped}", self.total.passed, self.total.failed);
        if self.total.failed == 0 && self.total.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtests_result_line_is_read_whether_good_or_bad() {
        let ok =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.02s";
        assert_eq!(Count::parse(ok), Some(Count { passed: 12, failed: 0, skipped: 1 }));
        let bad =
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s";
        assert_eq!(Count::parse(bad), Some(Count { passed: 1, failed: 2, skipped: 0 }));
    }

    #[test]
    fn other_lines_count_for_nothing() {
        assert_eq!(Count::parse("test flow::same_hash ... ok"), None);
        assert_eq!(Count::parse("test result: unheard of"), None);
    }
}
