//! Nodes in this process, and an operator.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use coordination::zookeeper::{Options, ZooKeeper, ZooKeeperSession};
use coordination::{Change, Session as _, Store as _, setup};
use lb_node::cluster::agent::Settings;
use lb_node::cluster::lead::Written;
use lb_node::cluster::leader;
use lb_node::cluster::simulated::SimulatedNode;
use lb_node::compile::TableCache;
use lb_node::health::Target;
use lb_node::health::scheduler::Probe;
use lb_node::health::state::Outcome;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use zk_schema::tree::{Member, StateRecord as _, Vote, paths};
use zk_schema::{CheckKind, Desired, HealthCheck, Protocol, Real, RealName, Vip, VipName, VipState, to_json};

/// The nodes' session timeout: what a node file has by default.
pub(crate) const SESSION: Duration = Duration::from_secs(6);
/// The longest that anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// Probes of reals, in milliseconds.
const PROBE_INTERVAL: u32 = 500;
const PROBE_TIMEOUT: u32 = 400;
const UNHEALTHY_AFTER: u32 = 2;

/// Reals that are dead.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dead(Arc<Mutex<BTreeSet<RealName>>>);

impl Dead {
    pub(crate) fn set(&self, real: &RealName, dead: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if dead {
            all.insert(real.clone());
        } else {
            all.remove(real);
        }
    }
}

impl Probe for Dead {
    async fn probe(&self, target: Arc<Target>) -> Outcome {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&target.real) {
            true => Outcome::Failure("connection refused".into()),
            false => Outcome::Success,
        }
    }
}

pub(crate) fn name<T: std::str::FromStr<Err = zk_schema::NameError>>(text: &str) -> T {
    text.parse().expect("a name of this benchmark's is one")
}

/// VIPs of ten reals each, or fewer, checked every 500 ms.
pub(crate) fn desired(vips: u8, reals: u8) -> Desired {
    let mut check = HealthCheck::new(CheckKind::Tcp);
    (check.interval_ms, check.timeout_ms) = (PROBE_INTERVAL, PROBE_TIMEOUT);
    check.unhealthy_threshold = UNHEALTHY_AFTER;
    let mut desired = Desired::default();
    for vip in 1..=vips {
        let mut record = Vip::new([198, 51, 100, vip].into(), 1883, Protocol::Tcp);
        record.health = Some(check.clone());
        let reals = (1..=reals).map(|real| (real_name(vip, real), Real::new([10, 9, vip, real].into())));
        desired.vips.insert(vip_name(vip), VipState { vip: record, reals: reals.collect() });
    }
    desired
}

pub(crate) fn vip_name(vip: u8) -> VipName {
    name(&format!("vip-{vip}"))
}

pub(crate) fn real_name(vip: u8, real: u8) -> RealName {
    name(&format!("real-{vip}-{real}"))
}

/// A node's settings.
pub(crate) fn settings(node: &str) -> Settings {
    let instance = format!("{:016x}", u64::from(std::process::id()) << 32 | u64::from(crc(node)));
    Settings {
        node: name(node),
        member: Member {
            boot: format!("bench/{node}"),
            instance,
            source_v4: None,
            source_v6: None,
            admin: ([127, 0, 0, 1], 9940).into(),
            software: env!("CARGO_PKG_VERSION").into(),
            started: 0,
            extra: Default::default(),
        },
        leader: leader::Settings { session_timeout: SESSION, ack_timeout: Duration::from_secs(3) },
        autonomy_after: Duration::from_secs(10),
        reread: Duration::from_secs(45),
    }
}

