//! Shows Drover at work on hosts made of network namespaces: MQTT clients reach mosquitto brokers through a VIP, a
//! broker dies and comes back, and only its own connections notice. Exits with 0 if all that was promised was seen.

#![expect(clippy::print_stderr, reason = "a command-line program talks to its user")]

mod act;
mod observe;
mod report;
mod stage;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use drover_tests::{Lab, interrupt};

use report::Report;
use stage::Stage;

/// Shows Drover at work: clients, a router, one load balancer node and three MQTT brokers, in network namespaces of
/// this machine.
///
/// Needs root. Sends no packet outside the namespaces, and removes them at the end.
#[derive(Debug, Parser)]
#[command(name = "drover-demo", version)]
struct Arguments {
    /// Leave everything standing at the end, and print how to enter each host.
    #[arg(long)]
    keep: bool,

    /// Remove what an earlier run with --keep left standing, and do nothing else.
    #[arg(long, conflicts_with = "keep")]
    remove: bool,

    /// One node that reads its cluster from a file, without ZooKeeper. The only form there is, and the default.
    #[arg(long)]
    standalone: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) if interrupt::requested() => {
            eprintln!("\nInterrupted: everything has been removed");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nThe demo could not go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all promises were kept.
fn run(arguments: &Arguments) -> Result<bool> {
    interrupt::listen()?;
    let mut report = Report::new();
    for lab in Lab::sweep()? {
        report.note(format_args!("removed {lab}, which a crashed run had left"));
    }
    for lab in Lab::kept()? {
        Lab::remove_kept(&lab)?;
        report.note(format_args!("removed {lab}, which an earlier run had kept"));
    }
    if arguments.remove {
        return Ok(true);
    }

    let mut stage = Stage::set(&mut report)?;
    let outcome = act::perform(&mut stage, &mut report);
    if arguments.keep && !interrupt::requested() {
        stage.keep(&mut report)?;
    }
    outcome?;
    Ok(report.finish())
}
