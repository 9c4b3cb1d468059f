//! Measures the data plane: nanoseconds per packet of the loaded XDP program, and packets per second through veth.
//! Exits with 0 if every packet was treated as it should; whether targets were met is left to the reader.

#![expect(clippy::print_stderr, reason = "a command-line program talks to its user")]

mod bed;
mod case;
mod conditions;
mod frame;
mod harness;
mod live;
mod measure;
mod report;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use drover_tests::{Lab, interrupt};

use bed::Bed;
use case::Case;
use conditions::Conditions;
use harness::Harness;
use measure::Series;
use report::Report;

/// Measures the data plane: nanoseconds per packet of the loaded XDP program, and packets per second through veth.
///
/// The kernel runs an entry program a million times (BPF_PROG_TEST_RUN); it restores the frame, makes it the next
/// flow's, and tail-calls the program under test. What the same takes with an empty program is subtracted. Every
/// figure is checked: frames byte by byte, counters packet by packet. Needs root; sends nothing outside its own
/// network namespaces.
#[derive(Debug, Parser)]
#[command(name = "drover-bench", version)]
struct Arguments {
    /// One JSON object a line on stdout instead of a table for people.
    #[arg(long)]
    json: bool,

    /// Fewer cases, rounds and packets: a first impression in some ten seconds.
    #[arg(long)]
    quick: bool,

    /// Only cases whose name contains this; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Times that each case is measured, all cases in turn [default: 5, quick: 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// Packets per measurement [default: 1000000, quick: 200000].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    packets: Option<u32>,

    /// The CPU to measure on [default: the last one].
    #[arg(long)]
    cpu: Option<usize>,

    /// List the cases and do nothing else.
    #[arg(long)]
    list: bool,
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text.as_str()))
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupt::requested() => {
            eprintln!("\nInterrupted: everything has been removed");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nThe benchmark failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut cases = Case::all(arguments.quick);
    cases.retain(|case| arguments.wants(&case.name));
    let live = live::CASES.iter().filter(|name| arguments.wants(name)).collect::<Vec<_>>();
    if arguments.list {
        let mut names = cases.iter().map(|case| case.name.as_str()).chain(live.into_iter().copied());
        return names.try_for_each(|name| report::line(format_args!("{name}")));
    }
    ensure!(!cases.is_empty() || !live.is_empty(), "no case has that in its name: --list names them all");
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { 3 } else { 5 });
    let packets = arguments.packets.unwrap_or(if arguments.quick { 200_000 } else { 1_000_000 });

    interrupt::listen()?;
    let cpu = conditions::pin(arguments.cpu)?;
    let conditions = Conditions::read(cpu, rounds, packets)?;
    let report = Report::new(arguments.json, rounds);
    report.conditions(&conditions)?;

    let lab = Lab::new()?;
    let mut harness = Harness::load()?;
    let mut beds = Vec::new();
    let mut series = Vec::new();
    // Cases of one bed and program follow one another, so that a round changes the maps as rarely as can be.
    cases.sort_by_key(|case| case.scenario);
    for case in cases {
        let vips = case.scenario.vips;
        if !beds.iter().any(|bed: &Bed| bed.vips() == vips) {
            beds.push(Bed::new(&lab, &format!("vips-{vips}"), vips)?);
        }
        series.push(Series::new(case));
    }
    for round in 1..=rounds {
        for (number, series) in (1..).zip(&mut series) {
            interrupt::check()?;
            report.progress(format_args!("round {round} of {rounds}, case {number}: {}", series.case.name));
            let vips = series.case.scenario.vips;
            if let Some(bed) = beds.iter_mut().find(|bed| bed.vips() == vips) {
                series.measure(bed, &mut harness, packets)?;
            }
        }
    }
    series.sort_by_key(|series| series.case.place);
    report.figures(&series)?;

    let mut results = Vec::new();
    for name in live {
        interrupt::check()?;
        report.progress(format_args!("{name}"));
        results.push(live::measure(&lab, &mut harness, name, rounds, packets)?);
    }
    report.live(&results)?;
    report.conditions_after()
}
