//! A cluster in this process: nodes on a store, reals that die on command, and an operator.

use coordination::memory::{MemoryClient, MemoryStore};
use coordination::setup::{init, write_desired};
use coordination::{Change, Error, Session as _, Store as _};
use dataplane::compile::TableCache;
use dataplane::program::Program;
use health::Target;
use health::scheduler::Probe;
use health::state::Outcome;
use lb_node::cluster::agent::MemberSettings;
use lb_node::cluster::history;
use lb_node::cluster::simulated::SimulatedNode;
use policy::leader;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;
use zk_schema::tree::{Decided, Head, Member, Mode, StateRecord as _, paths};
use zk_schema::{
    CheckKind, Cluster, Desired, HealthCheck, NodeName, Protocol, Real, RealName, Vip, VipName, VipState,
};

/// How long servers keep a session that is silent.
pub(crate) const SESSION: Duration = Duration::from_secs(4);
/// How long a leader waits for acknowledgements.
pub(crate) const ACK: Duration = Duration::from_secs(3);
/// How long a node that is cut off is waited for.
const WITHDRAW: Duration = Duration::from_secs(10);
/// Cut off for longer, a node goes by its own probes.
pub(crate) const AUTONOMY: Duration = Duration::from_secs(10);
/// How often everything is read again.
pub(crate) const REREAD: Duration = Duration::from_secs(20);

/// Which reals answer whom.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// Reals that refuse everybody.
    pub(crate) down: BTreeSet<RealName>,
    /// Nodes that no real answers.
    pub(crate) wrong: BTreeSet<NodeName>,
}

/// Probes of one node.
struct Prober {
    node: NodeName,
    truth: Arc<Mutex<Truth>>,
}

impl Probe for Prober {
    async fn probe(&self, target: Arc<Target>) -> Outcome {
        tokio::time::sleep(Duration::from_millis(3)).await;
        let truth = lock(&self.truth);
        match truth.wrong.contains(&self.node) || truth.down.contains(&target.real) {
            true => Outcome::Failure("connection refused".to_owned()),
            false => Outcome::Success,
        }
    }
}

/// A machine that a node runs on, or not.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Its link.
    pub(crate) client: MemoryClient,
    /// The node, while it runs.
    pub(crate) node: Option<SimulatedNode>,
    /// What is on its disk.
    pub(crate) cached: Option<Arc<Decided>>,
    /// How often a node has started on it.
    pub(crate) starts: u64,
    /// True if the node began with what was on the disk.
    pub(crate) keeps: bool,
}

/// A program that a node put in force.
#[derive(Clone, Debug)]
pub(crate) struct Apply {
    /// When.
    pub(crate) at: Instant,
    /// Which node.
    pub(crate) node: NodeName,
    /// The how manieth start of it.
    pub(crate) start: u64,
    /// What.
    pub(crate) program: Program,
}

/// The cluster.
pub(crate) struct World {
    /// The ensemble.
    pub(crate) store: MemoryStore,
    /// The reals.
    pub(crate) truth: Arc<Mutex<Truth>>,
    /// The machines.
    pub(crate) machines: BTreeMap<NodeName, Machine>,
    /// What operators want.
    pub(crate) wanted: Desired,
    /// What nodes applied that nobody has taken yet.
    pub(crate) applies: Arc<Mutex<Vec<Apply>>>,
    tables: TableCache,
    seed: u64,
}

/// A name that is one.
pub(crate) fn name<T: std::str::FromStr<Err = zk_schema::NameError>>(text: &str) -> T {
    text.parse().expect("a valid name")
}

/// Nothing panics while it holds a lock here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panicked")
}

/// The record of a VIP of this number, probed often.
pub(crate) fn vip(number: u8) -> Vip {
    let mut vip = Vip::new([198, 51, 100, number].into(), 1883, Protocol::Tcp);
    let mut check = HealthCheck::new(CheckKind::Tcp);
    (check.interval_ms, check.timeout_ms) = (1500, 500);
    (check.healthy_threshold, check.unhealthy_threshold) = (2, 2);
    vip.health = Some(check);
    vip
}

/// A VIP's name.
pub(crate) fn vip_name(number: u8) -> VipName {
    name(&format!("vip-{number}"))
}

/// A real's name.
pub(crate) fn real_name(number: u8) -> RealName {
    name(&format!("real-{number}"))
}

