//! The wall clock, as records have it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns the seconds since 1970; 0 on a clock before that.
#[must_use]
pub fn wall() -> u64 {
    since_1970().as_secs()
}

/// Returns the milliseconds since 1970; 0 on a clock before that.
#[must_use]
pub fn wall_ms() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}

/// Returns the seconds between 1970 and `time`; `None` if it was before.
#[must_use]
pub fn seconds(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_milliseconds_are_of_the_same_clock() {
        let (before, ms, after) = (wall(), wall_ms(), wall());
        assert!((before..=after).contains(&(ms / 1000)), "{before} {ms} {after}");
    }
}
