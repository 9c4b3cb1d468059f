//! Nodes without packets, for simulations and benchmarks: everything that decides and coordinates is the real thing, only
//! the data plane takes notes instead of forwarding, and probes ask whoever made the node.

use super::agent::{Agent, ClusterView, MemberSettings};
use super::vote;
use crate::control::forwarding::{Forwarding, Shared};
use crate::control::report::Report;
use crate::control::{Control, Inputs, Outputs};
use crate::metrics::ControlMetrics;
use crate::status::Status;
use crate::wanted::keep_wanted;
use coordination::{Snapshots, Store};
use dataplane::attachment::Attachment;
use dataplane::compile::TableCache;
use dataplane::nexthop::NextHops;
use dataplane::program::Program;
use dataplane::{Applied, SelfTest, Start, Statistics};
use health::Key;
use health::scheduler::{self, Probe, Scheduler};
use policy::announce::{Announcer, Patience};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use zk_schema::tree::Decided;
use zk_schema::{Desired, VipName};

/// The report on each program that is applied.
type Hook = Box<dyn FnMut(&Program) + Send>;

/// A data plane that only takes notes.
#[derive(Default)]
pub struct Recorder {
    program: Option<Program>,
    applied: u64,
    on_apply: Option<Hook>,
    tables: Option<TableCache>,
}

impl Recorder {
    /// The program in force.
    #[must_use]
    pub fn program(&self) -> Option<&Program> {
        self.program.as_ref()
    }

    /// Returns the number of times that one was applied.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Has `hook` called with each program that is applied from now on.
    pub fn on_apply(&mut self, hook: impl FnMut(&Program) + Send + 'static) {
        self.on_apply = Some(Box::new(hook));
    }

    /// Has tables taken from `tables`, where other nodes' are.
    pub fn share_tables(&mut self, tables: TableCache) {
        self.tables = Some(tables);
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (program, applied) = (&self.program, &self.applied);
        formatter
            .debug_struct("Recorder")
            .field("program", program)
            .field("applied", applied)
            .finish_non_exhaustive()
    }
}

impl Forwarding for Recorder {
    type Error = Infallible;

    const BLOCKS: bool = false;

    fn apply(&mut self, program: &Program, _: &NextHops) -> Result<Applied, Infallible> {
        self.program = Some(program.clone());
        self.applied += 1;
        if let Some(hook) = &mut self.on_apply {
            hook(program);
        }
        Ok(Applied { tables: program.vips.len(), index: false, duration: Duration::ZERO })
    }

    fn apply_next_hops(&mut self, _: &NextHops) -> Result<(), Infallible> {
        Ok(())
    }

    fn unresolved(&self) -> BTreeSet<Key> {
        BTreeSet::new()
    }

    fn probe_marks(&self) -> BTreeMap<Key, u32> {
        let vips = self.program.iter().flat_map(|program| &program.vips);
        let keys =
            vips.flat_map(|(vip, state)| state.reals.iter().map(|real| (vip.clone(), real.name.clone())));
        keys.zip(1..).collect()
    }

    fn in_force(&self, _: &Desired) -> BTreeSet<Key> {
        BTreeSet::new()
    }

    fn statistics(&self) -> Result<Statistics, Infallible> {
        Ok(Statistics::default())
    }

    fn self_test(&mut self) -> SelfTest {
        SelfTest {
            tested: self.program.as_ref().map_or(0, |program| program.vips.len()),
            ..SelfTest::default()
        }
    }

    fn table_digests(&self, wanted: &dyn Fn(&VipName) -> bool) -> BTreeMap<VipName, u64> {
        let vips = self.program.iter().flat_map(|program| &program.vips);
        vips.filter(|(name, _)| wanted(name)).map(|(name, vip)| (name.clone(), vip.table.digest())).collect()
    }

    fn is_native(&self) -> bool {
        true
    }

    fn tables(&self) -> Option<TableCache> {
        self.tables.clone()
    }
}

