//! Times as operators write and read them.

use crate::time::{parse_span, rfc3339, span};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A span of time that is not nothing, such as `90s`, `10m`, `2h` or `1d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match parse_span(text)? {
            Duration::ZERO => Err(format!("{text:?} is over before it begins: write 90s, 10m, 2h or 1d")),
            span => Ok(Self(span)),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&span(self.0.as_secs()))
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A moment in seconds since 1970 as people read it: `2027-01-15T08:00:00Z`.
#[must_use]
pub fn when(seconds: u64) -> String {
    rfc3339(seconds.saturating_mul(1000)).replace(".000Z", "Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_length() {
        assert_eq!("2h".parse(), Ok(Span(Duration::from_secs(7_200))));
        assert!("0s".parse::<Span>().is_err() && "5".parse::<Span>().is_err());
    }

    #[test]
    fn moments_are_told_to_the_second() {
        assert_eq!(when(1_800_000_000), "2027-01-15T08:00:00Z");
    }
}
