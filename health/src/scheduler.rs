//! The task that runs probes and publishes verdicts.

use super::metrics::ProbeMetrics;
use super::schedule::{Finish, Job, Run, Schedule};
use super::state::{Change, Outcome};
use super::{Key, State, Target, Verdicts};
use futures_util::FutureExt as _;
use host::log_limit::LogLimit;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// Lines that may be logged at once of reals that change, and how often one more: a thousand may at once.
const LINES: u32 = 20;
const LINE_EVERY: Duration = Duration::from_secs(1);

/// A changed reason of an unchanged verdict is published no sooner than this after the last publication.
const REASONS_EVERY: Duration = Duration::from_secs(10);

/// Runs one probe. Behind a trait so that the scheduler can be tested without sockets.
pub trait Probe: Send + Sync + 'static {
    /// Probes `target` once. Must end by itself soon after the check's timeout; may be dropped at any time.
    fn probe(&self, target: Arc<Target>) -> impl Future<Output = Outcome> + Send;
}

/// Options of a scheduler.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Cap on probes in flight; 0 counts as 1.
    pub probes_in_flight: usize,
    /// Seed of the jitter; should differ between nodes.
    pub seed: u64,
    /// Targets that hold slots in a table that a predecessor process left in force: they start up, and stay
    /// so until proven down. Each counts when it first appears among the targets.
    pub initially_up: BTreeSet<Key>,
}

/// A running scheduler. Dropping it, or the sender of its targets, stops all probes.
pub struct Scheduler {
    verdicts: watch::Receiver<Arc<Verdicts>>,
    metrics: ProbeMetrics,
    task: JoinHandle<()>,
}

impl Scheduler {
    /// Verdicts of all targets: published when a state changes, when a target comes or goes, and at most every
    /// ten seconds when only reasons changed.
    #[must_use]
    pub fn verdicts(&self) -> watch::Receiver<Arc<Verdicts>> {
        self.verdicts.clone()
    }

