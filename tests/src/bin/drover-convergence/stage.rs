//! What is measured: nodes without packets, each on a runtime of its own, and the ensemble that they share.

use policy::leader;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use coordination::zookeeper::{Options, ZooKeeper, ZooKeeperSession};
use coordination::{Change, Session as _, Store as _};
use drover_tests::{Ensemble, Host, Operator};
use health::scheduler::Probe;
use health::state::Outcome;
use health::{Key, Target};
use lb_node::cluster::agent::{ClusterView, MemberSettings};
use lb_node::cluster::simulated::SimulatedNode;
use lb_node::control::report::Report;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use zk_schema::tree::{Head, Member};
use zk_schema::{
    CheckKind, Cluster, ClusterSettings, Desired, FrontSettings, HealthCheck, NodeName, Protocol, Real,
    RealName, Vip, VipName, VipState,
};

use crate::log::{Event, Log, Order};
use crate::observed::Observed;

/// How long anything that is waited for may take, beyond what session timeouts explain.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// For how long nothing must happen until all is quiet.
const QUIET: Duration = Duration::from_millis(300);
/// How long nodes may take to leave at the end.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);
/// As nodes are shipped.
const REREAD: Duration = Duration::from_secs(45);

/// How a real is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// Its process is gone: connections are refused.
    Refuses,
    /// Its host is gone: nothing answers.
    Silent,
}

/// The reals that are dead.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dead(Arc<RwLock<BTreeMap<Key, Death>>>);

impl Dead {
    pub(crate) fn insert(&self, key: Key, death: Death) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, death);
    }

    pub(crate) fn clear(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Probe for Dead {
    async fn probe(&self, target: Arc<Target>) -> Outcome {
        let death = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&target.key()).copied();
        match death {
            None => Outcome::Success,
            Some(Death::Refuses) => Outcome::Failure("connection refused".to_owned()),
            Some(Death::Silent) => {
                tokio::time::sleep(Duration::from_millis(target.check.timeout_ms.into())).await;
                Outcome::Failure("no answer in time".to_owned())
            }
        }
    }
}

/// VIPs with as many reals each, no two of them alike, probed every `interval`.
pub(crate) fn desired(vips: usize, reals_each: usize, interval_ms: u32) -> Result<Desired> {
    let mut desired = Desired { cluster: Cluster::default(), vips: BTreeMap::new() };
    for vip in 0..vips {
        let [_, _, high, low] = u32::try_from(vip)?.to_be_bytes();
        let address = IpAddr::V4(Ipv4Addr::new(198, 18, high, low));
        let mut record = Vip::new(address, 1883, Protocol::Tcp);
        let mut check = HealthCheck::new(CheckKind::Tcp);
        (check.interval_ms, check.timeout_ms) = (interval_ms, interval_ms * 4 / 5);
        (check.healthy_threshold, check.unhealthy_threshold) = (2, 2);
        record.health = Some(check);
        let mut reals = BTreeMap::new();
        for real in 0..reals_each {
            let [_, high, middle, low] = u32::try_from(vip * reals_each + real)?.to_be_bytes();
            let name: RealName = format!("real-{vip}-{real}").parse()?;
            reals.insert(name, Real::new(IpAddr::V4(Ipv4Addr::new(10, high, middle, low))));
        }
        let name: VipName = format!("vip-{vip}").parse()?;
        desired.vips.insert(name, VipState { vip: record, reals });
    }
    Ok(desired)
}

/// A node and the runtime that it alone runs on, as a process would.
struct Running {
    runtime: Runtime,
    node: SimulatedNode,
}

/// A cluster in a subtree of its own.
pub(crate) struct Stage {
    host: Host,
    servers: String,
    session_timeout: Duration,
    pub(crate) log: Arc<Log>,
    pub(crate) dead: Dead,
    /// An operator's session, on a runtime that keeps it alive.
    operator: (Runtime, ZooKeeperSession),
    running: BTreeMap<usize, Running>,
    started: u64,
}

impl Stage {
    /// `nodes` nodes on the subtree `subtree`, which must be new, with `desired` in it; quiet.
    pub(crate) fn new(
        host: &Host,
        ensemble: &Ensemble,
        subtree: &str,
        desired: &Desired,
        nodes: usize,
        session_timeout: Duration,
    ) -> Result<Self> {
        Operator::new(host, &ensemble.connect_string())?.put(&format!("/{subtree}"), "")?;
        let servers = format!("{}/{subtree}", ensemble.connect_string());
        Operator::new(host, &servers)?.write(desired)?;
        let runtime = host.runtime(1)?;
        let store = ZooKeeper::new(Options::new(servers.clone()))?;
        let session = runtime.block_on(runtime.spawn(async move { store.connect().await }))??;
        let mut stage = Self {
            host: host.clone(),
            servers,
            session_timeout,
            log: Arc::default(),
            dead: Dead::default(),
            operator: (runtime, session),
            running: BTreeMap::new(),
            started: 0,
        };
        for node in 0..nodes {
            stage.start(node)?;
        }
        stage.wait_quiet()?;
        Ok(stage)
    }

    /// Writes a znode that is there, as an operator.
    pub(crate) fn edit(&self, path: String, data: Vec<u8>) -> Result<()> {
        let (runtime, session) = &self.operator;
        let session = session.clone();
        let change = Change::Set { path, data, version: None };
        Ok(runtime.block_on(runtime.spawn(async move { session.commit(vec![change]).await }))??)
    }

