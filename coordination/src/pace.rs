//! Times for doing things again, a little different on each node: after an outage all of them start at one moment, and
//! would otherwise hit the servers together. Pure: chance comes from a seed, and no clock is read.

use std::time::Duration;
use zk_schema::fnv1a;

/// Durations spread by chance.
#[derive(Clone, Debug)]
pub struct Spread(u64);

impl Spread {
    /// Of a seed, which should differ between those who would otherwise act together. The same seed gives the same
    /// durations.
    #[must_use]
    pub fn new(seed: &str) -> Self {
        Self(fnv1a(seed.bytes()))
    }

    /// Of a session, and of what in it is done again and again.
    #[must_use]
    pub fn of_session(session: i64, what: &str) -> Self {
        Self::new(&format!("{session:x} {what}"))
    }

    /// From three quarters of `period` up to five quarters, so that it is `period` in the mean.
    pub fn around(&mut self, period: Duration) -> Duration {
        period * 3 / 4 + self.up_to(period / 2)
    }

    /// From nothing up to `most`.
    pub fn up_to(&mut self, most: Duration) -> Duration {
        // SplitMix64 (Steele, Lea and Flood, 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = (mixed ^ (mixed >> 31)) >> 32;
        let nanoseconds = (most.as_nanos() * u128::from(share)) >> 32;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// Pauses between attempts: each twice as long as the one before, up to a longest, and spread over its upper half.
#[derive(Clone, Debug)]
pub struct Backoff {
    spread: Spread,
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `first` to `longest`; see [`Spread::new`] for the seed.
    #[must_use]
    pub fn new(seed: &str, first: Duration, longest: Duration) -> Self {
        Self { spread: Spread::new(seed), first, longest, next: first }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        whole / 2 + self.spread.up_to(whole / 2)
    }

    /// Begins with the first pause again, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(45);

    #[test]
    fn sessions_that_begin_together_read_again_at_different_times() {
        let mut at: Vec<Duration> =
            (0..64).map(|session| Spread::of_session(session, "").around(PERIOD)).collect();
        at.sort_unstable();
        assert!(PERIOD * 3 / 4 <= at[0] && at[63] <= PERIOD * 5 / 4, "{at:?}");
        let most_at_once = at.iter().map(|from| {
            at.iter().filter(|other| (*from..*from + Duration::from_secs(1)).contains(other)).count()
        });
        assert!(most_at_once.max().unwrap() <= 10, "{at:?}");
        let mut mine = Spread::of_session(1, "");
        assert_ne!(mine.around(PERIOD), mine.around(PERIOD), "nor at the same distance each time");
        assert_eq!(Spread::new("a").up_to(PERIOD), Spread::new("a").up_to(PERIOD));
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_differ_between_nodes() {
        let second = Duration::from_secs(1);
        let mut pauses = Backoff::new("lb-1", second, 5 * second);
        for whole in [1, 2, 4, 5, 5] {
            let pause = pauses.pause();
            assert!(whole * second / 2 <= pause && pause <= whole * second, "{pause:?} of {whole} s");
        }
        pauses.reset();
        assert!(pauses.pause() <= second);
        let mut other = Backoff::new("lb-2", second, second);
        assert_ne!(other.pause(), Backoff::new("lb-1", second, second).pause());
    }
}
