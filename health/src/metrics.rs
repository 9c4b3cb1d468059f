//! Metrics of probes, for Prometheus.

use super::Key;
use super::state::Outcome;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use zk_schema::{RealName, VipName};

/// Upper bounds of the duration buckets, in seconds: a local answer, a distant one, the usual timeouts.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VipLabels {
    vip: String,
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
    durations: Family<VipLabels, Histogram, Durations>,
    /// The reals of each VIP that were probed: when the last is forgotten, so are the VIP's durations.
    probed: Arc<Mutex<BTreeMap<VipName, BTreeSet<RealName>>>>,
    in_flight: Gauge,
    in_flight_limit: Gauge,
}

impl Default for ProbeMetrics {
    fn default() -> Self {
        Self {
            probes: Family::default(),
            durations: Family::new_with_constructor(Durations),
            probed: Arc::default(),
            in_flight: Gauge::default(),
            in_flight_limit: Gauge::default(),
        }
    }
}

impl ProbeMetrics {
    /// Registers, under the registry's prefix (`drover`): `probes_total{vip,real,outcome}`,
    /// `probe_duration_seconds{vip}` (by real there would be too many), `probes_in_flight` and `probes_in_flight_limit`.
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
        let (vip, real) = target;
        self.durations.get_or_create(&vip_labels(vip)).observe(duration.as_secs_f64());
        let mut probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        match probed.get_mut(vip) {
            Some(reals) if reals.contains(real) => {}
            Some(reals) => drop(reals.insert(real.clone())),
            None => drop(probed.insert(vip.clone(), [real.clone()].into())),
        }
    }

    /// Drops the series of a target that is probed no more.
    pub(super) fn forget(&self, target: &Key) {
        for outcome in [OutcomeLabel::success, OutcomeLabel::failure, OutcomeLabel::inconclusive] {
            self.probes.remove(&outcome_labels(target, outcome));
        }
        let (vip, real) = target;
        let mut probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reals) = probed.get_mut(vip) else { return };
        reals.remove(real);
        if reals.is_empty() {
            probed.remove(vip);
            self.durations.remove(&vip_labels(vip));
        }
    }

    /// Publishes how many probes are under way, and the cap.
    pub(super) fn in_flight(&self, count: usize, limit: usize) {
        self.in_flight.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.in_flight_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }
}

fn vip_labels(vip: &VipName) -> VipLabels {
    VipLabels { vip: vip.to_string() }
}

fn outcome_labels((vip, real): &Key, outcome: OutcomeLabel) -> OutcomeLabels {
    OutcomeLabels { vip: vip.to_string(), real: real.to_string(), outcome }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use zk_schema::testing::name;

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
        let other = (name("mqtt"), name("b2"));
        metrics.probed(&other, &Outcome::Success, Duration::from_millis(3));
        metrics.in_flight(2, 256);
        let lines = text(&metrics);
        for line in [
            r#"drover_probes_total{vip="mqtt",real="b1",outcome="success"} 1"#,
            r#"drover_probes_total{vip="mqtt",real="b1",outcome="failure"} 2"#,
            r#"drover_probe_duration_seconds_count{vip="mqtt"} 4"#,
            r#"drover_probe_duration_seconds_bucket{le="0.005",vip="mqtt"} 4"#,
            "drover_probes_in_flight 2",
            "drover_probes_in_flight_limit 256",
        ] {
            assert!(lines.lines().any(|l| l == line), "{line} is missing in\n{lines}");
        }
        metrics.forget(&key);
        let lines = text(&metrics);
        assert!(!lines.contains("b1") && lines.contains("probe_duration_seconds_count{"), "{lines}");
        metrics.forget(&other);
        assert!(!text(&metrics).contains("mqtt"));
    }
}
