//! The loop on a data plane that only takes notes.

use super::*;
use crate::testing::{checked_vip, desired, name, next_hops, unchecked_vip};
use coordination::Snapshots;
use dataplane::attachment::Lost;
use dataplane::program::Program;
use dataplane::{Applied, Statistics};
use health::{State, Verdict};
use std::sync::Mutex;
use std::time::SystemTime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The loop's actions.
#[derive(Clone, Debug, PartialEq)]
enum Act {
    /// Names of the reals that own slots, by VIP, and how many next hops came with them.
    Apply(BTreeMap<String, Vec<String>>, usize),
    NextHops(usize),
    SelfTest,
}

#[derive(Debug, Default)]
struct Notes {
    acts: Vec<Act>,
    programs: Vec<Program>,
    marks: BTreeMap<Key, u32>,
    left_behind: BTreeSet<Key>,
    refuse: Option<String>,
    refusals: usize,
    self_test_failures: BTreeMap<VipName, String>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl Forwarding for Notes {
    type Error = Refused;

    fn apply(&mut self, program: &Program, hops: &NextHops) -> Result<Applied, Refused> {
        if let Some(reason) = &self.refuse {
            self.refusals += 1;
            return Err(Refused(reason.clone()));
        }
        let tables = program.vips.iter().map(|(name, vip)| {
            let members = vip.reals.iter().zip(vip.table.shares()).filter(|(_, slots)| *slots > 0);
            (name.to_string(), members.map(|(real, _)| real.name.to_string()).collect())
        });
        self.acts.push(Act::Apply(tables.collect(), hops.len()));
        self.programs.push(program.clone());
        let keys = program
            .vips
            .iter()
            .flat_map(|(vip, state)| state.reals.iter().map(|real| (vip.clone(), real.name.clone())));
        self.marks = keys.zip(1..).collect();
        Ok(Applied { tables: program.vips.len(), index: false, duration: Duration::from_millis(3) })
    }

    fn apply_next_hops(&mut self, hops: &NextHops) -> Result<(), Refused> {
        self.acts.push(Act::NextHops(hops.len()));
        Ok(())
    }

    fn unresolved(&self) -> BTreeSet<Key> {
        BTreeSet::new()
    }

    fn probe_marks(&self) -> BTreeMap<Key, u32> {
        self.marks.clone()
    }

    fn in_force(&self, _: &Desired) -> BTreeSet<Key> {
        self.left_behind.clone()
    }

    fn statistics(&self) -> Result<Statistics, Refused> {
        Ok(Statistics::default())
    }

    fn self_test(&mut self) -> SelfTest {
        self.acts.push(Act::SelfTest);
        SelfTest { tested: 1, failures: self.self_test_failures.clone() }
    }

    fn table_digests(&self, wanted: &dyn Fn(&VipName) -> bool) -> BTreeMap<VipName, u64> {
        let vips = self.programs.last().into_iter().flat_map(|program| &program.vips);
        vips.filter(|(name, _)| wanted(name)).map(|(name, vip)| (name.clone(), vip.table.digest())).collect()
    }

    fn is_native(&self) -> bool {
        true
    }
}

/// A loop that runs, and all its ends.
struct Bench {
    dataplane: Shared<Notes>,
    store: Snapshots,
    verdicts: watch::Sender<Arc<Verdicts>>,
    next_hops: watch::Sender<Arc<NextHops>>,
    attachment: watch::Sender<Attachment>,
    report: watch::Receiver<Arc<Report>>,
    targets: watch::Receiver<Arc<Vec<Target>>>,
    wanted: watch::Receiver<Wanted>,
    status: watch::Receiver<Arc<Status>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Bench {
    /// With every next hop known from the start.
    fn start(desired: Desired, start: Start, left_behind: &[(&str, &str)]) -> Self {
        let hops = next_hops(&desired);
        Self::start_with(desired, start, left_behind, hops)
    }

    fn start_with(desired: Desired, start: Start, left_behind: &[(&str, &str)], hops: NextHops) -> Self {
        let left_behind = left_behind.iter().map(|(vip, real)| (name(vip), name(real))).collect();
        let dataplane = Notes { left_behind, ..Notes::default() };
        let in_force = inherited(&dataplane, start, &desired);
        let dataplane = Arc::new(Mutex::new(dataplane));
        let store = Snapshots::new(desired);
        let (verdicts, verdicts_receiver) = watch::channel(Arc::default());
        let (next_hops, next_hops_receiver) = watch::channel(Arc::new(hops));
        let (targets, targets_receiver) = watch::channel(Arc::default());
        let (wanted, wanted_receiver) = watch::channel(Arc::default());
        let (status, status_receiver) = watch::channel(Arc::default());
        let (attachment, attached) = watch::channel(Attachment::default());
        let inputs = Inputs {
            snapshots: store.subscribe(),
            verdicts: verdicts_receiver,
            next_hops: next_hops_receiver,
            mode: watch::channel(Mode::Live).1,
            attachment: attached,
        };
        let (report, report_receiver) = watch::channel(Arc::default());
        let outputs = Outputs {
            targets,
            wanted,
            status,
            report,
            turned: watch::Sender::new(None),
            exclusions: watch::Sender::default(),
        };
        let metrics = ControlMetrics::default();
        let control = Control::new(Arc::clone(&dataplane), start, in_force, None, outputs, metrics);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(control.run(inputs, async {
            let _ = stopped.await;
        }));
        Self {
            dataplane,
            store,
            verdicts,
            next_hops,
            attachment,
            report: report_receiver,
            targets: targets_receiver,
            wanted: wanted_receiver,
            status: status_receiver,
            stop,
            task,
        }
    }

    /// Lets the loop do all that there is to do in the next `milliseconds`.
    async fn pass(&self, milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    /// Returns what was applied to tables and next hops since the last question.
    fn acts(&self) -> Vec<Act> {
        let acts = std::mem::take(&mut locked(&self.dataplane).acts);
        acts.into_iter().filter(|act| *act != Act::SelfTest).collect()
    }

    fn judge(&self, states: &[(&str, State)]) {
        let verdict = |state| Verdict {
            state,
            blind: false,
            since: SystemTime::UNIX_EPOCH,
            reason: "connection refused".into(),
        };
        let verdicts = states.iter().map(|(real, state)| ((name("mqtt"), name(real)), verdict(*state)));
        self.verdicts.send_replace(Arc::new(verdicts.collect()));
    }

    fn edit(&self, edit: impl FnOnce(&mut Desired)) {
        let mut desired = self.store.subscribe().borrow().desired.clone();
        edit(&mut desired);
        self.store.replace(desired);
    }

    fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    fn epoch(&self) -> u64 {
        locked(&self.dataplane).programs.last().expect("a program was applied").epoch
    }
}

/// One application of tables for the VIP `mqtt`.
fn applied(members: &[&str], hops: usize) -> Act {
    Act::Apply([("mqtt".into(), members.iter().map(ToString::to_string).collect())].into(), hops)
}

fn three() -> Desired {
    desired([("mqtt", checked_vip(&[("a", 100), ("b", 100), ("c", 100)]))])
}

use State::{Down, Unknown, Up};

#[tokio::test(start_paused = true)]
async fn a_node_boots_with_empty_tables_then_probes_then_fills_them() {
    let bench = Bench::start_with(three(), Start::Fresh, &[], NextHops::new());
    assert!(bench.targets.borrow().is_empty());
    bench.pass(1).await;
    assert_eq!(bench.acts(), [applied(&[], 0)], "at once, so that probes have their maps");
    assert_eq!(bench.wanted.borrow().len(), 3);
    let marks: Vec<Option<u32>> = bench.targets.borrow().iter().map(|target| target.mark).collect();
    assert_eq!(marks, [Some(1), Some(2), Some(3)], "marks are in force when targets are published");
    assert!(bench.status().not_ready()[0].starts_with("VIP mqtt has no table yet: a is unknown"));

    bench.next_hops.send_replace(Arc::new(next_hops(&three())));
    bench.pass(1).await;
    assert_eq!(bench.acts(), [Act::NextHops(3)]);

    bench.judge(&[("a", Up), ("b", Up), ("c", Unknown)]);
    bench.pass(1).await;
    assert_eq!(bench.acts(), [], "the first table waits for the last real's first verdict");
    bench.judge(&[("a", Up), ("b", Up), ("c", Up)]);
    bench.pass(1).await;
    assert_eq!(bench.acts(), [applied(&["a", "b", "c"], 3)]);
    assert_eq!(bench.status().not_ready(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_real_that_gives_no_verdict_does_not_keep_the_others_waiting_for_long() {
    let bench = Bench::start(three(), Start::Fresh, &[]);
    bench.judge(&[("a", Up), ("b", Up), ("c", Unknown)]);
    bench.pass(2_000).await;
    assert_eq!(bench.acts(), [applied(&[], 3)]);
    bench.pass(500).await;
    assert_eq!(bench.acts(), [applied(&["a", "b"], 3)], "its first probe must have ended");
    bench.judge(&[("a", Up), ("b", Up), ("c", Up)]);
    bench.pass(1).await;
    assert_eq!(bench.acts(), [applied(&["a", "b", "c"], 3)]);
}

#[tokio::test(start_paused = true)]
async fn after_a_takeover_tables_stay_as_they_were_until_a_real_is_proven_down() {
    let bench = Bench::start(three(), Start::TakenOver, &[("mqtt", "a"), ("mqtt", "b")]);
    bench.pass(10_000).await;
    assert_eq!(bench.acts(), [applied(&["a", "b"], 3)], "c was not in force and nothing is known of it");
    bench.judge(&[("a", Up), ("b", Down), ("c", Unknown)]);
    bench.pass(1).await;
    assert_eq!(bench.acts(), [applied(&["a"], 3)]);
}

#[tokio::test(start_paused = true)]
async fn after_a_takeover_the_first_program_waits_for_next_hops_but_not_for_ever() {
    let bench = Bench::start_with(three(), Start::TakenOver, &[("mqtt", "a")], NextHops::new());
    bench.pass(300).await;
    assert_eq!(bench.acts(), []);
    assert_eq!(bench.wanted.borrow().len(), 3, "they are asked for meanwhile");
    bench.next_hops.send_replace(Arc::new(next_hops(&three())));
    bench.pass(1).await;
    assert_eq!(bench.acts(), [applied(&["a"], 3)]);

    let bench = Bench::start_with(three(), Start::TakenOver, &[("mqtt", "a")], NextHops::new());
    bench.pass(1_001).await;
    assert_eq!(bench.acts(), [applied(&["a"], 0)]);
}

#[tokio::test(start_paused = true)]
async fn maps_that_are_replaced_unread_are_filled_with_every_real() {
    let mut desired = three();
    desired.vips.get_mut("mqtt").unwrap().reals.get_mut("c").unwrap().weight = 0;
    let bench = Bench::start(desired, Start::Replacing, &[]);
    bench.pass(1).await;
    assert_eq!(bench.acts(), [applied(&["a", "b"], 3)]);
}

#[tokio::test(start_paused = true)]
async fn a_mass_failure_is_held_and_told_until_it_is_over() {
    let bench = Bench::start(three(), Start::Fresh, &[]);
    bench.judge(&[("a", Up), ("b", Up), ("c", Up)]);
    bench.pass(1).await;
    let all = applied(&["a", "b", "c"], 3);
    assert_eq!(bench.acts().last(), Some(&all));
    let epoch = bench.epoch();

    bench.judge(&[("a", Up), ("b", Down), ("c", Down)]);
    bench.pass(1).await;
    assert_eq!(bench.acts(), [], "two of three are more than half");
    let held = bench.status().vips["mqtt"].held.clone().expect("it is told");
    assert!(held.starts_with("2 of 3 reals are down"), "{held}");

    bench.judge(&[("a", Up), ("b", Up), ("c", Down)]);
    bench.pass(1).await;
    assert_eq!(bench.acts(), [applied(&["a", "b"], 3)]);
    assert_eq!(bench.status().vips["mqtt"].held, None);
    assert_eq!(bench.epoch(), epoch + 1);
}

#[tokio::test(start_paused = true)]
async fn an_edit_applies_at_once_and_an_equal_state_not_at_all() {
    let bench = Bench::start(three(), Start::Fresh, &[]);
    bench.judge(&[("a", Up), ("b", Up), ("c", Up)]);
    bench.pass(1).await;
    bench.acts();
    bench.edit(|desired| desired.vips.get_mut("mqtt").unwrap().vip.panic_threshold = 10);
    bench.pass(1).await;
    assert_eq!(bench.acts(), [], "the data plane knows nothing of thresholds");
    bench.edit(|desired| desired.vips.get_mut("mqtt").unwrap().reals.get_mut("b").unwrap().weight = 0);
    bench.pass(1).await;
    assert_eq!(bench.acts(), [applied(&["a", "c"], 3)]);
    bench.edit(|desired| {
        desired.vips.remove("mqtt");
    });
    bench.pass(1).await;
    assert_eq!(bench.acts(), [Act::Apply(BTreeMap::new(), 3)]);
    assert!(bench.targets.borrow().is_empty());
    assert!(bench.wanted.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_vip_without_a_check_is_served_as_soon_as_its_reals_can_be_reached() {
    let desired = desired([("mqtt", unchecked_vip(&[("a", 100), ("b", 100)]))]);
    let bench = Bench::start_with(desired.clone(), Start::Fresh, &[], NextHops::new());
    bench.pass(1).await;
    assert_eq!(bench.acts(), [applied(&[], 0)]);
    bench.next_hops.send_replace(Arc::new(next_hops(&desired)));
    bench.pass(1).await;
    assert_eq!(bench.acts(), [applied(&["a", "b"], 2)]);
    assert!(bench.targets.borrow().is_empty());
    assert!(bench.status().not_ready().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refused_program_is_tried_again_and_a_mended_state_at_once() {
    let bench = Bench::start(three(), Start::Fresh, &[]);
    bench.judge(&[("a", Up), ("b", Up), ("c", Up)]);
    bench.pass(1).await;
    bench.acts();
    locked(&bench.dataplane).refuse = Some("map REALS is full".into());
    bench.judge(&[("a", Up), ("b", Up), ("c", Down)]);
    bench.pass(500).await;
    assert_eq!(bench.acts(), []);
    assert_eq!(bench.status().apply_error.as_deref(), Some("map REALS is full"));
    assert_eq!(
        bench.status().vips["mqtt"].reals["c"].weight,
        100,
        "what is in force is told, not what is wanted"
    );
    assert!(bench.status().not_ready()[0].contains("map REALS is full"));

    // Back to what was in force: it is applied nevertheless, for the failure may have left it half changed.
    locked(&bench.dataplane).refuse = None;
    bench.judge(&[("a", Up), ("b", Up), ("c", Up)]);
    bench.pass(100).await;
    assert_eq!(bench.acts(), [], "not before the pause is over");
    bench.pass(1_000).await;
    assert_eq!(bench.acts(), [applied(&["a", "b", "c"], 3)]);
    assert_eq!(bench.status().apply_error, None);

    locked(&bench.dataplane).refuse = Some("too many VIPs".into());
    bench.edit(|desired| {
        desired.vips.insert(name("other"), unchecked_vip(&[]));
    });
    bench.pass(1).await;
    locked(&bench.dataplane).refuse = None;
    bench.edit(|desired| {
        desired.vips.remove("other");
        desired.vips.get_mut("mqtt").unwrap().vip.port = 8883;
    });
    bench.pass(1).await;
    assert_eq!(bench.acts(), [applied(&["a", "b", "c"], 3)]);
}

#[tokio::test(start_paused = true)]
async fn pauses_between_attempts_double_up_to_half_a_minute() {
    let bench = Bench::start(three(), Start::Fresh, &[]);
    locked(&bench.dataplane).refuse = Some("no".into());
    let mut at = Vec::new();
    for second in 0..100 {
        bench.pass(1_000).await;
        let attempts = std::mem::take(&mut locked(&bench.dataplane).refusals);
        at.extend(std::iter::repeat_n(second, attempts));
    }
    assert_eq!(at, [0, 1, 3, 7, 15, 31, 61, 91]);
}

#[tokio::test(start_paused = true)]
async fn the_self_test_follows_every_program_and_then_the_clock() {
    let bench = Bench::start(three(), Start::Fresh, &[]);
    bench.pass(1).await;
    let count = |bench: &Bench| {
        let acts = std::mem::take(&mut locked(&bench.dataplane).acts);
        acts.iter().filter(|act| **act == Act::SelfTest).count()
    };
    assert_eq!(count(&bench), 1);
    assert!(bench.status().not_healthy().is_empty());
    locked(&bench.dataplane).self_test_failures = [(name("mqtt"), "dropped".to_owned())].into();
    bench.judge(&[("a", Up), ("b", Up), ("c", Up)]);
    bench.pass(9_990).await;
    assert_eq!(count(&bench), 1);
    assert_eq!(bench.status().not_healthy(), ["VIP mqtt: dropped"]);
    locked(&bench.dataplane).self_test_failures.clear();
    bench.pass(10).await;
    assert_eq!(count(&bench), 1);
    assert!(bench.status().not_healthy().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_programs_are_off_the_interface_is_unhealthy_and_serves_nothing_until_they_are_back() {
    let bench = Bench::start(three(), Start::TakenOver, &[("mqtt", "a"), ("mqtt", "b"), ("mqtt", "c")]);
    bench.pass(2_000).await;
    assert!(bench.report.borrow().healthy);
    assert_eq!(bench.report.borrow().serving.len(), 1);
    for lost in [Lost::Interface("interface eth0 is gone".into()), Lost::Program("taken off".into())] {
        let message = lost.to_string();
        bench.attachment.send_replace(Attachment { problem: Some(lost), restored: 0 });
        bench.pass(1).await;
        assert_eq!(bench.status().not_healthy(), [message]);
        assert!(!bench.report.borrow().healthy);
        assert!(bench.report.borrow().serving.is_empty(), "nothing is to be announced");
        bench.attachment.send_replace(Attachment { problem: None, restored: 1 });
        bench.pass(1).await;
        assert!(bench.status().not_healthy().is_empty());
        assert_eq!(bench.report.borrow().serving.len(), 1);
        assert_eq!(bench.status().reattachments, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn senders_that_end_leave_everything_in_force_and_the_loop_running() {
    let Bench { dataplane, store, verdicts, next_hops, attachment, status, stop, task, .. } =
        Bench::start(three(), Start::TakenOver, &[("mqtt", "a")]);
    drop((store, verdicts, next_hops, attachment));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!task.is_finished());
    assert_eq!(status.borrow().vips["mqtt"].reals["a"].weight, 100);
    assert_eq!(locked(&dataplane).programs.len(), 1);
    stop.send(()).expect("the loop listens");
    task.await.expect("it ends in peace");
}

#[test]
fn probes_go_to_the_vip_with_a_mark_or_to_the_real_without() {
    let mut tunnel = checked_vip(&[("a", 100)]);
    tunnel.vip.health.as_mut().unwrap().port = Some(8080);
    let mut direct = checked_vip(&[("b", 0)]);
    direct.vip.health.as_mut().unwrap().path = ProbePath::Direct;
    let desired = desired([("direct", direct), ("none", unchecked_vip(&[("c", 1)])), ("tunnel", tunnel)]);
    let marks = [((name("tunnel"), name("a")), 7), ((name("direct"), name("b")), 8)].into();
    let found: Vec<_> = targets(&desired, &marks)
        .into_iter()
        .map(|target| (target.real.to_string(), target.connect.to_string(), target.mark))
        .collect();
    assert_eq!(
        found,
        [
            ("b".to_owned(), "10.0.2.1:1883".to_owned(), None),
            ("a".to_owned(), "198.51.100.3:8080".to_owned(), Some(7)),
        ]
    );
}
