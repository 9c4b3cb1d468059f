//! The state machine that judges one target. No I/O, no clock.

use super::{State, Verdict};
use std::time::SystemTime;
use zk_schema::HealthCheck;

/// The outcome of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The real answered as the check expects.
    Success,
    /// It did not, in words. Counts against the real.
    Failure(String),
    /// This node could not ask, in words: the real is neither better nor worse for it.
    Inconclusive(String),
}

/// The effect of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing that can be seen.
    Nothing,
    /// Only [`Verdict::reason`].
    Reason,
    /// [`Verdict::state`] or [`Verdict::blind`].
    Verdict,
}

/// Judges a target by its probes' outcomes.
///
/// - From [`State::Unknown`] the first success brings `Up`: a real that has never been seen failing need not
///   prove itself, and a booting node wants reals soon.
/// - From `Down`, `healthy_threshold` successes in a row bring `Up`.
/// - From `Unknown` and `Up`, `unhealthy_threshold` failures in a row bring `Down`, never fewer.
/// - An inconclusive outcome neither continues nor interrupts a row. As many in a row as would have been
///   enough failures set [`Verdict::blind`]; the next conclusive outcome clears it.
#[derive(Clone, Debug)]
pub struct Machine {
    healthy_threshold: u32,
    unhealthy_threshold: u32,
    /// Successes in a row, since the last failure.
    successes: u32,
    /// Failures in a row, since the last success.
    failures: u32,
    /// Inconclusive outcomes in a row.
    inconclusive: u32,
    verdict: Verdict,
}

/// State that a target starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing is known of it.
    Unknown,
    /// It holds slots in a table that a predecessor process left in force: it stays up until proven down.
    Up,
}

impl Machine {
    /// A machine with the thresholds of `check` (0 counts as 1), at wall-clock time `now`.
    #[must_use]
    pub fn new(check: &HealthCheck, start: Start, now: SystemTime) -> Self {
        let (state, reason) = match start {
            Start::Unknown => (State::Unknown, "not probed yet"),
            Start::Up => (State::Up, "in force before this process started; not probed yet"),
        };
        Self {
            healthy_threshold: check.healthy_threshold.max(1),
            unhealthy_threshold: check.unhealthy_threshold.max(1),
            successes: 0,
            failures: 0,
            inconclusive: 0,
            verdict: Verdict { state, blind: false, since: now, reason: reason.to_owned() },
        }
    }

