//! Bounds how often a line is logged, so that a repeated failure cannot flood the log. Pure: time is an argument.

use std::time::Duration;
use tokio::time::Instant;

/// Lets a burst of lines through, then one line per interval, and counts the lines it holds back.
#[derive(Clone, Debug)]
pub struct LogLimit {
    burst: u32,
    every: Duration,
    left: u32,
    /// The time at which `left` last grew.
    since: Option<Instant>,
    skipped: u64,
}

impl LogLimit {
    /// Allows `burst` lines at once, then one line per `every`. Unused lines add up to `burst` again. An interval below
    /// 1 ms counts as 1 ms.
    #[must_use]
    pub const fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, left: burst, since: None, skipped: 0 }
    }

    /// Asks to log one line at `now`. Returns `None` if the line must be skipped.
    ///
    /// Otherwise returns the value of the line's field `skipped`: how many lines were skipped since the last one, or
    /// `None` if there were none, which omits the field.
    pub fn allows(&mut self, now: Instant) -> Option<Option<u64>> {
        let since = *self.since.get_or_insert(now);
        let new = now.duration_since(since).as_millis() / self.every.as_millis().max(1);
        if let Ok(new @ 1..) = u32::try_from(new) {
            self.left = self.left.saturating_add(new).min(self.burst);
            self.since = Some(now);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                let skipped = std::mem::take(&mut self.skipped);
                Some((skipped > 0).then_some(skipped))
            }
            None => {
                self.skipped += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_then_a_trickle_that_tells_how_much_was_left_out() {
        let second = Duration::from_secs(1);
        let mut limit = LogLimit::new(3, second);
        let passed: Vec<_> = (0..10).filter_map(|_| limit.allows(Instant::now())).collect();
        assert_eq!(passed, [None; 3]);
        tokio::time::advance(second).await;
        assert_eq!(limit.allows(Instant::now()), Some(Some(7)));
        assert_eq!(limit.allows(Instant::now()), None);
        tokio::time::advance(100 * second).await;
        let passed: Vec<_> = (0..10).filter_map(|_| limit.allows(Instant::now())).collect();
        assert_eq!(passed, [Some(1), None, None], "no more than a burst, however long no line was written");
    }
}
