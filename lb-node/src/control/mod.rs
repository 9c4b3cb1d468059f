//! The loop that keeps the data plane what the desired state, the verdicts and the network say it should be.
//!
//! It never reacts to an event: whatever woke it, it takes the newest snapshot, verdicts and next hops, decides
//! ([`policy`]), compiles ([`crate::compile`]) and applies what differs from what is in force.
//!
//! The boot of a node, whose probes go through the maps that they are to fill:
//!
//! 1. What a predecessor left in force counts as in force, and its reals as up until proven down. If its maps are
//!    being replaced and nothing can be read from them, all reals do.
//! 2. The first program is applied. On a fresh start at once, so that reals can be probed: tables are empty where
//!    nothing is known, and packets are dropped rather than answered with a reset by a host that is no broker.
//!    After a predecessor, which is still forwarding, it waits up to a second for the reals' next hops.
//! 3. Applying gives the reals their probe marks; with them the targets are published, and probing begins.
//! 4. Verdicts arrive, and tables are filled: see [`policy::local::assign`].

pub mod forwarding;
mod interface;
mod job;
pub mod report;

use crate::guard::PULSE_EVERY;
use crate::metrics::ControlMetrics;
use crate::standing::{found, standing};
use crate::status::{self, SelfTestStatus, Status};
use coordination::Snapshot;
use dataplane::attachment::Attachment;
use dataplane::nexthop::{NextHops, Obstacle, Wanted};
use dataplane::program::VipProgram;
use dataplane::{SelfTest, Start};
use forwarding::{Forwarding, Shared, locked};
use health::{Key, Target, Verdicts};
use job::{InForce, Job, work};
use policy::local::{Assignment, Exclusions, Situation, adopt, assign};
use policy::probers::probers;
use policy::{FIRST_NEXT_HOPS, announce, first_round};
use report::Report;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};
use zk_schema::tree::{self, Head, Mode};
use zk_schema::{Desired, NodeName, ProbePath, VipName, VipState};

pub use interface::{Inputs, Outputs};

/// Time between packets that are sent through the loaded program.
pub(crate) const SELF_TEST_EVERY: Duration = Duration::from_secs(10);

/// Pause after the first failure to apply; doubled with each further one.
const RETRY: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The addresses of all reals.
#[must_use]
pub fn wanted(desired: &Desired) -> Wanted {
    let reals = desired.vips.values().flat_map(|state| state.reals.values());
    Arc::new(reals.map(|real| real.address).collect())
}

/// The reals that count as in force when a node starts.
#[must_use]
pub fn inherited<D: Forwarding>(dataplane: &D, start: Start, desired: &Desired) -> BTreeSet<Key> {
    let in_force = match start {
        Start::Fresh => BTreeSet::new(),
        Start::TakenOver | Start::Replacing => dataplane.in_force(desired),
    };
    if start != Start::Replacing || !in_force.is_empty() {
        return in_force;
    }
    let keys = desired.vips.iter().flat_map(|(vip, state)| {
        let members = state.reals.iter().filter(|(_, real)| real.weight > 0);
        members.map(|(real, _)| (vip.clone(), real.clone()))
    });
    keys.collect()
}

/// Returns the targets to probe, with the marks that lead probes to the reals.
#[must_use]
pub fn targets(desired: &Desired, marks: &BTreeMap<Key, u32>) -> Vec<Target> {
    let of_vip = |(name, state): (&VipName, &VipState)| -> Vec<Target> {
        let Some(check) = &state.vip.health else { return Vec::new() };
        let port = check.port.unwrap_or(state.vip.port);
        let target = |(real_name, real): (&zk_schema::RealName, &zk_schema::Real)| {
            let key = (name.clone(), real_name.clone());
            let (address, mark) = match check.path {
                ProbePath::Tunnel => (state.vip.address, marks.get(&key).copied()),
                ProbePath::Direct => (real.address, None),
            };
            let connect = SocketAddr::new(address, port);
            Target { vip: key.0, real: key.1, connect, mark, check: check.clone() }
        };
        state.reals.iter().map(target).collect()
    };
    desired.vips.iter().flat_map(of_vip).collect()
}

/// The loop's state.
pub struct Control<D> {
    dataplane: Shared<D>,
    start: Start,
    started: Instant,
    outputs: Outputs,
    metrics: ControlMetrics,
    /// The node's name, where probing is divided among several.
    node: Option<NodeName>,
    /// The last assignment that was decided on, in force or not.
    issued: Assignment,
    /// The reals that this node leaves out of a leader's decision.
    exclusions: Exclusions,
    /// Reals that hold slots.
    in_force: BTreeSet<Key>,
    /// The state that is applied.
    applied: Option<Arc<InForce>>,
    /// VIPs by the time when they were first applied, since when their reals are probed.
    known_since: BTreeMap<VipName, Instant>,
    failure: Option<Failure>,
    self_test: Option<SelfTestStatus>,
    attachment: Attachment,
    /// Reals that packets cannot be sent to, as the data plane said last.
    obstacles: BTreeMap<Key, Obstacle>,
    xdp_native: bool,
}