    /// The verdict now.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Takes the outcome of a probe that ended at wall-clock time `now`.
    pub fn record(&mut self, outcome: Outcome, now: SystemTime) -> Change {
        let (state, reason) = match outcome {
            Outcome::Success => {
                self.failures = 0;
                self.inconclusive = 0;
                self.successes = self.successes.saturating_add(1);
                let proven = match self.verdict.state {
                    State::Unknown | State::Up => true,
                    State::Down => self.successes >= self.healthy_threshold,
                };
                (if proven { State::Up } else { State::Down }, "probe succeeded".to_owned())
            }
            Outcome::Failure(reason) => {
                self.successes = 0;
                self.inconclusive = 0;
                self.failures = self.failures.saturating_add(1);
                let proven = self.failures >= self.unhealthy_threshold;
                (if proven { State::Down } else { self.verdict.state }, reason)
            }
            Outcome::Inconclusive(reason) => {
                self.inconclusive = self.inconclusive.saturating_add(1);
                (self.verdict.state, format!("inconclusive: {reason}"))
            }
        };
        let blind = self.inconclusive >= self.unhealthy_threshold;
        let change = if state != self.verdict.state || blind != self.verdict.blind {
            Change::Verdict
        } else if reason != self.verdict.reason {
            Change::Reason
        } else {
            Change::Nothing
        };
        if state != self.verdict.state {
            self.verdict.state = state;
            self.verdict.since = now;
        }
        self.verdict.blind = blind;
        self.verdict.reason = reason;
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;
    use zk_schema::{CheckKind, ProbePath};

    fn check(healthy_threshold: u32, unhealthy_threshold: u32) -> HealthCheck {
        HealthCheck {
            kind: CheckKind::Tcp,
            port: None,
            path: ProbePath::Direct,
            interval_ms: 1000,
            timeout_ms: 500,
            healthy_threshold,
            unhealthy_threshold,
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn failure() -> Outcome {
        Outcome::Failure("connection refused".into())
    }

    fn inconclusive() -> Outcome {
        Outcome::Inconclusive("no route".into())
    }

    /// States after each of `outcomes`.
    fn run(machine: &mut Machine, outcomes: impl IntoIterator<Item = Outcome>) -> Vec<State> {
        outcomes
            .into_iter()
            .map(|outcome| {
                machine.record(outcome, at(1));
                machine.verdict().state
            })
            .collect()
    }

    #[test]
    fn an_unknown_real_is_up_after_its_first_success() {
        let mut machine = Machine::new(&check(5, 3), Start::Unknown, at(0));
        assert_eq!(machine.record(Outcome::Success, at(7)), Change::Verdict);
        assert_eq!(machine.verdict().state, State::Up);
        assert_eq!(machine.verdict().since, at(7));
    }

    #[test]
    fn an_unknown_real_is_down_after_unhealthy_threshold_failures_and_not_before() {
        let mut machine = Machine::new(&check(1, 3), Start::Unknown, at(0));
        let states = run(&mut machine, [failure(), failure(), failure()]);
        assert_eq!(states, [State::Unknown, State::Unknown, State::Down]);
        assert_eq!(machine.verdict().reason, "connection refused");
    }

    #[test]
    fn a_success_between_failures_starts_the_row_again() {
        let mut machine = Machine::new(&check(1, 2), Start::Up, at(0));
        let states = run(&mut machine, [failure(), Outcome::Success, failure(), failure()]);
        assert_eq!(states, [State::Up, State::Up, State::Up, State::Down]);
    }

    #[test]
    fn a_down_real_needs_healthy_threshold_successes_in_a_row() {
        let mut machine = Machine::new(&check(2, 1), Start::Unknown, at(0));
        use Outcome::Success;
        let states = run(&mut machine, [failure(), Success, failure(), Success, Success]);
        assert_eq!(states, [State::Down, State::Down, State::Down, State::Down, State::Up]);
    }

    #[test]
    fn a_real_in_force_before_the_process_stays_up_until_proven_down() {
        let mut machine = Machine::new(&check(1, 2), Start::Up, at(0));
        assert_eq!(machine.verdict().state, State::Up);
        assert_eq!(run(&mut machine, [failure(), failure()]), [State::Up, State::Down]);
    }

    #[test]
    fn inconclusive_outcomes_neither_continue_nor_interrupt_a_row_of_failures() {
        let mut machine = Machine::new(&check(1, 2), Start::Up, at(0));
        let states = run(&mut machine, [failure(), inconclusive(), failure()]);
        assert_eq!(states, [State::Up, State::Up, State::Down]);
    }

    #[test]
    fn a_row_of_inconclusive_outcomes_is_reported_as_blindness_and_a_conclusive_one_ends_it() {
        let mut machine = Machine::new(&check(1, 2), Start::Up, at(0));
        assert_eq!(machine.record(inconclusive(), at(1)), Change::Reason);
        assert_eq!(machine.record(inconclusive(), at(2)), Change::Verdict);
        assert!(machine.verdict().blind);
        assert_eq!(machine.verdict().state, State::Up);
        assert_eq!(machine.verdict().since, at(0), "the state did not change");
        assert_eq!(machine.verdict().reason, "inconclusive: no route");
        assert_eq!(machine.record(Outcome::Success, at(3)), Change::Verdict);
        assert!(!machine.verdict().blind);
    }

    #[test]
    fn a_repeated_outcome_changes_nothing() {
        let mut machine = Machine::new(&check(1, 1), Start::Unknown, at(0));
        machine.record(failure(), at(1));
        assert_eq!(machine.record(failure(), at(2)), Change::Nothing);
        assert_eq!(machine.record(Outcome::Failure("timed out".into()), at(3)), Change::Reason);
        assert_eq!(machine.verdict().since, at(1));
    }

    fn outcomes() -> impl Strategy<Value = Vec<Outcome>> {
        let outcome = prop_oneof![Just(Outcome::Success), Just(failure()), Just(inconclusive())];
        proptest::collection::vec(outcome, 0..60)
    }

    proptest! {
        #[test]
        fn inconclusive_outcomes_never_change_a_state(outcomes in outcomes(), healthy in 1u32..5, unhealthy in 1u32..5) {
            let mut with = Machine::new(&check(healthy, unhealthy), Start::Unknown, at(0));
            let mut without = with.clone();
            for outcome in outcomes {
                if !matches!(outcome, Outcome::Inconclusive(_)) {
                    without.record(outcome.clone(), at(1));
                }
                with.record(outcome, at(1));
                prop_assert_eq!(with.verdict().state, without.verdict().state);
            }
        }

        #[test]
        fn down_comes_only_at_the_end_of_a_full_row_of_failures(outcomes in outcomes(), unhealthy in 1u32..5) {
            let mut machine = Machine::new(&check(1, unhealthy), Start::Unknown, at(0));
            let mut row = 0;
            for outcome in outcomes {
                match outcome {
                    Outcome::Success => row = 0,
                    Outcome::Failure(_) => row += 1,
                    Outcome::Inconclusive(_) => {}
                }
                machine.record(outcome, at(1));
                prop_assert_eq!(machine.verdict().state == State::Down, row >= unhealthy);
            }
        }
    }
}
