//! The schedule of probes, and the state of each target. No I/O: time and randomness are arguments.

use super::state::{Change, Machine, Outcome, Start};
use super::{Key, Target, Verdict, Verdicts};
use std::cmp::Reverse;
use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A point in time: what has passed since an origin that the caller chose.
pub type Instant = Duration;

/// Names one run of one target; outlived runs are recognised by it.
pub type Run = u64;

/// A probe to start now.
#[derive(Clone, Debug)]
pub struct Job {
    /// Hand it back to [`Schedule::finished`].
    pub run: Run,
    /// The target to probe.
    pub target: Arc<Target>,
}

/// The effect of a finished probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish<'a> {
    /// Its target is gone or has changed meanwhile; the outcome is void.
    Void,
    /// It counted.
    Counted(Change, &'a Verdict),
}

/// The effect of [`Schedule::replace_targets`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Runs whose probes under way are to be aborted.
    pub aborted: Vec<Run>,
    /// Targets that are no more.
    pub removed: Vec<Key>,
    /// The verdicts changed.
    pub verdicts_changed: bool,
}

struct Entry {
    target: Arc<Target>,
    machine: Machine,
    run: Run,
    /// The time at which the probe under way started.
    in_flight_since: Option<Instant>,
    /// Probes started since the target came or changed.
    started: u64,
}

/// Probes' schedule and verdicts of a set of targets.
///
/// - A new target's first probe starts at a random moment within a second (or its interval). The gap to its
///   second one is random up to the interval, so that targets which came together drift apart; after that, starts
///   are an interval ±10 % apart.
/// - A probe never overlaps the next one of its target: one that takes longer than the interval delays it.
/// - When more are due than may be in flight, the longest due goes first.
pub struct Schedule {
    entries: BTreeMap<Key, Entry>,
    /// (due, run, key). Lines of outlived runs are skipped when they come up.
    queue: BinaryHeap<Reverse<(Instant, Run, Key)>>,
    in_flight: usize,
    limit: usize,
    next_run: Run,
    initially_up: BTreeSet<Key>,
    random: SplitMix64,
}

impl Schedule {
    /// An empty schedule that has at most `limit` (0 counts as 1) probes in flight.
    ///
    /// Targets named in `initially_up` start up when they first appear, see [`Start::Up`]. `seed` should
    /// differ between nodes, so that they do not probe in step.
    #[must_use]
    pub fn new(limit: usize, seed: u64, initially_up: BTreeSet<Key>) -> Self {
        Self {
            entries: BTreeMap::new(),
            queue: BinaryHeap::new(),
            in_flight: 0,
            limit: limit.max(1),
            next_run: 0,
            initially_up,
            random: SplitMix64(seed),
        }
    }