/// A real's record.
pub(crate) fn real(number: u8, weight: u16) -> Real {
    let mut real = Real::new([10, 0, 2, number].into());
    real.weight = weight;
    real
}

/// A VIP with these reals, each of weight 100.
pub(crate) fn vip_state(number: u8, reals: impl IntoIterator<Item = u8>) -> VipState {
    let reals = reals.into_iter().map(|number| (real_name(number), real(number, 100)));
    VipState { vip: vip(number), reals: reals.collect() }
}

impl World {
    /// A tree with these VIPs, and this many nodes that start.
    pub(crate) async fn new(
        nodes: u8,
        vips: BTreeMap<VipName, VipState>,
        seed: u64,
        tables: TableCache,
    ) -> Self {
        let store = MemoryStore::new().with_session_timeout(SESSION);
        store.journal();
        let wanted = Desired { cluster: Cluster::default(), vips };
        let operator = store.client("operator").connect().await.expect("the store runs");
        init(&operator, &wanted.cluster).await.expect("the record is right");
        write_desired(&operator, &wanted).await.expect("the records are right");
        operator.close().await;
        let mut world = Self {
            store,
            truth: Arc::default(),
            machines: BTreeMap::new(),
            wanted,
            applies: Arc::default(),
            tables,
            seed,
        };
        for number in 1..=nodes {
            let node: NodeName = name(&format!("lb-{number}"));
            let client = world.store.client(node.as_str());
            world
                .machines
                .insert(node.clone(), Machine { client, node: None, cached: None, starts: 0, keeps: false });
            world.start(&node);
        }
        world
    }

    /// Starts a node with what is on its machine's disk.
    pub(crate) fn start(&mut self, node: &NodeName) {
        let machine = self.machines.get_mut(node).expect("there is such a machine");
        machine.starts += 1;
        machine.keeps = machine.cached.is_some();
        let start = machine.starts;
        let settings = MemberSettings {
            node: node.clone(),
            member: Member {
                instance: format!("{node}x{start}"),
                boot: format!("boot-of-{node}"),
                source_v4: None,
                source_v6: None,
                admin: ([127, 0, 0, 1], 8080).into(),
                software: "simulated".to_owned(),
                started: 0,
                extra: Default::default(),
            },
            leader: leader::Timeouts { session_timeout: SESSION, ack_timeout: ACK, withdraw_after: WITHDRAW },
            autonomy_after: AUTONOMY,
            reread: REREAD,
        };
        let prober = Prober { node: node.clone(), truth: Arc::clone(&self.truth) };
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ start << 8
            ^ node.as_str().bytes().fold(0, |sum, byte| sum * 31 + u64::from(byte));
        let running =
            SimulatedNode::start(machine.client.clone(), settings, prober, seed, machine.cached.clone());
        let (applies, node) = (Arc::clone(&self.applies), node.clone());
        {
            let mut recorder = running.dataplane.lock().expect("nobody panicked");
            recorder.share_tables(self.tables.clone());
            recorder.on_apply(move |program| {
                let (node, program) = (node.clone(), program.clone());
                lock(&applies).push(Apply { at: Instant::now(), node, start, program });
            });
        }
        machine.node = Some(running);
    }

    /// Takes a node's process away. What it decided by last is on its disk.
    pub(crate) fn crash(&mut self, node: &NodeName) {
        let machine = self.machines.get_mut(node).expect("there is such a machine");
        if let Some(running) = machine.node.take() {
            let decided = running.learnt.followed.borrow().decided.clone();
            machine.cached = decided.or(machine.cached.take());
        }
    }

    /// Ends a node in an orderly way.
    pub(crate) async fn stop(&mut self, node: &NodeName) {
        let machine = self.machines.get_mut(node).expect("there is such a machine");
        if let Some(running) = machine.node.take() {
            let decided = running.learnt.followed.borrow().decided.clone();
            machine.cached = decided.or(machine.cached.take());
            running.stop().await;
        }
    }