    /// A client of the ensemble in this subtree.
    pub(crate) fn store(&self) -> Result<ZooKeeper> {
        let mut options = Options::new(self.servers.clone());
        options.session_timeout = self.session_timeout;
        Ok(ZooKeeper::new(options)?)
    }

    /// What nodes go by as leaders.
    pub(crate) fn leader_settings(&self) -> leader::Timeouts {
        leader::Timeouts {
            session_timeout: self.session_timeout,
            ack_timeout: ClusterSettings::default().ack_timeout(),
            withdraw_after: FrontSettings::default().withdraw_after().unwrap_or_default(),
        }
    }

    /// Runs `work` where the ensemble can be reached.
    pub(crate) fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> Result<T> {
        self.host.block_on(work)
    }

    /// Starts a node, which knows nothing.
    pub(crate) fn start(&mut self, node: usize) -> Result<()> {
        self.started += 1;
        let runtime = self.host.runtime(1)?;
        let name: NodeName = format!("node-{node}").parse()?;
        let settings = MemberSettings {
            node: name,
            member: Member {
                instance: format!("instance-{}", self.started),
                boot: format!("boot-{node}"),
                source_v4: Some(Ipv4Addr::LOCALHOST),
                source_v6: None,
                admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
                software: env!("CARGO_PKG_VERSION").to_owned(),
                started: self.started,
                extra: Default::default(),
            },
            leader: self.leader_settings(),
            autonomy_after: ClusterSettings::default().autonomy_after(),
            reread: REREAD,
        };
        let store = Observed { inner: self.store()?, node, log: Arc::clone(&self.log) };
        self.log.enter(node);
        let context = runtime.enter();
        let simulated = SimulatedNode::start(store, settings, self.dead.clone(), self.started, None);
        observe(node, &simulated.learnt, simulated.report.clone(), &self.log);
        drop(context);
        self.running.insert(node, Running { runtime, node: simulated });
        Ok(())
    }

    /// Ends a node as `kill -9` does: its connection breaks, its session must expire.
    pub(crate) fn crash(&mut self, node: usize) -> Result<()> {
        self.log.leave(node);
        let running = self.running.remove(&node).with_context(|| format!("node {node} does not run"))?;
        // The runtime goes before the session does, so that nobody is left who could close that.
        running.runtime.shutdown_background();
        Ok(())
    }

    /// Ends a node as SIGTERM does.
    pub(crate) fn stop(&mut self, node: usize) -> Result<()> {
        self.log.leave(node);
        let running = self.running.remove(&node).with_context(|| format!("node {node} does not run"))?;
        running.runtime.block_on(running.node.stop());
        running.runtime.shutdown_background();
        Ok(())
    }

    /// The node that leads.
    pub(crate) fn leader(&self) -> Result<usize> {
        self.log.wait("a leader", LIMIT, |seen| {
            seen.nodes.iter().find(|(_, node)| node.leads).map(|(number, _)| *number)
        })
    }

    /// Waits until every node is there and has the last decision in force, every real its slots, and nothing is under way.
    pub(crate) fn wait_quiet(&self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let order = self.log.wait("all to be quiet", LIMIT, |seen| {
                let head = seen.head.as_ref()?;
                let is_settled = !head.settling
                    && head.lagging.is_empty()
                    && head.nodes.len() == seen.nodes.len()
                    && seen.nodes.values().all(|node| node.registered && node.applied == head.order())
                    && seen.assignments.values().all(|assignment| {
                        assignment.next.is_none() && assignment.weights.len() == assignment.reals.len()
                    });
                is_settled.then(|| head.order())
            })?;
            thread::sleep(QUIET);
            if self.log.look(|seen| seen.head.as_ref().map(Head::order)) == Some(order) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "decisions never end: the last one was {order:?}");
        }
    }
}

impl Drop for Stage {
    /// Ends all nodes at once, and closes their sessions, as far as that takes no more than a moment.
    fn drop(&mut self) {
        let running = std::mem::take(&mut self.running).into_values();
        let stopping: Vec<_> = running
            .map(|Running { runtime, node }| {
                let stopped = runtime.spawn(async { tokio::time::timeout(LEAVE_LIMIT, node.stop()).await });
                (runtime, stopped)
            })
            .collect();
        for (runtime, stopped) in stopping {
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        }
    }
}

/// Notes what a node learns and does. Within a runtime.
fn observe(node: usize, learnt: &ClusterView, report: watch::Receiver<Arc<Report>>, log: &Arc<Log>) {
    let (mut followed, mut leading, mut report) = (learnt.followed.clone(), learnt.leading.clone(), report);
    let of_head = Arc::clone(log);
    tokio::spawn(async move {
        let mut last = Order::default();
        while followed.changed().await.is_ok() {
            let order = followed.borrow_and_update().decided.as_ref().map(|decided| decided.head.order());
            if let Some(order) = order
                && order != last
            {
                last = order;
                of_head.note(Event::Knows { node, order, at: Instant::now() });
            }
        }
    });
    let of_leading = Arc::clone(log);
    tokio::spawn(async move {
        while leading.changed().await.is_ok() {
            let term = leading.borrow_and_update().term;
            of_leading.note(Event::Leads { node, term, at: Instant::now() });
        }
    });
    let of_report = Arc::clone(log);
    tokio::spawn(async move {
        let mut last = Order::default();
        while report.changed().await.is_ok() {
            let order = report.borrow_and_update().order;
            if let Some(order) = order
                && order != last
            {
                last = order;
                of_report.note(Event::Applied { node, order, at: Instant::now() });
            }
        }
    });
}