    /// Makes `targets` the set that is probed; of several with one (VIP, real), the last counts.
    ///
    /// A target keeps what is known of it when only its mark changes, but a probe under way with the old mark
    /// is void and is repeated at once, for it may have gone to another real. When its check or address
    /// changes it starts anew. Probes of a target that is gone are void.
    pub fn replace_targets(&mut self, targets: &[Target], now: Instant, wall: SystemTime) -> Replaced {
        let mut replaced = Replaced::default();
        let wanted: BTreeMap<Key, &Target> = targets.iter().map(|target| (target.key(), target)).collect();

        let gone: Vec<Key> = self.entries.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        for key in gone {
            let entry = self.entries.remove(&key).expect("the key was just listed");
            if entry.in_flight_since.is_some() {
                self.in_flight -= 1;
                replaced.aborted.push(entry.run);
            }
            replaced.verdicts_changed = true;
            replaced.removed.push(key);
        }

        for (key, target) in wanted {
            match self.entries.entry(key) {
                MapEntry::Vacant(vacant) => {
                    let start =
                        if self.initially_up.remove(vacant.key()) { Start::Up } else { Start::Unknown };
                    let run = self.next_run;
                    self.next_run += 1;
                    let due = now + self.random.below(target.check.first_probe_within());
                    self.queue.push(Reverse((due, run, vacant.key().clone())));
                    vacant.insert(Entry {
                        target: Arc::new(target.clone()),
                        machine: Machine::new(&target.check, start, wall),
                        run,
                        in_flight_since: None,
                        started: 0,
                    });
                    replaced.verdicts_changed = true;
                }
                MapEntry::Occupied(mut occupied) => {
                    if *occupied.get().target == *target {
                        continue;
                    }
                    let key = occupied.key().clone();
                    let entry = occupied.get_mut();
                    let was_in_flight = entry.in_flight_since.take().is_some();
                    if was_in_flight {
                        self.in_flight -= 1;
                        replaced.aborted.push(entry.run);
                    }
                    let same_service =
                        entry.target.check == target.check && entry.target.connect == target.connect;
                    entry.target = Arc::new(target.clone());
                    if same_service {
                        // A waiting line in the queue stays good.
                        if was_in_flight {
                            entry.started = 0; // many may change together: let them drift apart again
                            entry.run = self.next_run;
                            self.next_run += 1;
                            self.queue.push(Reverse((now, entry.run, key)));
                        }
                        continue;
                    }
                    entry.machine = Machine::new(&target.check, Start::Unknown, wall);
                    entry.started = 0;
                    entry.run = self.next_run;
                    self.next_run += 1;
                    let due = now + self.random.below(target.check.first_probe_within());
                    self.queue.push(Reverse((due, entry.run, key)));
                    replaced.verdicts_changed = true;
                }
            }
        }
        replaced
    }

    /// Starts the probe that is longest due at `now`, if one is due and the cap allows it.
    pub fn start_due(&mut self, now: Instant) -> Option<Job> {
        if self.in_flight >= self.limit {
            return None;
        }
        self.skip_outlived();
        if self.queue.peek()?.0.0 > now {
            return None;
        }
        let Reverse((_, run, key)) = self.queue.pop()?;
        let entry = self.entries.get_mut(&key).expect("outlived lines were skipped");
        entry.in_flight_since = Some(now);
        entry.started += 1;
        self.in_flight += 1;
        Some(Job { run, target: Arc::clone(&entry.target) })
    }

    /// Returns the time at which to call [`Self::start_due`] next: `None` while no target waits or the cap is reached.
    pub fn next_due(&mut self) -> Option<Instant> {
        if self.in_flight >= self.limit {
            return None;
        }
        self.skip_outlived();
        self.queue.peek().map(|line| line.0.0)
    }

    /// Takes the outcome of the probe that [`Self::start_due`] started as `run` for the target `key`.
    pub fn finished(
        &mut self,
        key: &Key,
        run: Run,
        outcome: Outcome,
        now: Instant,
        wall: SystemTime,
    ) -> Finish<'_> {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.run == run) else {
            return Finish::Void;
        };
        let Some(started) = entry.in_flight_since.take() else {
            return Finish::Void;
        };
        self.in_flight -= 1;
        let interval = interval(&entry.target);
        let gap = if entry.started == 1 {
            let lead = entry.target.check.first_probe_within();
            lead + self.random.below(interval.saturating_sub(lead))
        } else {
            interval * 9 / 10 + self.random.below(interval / 5)
        };
        self.queue.push(Reverse(((started + gap).max(now), run, key.clone())));
        let change = entry.machine.record(outcome, wall);
        Finish::Counted(change, entry.machine.verdict())
    }

    /// The verdicts of all targets.
    #[must_use]
    pub fn verdicts(&self) -> Verdicts {
        self.entries.iter().map(|(key, entry)| (key.clone(), entry.machine.verdict().clone())).collect()
    }

    /// Probes under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn skip_outlived(&mut self) {
        while let Some(Reverse((_, run, key))) = self.queue.peek() {
            if self.entries.get(key).is_some_and(|entry| entry.run == *run) {
                break;
            }
            self.queue.pop();
        }
    }
}

