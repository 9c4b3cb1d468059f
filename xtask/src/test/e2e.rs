//! The tests that need root: each in a process of its own, several at a time.
//!
//! Each test makes its own network namespaces, files and pins, so tests do not see each other. They share the processors:
//! a test that judges by time belongs into a test program called `alone`. The tests of such programs, and the long
//! ones, run one after the other when all others have ended.

use super::{
    programs::{Programs, TestProgram},
    report::{Count, Report},
};
use crate::process;
use anyhow::{Context as _, Result};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Tests that run at a time beyond the number of processors: most of a test is waiting.
const BEYOND_PROCESSORS: usize = 1;
/// Most tests that run at a time. Each may be a cluster of ten processes.
const MOST: usize = 8;
/// A test that takes longer hangs, and is ended: a report late is better than none.
const LONGEST: Duration = Duration::from_secs(10 * 60);

/// A test of a program.
struct Test<'a> {
    program: &'a TestProgram,
    name: String,
}

/// What became of a test.
struct Outcome {
    /// The program's name.
    program: String,
    count: Count,
    took: Duration,
}

/// Runs the tests that need root. `arguments` are the user's: a part of the names of the tests to run, or options of the
/// test programs. What the tests print goes to files in `logs`, and to stderr if they fail.
pub(super) fn run(programs: &Programs, arguments: &[String], logs: &Path, report: &mut Report) -> Result<()> {
    fs::create_dir_all(logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let mut tests = Vec::new();
    for program in programs.with_root() {
        tests.extend(list(programs, program, arguments)?);
    }
    let (alone, mut together): (Vec<Test>, Vec<Test>) =
        tests.into_iter().partition(|test| test.program.is_alone);
    // The programs of whole clusters first: the short tests of others fill the gaps at the end.
    together.sort_by_key(|test| !test.program.name.starts_with("drover-tests"));
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let at_once = (processors + BEYOND_PROCESSORS).min(MOST);
    let prints = arguments.iter().any(|argument| argument == "--nocapture");

    let mut outcomes = Vec::new();
    for (tests, at_once) in [(together, at_once), (alone, 1)] {
        if tests.is_empty() {
            continue;
        }
        report.start(&format!("{} tests with root, {at_once} at a time", tests.len()));
        outcomes.extend(run_all(programs, &tests, at_once, prints, logs)?);
    }
    for program in programs.with_root() {
        let of_program = || outcomes.iter().filter(|outcome| outcome.program == program.name);
        if of_program().next().is_some() {
            let mut count = Count::default();
            of_program().for_each(|outcome| count.add(outcome.count));
            report.done(&program.name, count, of_program().map(|outcome| outcome.took).sum());
        }
    }
    Ok(())
}

/// The tests of a program that the user's arguments choose.
fn list<'a>(programs: &Programs, program: &'a TestProgram, arguments: &[String]) -> Result<Vec<Test<'a>>> {
    let mut command = programs.command(program);
    let listing = process::output(command.arg("--list").args(arguments))?;
    Ok(names(&listing).map(|name| Test { program, name: name.to_owned() }).collect())
}

/// The names of tests in what `--list` prints.
fn names(listing: &str) -> impl Iterator<Item = &str> {
    listing.lines().filter_map(|line| line.strip_suffix(": test"))
}

fn run_all(
    programs: &Programs,
    tests: &[Test],
    at_once: usize,
    prints: bool,
    logs: &Path,
) -> Result<Vec<Outcome>> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run_one(programs, test, prints, logs);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
}

/// Runs a test to its end, and says how it ended.
fn run_one(programs: &Programs, test: &Test, prints: bool, logs: &Path) -> Result<Outcome> {
    let Test { program, name } = test;
    let log = log_of(logs, test);
    let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut command = programs.command(program);
    command.env("RUST_TEST_THREADS", "1").args([name, "--exact"]);
    if prints {
        command.arg("--nocapture");
    }
    // A file rather than a pipe: what a test leaves running cannot keep us waiting.
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let started = Instant::now();
    let status = wait(&mut command)?;
    let took = started.elapsed();
    let printed = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let printed = String::from_utf8_lossy(&printed);
    let mut count = Count::default();
    printed.lines().filter_map(Count::parse).for_each(|result| count.add(result));
    // A test that ended its process has printed no result.
    if count.failed == 0 && (count == Count::default() || !status.is_some_and(|status| status.success())) {
        count.failed = 1;
    }
    let mark = match count {
        Count { failed: 1.., .. } => "FAILED",
        Count { passed: 0, .. } => "skip  ",
        _ => "ok    ",
    };
    let ended = match status {
        Some(_) => String::new(),
        None => format!("  ended: it took longer than {}", process::human(LONGEST)),
    };
    let said = if prints || mark != "ok    " { printed.trim_end() } else { "" };
    let newline = if said.is_empty() { "" } else { "\n" };
    eprintln!("{mark}  {:>12}  {}: {name}{ended}{newline}{said}", process::human(took), program.name);
    Ok(Outcome { program: program.name.clone(), count, took })
}

/// Waits for a command's end; `None` if it had to be ended.
fn wait(command: &mut std::process::Command) -> Result<Option<ExitStatus>> {
    const LOOK: Duration = Duration::from_millis(10);
    let mut child = command.spawn().with_context(|| format!("cannot run `{}`", process::line(command)))?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() > LONGEST {
            child.kill().context("cannot end a test")?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

fn log_of(logs: &Path, test: &Test) -> PathBuf {
    let plain = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-', ".");
    logs.join(format!("{}.{}.log", plain(&test.program.name), plain(&test.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_told_from_what_else_a_listing_has() {
        let listing = "leader::it_leads: test\nfast: benchmark\n\n2 tests, 1 benchmark\n";
        assert_eq!(names(listing).collect::<Vec<_>>(), ["leader::it_leads"]);
    }
}