    /// The nodes that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = (&NodeName, &SimulatedNode)> {
        self.machines.iter().filter_map(|(name, machine)| Some((name, machine.node.as_ref()?)))
    }

    /// Has an operator write.
    pub(crate) async fn operate(&self, changes: Vec<Change>) -> Result<(), Error> {
        let operator = self.store.client("operator").connect().await?;
        let outcome = operator.commit(changes).await;
        operator.close().await;
        outcome
    }

    /// Has an operator write VIPs and reals as they are wanted, over whatever is there.
    pub(crate) async fn write_wanted(&self) {
        let operator = self.store.client("operator").connect().await.expect("the store runs");
        write_desired(&operator, &self.wanted).await.expect("the records are right");
        operator.close().await;
    }

    /// The head in the tree.
    pub(crate) fn head(&self) -> Option<Head> {
        Head::parse(&self.store.dump().get(paths::ASSIGNMENTS)?.data).ok()
    }

    /// What each VIP's weights are to be when all is well: those of the reals that are up.
    pub(crate) fn expected(&self) -> BTreeMap<VipName, BTreeMap<RealName, u16>> {
        let truth = lock(&self.truth);
        let of_vip = |state: &VipState| {
            let used =
                state.reals.iter().filter(|(name, real)| real.weight > 0 && !truth.down.contains(*name));
            used.map(|(name, real)| (name.clone(), real.weight)).collect()
        };
        self.wanted.vips.iter().map(|(name, state)| (name.clone(), of_vip(state))).collect()
    }

    /// Why the cluster is not at rest with what is wanted, if so.
    pub(crate) fn unrest(&self) -> Result<(), String> {
        let head = self.head().ok_or("there is no head")?;
        if head.settling || !head.lagging.is_empty() || !head.problems.is_empty() {
            return Err(format!(
                "head {:?}: settling {}, lagging {:?}, problems {:?}",
                head.order(),
                head.settling,
                head.lagging,
                head.problems
            ));
        }
        let expected = self.expected();
        let running: BTreeSet<NodeName> = self.running().map(|(name, _)| name.clone()).collect();
        if head.nodes != running {
            return Err(format!("the head's nodes are {:?}, there are {running:?}", head.nodes));
        }
        let leaders = self.running().filter_map(|(name, node)| {
            node.learnt.leading.borrow().term.map(|term| (name.to_string(), term))
        });
        let leaders: Vec<_> = leaders.collect();
        if leaders.len() != 1 || leaders[0].1 != head.term {
            return Err(format!("{leaders:?} lead, the head's term is {}", head.term));
        }
        let events = self.store.dump().into_keys().filter(|path| path.starts_with(&paths::event(0)[..15]));
        let events = events.filter(|path| !path.ends_with("-notes")).count();
        if events > history::MOST {
            return Err(format!("{events} events are kept"));
        }
        let mut digests = BTreeSet::new();
        for (name, node) in self.running() {
            let report = node.report.borrow().clone();
            if report.order != Some(head.order()) || report.mode != Mode::Live || report.problem.is_some() {
                return Err(format!(
                    "{name} has {:?} in force ({:?}, {:?}), the head is {:?}; {:?}",
                    report.order,
                    report.mode,
                    report.problem,
                    head.order(),
                    node.learnt.followed.borrow().problem
                ));
            }
            digests.insert(report.digest.clone());
            let followed = node.learnt.followed.borrow();
            if followed.problem.is_some() || !followed.current {
                return Err(format!("{name}: {:?}, current {}", followed.problem, followed.current));
            }
            let recorder = node.dataplane.lock().expect("nobody panicked");
            let program = recorder.program().ok_or_else(|| format!("{name} has no program"))?;
            let in_force: BTreeMap<_, _> =
                program.vips.iter().map(|(vip, program)| (vip.clone(), members(program))).collect();
            if in_force != expected {
                return Err(format!("{name} has {in_force:?} in force, wanted is {expected:?}"));
            }
        }
        match digests.len() {
            0 | 1 => Ok(()),
            _ => Err(format!("nodes have different tables: {digests:?}")),
        }
    }

    /// Waits until the cluster is at rest.
    pub(crate) async fn rest_within(&self, limit: Duration) -> Result<Duration, String> {
        let start = Instant::now();
        loop {
            match self.unrest() {
                Ok(()) => return Ok(start.elapsed()),
                Err(unrest) if start.elapsed() >= limit => return Err(unrest),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// The reals that have slots, with their weights.
pub(crate) fn members(vip: &dataplane::program::VipProgram) -> BTreeMap<RealName, u16> {
    let members = vip.reals.iter().filter(|real| real.weight > 0);
    members.map(|real| (real.name.clone(), real.weight)).collect()
}