fn interval(target: &Target) -> Duration {
    Duration::from_millis(u64::from(target.check.interval_ms.max(1)))
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014): jitter needs no better.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A duration in `0..limit`, to the microsecond; 0 if `limit` is less than one.
    fn below(&mut self, limit: Duration) -> Duration {
        let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.next().checked_rem(micros).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use zk_schema::testing::name;
    use zk_schema::{CheckKind, HealthCheck, ProbePath};

    const WALL: SystemTime = SystemTime::UNIX_EPOCH;

    fn target(real: &str, interval_ms: u32) -> Target {
        Target {
            vip: name("v"),
            real: name(real),
            connect: ([127, 0, 0, 1], 1883).into(),
            mark: None,
            check: HealthCheck {
                kind: CheckKind::Tcp,
                port: None,
                path: ProbePath::Direct,
                interval_ms,
                timeout_ms: 500,
                healthy_threshold: 2,
                unhealthy_threshold: 1,
            },
        }
    }

    fn targets(count: usize, interval_ms: u32) -> Vec<Target> {
        (0..count).map(|index| target(&format!("r{index}"), interval_ms)).collect()
    }

    fn schedule(targets: &[Target], limit: usize) -> Schedule {
        let mut schedule = Schedule::new(limit, 7, BTreeSet::new());
        schedule.replace_targets(targets, Duration::ZERO, WALL);
        schedule
    }

    /// Starts of each target's probes until `end`, when each probe takes `duration`.
    fn simulate(schedule: &mut Schedule, end: Duration, duration: Duration) -> BTreeMap<Key, Vec<Duration>> {
        let mut starts: BTreeMap<Key, Vec<Duration>> = BTreeMap::new();
        let mut running: BTreeSet<(Duration, Key, Run)> = BTreeSet::new();
        loop {
            let done = running.first().map(|(at, ..)| *at);
            let now = match (schedule.next_due(), done) {
                (Some(due), Some(done)) => due.min(done),
                (Some(at), None) | (None, Some(at)) => at,
                (None, None) => return starts,
            };
            if now > end {
                return starts;
            }
            while running.first().is_some_and(|(at, ..)| *at <= now) {
                let (_, key, run) = running.pop_first().expect("just seen");
                schedule.finished(&key, run, Outcome::Success, now, WALL);
            }
            while let Some(job) = schedule.start_due(now) {
                let key = job.target.key();
                starts.entry(key.clone()).or_default().push(now);
                running.insert((now + duration, key, job.run));
            }
        }
    }

    fn state(schedule: &Schedule, real: &str) -> State {
        schedule.verdicts()[&(name("v"), name(real))].state
    }

    /// Runs the first probe that comes due, with `outcome`, and returns when it started.
    fn probe_once(schedule: &mut Schedule, outcome: Outcome) -> Duration {
        let due = schedule.next_due().expect("a target waits");
        let job = schedule.start_due(due).expect("it is due");
        schedule.finished(&job.target.key(), job.run, outcome, due, WALL);
        due
    }

    #[test]
    fn every_target_is_first_probed_within_a_second_though_its_interval_is_longer() {
        let starts =
            simulate(&mut schedule(&targets(100, 60_000), 1000), Duration::from_secs(5), Duration::ZERO);
        assert_eq!(starts.len(), 100);
        assert!(starts.values().all(|starts| starts[0] < Duration::from_secs(1)));
    }

    #[test]
    fn targets_that_came_together_spread_over_the_interval() {
        let end = Duration::from_secs(30);
        let starts = simulate(&mut schedule(&targets(1000, 10_000), 1000), end, Duration::ZERO);
        // From 10 s to 20 s, each second should see its tenth of 1,000 probes.
        let mut seconds = [0; 10];
        for start in starts.values().flatten() {
            let second = usize::try_from(start.as_secs()).expect("30 at most");
            if let Some(count) = second.checked_sub(10).and_then(|second| seconds.get_mut(second)) {
                *count += 1;
            }
        }
        assert!(seconds.iter().all(|count| (50..=200).contains(count)), "{seconds:?}");
    }

    #[test]
    fn starts_are_an_interval_apart_give_or_take_a_tenth_however_long_a_probe_takes() {
        for duration in [Duration::ZERO, Duration::from_millis(800)] {
            let starts = simulate(&mut schedule(&targets(20, 1000), 1000), Duration::from_secs(60), duration);
            for starts in starts.values() {
                let gaps: Vec<u128> =
                    starts.windows(2).skip(1).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
                assert!(gaps.iter().all(|gap| (900..=1100).contains(gap)), "{gaps:?}");
                assert!(gaps.iter().any(|gap| *gap != gaps[0]), "no jitter: {gaps:?}");
            }
        }
    }

    #[test]
    fn a_probe_longer_than_the_interval_never_overlaps_the_next_one() {
        let starts = simulate(
            &mut schedule(&targets(1, 100), 1000),
            Duration::from_secs(10),
            Duration::from_millis(250),
        );
        let starts = starts.values().next().expect("one target");
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_millis(250)));
        assert!(starts.len() >= 39, "and the next follows at once: {}", starts.len());
    }

    #[test]
    fn the_cap_on_probes_in_flight_holds_and_no_target_starves_under_it() {
        let mut schedule = schedule(&targets(50, 1000), 3);
        let mut jobs = Vec::new();
        while let Some(job) = schedule.start_due(Duration::from_secs(1)) {
            jobs.push(job);
        }
        assert_eq!(jobs.len(), 3);
        assert_eq!(schedule.next_due(), None, "nothing to wait for but an outcome");
        for job in jobs {
            schedule.finished(&job.target.key(), job.run, Outcome::Success, Duration::from_secs(1), WALL);
        }
        // 50 targets a second at 100 ms each need five in flight; with three, each gets its turn still.
        let starts = simulate(&mut schedule, Duration::from_secs(20), Duration::from_millis(100));
        assert_eq!(starts.len(), 50);
        let counts: Vec<usize> = starts.values().map(Vec::len).collect();
        let (min, max) = (counts.iter().min(), counts.iter().max());
        assert!(max.zip(min).is_some_and(|(max, min)| max - min <= 3), "{counts:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule_and_another_one_another() {
        let run = |seed| {
            let mut schedule = Schedule::new(10, seed, BTreeSet::new());
            schedule.replace_targets(&targets(5, 1000), Duration::ZERO, WALL);
            simulate(&mut schedule, Duration::from_secs(5), Duration::ZERO)
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn a_target_keeps_its_state_when_its_mark_changes_and_a_probe_with_the_old_mark_is_void() {
        let mut target = target("a", 1000);
        let mut schedule = schedule(std::slice::from_ref(&target), 10);
        probe_once(&mut schedule, Outcome::Success);
        let due = schedule.next_due().expect("waits");
        let old = schedule.start_due(due).expect("due");

        target.mark = Some(9);
        let replaced = schedule.replace_targets(std::slice::from_ref(&target), due, WALL);
        assert_eq!(replaced, Replaced { aborted: vec![old.run], ..Replaced::default() });
        assert_eq!(state(&schedule, "a"), State::Up);
        let failure = Outcome::Failure("refused".into());
        assert_eq!(schedule.finished(&target.key(), old.run, failure, due, WALL), Finish::Void);
        assert_eq!(state(&schedule, "a"), State::Up);
        let again = schedule.start_due(due).expect("it is repeated at once");
        assert_eq!(again.target.mark, Some(9));
        assert_eq!(schedule.in_flight(), 1);
    }

    #[test]
    fn a_mark_that_changes_between_probes_does_not_move_the_next_one() {
        let mut target = target("a", 1000);
        let mut schedule = schedule(std::slice::from_ref(&target), 10);
        let due = schedule.next_due();
        target.mark = Some(9);
        schedule.replace_targets(std::slice::from_ref(&target), Duration::ZERO, WALL);
        assert_eq!(schedule.next_due(), due);
        let job = schedule.start_due(due.expect("waits")).expect("due");
        assert_eq!(job.target.mark, Some(9));
    }

    #[test]
    fn a_target_whose_check_or_address_changed_starts_anew() {
        let original = target("a", 1000);
        let mut other_check = original.clone();
        other_check.check.timeout_ms = 100;
        let mut other_address = original.clone();
        other_address.connect = ([127, 0, 0, 2], 1883).into();
        for changed in [other_check, other_address] {
            let mut schedule = schedule(std::slice::from_ref(&original), 10);
            probe_once(&mut schedule, Outcome::Success);
            let replaced = schedule.replace_targets(&[changed], Duration::from_secs(1), WALL);
            assert!(replaced.verdicts_changed);
            assert_eq!(state(&schedule, "a"), State::Unknown);
            let due = schedule.next_due().expect("waits");
            assert!(due < Duration::from_secs(2), "and is probed soon");
            assert!(schedule.start_due(due).is_some());
            assert!(schedule.start_due(Duration::from_secs(9)).is_none(), "once");
        }
    }

    #[test]
    fn a_removed_target_is_forgotten_with_its_probe_in_flight() {
        let all = targets(2, 1000);
        let mut schedule = schedule(&all, 10);
        let job = schedule.start_due(Duration::from_secs(1)).expect("due");
        let rest: Vec<Target> = all.iter().filter(|target| **target != *job.target).cloned().collect();
        let replaced = schedule.replace_targets(&rest, Duration::from_secs(1), WALL);
        assert_eq!(replaced.aborted, [job.run]);
        assert_eq!(replaced.removed, [job.target.key()]);
        assert_eq!(schedule.in_flight(), 0);
        let void =
            schedule.finished(&job.target.key(), job.run, Outcome::Success, Duration::from_secs(1), WALL);
        assert_eq!(void, Finish::Void);
        assert_eq!(schedule.verdicts().len(), 1);
    }

    #[test]
    fn a_target_that_comes_back_is_not_credited_with_the_probe_of_its_former_self() {
        let all = targets(1, 1000);
        let mut schedule = schedule(&all, 10);
        let now = Duration::from_secs(1);
        let job = schedule.start_due(now).expect("due");
        schedule.replace_targets(&[], now, WALL);
        schedule.replace_targets(&all, now, WALL);
        let void = schedule.finished(&job.target.key(), job.run, Outcome::Success, now, WALL);
        assert_eq!(void, Finish::Void);
        assert_eq!(state(&schedule, "r0"), State::Unknown);
    }

    #[test]
    fn an_unchanged_set_changes_nothing() {
        let all = targets(3, 1000);
        let mut schedule = schedule(&all, 10);
        assert_eq!(schedule.replace_targets(&all, Duration::from_secs(1), WALL), Replaced::default());
    }

    #[test]
    fn targets_in_force_before_start_up_once() {
        let all = targets(2, 1000);
        let mut schedule = Schedule::new(10, 7, BTreeSet::from([all[0].key()]));
        schedule.replace_targets(&all, Duration::ZERO, WALL);
        assert_eq!(state(&schedule, "r0"), State::Up);
        assert_eq!(state(&schedule, "r1"), State::Unknown);
        schedule.replace_targets(&[], Duration::ZERO, WALL);
        schedule.replace_targets(&all, Duration::ZERO, WALL);
        assert_eq!(state(&schedule, "r0"), State::Unknown, "a real that comes back later proves itself");
    }
}
