//! Measures table building: time, evenness, and slots moved against the theoretical minimum.
//!
//! Run it in a release build. `--json` prints one JSON object a line.

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use slot_table::flow::Seed;
use slot_table::maglev::{Real, TableSize, build, disruption};

const HELP: &str = "\
Measures the building of slot tables.

Usage: table-bench [--json]

  --json   print one JSON object a line instead of a table
  --help   print this

Cases:
  build/reals=N/m=M           time to build one table: median and minimum, milliseconds
  disruption/CHANGE/reals=N   slots moved when one real of N is removed, added or given 10 % more
                              weight, and the minimum that any table of the same shares has to
                              move; means over the number of trials given, each with another real
  shares/reals=N              the share farthest from what its weight asks for, in percent of that
Weights are equal, unless the case ends in weights=mixed (50 to 149).";

const SEED: Seed = Seed { k0: 0x6472_6f76_6572_2d62, k1: 0x656e_6368_2d73_6565 };
const REALS: [usize; 4] = [3, 10, 100, 1000];
const BUILDS: usize = 41;
const TRIALS: usize = 25;

fn main() -> ExitCode {
    let mut json = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--json" => json = true,
            "--help" | "-h" => {
                println!("{HELP}");
                return ExitCode::SUCCESS;
            }
            other => {
                println!("unknown argument `{other}`; see --help");
                return ExitCode::from(2);
            }
        }
    }
    match measure(json) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(_) => ExitCode::FAILURE,
    }
}

fn measure(json: bool) -> io::Result<()> {
    for size in [TableSize::DEFAULT, TableSize::LARGE] {
        for reals in REALS {
            report(json, &time_build(reals, size))?;
        }
    }
    for weights in [Weights::Equal, Weights::Mixed] {
        for reals in REALS {
            report(json, &worst_share(reals, weights))?;
        }
        for change in [Change::Remove, Change::Add, Change::Reweight] {
            for reals in REALS {
                report(json, &move_slots(change, reals, weights))?;
            }
        }
    }
    Ok(())
}

/// A case's name and its figures, each with its number of decimals.
struct Case {
    name: String,
    figures: Vec<(&'static str, f64, usize)>,
}

fn report(json: bool, case: &Case) -> io::Result<()> {
    let mut line = String::new();
    for (name, value, decimals) in &case.figures {
        // Writing to a String cannot fail.
        let _ = if json {
            write!(line, r#","{name}":{value:.decimals$}"#)
        } else {
            write!(line, "  {name} {value:>9.decimals$}")
        };
    }
    if json {
        writeln!(io::stdout(), r#"{{"bench":"table","case":"{}"{line}}}"#, case.name)
    } else {
        writeln!(io::stdout(), "{:<48}{line}", case.name)
    }
}

#[derive(Clone, Copy)]
enum Weights {
    Equal,
    Mixed,
}

impl Weights {
    fn of(self, index: usize) -> u16 {
        let step = match self {
            Self::Equal => 50,
            Self::Mixed => index * 37 % 100,
        };
        50 + u16::try_from(step).expect("below 100")
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Equal => "",
            Self::Mixed => "/weights=mixed",
        }
    }
}

#[derive(Clone, Copy)]
enum Change {
    Remove,
    Add,
    Reweight,
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("broker-{index}")).collect()
}

fn reals(names: &[String], weights: Weights) -> Vec<Real<'_>> {
    names.iter().enumerate().map(|(index, id)| Real { id, weight: weights.of(index) }).collect()
}

fn time_build(count: usize, size: TableSize) -> Case {
    let names = names(count);
    let reals = reals(&names, Weights::Equal);
    let mut times: Vec<f64> = (0..BUILDS)
        .map(|_| {
            let start = Instant::now();
            black_box(build(SEED, black_box(&reals), size).expect("valid reals"));
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    Case {
        name: format!("build/reals={count}/m={}", size.slots()),
        figures: vec![("ms_median", times[BUILDS / 2], 3), ("ms_min", times[0], 3)],
    }
}

fn worst_share(count: usize, weights: Weights) -> Case {
    let names = names(count);
    let reals = reals(&names, weights);
    let table = build(SEED, &reals, TableSize::DEFAULT).expect("valid reals");
    let total: f64 = reals.iter().map(|real| f64::from(real.weight)).sum();
    let slots = f64::from(TableSize::DEFAULT.slots());
    let error = |(real, share): (&Real<'_>, u32)| {
        let due = slots * f64::from(real.weight) / total;
        (f64::from(share) - due).abs() / due * 100.0
    };
    let worst = reals.iter().zip(table.shares()).map(error).fold(0.0, f64::max);
    Case {
        name: format!("shares/reals={count}{}", weights.suffix()),
        figures: vec![("worst_error_percent", worst, 3)],
    }
}

fn move_slots(change: Change, count: usize, weights: Weights) -> Case {
    // One name more than there are reals: the newcomer of `Add`.
    let names = names(count + 1);
    let with_newcomer = reals(&names, weights);
    let before = &with_newcomer[..count];
    let table = |reals: &[Real<'_>]| build(SEED, reals, TableSize::DEFAULT).expect("valid reals");
    let old = table(before);

    let trials = TRIALS.min(count);
    let (mut moved, mut minimum) = (0.0, 0.0);
    for trial in 0..trials {
        let which = trial * count / trials;
        let mut after = before.to_vec();
        let (old, new) = match change {
            Change::Remove => {
                after.remove(which);
                (old.clone(), table(&after))
            }
            Change::Add => {
                // Another newcomer each time, to the same number of reals.
                let mut fewer = with_newcomer.clone();
                fewer.remove(which);
                (table(&fewer), table(&with_newcomer))
            }
            Change::Reweight => {
                after[which].weight += after[which].weight / 10;
                (old.clone(), table(&after))
            }
        };
        let found = disruption(&old, &new);
        moved += f64::from(found.moved);
        minimum += f64::from(found.minimum);
    }
    let runs = trials as f64;
    let what = match change {
        Change::Remove => "remove",
        Change::Add => "add",
        Change::Reweight => "reweight",
    };
    Case {
        name: format!("disruption/{what}/reals={count}{}", weights.suffix()),
        figures: vec![
            ("moved", moved / runs, 1),
            ("minimum", minimum / runs, 1),
            ("ratio", moved / minimum, 3),
            ("trials", runs, 0),
        ],
    }
}