    /// Counters of probes, to be registered.
    #[must_use]
    pub fn metrics(&self) -> &ProbeMetrics {
        &self.metrics
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts probing `targets`, now and whenever they change. Must be called within a tokio runtime.
///
/// The verdicts of the targets known now are there when this returns: unknown, or up if `initially_up`.
#[must_use]
pub fn spawn<P: Probe>(
    probe: P,
    mut targets: watch::Receiver<Arc<Vec<Target>>>,
    settings: Options,
) -> Scheduler {
    let metrics = ProbeMetrics::default();
    let mut schedule = Schedule::new(settings.probes_in_flight, settings.seed, settings.initially_up);
    let first = Arc::clone(&targets.borrow_and_update());
    schedule.replace_targets(&first, Duration::ZERO, SystemTime::now());
    let (publisher, verdicts) = watch::channel(Arc::new(schedule.verdicts()));
    let driver = Driver {
        probe: Arc::new(probe),
        schedule,
        origin: Instant::now(),
        limit: settings.probes_in_flight.max(1),
        probes: JoinSet::new(),
        aborts: HashMap::new(),
        metrics: metrics.clone(),
        log_limit: LogLimit::new(LINES, LINE_EVERY),
        publisher,
        published: Instant::now(),
        change: Change::Nothing,
    };
    Scheduler { verdicts, metrics, task: tokio::spawn(driver.run(targets)) }
}

/// The result of a probe's task.
struct Done {
    key: Key,
    run: Run,
    outcome: Outcome,
    duration: Duration,
}

struct Driver<P> {
    probe: Arc<P>,
    schedule: Schedule,
    origin: Instant,
    limit: usize,
    probes: JoinSet<Done>,
    aborts: HashMap<Run, AbortHandle>,
    metrics: ProbeMetrics,
    log_limit: LogLimit,
    publisher: watch::Sender<Arc<Verdicts>>,
    published: Instant,
    /// The change that has not been published yet.
    change: Change,
}

impl<P: Probe> Driver<P> {
    async fn run(mut self, mut targets: watch::Receiver<Arc<Vec<Target>>>) {
        loop {
            while let Some(job) = self.schedule.start_due(self.origin.elapsed()) {
                self.start(job);
            }
            self.publish();
            self.metrics.in_flight(self.schedule.in_flight(), self.limit);

            let due = self.schedule.next_due().map(|due| self.origin + due);
            let reasons = (self.change == Change::Reason).then(|| self.published + REASONS_EVERY);
            let wake = due.into_iter().chain(reasons).min();
            // In this order, so that a run of a simulation can be repeated.
            tokio::select! {
                biased;
                changed = targets.changed() => {
                    if changed.is_err() {
                        debug!("the targets' sender is gone: health checks stop");
                        return;
                    }
                    let targets = Arc::clone(&targets.borrow_and_update());
                    self.replace_targets(&targets);
                }
                Some(done) = self.probes.join_next() => {
                    self.finish(done);
                    // Take all that is there, so that reals that fail together are published together.
                    while let Some(done) = self.probes.try_join_next() {
                        self.finish(done);
                    }
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    fn start(&mut self, job: Job) {
        let probe = Arc::clone(&self.probe);
        let run = job.run;
        let handle = self.probes.spawn(async move {
            let key = job.target.key();
            let started = Instant::now();
            // A panic must neither end the health checks nor count against the real.
            let outcome =
                AssertUnwindSafe(probe.probe(job.target)).catch_unwind().await.unwrap_or_else(|_| {
                    Outcome::Inconclusive("the probe panicked, which is a fault of this program".to_owned())
                });
            Done { key, run, outcome, duration: started.elapsed() }
        });
        self.aborts.insert(run, handle);
    }

    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(_aborted) => return,
        };
        let finish = self.schedule.finished(
            &done.key,
            done.run,
            done.outcome.clone(),
            self.origin.elapsed(),
            SystemTime::now(),
        );
        let Finish::Counted(change, verdict) = finish else { return };
        self.aborts.remove(&done.run);
        self.metrics.probed(&done.key, &done.outcome, done.duration);
        self.change = self.change.max(change);
        if change != Change::Verdict {
            return;
        }
        let Some(skipped) = self.log_limit.allows(Instant::now()) else { return };
        let (vip, real) = &done.key;
        let reason = &verdict.reason;
        match verdict.state {
            _ if verdict.blind => {
                warn!(%vip, %real, state = ?verdict.state, %reason, skipped, "this node cannot probe the real")
            }
            State::Down => warn!(%vip, %real, %reason, skipped, "real is down"),
            State::Up => info!(%vip, %real, skipped, "real is up"),
            State::Unknown => info!(%vip, %real, skipped, "real is unknown"),
        }
    }

    fn replace_targets(&mut self, targets: &[Target]) {
        let replaced = self.schedule.replace_targets(targets, self.origin.elapsed(), SystemTime::now());
        for run in &replaced.aborted {
            if let Some(handle) = self.aborts.remove(run) {
                handle.abort();
            }
        }
        for key in &replaced.removed {
            self.metrics.forget(key);
        }
        if replaced.verdicts_changed {
            self.change = Change::Verdict;
        }
    }

    fn publish(&mut self) {
        let worth_it = match self.change {
            Change::Nothing => false,
            Change::Reason => self.published.elapsed() >= REASONS_EVERY,
            Change::Verdict => true,
        };
        if worth_it {
            self.publisher.send_replace(Arc::new(self.schedule.verdicts()));
            self.published = Instant::now();
            self.change = Change::Nothing;
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use zk_schema::testing::name;
    use zk_schema::{CheckKind, HealthCheck, ProbePath, RealName};

    /// Reals whose answers the test sets, each taking 10 ms.
    #[derive(Clone, Default)]
    struct Fake(Arc<FakeState>);

    #[derive(Default)]
    struct FakeState {
        /// Reasons of the reals that fail.
        failing: Mutex<BTreeMap<RealName, String>>,
        /// Reals that never answer.
        hanging: Mutex<BTreeSet<RealName>>,
        probes: AtomicUsize,
        running: AtomicUsize,
        most_running: AtomicUsize,
    }

    impl Fake {
        fn fail(&self, real: &str, reason: &str) {
            self.0.failing.lock().expect("lock").insert(name(real), reason.to_owned());
        }
    }

    /// Counts a probe as running until it ends or is dropped.
    struct Running(Arc<FakeState>);

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.running.fetch_sub(1, SeqCst);
        }
    }

    impl Probe for Fake {
        async fn probe(&self, target: Arc<Target>) -> Outcome {
            self.0.probes.fetch_add(1, SeqCst);
            let running = self.0.running.fetch_add(1, SeqCst) + 1;
            self.0.most_running.fetch_max(running, SeqCst);
            let _running = Running(Arc::clone(&self.0));
            tokio::time::sleep(Duration::from_millis(10)).await;
            if self.0.hanging.lock().expect("lock").contains(&target.real) {
                std::future::pending::<()>().await;
            }
            assert_ne!(target.real.as_str(), "panics");
            match self.0.failing.lock().expect("lock").get(&target.real) {
                Some(reason) => Outcome::Failure(reason.clone()),
                None => Outcome::Success,
            }
        }
    }

    fn target(real: &str) -> Target {
        Target {
            vip: name("v"),
            real: name(real),
            connect: ([127, 0, 0, 1], 1883).into(),
            mark: None,
            check: HealthCheck {
                kind: CheckKind::Tcp,
                port: None,
                path: ProbePath::Direct,
                interval_ms: 1000,
                timeout_ms: 500,
                healthy_threshold: 2,
                unhealthy_threshold: 3,
            },
        }
    }

    fn key(real: &str) -> Key {
        target(real).key()
    }

    fn start(reals: &[&str], fake: &Fake, settings: Options) -> (watch::Sender<Arc<Vec<Target>>>, Scheduler) {
        let (sender, receiver) = watch::channel(Arc::new(reals.iter().map(|real| target(real)).collect()));
        (sender, spawn(fake.clone(), receiver, settings))
    }

    fn settings() -> Options {
        Options { probes_in_flight: 100, seed: 3, initially_up: BTreeSet::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn reals_come_up_with_their_first_probe_within_about_a_second() {
        let (_targets, scheduler) = start(&["a", "b"], &Fake::default(), settings());
        let mut verdicts = scheduler.verdicts();
        assert_eq!(verdicts.borrow()[&key("a")].state, State::Unknown, "there from the start");
        let up = verdicts.wait_for(|v| v.values().all(|verdict| verdict.state == State::Up));
        tokio::time::timeout(Duration::from_millis(1100), up).await.expect("in time").expect("alive");
    }

    #[tokio::test(start_paused = true)]
    async fn a_real_that_fails_goes_down_after_its_threshold_and_the_others_stay() {
        let fake = Fake::default();
        let (_targets, scheduler) = start(&["a", "b"], &fake, settings());
        let mut verdicts = scheduler.verdicts();
        verdicts.wait_for(|v| v.values().all(|verdict| verdict.state == State::Up)).await.expect("alive");
        fake.fail("a", "connection refused");
        let failing_since = Instant::now();
        let down = verdicts.wait_for(|v| v[&key("a")].state == State::Down).await.expect("alive").clone();
        let took = failing_since.elapsed();
        assert!(took > Duration::from_millis(1800) && took < Duration::from_millis(3400), "{took:?}");
        assert_eq!(down[&key("a")].reason, "connection refused");
        assert_eq!(down[&key("b")].state, State::Up);
    }

    #[tokio::test(start_paused = true)]
    async fn verdicts_are_published_on_change_and_not_per_probe() {
        let fake = Fake::default();
        let (_targets, scheduler) = start(&["a"], &fake, settings());
        let mut verdicts = scheduler.verdicts();
        verdicts.wait_for(|v| v[&key("a")].state == State::Up).await.expect("alive");
        verdicts.mark_unchanged();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(fake.0.probes.load(SeqCst) > 50);
        assert!(!verdicts.has_changed().expect("alive"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reason_that_changes_all_the_time_is_published_every_ten_seconds() {
        let fake = Fake::default();
        fake.fail("a", "first");
        let (_targets, scheduler) = start(&["a"], &fake, settings());
        let mut verdicts = scheduler.verdicts();
        verdicts.wait_for(|v| v[&key("a")].state == State::Down).await.expect("alive");
        let mut published = 0;
        let started = Instant::now();
        for count in 0.. {
            if started.elapsed() > Duration::from_secs(100) {
                break;
            }
            fake.fail("a", &format!("reason {count}"));
            if let Ok(changed) = tokio::time::timeout(Duration::from_secs(1), verdicts.changed()).await {
                changed.expect("alive");
                published += 1;
                verdicts.mark_unchanged();
            }
        }
        assert!((8..=11).contains(&published), "{published}");
        assert!(verdicts.borrow()[&key("a")].reason.starts_with("reason "));
    }

    #[tokio::test(start_paused = true)]
    async fn the_cap_on_probes_in_flight_holds() {
        let fake = Fake::default();
        let reals: Vec<String> = (0..40).map(|index| format!("r{index}")).collect();
        let reals: Vec<&str> = reals.iter().map(String::as_str).collect();
        let capped = Options { probes_in_flight: 2, ..settings() };
        let (_targets, scheduler) = start(&reals, &fake, capped);
        let mut verdicts = scheduler.verdicts();
        let up = verdicts.wait_for(|v| v.values().all(|verdict| verdict.state == State::Up));
        tokio::time::timeout(Duration::from_secs(10), up).await.expect("in time").expect("alive");
        assert_eq!(fake.0.most_running.load(SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_target_is_dropped_with_its_probe_in_flight_and_its_series() {
        let fake = Fake::default();
        let (targets, scheduler) = start(&["a", "b"], &fake, settings());
        let mut verdicts = scheduler.verdicts();
        verdicts.wait_for(|v| v.values().all(|verdict| verdict.state == State::Up)).await.expect("alive");
        fake.0.hanging.lock().expect("lock").insert(name("a"));
        tokio::time::sleep(Duration::from_secs(3)).await;
        targets.send_replace(Arc::new(vec![target("b")]));
        verdicts.wait_for(|v| v.len() == 1).await.expect("alive");
        tokio::time::sleep(Duration::from_secs(3)).await;

        let mut registry = prometheus_client::registry::Registry::with_prefix("drover");
        scheduler.metrics().register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a String takes any text");
        assert!(text.contains(r#"drover_probes_total{vip="v",real="b",outcome="success"}"#), "{text}");
        assert!(!text.contains(r#"real="a""#), "{text}");

        // Only b's probes are left, and they end.
        let idle = async {
            while fake.0.running.load(SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(2), idle).await.expect("the hanging probe was aborted");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_target_is_probed_soon_after_it_appears() {
        let (targets, scheduler) = start(&[], &Fake::default(), settings());
        tokio::time::sleep(Duration::from_secs(5)).await;
        targets.send_replace(Arc::new(vec![target("late")]));
        let mut verdicts = scheduler.verdicts();
        let up = verdicts.wait_for(|v| v.get(&key("late")).is_some_and(|v| v.state == State::Up));
        tokio::time::timeout(Duration::from_millis(1100), up).await.expect("in time").expect("alive");
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_in_force_before_is_up_at_once_and_stays_until_proven_down() {
        let fake = Fake::default();
        fake.fail("a", "timed out");
        let inherited = Options { initially_up: BTreeSet::from([key("a")]), ..settings() };
        let (_targets, scheduler) = start(&["a"], &fake, inherited);
        let mut verdicts = scheduler.verdicts();
        assert_eq!(verdicts.borrow()[&key("a")].state, State::Up);
        verdicts.wait_for(|v| v[&key("a")].state == State::Down).await.expect("alive");
        assert!(fake.0.probes.load(SeqCst) >= 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_panics_blinds_its_own_target_only() {
        let (_targets, scheduler) = start(&["a", "panics"], &Fake::default(), settings());
        let mut verdicts = scheduler.verdicts();
        let seen = verdicts
            .wait_for(|v| v[&key("panics")].blind && v[&key("a")].state == State::Up)
            .await
            .expect("alive");
        assert_eq!(seen[&key("panics")].state, State::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_scheduler_stops_its_probes() {
        let fake = Fake::default();
        fake.0.hanging.lock().expect("lock").insert(name("a"));
        let (_targets, scheduler) = start(&["a"], &fake, settings());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(fake.0.running.load(SeqCst), 1);
        drop(scheduler);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(fake.0.running.load(SeqCst), 0);
    }
}
