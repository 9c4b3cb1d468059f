//! Spans of time that operators give with an edit.

use crate::time::{parse_span, span};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_length() {
        assert_eq!("2h".parse(), Ok(Span(Duration::from_secs(7_200))));
        assert!("0s".parse::<Span>().is_err() && "5".parse::<Span>().is_err());
    }
}
