//! Measures how fast a cluster agrees: nodes without packets on a real ensemble of ZooKeeper servers. Exits with 0 if
//! everything came to pass; whether targets were met is left to the reader.

#![expect(clippy::print_stderr, reason = "a command-line program talks to its user")]

mod case;
mod figures;
mod footprint;
mod log;
mod observed;
mod report;
mod stage;

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use drover_tests::{Ensemble, Host, Lab, interrupt};

use case::Ending;
use footprint::Held;
use report::{Report, Target};
use stage::{Death, Stage};

/// Probes of a VIP whose reals die.
const PROBE_EVERY_MS: u32 = 500;
/// Reals of that VIP.
const REALS: usize = 10;
/// Probes where there are many reals; as shipped.
const PROBE_MANY_EVERY_MS: u32 = 2000;
/// Nodes that are there when one joins.
const RESIDENTS: usize = 3;

/// Measures how fast a cluster agrees.
///
/// Three ZooKeeper servers and all nodes share this machine. A node is the real one but for two things: its data plane only
/// takes notes (tables are built all the same), and its probes ask this program which reals are dead. Needs root; sends
/// nothing outside its own network namespace.
#[derive(Debug, Parser)]
#[command(name = "drover-convergence", version)]
struct Arguments {
    /// One JSON object a line on stdout instead of text for people.
    #[arg(long)]
    json: bool,

    /// Fewer nodes, rounds and VIPs, and short sessions: a first impression.
    #[arg(long)]
    quick: bool,

    /// Sizes of clusters [default: 1,3,16,64; quick: 1,3].
    #[arg(long, value_delimiter = ',', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    nodes: Vec<u16>,

    /// Weight changes per size; other cases have fewer rounds: deaths a fifth, joins a tenth, leaders' ends a
    /// twentieth [default: 100; quick: 5].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    rounds: Option<u16>,

    /// Session timeouts in milliseconds. All is measured with the first, leaders' ends with each [default: 6000,4000;
    /// quick: 2000].
    #[arg(long, value_delimiter = ',', value_name = "MS", value_parser = clap::value_parser!(u64).range(1000..=10_000))]
    session_ms: Vec<u64>,

    /// Only cases whose name contains this; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
}

/// What is to be measured.
struct Plan {
    nodes: Vec<usize>,
    rounds: usize,
    sessions_ms: Vec<u64>,
    only: Vec<String>,
    vips: usize,
    reals: usize,
    quick: bool,
}

impl Plan {
    fn new(arguments: &Arguments) -> Self {
        let quick = arguments.quick;
        let nodes: Vec<usize> = arguments.nodes.iter().map(|nodes| usize::from(*nodes)).collect();
        let usual: &[usize] = if quick { &[1, 3] } else { &[1, 3, 16, 64] };
        let sessions: &[u64] = if quick { &[2000] } else { &[6000, 4000] };
        Self {
            nodes: if nodes.is_empty() { usual.to_vec() } else { nodes },
            rounds: arguments.rounds.map_or(if quick { 5 } else { 100 }, usize::from),
            sessions_ms: match arguments.session_ms.is_empty() {
                true => sessions.to_vec(),
                false => arguments.session_ms.clone(),
            },
            only: arguments.only.clone(),
            vips: if quick { 5 } else { 100 },
            reals: if quick { 20 } else { 1000 },
            quick,
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text.as_str()))
    }

    fn rounds(&self, part: usize) -> usize {
        (self.rounds / part).max(1)
    }

    fn session(&self) -> Duration {
        Duration::from_millis(self.sessions_ms[0])
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
    let plan = Plan::new(arguments);
    let report = Report { json: arguments.json };
    interrupt::listen()?;
    let lab = Lab::new()?;
    let host = lab.host("cluster")?;
    report.progress(format_args!("starting three ZooKeeper servers"));
    let mut bench = Bench { ensemble: Ensemble::on_one_host(&host, 3)?, host, plan, report };
    let version = footprint::version(&bench.ensemble)?;
    bench.report.conditions(&version, bench.ensemble.len(), &bench.plan.sessions_ms)?;
    let mut measured = 0;
    for nodes in bench.plan.nodes.clone() {
        measured += bench.at_size(nodes)?;
    }
    measured += bench.at_scale()?;
    ensure!(measured > 0, "no case has that in its name: try `apply`, `death`, `failover`, `join`");
    bench.report.conditions_after()
}

struct Bench {
    ensemble: Ensemble,
    host: Host,
    plan: Plan,
    report: Report,
}