/// The last attempt to apply, if it failed.
struct Failure {
    message: String,
    revision: u64,
    pause: Duration,
    retry: Instant,
}

impl<D: Forwarding> Control<D> {
    /// A loop over a data plane that came to be by `start`; `in_force` is what [`inherited`] said about it. `node` is
    /// the name by which probing is divided, on a node among others.
    #[must_use]
    pub fn new(
        dataplane: Shared<D>,
        start: Start,
        in_force: BTreeSet<Key>,
        node: Option<NodeName>,
        outputs: Outputs,
        metrics: ControlMetrics,
    ) -> Self {
        Self {
            node,
            exclusions: Exclusions::default(),
            dataplane,
            start,
            started: Instant::now(),
            outputs,
            metrics,
            issued: Assignment::default(),
            in_force,
            applied: None,
            known_since: BTreeMap::new(),
            failure: None,
            self_test: None,
            attachment: Attachment::default(),
            obstacles: BTreeMap::new(),
            xdp_native: false,
        }
    }

    /// Begins with what a predecessor of this process left out by its own judgement.
    #[must_use]
    pub fn remembering(self, exclusions: Exclusions) -> Self {
        Self { exclusions, ..self }
    }

    /// Runs until `stop` is ready; then forwarding goes on as it is.
    pub async fn run(mut self, mut inputs: Inputs, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut self_tests = tokio::time::interval(SELF_TEST_EVERY);
        self_tests.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self_tests.reset();
        let mut pulses = tokio::time::interval(PULSE_EVERY);
        pulses.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut snapshots_end, mut verdicts_end, mut next_hops_end, mut mode_ends, mut attachment_ends) =
            (false, false, false, false, false);
        loop {
            let wake = self.reconcile(&mut inputs).await;
            loop {
                // In this order, so that a run of a simulation can be repeated. What is rare comes first.
                tokio::select! {
                    biased;
                    () = &mut stop => return,
                    _ = self_tests.tick() => self.test_itself().await,
                    changed = inputs.snapshots.changed(), if !snapshots_end => snapshots_end = changed.is_err(),
                    changed = inputs.verdicts.changed(), if !verdicts_end => verdicts_end = changed.is_err(),
                    changed = inputs.next_hops.changed(), if !next_hops_end => next_hops_end = changed.is_err(),
                    changed = inputs.mode.changed(), if !mode_ends => mode_ends = changed.is_err(),
                    changed = inputs.attachment.changed(), if !attachment_ends => attachment_ends = changed.is_err(),
                    () = sleep_until(wake) => {}
                    // Only to show that it turns, where somebody might care.
                    _ = pulses.tick(), if D::BLOCKS => {
                        self.outputs.turned.send_replace(Some(Instant::now()));
                        continue;
                    }
                }
                break;
            }
        }
    }

    /// Brings the data plane to what the newest inputs say. Returns when to do so again even if none changes.
    async fn reconcile(&mut self, inputs: &mut Inputs) -> Option<Instant> {
        let snapshot = Arc::clone(&inputs.snapshots.borrow_and_update());
        let verdicts = Arc::clone(&inputs.verdicts.borrow_and_update());
        let next_hops = Arc::clone(&inputs.next_hops.borrow_and_update());
        let mode = *inputs.mode.borrow_and_update();
        self.attachment.clone_from(&inputs.attachment.borrow_and_update());
        let desired = &snapshot.desired;
        replace(&self.outputs.wanted, wanted(desired));

        let now = Instant::now();
        let mut wake = self.held_back(&snapshot, &next_hops, now);
        if wake.is_none() {
            self.known_since.retain(|vip, _| desired.vips.contains_key(vip));
            let overdue = self.overdue(desired, now);
            self.issued = match &snapshot.decided {
                None => {
                    let standing = |key: &Key| standing(key, desired, &verdicts, &next_hops, &self.obstacles);
                    let situation = Situation {
                        desired,
                        standing: &standing,
                        in_force: &self.in_force,
                        overdue: &overdue,
                    };
                    assign(&situation, &self.issued)
                }
                Some(decided) => {
                    let find = |key: &Key| found(key, &verdicts);
                    self.exclusions = self.exclusions.revised(decided, find, mode == Mode::Autonomous);
                    adopt(decided, &self.exclusions)
                }
            };
            let obstacles = self.obstacles.clone();
            self.apply(&snapshot, &next_hops, mode).await;
            wake = self.next_wake(desired);
            if self.obstacles != obstacles {
                // Nobody's probes may tell of these.
                wake = Some(now);
            }
        }
        self.publish_status(desired, &verdicts, &next_hops, mode);
        self.publish_report(mode);
        replace(&self.outputs.exclusions, self.exclusions.clone());
        self.outputs.turned.send_replace(Some(Instant::now()));
        wake
    }

    /// Until when nothing is to be applied, if so.
    fn held_back(&self, snapshot: &Snapshot, next_hops: &NextHops, now: Instant) -> Option<Instant> {
        if let Some(failure) = &self.failure {
            // A new state may be what the operator fixes it with.
            return (now < failure.retry && failure.revision == snapshot.revision).then_some(failure.retry);
        }
        let patience = self.started + FIRST_NEXT_HOPS;
        let first_after_predecessor = self.applied.is_none() && self.start != Start::Fresh;
        let resolved = || wanted(&snapshot.desired).iter().all(|address| next_hops.contains_key(address));
        (first_after_predecessor && now < patience && !resolved()).then_some(patience)
    }

    /// VIPs whose first round of probes must have ended by now.
    fn overdue(&self, desired: &Desired, now: Instant) -> BTreeSet<VipName> {
        let overdue = self.known_since.iter().filter(|(name, since)| {
            desired.vips.get(*name).is_some_and(|state| now >= **since + first_round(&state.vip))
        });
        overdue.map(|(name, _)| name.clone()).collect()
    }

    fn next_wake(&self, desired: &Desired) -> Option<Instant> {
        let waiting = self.issued.vips.iter().filter(|(_, vip)| vip.waiting).filter_map(|(name, _)| {
            let since = self.known_since.get(name)?;
            Some(*since + first_round(&desired.vips.get(name)?.vip))
        });
        let retry = self.failure.as_ref().map(|failure| failure.retry);
        // What is past has had its effect.
        waiting.chain(retry).filter(|wake| *wake > Instant::now()).min()
    }

    /// Applies what was issued, as far as it differs from what is in force.
    async fn apply(&mut self, snapshot: &Arc<Snapshot>, next_hops: &Arc<NextHops>, mode: Mode) {
        let job = Job {
            dataplane: Arc::clone(&self.dataplane),
            snapshot: Arc::clone(snapshot),
            assignment: self.issued.clone(),
            next_hops: Arc::clone(next_hops),
            before: self.applied.clone(),
            again: self.failure.is_some(),
        };
        let done = match work::<D, _>(move || job.run()).await {
            Ok(done) => done,
            Err(panic) => Err(format!("a fault of this program: {panic}")),
        };
        let done = match done {
            Ok(done) => done,
            Err(message) => return self.failed(message, snapshot.revision),
        };
        if self.failure.take().is_some() {
            info!("the newest state is in force again");
        }
        let now = Instant::now();
        for vip in snapshot.desired.vips.keys() {
            self.known_since.entry(vip.clone()).or_insert(now);
        }
        let before = self.applied.replace(done.in_force);
        self.report(before.as_deref());
        self.in_force = self.issued.members();
        if let Some((applied, test)) = done.applied {
            self.metrics.applied(&applied);
            self.xdp_native = done.xdp_native;
            info!(
                epoch = self.issued.epoch,
                tables = applied.tables,
                milliseconds = applied.duration.as_millis(),
                "applied"
            );
            self.tested(test);
        }
        self.obstacles = done.obstacles;
        let mut targets = targets(&snapshot.desired, &done.marks);
        // A node that is on its own probes everything.
        if let (Some(decided), Some(node)) = (&snapshot.decided, &self.node)
            && mode != Mode::Autonomous
        {
            targets.retain(|target| is_prober(&decided.head, node, target));
        }
        replace(&self.outputs.targets, Arc::new(targets));
    }

    fn failed(&mut self, message: String, revision: u64) {
        self.metrics.apply_failed();
        let before = self.failure.take();
        let pause = match &before {
            Some(failure) if failure.revision == revision => (failure.pause * 2).min(LONGEST_RETRY),
            _ => RETRY,
        };
        if before.is_none_or(|failure| failure.message != message) {
            error!("the newest state cannot be applied, what is in force stays; trying again: {message}");
        }
        self.failure = Some(Failure { message, revision, pause, retry: Instant::now() + pause });
    }

    /// Logs what changed about held removals.
    fn report(&self, before: Option<&InForce>) {
        for (name, vip) in &self.issued.vips {
            let before = before.and_then(|before| before.assignment.vips.get(name)?.held);
            match vip.held {
                Some(held) if before != Some(held) => warn!(vip = %name, "{held}"),
                None if before.is_some() => info!(vip = %name, "removals of reals are no longer held"),
                _ => {}
            }
        }
    }

    async fn test_itself(&mut self) {
        if self.applied.is_none() {
            return;
        }
        let dataplane = Arc::clone(&self.dataplane);
        match work::<D, _>(move || locked(&dataplane).self_test()).await {
            Ok(test) => self.tested(test),
            Err(panic) => error!("the self-test has panicked: {panic}"),
        }
    }

    /// Takes a self-test's outcome; logs what changed.
    fn tested(&mut self, test: SelfTest) {
        let none = BTreeMap::new();
        let before = self.self_test.as_ref().map_or(&none, |before| &before.failures);
        for (vip, failure) in test.failures.iter().filter(|(vip, failure)| before.get(*vip) != Some(*failure))
        {
            error!(%vip, %failure, "the self-test fails");
        }
        for vip in before.keys().filter(|vip| !test.failures.contains_key(*vip)) {
            info!(%vip, "the self-test passes again");
        }
        self.self_test = Some(test.into());
    }

    fn publish_status(&self, desired: &Desired, verdicts: &Verdicts, next_hops: &NextHops, mode: Mode) {
        let nothing = InForce::default();
        let in_force = self.applied.as_deref().unwrap_or(&nothing);
        let sources = status::VipInputs {
            desired,
            verdicts,
            next_hops,
            obstacles: &self.obstacles,
            assignment: &in_force.assignment,
            shares: &in_force.shares,
            digests: &in_force.digests,
            decided: in_force.decided.as_deref(),
        };
        let status = Status {
            term: in_force.decided.as_ref().map(|decided| decided.head.term),
            epoch: in_force.assignment.epoch,
            mode: in_force.decided.as_ref().map(|_| self.mode(mode)),
            xdp_native: self.xdp_native,
            apply_error: self.failure.as_ref().map(|failure| failure.message.clone()),
            self_test: self.self_test.clone(),
            detached: self.attachment.problem.as_ref().map(ToString::to_string),
            reattachments: self.attachment.restored,
            vips: status::vips(&sources),
        };
        replace(&self.outputs.status, Arc::new(status));
    }

    /// The way in which what is in force came to be.
    fn mode(&self, mode: Mode) -> Mode {
        match mode {
            Mode::Live if !self.exclusions.is_empty() => Mode::Autonomous,
            mode => mode,
        }
    }

    fn publish_report(&self, mode: Mode) {
        let Some(in_force) = self.applied.as_deref() else { return };
        let failures = self.self_test.as_ref().map(|test| &test.failures);
        let program = in_force.program.as_ref();
        let vips = program.into_iter().flat_map(|program| &program.vips);
        let attached = self.attachment.problem.is_none();
        let passes = |name: &VipName| failures.is_some_and(|failures| !failures.contains_key(name));
        let vip = |(name, vip): (&VipName, &VipProgram)| announce::InForce {
            address: vip.address,
            has_reals: !vip.table.owners().is_empty(),
            works: attached && passes(name),
        };
        let digests = in_force.digests.iter().map(|(name, digest)| format!("{name}={digest:016x}"));
        let digests = digests.collect::<Vec<_>>().join(" ");
        let report = Report {
            order: in_force.decided.as_ref().map(|decided| decided.head.order()),
            targets: in_force.decided.as_ref().map_or(0, |decided| decided.head.targets),
            digest: zk_schema::tree::Assignment::digest(digests.as_bytes()),
            mode: self.mode(mode),
            problem: self.failure.as_ref().map(|failure| failure.message.clone()),
            healthy: attached && failures.is_some_and(BTreeMap::is_empty),
            serving: announce::serving(vips.map(vip)),
        };
        replace(&self.outputs.report, Arc::new(report));
    }
}

/// Returns whether `node` is among those that probe `target`.
fn is_prober(head: &Head, node: &NodeName, target: &Target) -> bool {
    let target = tree::Target { vip: target.vip.clone(), real: target.real.clone() };
    probers(&head.nodes, &target).contains(&node)
}

/// Publishes a value if it differs from the one there is.
fn replace<T: PartialEq>(sender: &watch::Sender<T>, new: T) {
    sender.send_if_modified(|current| {
        let differs = *current != new;
        if differs {
            *current = new;
        }
        differs
    });
}

pub(crate) async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
