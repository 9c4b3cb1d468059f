//! Measures a leader's turn: what it costs to look at the tree when nothing changed, and when one thing did.
//!
//! Run it in a release build. `--json` prints one JSON object a line.

use clap::Parser;
use policy::desk::Desk;
use policy::leader::{Leader, Published, Timeouts, View};
use policy::probers::probers;
use rustix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use zk_schema::Picture;
use zk_schema::tree::{
    Applied, Contents, Decision, Finding, Member, Mode, StateRecord as _, Target, Vote, Znode, paths,
};
use zk_schema::{
    CheckKind, Cluster, HealthCheck, NameError, NodeName, Protocol, Real, RealName, Vip, VipName, to_json,
};

/// Measures what a leader's turn costs, at 64 nodes. A leader takes a turn at every change of the tree and every 200 ms.
#[derive(Parser)]
#[command(
    name = "leader-bench",
    after_help = "\
Cases, each with vips=N/reals=M (reals of each VIP):
  idle          nothing changed since the last turn
  change-real   the turn that sees another weight in one real's record, and announces it
  change-vote   the turn that sees the vote by which a real is down, and takes it out of the table
  parse-all     reading the whole tree, as a new leader does once
Figures: median and maximum over the turns given, milliseconds of the thread's CPU time, so that what else the
machine does counts little. A turn goes from the tree in hand to the bytes to be written; what ZooKeeper takes is
measured by `cargo xtask bench convergence`."
)]
struct Args {
    /// Print one JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

const NODES: usize = 64;
const VIPS: usize = 100;
const REALS: [usize; 3] = [10, 100, 1000];
/// Turns without and with a change, and readings of the whole tree.
const IDLE: usize = 200;
const CHANGES: usize = 30;
const READINGS: usize = 5;
const SETTINGS: Timeouts = Timeouts {
    session_timeout: Duration::from_secs(6),
    ack_timeout: Duration::from_secs(3),
    withdraw_after: Duration::from_secs(10),
};
/// Turns after which nothing may be left to do.
const SETTLED: usize = 50;

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    match measure(Args::parse().json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // If whoever read the output is gone, nobody wants to know.
            let _ = writeln!(io::stderr(), "leader-bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(json: bool) -> Result<(), Failure> {
    for reals in REALS {
        let mut stage = Stage::new(reals)?;
        report(json, "idle", reals, repeated(IDLE, |_| stage.idle())?)?;
        report(json, "change-real", reals, repeated(CHANGES, |round| stage.change_real(round))?)?;
        report(json, "change-vote", reals, repeated(CHANGES, |round| stage.change_vote(round))?)?;
        report(json, "parse-all", reals, repeated(READINGS, |_| Ok(stage.parse_all()))?)?;
    }
    Ok(())
}

fn repeated(
    times: usize,
    mut turn: impl FnMut(usize) -> Result<Duration, Failure>,
) -> Result<Vec<f64>, Failure> {
    let mut taken =
        (0..times).map(|round| Ok(turn(round)?.as_secs_f64() * 1e3)).collect::<Result<Vec<_>, Failure>>()?;
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}

fn report(json: bool, case: &str, reals: usize, times: Vec<f64>) -> io::Result<()> {
    let case = format!("{case}/vips={VIPS}/reals={reals}");
    let figures = [("ms_median", times[times.len() / 2]), ("ms_max", times[times.len() - 1])];
    let mut line = String::new();
    for (name, value) in figures {
        // Writing to a String cannot fail.
        let _ = if json {
            write!(line, r#","{name}":{value:.3}"#)
        } else {
            write!(line, "  {name} {value:>9.3}")
        };
    }
    let turns = times.len();
    if json {
        writeln!(
            io::stdout(),
            r#"{{"bench":"leader","case":"{case}","nodes":{NODES}{line},"turns":{turns}}}"#
        )
    } else {
        writeln!(io::stdout(), "{case:<34}{line}  turns {turns:>4}")
    }
}

/// The records that a turn wrote.
struct Written {
    vips: usize,
    decisions: Vec<Decision>,
}

/// A leader and the tree that it sees, in which all is well.
struct Stage {
    desk: Desk,
    contents: Contents,
    now: Duration,
    nodes: BTreeSet<NodeName>,
    /// The reals that each node finds down.
    found: BTreeMap<NodeName, BTreeSet<Target>>,
    reals: usize,
}

impl Stage {
    fn new(reals: usize) -> Result<Self, Failure> {
        let nodes = (0..NODES).map(|node| name(&format!("lb-{node}"))).collect::<Result<BTreeSet<_>, _>>()?;
        let mut contents = Contents::of([]);
        put(&mut contents, paths::CLUSTER, to_json(&Cluster::default())?);
        for node in &nodes {
            let member = Member {
                instance: "1".to_owned(),
                boot: "1".to_owned(),
                source_v4: None,
                source_v6: None,
                admin: ([127, 0, 0, 1], 9090).into(),
                software: "1".to_owned(),
                started: 0,
                extra: Default::default(),
            };
            put(&mut contents, &paths::node(node), member.bytes()?);
        }
        for vip in 0..VIPS {
            let [_, high, low] = digits(vip);
            let mut record = Vip::new([198, 18, high, low].into(), 1883, Protocol::Tcp);
            record.health = Some(HealthCheck::new(CheckKind::Tcp));
            put(&mut contents, &paths::vip(&vip_name(vip)?), to_json(&record)?);
            for real in 0..reals {
                let [high, middle, low] = digits(vip * reals + real);
                let record = Real::new([10 + high, middle, low, 1].into());
                put(&mut contents, &paths::real(&vip_name(vip)?, &real_name(real)?), to_json(&record)?);
            }
        }
        let now = Duration::ZERO;
        let leader = Leader::new(1, SETTINGS, Published::default(), 0, now);
        let desk = Desk::new(leader, Arc::new(contents.clone()), BTreeSet::new(), 0, now);
        let mut stage = Self { desk, contents, now, nodes, found: BTreeMap::new(), reals };
        stage.settle()?;
        stage.now = Duration::from_secs(3600);
        stage.settle()?;
        let head = stage.desk.leader().in_force().head.as_ref().ok_or("there is no head")?;
        if head.settling || head.vips.len() != VIPS || !head.problems.is_empty() {
            return Err(format!("not all is well: {} VIPs, {:?}", head.vips.len(), head.problems).into());
        }
        if stage.desk.leader().in_force().assignments.values().any(|vip| vip.weights.len() != reals) {
            return Err("not every real is in its VIP's table".into());
        }
        Ok(stage)
    }

    /// Takes turns, with every node acknowledging, until there is nothing to do.
    fn settle(&mut self) -> Result<(), Failure> {
        for _ in 0..SETTLED {
            let (publication, _) = self.turn()?;
            if publication.is_none() {
                return Ok(());
            }
            self.acknowledge()?;
        }
        Err("the leader does not come to rest".into())
    }

    /// One turn of the leader's, with what it writes written, and how long the leader took.
    fn turn(&mut self) -> Result<(Option<Written>, Duration), Failure> {
        self.now += Duration::from_millis(200);
        let began = cpu_time();
        let seen = Arc::new(self.contents.clone());
        self.desk.look(&seen, 0, self.now);
        black_box(self.desk.long_gone(self.now));
        let Some(publication) = self.desk.decide(self.now)? else { return Ok((None, cpu_time() - began)) };
        let mut written = Vec::new();
        for vip in publication.changed.keys() {
            written.push((paths::assignment(vip), publication.records.get(vip).cloned()));
        }
        written.push((paths::ASSIGNMENTS.to_owned(), Some(publication.head.bytes()?)));
        let deciding = cpu_time() - began;
        let told = Written { vips: publication.changed.len(), decisions: publication.decisions.clone() };
        let began = cpu_time();
        self.desk.published(publication, self.now);
        let taken = deciding + (cpu_time() - began);
        for (path, data) in written {
            match data {
                Some(data) => put(&mut self.contents, &path, data),
                None => drop(self.contents.remove(&path)),
            }
        }
        Ok((Some(told), taken))
    }

    /// Every node has applied what is in force, and probes what that says.
    fn acknowledge(&mut self) -> Result<(), Failure> {
        let Some(head) = self.desk.leader().in_force().head.clone() else { return Ok(()) };
        for node in &self.nodes {
            let applied = Applied {
                term: head.term,
                epoch: head.epoch,
                digest: "0123456789abcdef".to_owned(),
                mode: Mode::Live,
                problem: None,
                announced: None,
                sources: Default::default(),
                boot: None,
                replaced: None,
                extra: Default::default(),
            };
            put(&mut self.contents, &paths::applied(node), applied.bytes()?);
            let finding = || Finding { since: 0, reason: "connection refused".to_owned() };
            let found = self.found.get(node).into_iter().flatten();
            let down = found.map(|target| (target.clone(), finding())).collect();
            let vote = Vote { targets: head.targets, down, ..Vote::default() };
            put(&mut self.contents, &paths::health(node), vote.bytes()?);
        }
        Ok(())
    }

    fn idle(&mut self) -> Result<Duration, Failure> {
        match self.turn()? {
            (None, taken) => Ok(taken),
            (Some(written), _) => Err(format!("not idle: {:?}", written.decisions).into()),
        }
    }

    fn change_real(&mut self, round: usize) -> Result<Duration, Failure> {
        let (vip, real) = (vip_name(round % VIPS)?, real_name(round % self.reals)?);
        let path = paths::real(&vip, &real);
        let znode = self.contents.get(&path).ok_or("no such real")?;
        let mut record: Real = zk_schema::from_json(&znode.data)?;
        record.weight += 1;
        put(&mut self.contents, &path, to_json(&record)?);
        let (written, taken) = self.turn()?;
        if written.is_none_or(|written| written.vips != 1) {
            return Err("one VIP changed, and another number was written".into());
        }
        self.acknowledge()?;
        self.settle()?;
        Ok(taken)
    }

    fn change_vote(&mut self, round: usize) -> Result<Duration, Failure> {
        let target = Target { vip: vip_name(round % VIPS)?, real: real_name(round % self.reals)? };
        let nodes: Vec<NodeName> = probers(&self.nodes, &target).into_iter().take(3).cloned().collect();
        let mut taken = Duration::ZERO;
        for (number, node) in nodes.iter().enumerate() {
            self.found.entry(node.clone()).or_default().insert(target.clone());
            self.acknowledge()?;
            let (publication, last) = self.turn()?;
            if publication.is_some() != (number + 1 == nodes.len()) {
                return Err("the third of five votes decides".into());
            }
            taken = last;
        }
        self.found.clear();
        self.acknowledge()?;
        self.settle()?;
        Ok(taken)
    }

    fn parse_all(&self) -> Duration {
        let seen = Arc::new(self.contents.clone());
        let began = cpu_time();
        black_box(View::of(&Picture::parse(&seen), 0));
        cpu_time() - began
    }
}

/// Returns the CPU time of this thread so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn name<T: FromStr<Err = NameError>>(text: &str) -> Result<T, NameError> {
    text.parse()
}

fn vip_name(number: usize) -> Result<VipName, NameError> {
    name(&format!("vip-{number}"))
}

fn real_name(number: usize) -> Result<RealName, NameError> {
    name(&format!("real-{number}"))
}

/// A number below 2^24 in three bytes.
fn digits(number: usize) -> [u8; 3] {
    let [.., high, middle, low] = number.to_be_bytes();
    [high, middle, low]
}

fn put(contents: &mut Contents, path: &str, data: Vec<u8>) {
    let there = contents.get(path);
    if there.is_some_and(|znode| znode.data == data) {
        return;
    }
    let version = there.map_or(0, |znode| znode.version + 1);
    let znode = Znode { data, version, created: 1, modified: version.into(), owner: None };
    contents.insert(path, Arc::new(znode));
}
