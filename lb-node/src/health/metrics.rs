//! What probes did, for Prometheus.

use super::Key;
use super::state::Outcome;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// Upper bounds of the duration buckets, in seconds: a local answer, a distant one, the usual timeouts.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabels {
    vip: String,
    real: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    vip: String,
    real: String,
    outcome: OutcomeLabel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the derive writes variants' names as they are")]
enum OutcomeLabel {
    success,
    failure,
    inconclusive,
}

#[derive(Clone)]
struct Durations;

impl MetricConstructor<Histogram> for Durations {
    fn new_metric(&self) -> Histogram {
        Histogram::new(BUCKETS)
    }
}

/// Counters of probes. Clones share the same counters.
#[derive(Clone)]
pub struct ProbeMetrics {
    probes: Family<OutcomeLabels, Counter>,
    durations: Family<TargetLabels, Histogram, Durations>,
    in_flight: Gauge,
    in_flight_limit: Gauge,
}

impl Default for ProbeMetrics {
    fn default() -> Self {
        Self {
            probes: Family::default(),
            durations: Family::new_with_constructor(Durations),
            in_flight: Gauge::default(),
            in_flight_limit: Gauge::default(),
        }
    }
}

impl ProbeMetrics {
    /// Registers, under the registry's prefix (`drover`): `probes_total{vip,real,outcome}`,
    /// `probe_duration_seconds{vip,real}`, `probes_in_flight` and `probes_in_flight_limit`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("probes", "Health probes by outcome", self.probes.clone());
        registry.register_with_unit(
            "probe_duration",
            "Time that a probe took, the end of its connection included",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register("probes_in_flight", "Health probes under way", self.in_flight.clone());
        registry.register(
            "probes_in_flight_limit",
            "Cap on health probes under way; probes start late while it is reached",
            self.in_flight_limit.clone(),
        );
    }

    /// Counts a probe of `target` that ended after `duration`.
    pub(super) fn probed(&self, target: &Key, outcome: &Outcome, duration: Duration) {
        let outcome = match outcome {
            Outcome::Success => OutcomeLabel::success,
            Outcome::Failure(_) => OutcomeLabel::failure,
            Outcome::Inconclusive(_) => OutcomeLabel::inconclusive,
        };
        self.probes.get_or_create(&outcome_labels(target, outcome)).inc();
        self.durations.get_or_create(&target_labels(target)).observe(duration.as_secs_f64());
    }

    /// Drops the series of a target that is probed no more.
    pub(super) fn forget(&self, target: &Key) {
        for outcome in [OutcomeLabel::success, OutcomeLabel::failure, OutcomeLabel::inconclusive] {
            self.probes.remove(&outcome_labels(target, outcome));
        }
        self.durations.remove(&target_labels(target));
    }

    /// Publishes how many probes are under way, and the cap.
    pub(super) fn in_flight(&self, count: usize, limit: usize) {
        self.in_flight.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.in_flight_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }
}

fn target_labels((vip, real): &Key) -> TargetLabels {
    TargetLabels { vip: vip.to_string(), real: real.to_string() }
}

fn outcome_labels((vip, real): &Key, outcome: OutcomeLabel) -> OutcomeLabels {
    OutcomeLabels { vip: vip.to_string(), real: real.to_string(), outcome }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::name;
    use prometheus_client::encoding::text::encode;

    fn text(metrics: &ProbeMetrics) -> String {
        let mut registry = Registry::with_prefix("drover");
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).expect("a String takes any text");
        text
    }

    #[test]
    fn probes_are_counted_by_target_and_outcome_and_forgotten_with_the_target() {
        let metrics = ProbeMetrics::default();
        let key = (name("mqtt"), name("b1"));
        metrics.probed(&key, &Outcome::Success, Duration::from_millis(3));
        metrics.probed(&key, &Outcome::Failure("refused".into()), Duration::from_millis(3));
        metrics.probed(&key, &Outcome::Failure("refused".into()), Duration::from_millis(3));
        metrics.in_flight(2, 256);
        let lines = text(&metrics);
        for line in [
            r#"drover_probes_total{vip="mqtt",real="b1",outcome="success"} 1"#,
            r#"drover_probes_total{vip="mqtt",real="b1",outcome="failure"} 2"#,
            r#"drover_probe_duration_seconds_count{vip="mqtt",real="b1"} 3"#,
            r#"drover_probe_duration_seconds_bucket{le="0.005",vip="mqtt",real="b1"} 3"#,
            "drover_probes_in_flight 2",
            "drover_probes_in_flight_limit 256",
        ] {
            assert!(lines.lines().any(|l| l == line), "{line} is missing in\n{lines}");
        }
        metrics.forget(&key);
        assert!(!text(&metrics).contains("b1"));
    }
}
