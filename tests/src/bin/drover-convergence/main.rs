//! Measures how long a cluster takes to follow. Exits with 0 if every case came to its end; whether targets were met is
//! left to the reader.

#![expect(clippy::print_stderr, reason = "a command-line program talks to its user")]

mod case;
mod figures;
mod world;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use drover_tests::{Ensemble, Lab, interrupt};

use case::Bench;
use figures::Report;

/// Measures how long a cluster takes to follow: a change of weights, a broker's death, a leader's death, a node that
/// joins; and what ZooKeeper holds for it.
///
/// Three ZooKeeper servers run on one host of a network namespace, and all nodes in this process: they coordinate, decide
/// and build tables for real, and forward nothing. Since they share this machine's CPUs, which real nodes do not, each
/// table is built once for all of them, but in the case `join`. Probes ask a list in this process instead of brokers.
#[derive(Debug, Parser)]
#[command(name = "drover-convergence", version)]
struct Arguments {
    /// One JSON object a line on stdout instead of a table for people.
    #[arg(long)]
    json: bool,

    /// Few nodes and rounds: a first impression in under a minute.
    #[arg(long)]
    quick: bool,

    /// Sizes of the cluster [default: 1,3,16,64, quick: 1,3].
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=200))]
    nodes: Vec<u16>,

    /// Changes of weights per size [default: 100, quick: 5]; broker deaths are a fifth, leader deaths a twentieth of it.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,

    /// Only cases whose name contains this; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Runs one node on the ensemble at these servers until it is killed: what this program does to itself.
    #[arg(long, hide = true, value_name = "SERVERS")]
    victim: Option<String>,
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
    if let Some(servers) = &arguments.victim {
        return world::be_victim(servers);
    }
    let mut sizes = arguments.nodes.clone();
    if sizes.is_empty() {
        sizes = if arguments.quick { vec![1, 3] } else { vec![1, 3, 16, 64] };
    }
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { 5 } else { 100 });
    interrupt::listen()?;
    let mut report = Report::new(arguments.json);
    report.conditions(rounds)?;

    let mut cases: Vec<(String, Box<dyn Fn(&Bench) -> Result<figures::Figures>>)> = Vec::new();
    for &nodes in &sizes {
        cases.push((format!("apply/nodes={nodes}"), Box::new(move |bench| bench.apply(nodes, rounds))));
        let deaths = (rounds / 5).max(2);
        cases.push((
            format!("broker-death/nodes={nodes}"),
            Box::new(move |bench| bench.broker_death(nodes, deaths)),
        ));
        if nodes > 1 {
            let deaths = (rounds / 20).max(1);
            cases.push((
                format!("leader-failover/nodes={nodes}"),
                Box::new(move |bench| bench.leader_failover(nodes, deaths)),
            ));
        }
    }
    let joins = (rounds / 10).max(1);
    cases.push(("join/vips=100/reals=1000".into(), Box::new(move |bench| bench.join(joins))));
    for &nodes in sizes.iter().filter(|&&nodes| nodes >= 3) {
        cases.push((
            format!("footprint/vips=100/reals=1000/nodes={nodes}"),
            Box::new(move |bench| bench.footprint(nodes)),
        ));
    }
    cases.retain(|(name, _)| arguments.wants(name));
    ensure!(!cases.is_empty(), "no case has that in its name");

    for (number, (name, case)) in (1..).zip(&cases) {
        interrupt::check()?;
        report.progress(format_args!("case {number} of {}: {name}", cases.len()));
        // A tree of its own for each case.
        let lab = Lab::new()?;
        let host = lab.host("bench")?;
        let ensemble = Ensemble::on_one_host(&host, 3)?;
        let figures = case(&Bench { host: &host, ensemble: &ensemble })?;
        report.figures(name, &figures)?;
    }
    report.end()
}
