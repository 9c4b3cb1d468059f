//! Measured values, and what is told of them.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// Durations that were measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The least of them that `percent` of all do not exceed, in milliseconds.
    fn percentile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        Some(sorted.get(place)?.as_secs_f64() * 1e3)
    }
}

/// Named values in order; a name ends in its unit unless it counts something.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(Vec<(String, f64)>);

impl Figures {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds the 50th and 99th percentile.
    pub(crate) fn both(&mut self, prefix: &str, samples: &Samples) -> &mut Self {
        for percent in [50, 99] {
            if let Some(value) = samples.percentile(percent) {
                self.0.push((format!("{prefix}p{percent}_ms"), round(value, 100.0)));
            }
        }
        self
    }

    /// Adds a number.
    #[expect(clippy::cast_precision_loss, reason = "what is counted here stays far below 2^53")]
    pub(crate) fn count(&mut self, name: &str, count: usize) -> &mut Self {
        self.0.push((name.to_owned(), count as f64));
        self
    }

    /// All of them, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// As members of an object.
    pub(crate) fn members(&self) -> Map<String, Value> {
        let number =
            |value: f64| if value.fract() == 0.0 { json!(round_to_integer(value)) } else { json!(value) };
        self.0.iter().map(|(name, value)| (name.clone(), number(*value))).collect()
    }
}

fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

#[expect(clippy::cast_possible_truncation, reason = "it has no fraction and is far below 2^53")]
fn round_to_integer(value: f64) -> i64 {
    value as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(50), None);
        (1..=200).rev().for_each(|value| samples.push(Duration::from_millis(value)));
        assert_eq!(samples.percentile(50), Some(100.0));
        assert_eq!(samples.percentile(99), Some(198.0));
        let mut one = Samples::default();
        one.push(Duration::from_millis(7));
        assert_eq!((one.percentile(50), one.percentile(99)), (Some(7.0), Some(7.0)));
    }
}