fn crc(text: &str) -> u32 {
    text.bytes().fold(17, |sum: u32, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
}

pub(crate) fn store(servers: &str) -> Result<ZooKeeper> {
    let mut options = Options::new(servers);
    options.session_timeout = SESSION;
    Ok(ZooKeeper::new(options)?)
}

/// When something of an epoch was first seen at a node.
type Log = Arc<Mutex<BTreeMap<u64, Instant>>>;

/// A node, and when it had what.
pub(crate) struct Node {
    pub(crate) inner: SimulatedNode,
    applied: Log,
    /// When its vote first named each real as down, since that was last forgotten.
    found_down: Arc<Mutex<BTreeMap<RealName, Instant>>>,
    written: Arc<Mutex<Vec<Written>>>,
    _tasks: JoinSet<()>,
}

impl Node {
    /// Starts a node. Those that share `tables` build each but once.
    pub(crate) fn start(store: &ZooKeeper, node: &str, dead: &Dead, tables: Option<&TableCache>) -> Self {
        let inner = SimulatedNode::start(store.clone(), settings(node), dead.clone(), crc(node).into(), None);
        if let Some(tables) = tables {
            let mut dataplane = inner.dataplane.lock().unwrap_or_else(PoisonError::into_inner);
            dataplane.share_tables(tables.clone());
        }
        let (applied, found_down, written) = (Log::default(), Arc::default(), Arc::default());
        let mut tasks = JoinSet::new();
        {
            let (mut report, log) = (inner.report.clone(), Arc::clone(&applied));
            tasks.spawn(async move {
                while report.changed().await.is_ok() {
                    let order = report.borrow_and_update().order;
                    if let Some((_, epoch)) = order {
                        lock(&log).entry(epoch).or_insert_with(Instant::now);
                    }
                }
            });
        }
        {
            let (mut vote, log): (_, Arc<Mutex<BTreeMap<RealName, Instant>>>) =
                (inner.vote.clone(), Arc::clone(&found_down));
            tasks.spawn(async move {
                while vote.changed().await.is_ok() {
                    let bytes = vote.borrow_and_update().clone().unwrap_or_default();
                    let Ok(vote) = Vote::parse(&bytes) else { continue };
                    for target in vote.down.into_keys() {
                        lock(&log).entry(target.real).or_insert_with(Instant::now);
                    }
                }
            });
        }
        {
            let (mut leading, log): (_, Arc<Mutex<Vec<Written>>>) =
                (inner.learnt.leading.clone(), Arc::clone(&written));
            tasks.spawn(async move {
                while leading.changed().await.is_ok() {
                    let written = leading.borrow_and_update().written;
                    if let Some(written) = written {
                        lock(&log).push(written);
                    }
                }
            });
        }
        Self { inner, applied, found_down, written, _tasks: tasks }
    }

    /// When it had `epoch`, or one after it, in force.
    pub(crate) fn applied_at(&self, epoch: u64) -> Option<Instant> {
        lock(&self.applied).range(epoch..).next().map(|(_, at)| *at)
    }

    /// When its vote named the real as down.
    pub(crate) fn found_down_at(&self, real: &RealName) -> Option<Instant> {
        lock(&self.found_down).get(real).copied()
    }

    pub(crate) fn forget_findings(&self) {
        lock(&self.found_down).clear();
    }

    /// What it wrote as a leader since `since`.
    pub(crate) fn written_since(&self, since: Instant) -> Vec<Written> {
        lock(&self.written).iter().filter(|written| written.begun >= since).copied().collect()
    }

    pub(crate) fn leads(&self) -> bool {
        self.inner.learnt.leading.borrow().term.is_some()
    }

    /// Whether the real holds slots at this node.
    pub(crate) fn weight(&self, vip: &VipName, real: &RealName) -> Option<u16> {
        let dataplane = self.inner.dataplane.lock().unwrap_or_else(PoisonError::into_inner);
        let state = dataplane.program()?.vips.get(vip)?;
        state.reals.iter().find(|found| found.name == *real).map(|found| found.weight)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `ready` says something.
pub(crate) async fn until<T>(what: &str, mut ready: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let wait = async {
        loop {
            if let Some(value) = ready().await {
                return value;
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, wait).await.with_context(|| format!("waited {LIMIT:?} in vain: {what}"))
}

/// An operator.
pub(crate) struct Operator(ZooKeeperSession);

impl Operator {
    pub(crate) async fn new(store: &ZooKeeper, desired: &Desired) -> Result<Self> {
        let session = store.connect().await?;
        setup::init(&session, &desired.cluster).await?;
        setup::write_desired(&session, desired).await?;
        Ok(Self(session))
    }

    pub(crate) async fn set_weight(&self, vip: u8, real: u8, weight: u16) -> Result<()> {
        let mut record = Real::new([10, 9, vip, real].into());
        record.weight = weight;
        let path = paths::real(&vip_name(vip), &real_name(vip, real));
        let data = to_json(&record).context("a record of this benchmark's is one")?;
        Ok(self.0.commit(vec![Change::Set { path, data, version: None }]).await?)
    }

    pub(crate) async fn nodes(&self) -> Result<BTreeSet<String>> {
        Ok(self.0.children(paths::NODES).await?.unwrap_or_default().into_iter().collect())
    }

    pub(crate) async fn leave(self) {
        self.0.close().await;
    }
}

/// Runs a node until this process is killed, as it will be.
pub(crate) fn be_victim(servers: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let node = Node::start(&store(servers)?, "victim", &Dead::default(), None);
        until("leading", async || node.leads().then_some(())).await?;
        // Whoever made this process is to see that: one line.
        println!("leads");
        std::future::pending().await
    })
}
