//! Times as people write and read them.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A span of time such as `90s`, `10m`, `2h`, `1d` or `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no span of time: write 90s, 10m, 2h, 1d or 1h30m");
        let (mut rest, mut seconds) = (text, 0_u64);
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number: u64 = rest[..end].parse().map_err(|_| wrong())?;
            let unit = rest[end..].chars().next().ok_or_else(wrong)?;
            let (_, worth) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            seconds =
                number.checked_mul(*worth).and_then(|more| seconds.checked_add(more)).ok_or_else(wrong)?;
            rest = &rest[end + unit.len_utf8()..];
        }
        if seconds == 0 { Err(wrong()) } else { Ok(Self(Duration::from_secs(seconds))) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_secs();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, worth) in UNITS {
            if rest >= worth {
                write!(f, "{}{unit}", rest / worth)?;
                rest %= worth;
            }
        }
        Ok(())
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A moment in seconds since 1970 as people read it: `2027-01-15 08:00:00 UTC`.
#[must_use]
pub fn when(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil from days, after Howard Hinnant: eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written_alike() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("2h", 7_200), ("1d", 86_400), ("1h30m", 5_400)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_secs(seconds))));
        }
        assert_eq!(Span(Duration::from_secs(5_400)).to_string(), "1h30m");
        for text in ["", "5", "h", "1w", "0s", "-1s", "1h30", "99999999999999999999s", "9999999999999999d"] {
            assert!(text.parse::<Span>().is_err(), "{text:?} passed for a span");
        }
    }

    #[test]
    fn moments_are_told_as_dates() {
        assert_eq!(when(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(when(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(when(1_800_000_000), "2027-01-15 08:00:00 UTC");
    }
}
