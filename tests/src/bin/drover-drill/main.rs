//! Failover drills: parts of a cluster are killed, cut off, drained and upgraded under the eyes of MQTT clients that hold
//! connections, of counted packets and of new connections. Exits with 0 if all that was promised was kept.
//!
//! A drill is a page of code in `drills/`, registered in `drills/mod.rs`. `stage` plays it, `judge` judges.

#![expect(clippy::print_stderr, reason = "a command-line program talks to its user")]

mod drills;
mod faults;
mod judge;
mod narrator;
mod newcomers;
mod report;
mod stage;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use clap::builder::{PossibleValue, PossibleValuesParser};
use drover_tests::machine::{self, Machine};
use drover_tests::{Lab, interrupt};

use drills::{Drill, Options};
use report::{Outcome, Verdict, Voice};
use stage::Stage;

/// All drills, one after the other.
const ALL: &str = "all";

/// Plays a failover drill on a cluster in network namespaces of this machine: three nodes behind BIRD and ECMP, three servers
/// of ZooKeeper, three mosquitto brokers, 300 MQTT connections, counted packets, and new connections all the time.
///
/// Prints a timeline and a verdict. Needs root. Sends no packet outside the namespaces, and removes them at the end.
#[derive(Debug, Parser)]
#[command(name = "drover-drill", version)]
struct Arguments {
    /// The drill to play.
    #[arg(value_name = "DRILL", value_parser = PossibleValuesParser::new(names()), required_unless_present = "list")]
    drill: Option<String>,

    /// One JSON object a drill on stdout; the timeline goes to stderr.
    #[arg(long)]
    json: bool,

    /// Say what each drill does and promises, and do nothing else.
    #[arg(long)]
    list: bool,

    /// How long zk-outage keeps ZooKeeper down, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(20..=3600), value_name = "SECONDS")]
    outage_seconds: u64,

    /// The lb-node that rolling-upgrade begins with. Without it, it begins with the new one and smaller maps.
    #[arg(long, value_name = "FILE")]
    old: Option<PathBuf>,

    /// What two-at-once draws its pairs of faults from, to play the same ones again; a new one if not given.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// How many pairs of faults two-at-once plays.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "NUMBER")]
    pairs: u32,

    /// What the old lb-node is, for the report.
    #[arg(long, value_name = "TEXT", requires = "old")]
    old_version: Option<String>,

    /// What the new lb-node is, for the report.
    #[arg(long, value_name = "TEXT")]
    new_version: Option<String>,
}

fn names() -> Vec<PossibleValue> {
    let drills = drills::ALL.iter().map(|drill| PossibleValue::new(drill.name).help(drill.about));
    drills
        .chain([PossibleValue::new(ALL).help("All of them, one after the other, and a table at the end")])
        .collect()
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        return list();
    }
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) if interrupt::requested() => {
            eprintln!("\nInterrupted: everything has been removed");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nThe drills could not go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> ExitCode {
    let width = drills::ALL.iter().map(|drill| drill.name.len()).max().unwrap_or(0);
    let lines = drills::ALL.iter().map(|drill| (drill.name, drill.about));
    let lines = lines.chain([(ALL, "all of these, one after the other, and a table at the end")]);
    let text: Vec<String> = lines.map(|(name, about)| format!("{name:width$}  {about}")).collect();
    match report::line(&text.join("\n")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A seed that is short enough to be typed.
fn new_seed() -> u64 {
    RandomState::new().build_hasher().finish() >> 40
}

/// Returns whether all promises were kept.
fn run(arguments: &Arguments) -> Result<bool> {
    interrupt::listen()?;
    let voice = Voice::new(arguments.json);
    for lab in Lab::sweep()? {
        voice.line(format_args!("removed {lab}, which a crashed run had left"));
    }
    let options = Options {
        outage: Duration::from_secs(arguments.outage_seconds),
        old: arguments.old.clone(),
        old_version: arguments.old_version.clone(),
        new_version: arguments.new_version.clone(),
        seed: arguments.seed.unwrap_or_else(new_seed),
        pairs: arguments.pairs,
    };
    let load = machine::load()?;
    let mut outcomes = Vec::new();
    let name = arguments.drill.as_deref().unwrap_or(ALL);
    for drill in drills::ALL.iter().filter(|drill| name == ALL || name == drill.name) {
        let outcome = play(drill, &options, arguments.json)?;
        if arguments.json {
            report::line(&outcome.json())?;
        }
        outcomes.push(outcome);
    }
    voice.line(format_args!("\n{}\n{}", report::table(&outcomes), report::LEGEND));
    let Machine { cpu_model, cpus, kernel } = Machine::this()?;
    voice.line(format_args!(
        "{cpus} CPUs, {cpu_model}, Linux {kernel}; load average before {load}, after {}",
        machine::load()?
    ));
    Ok(outcomes.iter().all(|outcome| outcome.verdict() == Verdict::Pass))
}

/// Plays one drill on a cluster of its own. An error is an interruption alone; what goes wrong is in the outcome.
fn play(drill: &'static Drill, options: &Options, json: bool) -> Result<Outcome> {
    let started = Instant::now();
    let voice = Voice::new(json);
    voice.heading(format_args!("{}: {}", drill.name, drill.about));
    let outcome = Outcome {
        drill: drill.name,
        done: drill.done,
        expected: drill.expected,
        steps: Vec::new(),
        facts: Vec::new(),
        error: None,
        took: Duration::ZERO,
    };
    let mut outcome = match Stage::set(voice, &(drill.scene)(options)) {
        Err(error) => Outcome { error: Some(format!("{error:#}")), ..outcome },
        Ok(mut stage) => {
            let played = (drill.play)(&mut stage, options);
            let error = played.err().map(|error| format!("{error:#}"));
            let Stage { done, facts, .. } = stage;
            Outcome { steps: done, facts, error, ..outcome }
        }
    };
    interrupt::check()?;
    outcome.took = started.elapsed();
    let voice = Voice::new(json);
    voice.line(format_args!("\n{}", outcome.told()));
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_name_that_is_no_drill_is_refused_with_the_list() {
        let refused = Arguments::try_parse_from(["drover-drill", "earthquake"]).unwrap_err().to_string();
        assert!(drills::ALL.iter().all(|drill| refused.contains(drill.name)), "{refused}");
        assert!(Arguments::try_parse_from(["drover-drill", ALL]).is_ok());
    }
}