impl Bench {
    /// What depends on the number of nodes. Returns how many cases there were.
    fn at_size(&self, nodes: usize) -> Result<usize> {
        let plan = &self.plan;
        let mut measured = 0;
        let desired = stage::desired(1, REALS, PROBE_EVERY_MS)?;
        for (place, session) in plan.sessions_ms.iter().enumerate() {
            let apply = format!("apply/nodes={nodes}");
            let deaths = [Death::Refuses, Death::Silent].map(|death| {
                let silent = if death == Death::Silent { "/silent" } else { "" };
                (death, format!("broker-death/nodes={nodes}{silent}"))
            });
            let endings = [(Ending::Crash, "crash"), (Ending::Stop, "stop")].map(|(ending, word)| {
                (ending, format!("leader-failover/nodes={nodes}/session={session}ms/{word}"))
            });
            let is_first = place == 0;
            let wants_apply = is_first && plan.wants(&apply);
            let deaths: Vec<_> =
                deaths.into_iter().filter(|(_, name)| is_first && plan.wants(name)).collect();
            let endings: Vec<_> =
                endings.into_iter().filter(|(_, name)| nodes > 1 && plan.wants(name)).collect();
            if !wants_apply && deaths.is_empty() && endings.is_empty() {
                continue;
            }
            self.report.progress(format_args!("starting nodes: {nodes}, sessions of {session} ms"));
            let mut stage = Stage::new(
                &self.host,
                &self.ensemble,
                &format!("nodes-{nodes}-{session}"),
                &desired,
                nodes,
                Duration::from_millis(*session),
            )?;
            if wants_apply {
                self.report.progress(format_args!("{apply}"));
                let figures = case::apply(&stage, &desired, plan.rounds(1))?;
                self.report.case(&apply, &figures, &[Target { figure: "p99_ms", most: 250.0 }])?;
                measured += 1;
            }
            for (death, name) in deaths {
                self.report.progress(format_args!("{name}"));
                let figures = case::broker_death(&stage, &desired, nodes, death, plan.rounds(5))?;
                let targets = [
                    Target { figure: "p99_ms", most: 2000.0 },
                    Target { figure: "rest_p99_ms", most: 300.0 },
                ];
                self.report.case(&name, &figures, &targets)?;
                measured += 1;
            }
            for (ending, name) in endings {
                self.report.progress(format_args!("{name}"));
                let figures = case::leader_failover(&mut stage, ending, plan.rounds(20))?;
                self.report.case(&name, &figures, &[])?;
                measured += 1;
            }
        }
        Ok(measured)
    }

    /// What depends on the number of VIPs and reals. Returns how many cases there were.
    fn at_scale(&mut self) -> Result<usize> {
        let Plan { vips, reals, .. } = self.plan;
        let size = format!("vips={vips}/reals={reals}");
        let (join, decide) = (format!("join/{size}"), format!("decide/{size}"));
        let desired = stage::desired(vips, reals / vips, PROBE_MANY_EVERY_MS)?;
        let mut sizes = vec![RESIDENTS];
        sizes.extend(self.plan.nodes.iter().max().filter(|most| **most > RESIDENTS));
        let mut measured = 0;
        for nodes in sizes {
            let footprint = format!("footprint/{size}/nodes={nodes}");
            let wanted = |name: &str| nodes == RESIDENTS && self.plan.wants(name);
            let (wants_join, wants_decide) = (wanted(&join), wanted(&decide));
            if !wants_join && !wants_decide && !self.plan.wants(&footprint) {
                continue;
            }
            if !self.plan.quick {
                thread::sleep(footprint::LAG);
            }
            let before = Held::now(&self.ensemble)?;
            self.report.progress(format_args!("starting nodes: {nodes}; {size}"));
            let subtree = format!("scale-{nodes}");
            let session = self.plan.session();
            let mut stage = Stage::new(&self.host, &self.ensemble, &subtree, &desired, nodes, session)?;
            if self.plan.wants(&footprint) {
                let figures = footprint::measure(&stage, &mut self.ensemble, before)?;
                self.report.case(&footprint, &figures, &[])?;
                measured += 1;
            }
            if wants_decide {
                self.report.progress(format_args!("{decide}"));
                let figures = case::decide(&stage, self.plan.rounds(1))?;
                self.report.case(&decide, &figures, &[])?;
                measured += 1;
            }
            if wants_join {
                self.report.progress(format_args!("{join}"));
                let figures = case::join(&mut stage, nodes, self.plan.rounds(10))?;
                self.report.case(&join, &figures, &[Target { figure: "p99_ms", most: 3000.0 }])?;
                measured += 1;
            }
        }
        Ok(measured)
    }
}