/// A node that runs until it is dropped, which is a crash, or [stopped](Self::stop).
#[derive(Debug)]
pub struct SimulatedNode {
    /// Its knowledge from the tree.
    pub learnt: ClusterView,
    /// The state that it has in force.
    pub report: watch::Receiver<Arc<Report>>,
    /// Addresses that it would announce to routers.
    pub wanted: watch::Receiver<BTreeSet<IpAddr>>,
    /// The status that it would show.
    pub status: watch::Receiver<Arc<Status>>,
    /// The tables that it would forward by; empty until it has something to go by.
    pub dataplane: Shared<Recorder>,
    leave: Option<oneshot::Sender<()>>,
    agent: JoinHandle<()>,
    rest: JoinHandle<()>,
}

impl SimulatedNode {
    /// Starts a node on `store`, which probes by `probe` and whose probes' jitter comes from `seed`. It begins with
    /// `cached`, as a node does that finds that on its disk, and must be started within a tokio runtime.
    #[must_use]
    pub fn start<S: Store, P: Probe>(
        store: S,
        settings: MemberSettings,
        probe: P,
        seed: u64,
        cached: Option<Arc<Decided>>,
    ) -> Self {
        let (report, report_receiver) = watch::channel(Arc::<Report>::default());
        let (vote_sender, vote_receiver) = watch::channel(None);
        let (status, status_receiver) = watch::channel(Arc::default());
        let (announces, wanted_receiver) = watch::channel(BTreeSet::new());
        let name = settings.node.clone();
        let patience = Patience {
            behind: settings.leader.ack_timeout,
            standstill: Some(settings.leader.withdraw_after),
            autonomy: settings.autonomy_after,
        };
        let announcer = Announcer::new(name.clone(), patience, Duration::ZERO);
        let (agent, learnt) =
            Agent::new(store, settings, cached, None, report_receiver.clone(), vote_receiver);
        let (leave, left) = oneshot::channel::<()>();
        let agent = tokio::spawn(agent.run(async move {
            let _ = left.await;
        }));
        let dataplane: Shared<Recorder> = Arc::default();
        let rest = {
            let (learnt, dataplane, reports) =
                (learnt.clone(), Arc::clone(&dataplane), report_receiver.clone());
            async move {
                let mut followed = learnt.followed.clone();
                let first = followed.wait_for(|followed| followed.decided.is_some()).await;
                let Some(first) = first.ok().and_then(|first| first.decided.clone()) else { return };
                let snapshots = Snapshots::of_cluster(first);
                let (targets, targets_receiver) = watch::channel(Arc::<Vec<health::Target>>::default());
                let settings = scheduler::Options { probes_in_flight: 10_000, seed, ..Default::default() };
                let scheduler: Scheduler = scheduler::spawn(probe, targets_receiver.clone(), settings);
                let inputs = Inputs {
                    snapshots: snapshots.subscribe(),
                    verdicts: scheduler.verdicts(),
                    next_hops: watch::channel(Arc::default()).1,
                    mode: learnt.mode.clone(),
                    attachment: watch::channel(Attachment::default()).1,
                };
                let (wanted, _) = watch::channel(Arc::default());
                let outputs = Outputs {
                    targets,
                    wanted,
                    status,
                    report,
                    turned: watch::Sender::new(None),
                    exclusions: watch::Sender::default(),
                };
                let metrics = ControlMetrics::default();
                let in_force = BTreeSet::new();
                let control = Control::new(dataplane, Start::Fresh, in_force, Some(name), outputs, metrics);
                let follow = async {
                    while followed.changed().await.is_ok() {
                        let decided = followed.borrow_and_update().decided.clone();
                        if let Some(decided) = decided {
                            snapshots.follow(decided);
                        }
                    }
                    std::future::pending::<()>().await;
                };
                tokio::join!(
                    follow,
                    vote::follow(reports.clone(), targets_receiver, scheduler.verdicts(), vote_sender),
                    keep_wanted(announcer, reports, learnt, announces),
                    control.run(inputs, std::future::pending()),
                );
            }
        };
        let rest = tokio::spawn(rest);
        Self {
            learnt,
            report: report_receiver,
            wanted: wanted_receiver,
            status: status_receiver,
            dataplane,
            leave: Some(leave),
            agent,
            rest,
        }
    }

    /// Leaves the tree and ends, as on SIGTERM.
    pub async fn stop(mut self) {
        drop(self.leave.take());
        let _ = (&mut self.agent).await;
    }
}

impl Drop for SimulatedNode {
    fn drop(&mut self) {
        self.agent.abort();
        self.rest.abort();
    }
}
