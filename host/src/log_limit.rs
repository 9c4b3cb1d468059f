//! Logging that a failure cannot turn into a flood. Pure: time is an argument.

use std::time::Duration;
use tokio::time::Instant;

/// Lets some lines through at once, then one every so often, and counts those that it does not.
#[derive(Clone, Debug)]
pub struct Quiet {
    burst: u32,
    every: Duration,
    left: u32,
    /// Since when `left` is what it is.
    since: Option<Instant>,
    skipped: u64,
}

impl Quiet {
    /// Lets `burst` lines through at once, and one more `every` so often.
    #[must_use]
    pub const fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, left: burst, since: None, skipped: 0 }
    }

    /// Whether a line may be written at `now`; if so, how many were not since the last.
    pub fn allows(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let new = now.duration_since(since).as_millis() / self.every.as_millis().max(1);
        if let Ok(new @ 1..) = u32::try_from(new) {
            self.left = self.left.saturating_add(new).min(self.burst);
            self.since = Some(now);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.skipped))
            }
            None => {
                self.skipped += 1;
                None
            }
        }
    }
}

/// The field `skipped` of a line: nothing where nothing was.
#[must_use]
pub fn field(skipped: u64) -> Option<u64> {
    (skipped > 0).then_some(skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_then_a_trickle_that_tells_how_much_was_left_out() {
        let second = Duration::from_secs(1);
        let mut quiet = Quiet::new(3, second);
        let passed: Vec<_> = (0..10).filter_map(|_| quiet.allows(Instant::now())).collect();
        assert_eq!(passed, [0, 0, 0]);
        tokio::time::advance(second).await;
        assert_eq!(quiet.allows(Instant::now()), Some(7));
        assert_eq!(quiet.allows(Instant::now()), None);
        tokio::time::advance(100 * second).await;
        let passed: Vec<_> = (0..10).filter_map(|_| quiet.allows(Instant::now())).collect();
        assert_eq!(passed, [1, 0, 0], "no more than a burst, however long it was quiet");
    }
}
