//! The times to announce, to withdraw, and to try again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The next action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Announce these addresses and no others, now.
    Replace(BTreeSet<IpAddr>),
    /// Nothing before this time, if there is no news; nothing at all if `None`.
    Wait(Option<Instant>),
}

/// Decides what is to be announced: what has been wanted for a while. An address that comes and goes faster
/// than that is not announced at all, for each change of a route is work for every router that hears of it.
#[derive(Clone, Debug)]
pub struct Schedule {
    hold: Duration,
    /// The wanted addresses, each with the time from which it may be announced.
    wanted: BTreeMap<IpAddr, Instant>,
    /// True if the driver is to be told even though nothing changes, since what it does is not known.
    unsettled: bool,
    failures: u32,
    /// After a failure: no attempt before this time, unless something is to be withdrawn that was not in the
    /// failed attempt.
    not_before: Option<Instant>,
    failed_target: BTreeSet<IpAddr>,
}

impl Schedule {
    /// Begins with what a predecessor has left announced, which is wanted until [`want`](Self::want) says otherwise.
    /// An address must be wanted for `hold` without a break before it is announced.
    #[must_use]
    pub fn new(inherited: BTreeSet<IpAddr>, hold: Duration, now: Instant) -> Self {
        Self {
            hold,
            wanted: inherited.into_iter().map(|address| (address, now)).collect(),
            unsettled: true,
            failures: 0,
            not_before: None,
            failed_target: BTreeSet::new(),
        }
    }

    /// Takes the addresses that are wanted from now on.
    pub fn want(&mut self, addresses: &BTreeSet<IpAddr>, now: Instant) {
        self.wanted.retain(|address, _| addresses.contains(address));
        for &address in addresses {
            self.wanted.entry(address).or_insert(now + self.hold);
        }
    }

    /// Returns the next action, given what is announced.
    #[must_use]
    pub fn step(&self, announced: &BTreeSet<IpAddr>, now: Instant) -> Step {
        let due = self.wanted.iter().filter(|&(_, &from)| from <= now);
        let target: BTreeSet<IpAddr> = due.map(|(&address, _)| address).collect();
        let next_due = self.wanted.values().copied().filter(|&from| from > now).min();
        if target == *announced && !self.unsettled {
            return Step::Wait(next_due);
        }
        match self.not_before.filter(|&until| until > now) {
            // A withdrawal that the failed attempt did not have in it does not wait.
            Some(_) if self.failed_target.difference(&target).next().is_some() => Step::Replace(target),
            Some(until) => Step::Wait(Some(until)),
            None => Step::Replace(target),
        }
    }

    /// The driver announces what the last [`Step::Replace`] said.
    pub fn succeeded(&mut self) {
        self.unsettled = false;
        self.failures = 0;
        self.not_before = None;
    }

    /// The driver failed, at making `target` announced or, without one, at saying what is.
    pub fn failed(&mut self, target: Option<&BTreeSet<IpAddr>>, now: Instant) {
        self.unsettled = true;
        let Some(target) = target else { return };
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
        self.failed_target.clone_from(target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    fn set<const N: usize>(last: [u8; N]) -> BTreeSet<IpAddr> {
        last.into_iter().map(|last| IpAddr::from([198, 51, 100, last])).collect()
    }

    /// A schedule that has told its driver for the first time.
    fn settled(inherited: BTreeSet<IpAddr>, now: Instant) -> Schedule {
        let mut schedule = Schedule::new(inherited.clone(), HOLD, now);
        assert_eq!(schedule.step(&inherited, now), Step::Replace(inherited));
        schedule.succeeded();
        schedule
    }

    #[test]
    fn an_address_is_announced_when_it_has_been_wanted_for_the_hold() {
        let now = Instant::now();
        let mut schedule = settled(set([]), now);
        schedule.want(&set([1]), now);
        schedule.want(&set([1, 2]), now + 400 * MS);
        assert_eq!(schedule.step(&set([]), now + 400 * MS), Step::Wait(Some(now + HOLD)));
        assert_eq!(schedule.step(&set([]), now + HOLD), Step::Replace(set([1])));
        assert_eq!(schedule.step(&set([1]), now + HOLD), Step::Wait(Some(now + 400 * MS + HOLD)));
        assert_eq!(schedule.step(&set([1]), now + 2 * HOLD), Step::Replace(set([1, 2])));
    }

    #[test]
    fn an_address_is_withdrawn_at_once_and_held_anew() {
        let now = Instant::now();
        let mut schedule = settled(set([1, 2]), now);
        schedule.want(&set([2]), now);
        assert_eq!(schedule.step(&set([1, 2]), now), Step::Replace(set([2])));
        schedule.want(&set([1, 2]), now + MS);
        assert_eq!(schedule.step(&set([2]), now + MS), Step::Wait(Some(now + MS + HOLD)));
    }

    #[test]
    fn what_flaps_faster_than_the_hold_is_never_announced() {
        let start = Instant::now();
        let mut schedule = settled(set([]), start);
        for n in 0..100 {
            let now = start + n * 500 * MS;
            schedule.want(&if n % 2 == 0 { set([1]) } else { set([]) }, now);
            assert!(matches!(schedule.step(&set([]), now), Step::Wait(_)), "{n}");
        }
    }

    #[test]
    fn what_a_predecessor_announced_stays_while_it_is_wanted() {
        let now = Instant::now();
        let mut schedule = settled(set([1, 2]), now);
        schedule.want(&set([1, 2]), now);
        assert_eq!(schedule.step(&set([1, 2]), now), Step::Wait(None));
    }

    #[test]
    fn failures_are_repeated_ever_more_slowly_but_within_five_seconds() {
        let mut now = Instant::now();
        let mut schedule = settled(set([1]), now);
        schedule.want(&set([]), now);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert_eq!(schedule.step(&set([1]), now), Step::Replace(set([])));
            schedule.failed(Some(&set([])), now);
            let Step::Wait(Some(until)) = schedule.step(&set([1]), now) else { panic!("no pause") };
            pauses.push((until - now).as_millis());
            now = until;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        schedule.succeeded();
        schedule.failed(Some(&set([])), now);
        assert_eq!(schedule.step(&set([1]), now), Step::Wait(Some(now + 100 * MS)));
    }

    #[test]
    fn a_withdrawal_does_not_wait_for_an_earlier_failures_pause_but_an_announcement_does() {
        let now = Instant::now();
        let mut schedule = settled(set([1]), now);
        schedule.want(&set([1, 2]), now);
        let later = now + HOLD;
        assert_eq!(schedule.step(&set([1]), later), Step::Replace(set([1, 2])));
        schedule.failed(Some(&set([1, 2])), later);
        assert_eq!(schedule.step(&set([1]), later), Step::Wait(Some(later + 100 * MS)));
        schedule.want(&set([2]), later);
        assert_eq!(schedule.step(&set([1]), later), Step::Replace(set([2])));
    }

    #[test]
    fn a_driver_that_does_not_know_what_it_announces_is_told_again() {
        let now = Instant::now();
        let mut schedule = settled(set([1]), now);
        schedule.failed(None, now);
        assert_eq!(schedule.step(&set([1]), now), Step::Replace(set([1])));
    }
}
