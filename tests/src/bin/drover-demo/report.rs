//! What the demo prints: numbered steps as they happen, and at the end what was promised beside what was seen.

use std::fmt::Display;
use std::time::Instant;

use drover_tests::Topology;

/// The demo's voice and memory.
#[derive(Debug)]
pub(crate) struct Report {
    started: Instant,
    step: usize,
    findings: Vec<Finding>,
}

#[derive(Debug)]
struct Finding {
    promise: String,
    seen: String,
    kept: bool,
}

#[expect(clippy::print_stdout, reason = "printing is what this type is for")]
impl Report {
    pub(crate) fn new() -> Report {
        Report { started: Instant::now(), step: 0, findings: Vec::new() }
    }

    /// Announces the next step.
    pub(crate) fn step(&mut self, title: impl Display) {
        self.step += 1;
        println!("\n{}. {title}", self.step);
    }

    /// A line below the current step, with the time since the demo began.
    pub(crate) fn note(&self, line: impl Display) {
        println!("   {:5.1} s  {line}", self.started.elapsed().as_secs_f64());
    }

    /// A line below the current step.
    pub(crate) fn line(&self, line: impl Display) {
        println!("            {line}");
    }

    /// Says that everything is left standing, where it is and how to get at it.
    pub(crate) fn left_standing(&mut self, net: &Topology) {
        self.step("Everything is left standing");
        self.line(format_args!("logs and configuration: {}", net.lab.dir().display()));
        for host in net.hosts() {
            self.line(format_args!("{:9} ip netns exec {} bash", host.name(), host.namespace()));
        }
        self.line("remove:   run the demo with --remove; a new run removes it too");
    }

    /// Puts a promise and what was seen of it into the final table.
    pub(crate) fn finding(&mut self, promise: impl Display, seen: impl Display, kept: bool) {
        let finding = Finding { promise: promise.to_string(), seen: seen.to_string(), kept };
        let verdict = if kept { "ok" } else { "NOT AS PROMISED" };
        self.note(format_args!("{verdict}: {}: {}", finding.promise, finding.seen));
        self.findings.push(finding);
    }

    /// Prints the table, and returns whether every promise was kept.
    pub(crate) fn finish(&self) -> bool {
        let width = self.findings.iter().map(|finding| finding.promise.chars().count()).max().unwrap_or(0);
        println!("\n   {:width$}   seen", "promised");
        println!("   {}", "-".repeat(width + 50));
        for Finding { promise, seen, kept } in &self.findings {
            println!("{} {promise:width$}   {seen}", if *kept { "ok" } else { "NO" });
        }
        let broken = self.findings.iter().filter(|finding| !finding.kept).count();
        let time = self.started.elapsed().as_secs_f64();
        match broken {
            0 => println!("\nAll {} promises kept, in {time:.1} s.", self.findings.len()),
            _ => println!(
                "\n{broken} of {} promises NOT kept. Run it with --keep to look at the daemons' logs.",
                self.findings.len()
            ),
        }
        broken == 0
    }
}
