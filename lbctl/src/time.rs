//! Points in time and spans of it, as people read and write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time, in milliseconds since 1970, by RFC 3339 in UTC: `2026-11-21T06:54:17.042Z`.
#[must_use]
pub fn rfc3339(at_ms: u64) -> String {
    humantime::format_rfc3339_millis(moment(at_ms)).to_string()
}

/// A point in time, in seconds since 1970, by RFC 3339 in UTC: `2026-11-21T06:54:17Z`.
#[must_use]
pub fn rfc3339_seconds(at: u64) -> String {
    humantime::format_rfc3339_seconds(moment(at.saturating_mul(1000))).to_string()
}

/// A moment in milliseconds since 1970. Absurd ones, which records may hold, are cut to the last that RFC 3339 writes.
fn moment(at_ms: u64) -> SystemTime {
    const END_OF_9999_MS: u64 = 253_402_300_799_999;
    UNIX_EPOCH + Duration::from_millis(at_ms.min(END_OF_9999_MS))
}

/// A span of time in words: `12 s`, `5 min`, `3 h 20 min`, `4 d 3 h`.
#[must_use]
pub fn span(seconds: u64) -> String {
    let parts = |large: u64, of: &str, small: u64, unit: &str| match small {
        0 => format!("{large} {of}"),
        _ => format!("{large} {of} {small} {unit}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => parts(seconds / 3600, "h", seconds / 60 % 60, "min"),
        _ => parts(seconds / 86_400, "d", seconds / 3600 % 24, "h"),
    }
}

/// Reads a span of time as it is typed: `500ms`, `30s`, `15m`, `2h`, `7d` or several of these, as in `1h 30m`.
///
/// # Errors
///
/// If it is not one, with examples of what to write.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a span of time: write 500ms, 30s, 15m, 2h or 7d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time_are_written_by_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (951_868_800, "2000-03-01T00:00:00.007Z"),
            (1_795_233_979, "2026-11-21T04:06:19.007Z"),
            (4_102_444_800, "2100-01-01T00:00:00.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            assert_eq!(rfc3339(seconds * 1000 + 7), expected);
        }
        assert_eq!(rfc3339_seconds(1_800_000_000), "2027-01-15T08:00:00Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.999Z");
        assert_eq!(rfc3339_seconds(u64::MAX), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn spans_have_two_units_at_most() {
        let shown = [0, 59, 60, 3599, 3600, 12_000, 86_400, 270_000].map(span);
        assert_eq!(shown, ["0 s", "59 s", "1 min", "59 min", "1 h", "3 h 20 min", "1 d", "3 d 3 h"]);
    }

    #[test]
    fn spans_are_read_with_a_unit_and_refused_without() {
        assert_eq!(parse_span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_span("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_span("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(parse_span("1h 30m"), parse_span("1.5h"));
        for wrong in ["", "5", "h", "-1h", "99999999999999999999h", "999999999999999999d"] {
            assert!(parse_span(wrong).is_err(), "{wrong:?}");
        }
    }
}
