//! Shows Drover at work on hosts made of network namespaces: MQTT clients reach mosquitto brokers through VIPs while
//! leaders, brokers, servers of ZooKeeper and whole nodes die. Exits with 0 if all that was promised was seen.

#![expect(clippy::print_stderr, reason = "a command-line program talks to its user")]

mod broker_death;
mod clients;
mod cluster;
mod report;
mod standalone;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use drover_tests::{Lab, interrupt};

use report::Report;

/// Shows Drover at work: clients, a router, three load balancer nodes, three servers of ZooKeeper and three MQTT brokers,
/// in network namespaces of this machine.
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

    /// One node that reads its cluster from a file, without ZooKeeper: a smaller demo.
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

    if arguments.standalone {
        standalone::play(arguments.keep, &mut report)?;
    } else {
        cluster::play(arguments.keep, &mut report)?;
    }
    Ok(report.finish())
}
