//! The time for which a new VIP waits until its reals are judged.

use std::time::Duration;
use zk_schema::Vip;

/// A node waits this long for its reals' next hops before it does without.
pub const FIRST_NEXT_HOPS: Duration = Duration::from_secs(1);

/// A VIP without a table waits for the first verdicts no longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Time in which a probe's outcome comes to be known, beyond the probe itself.
const SLACK: Duration = Duration::from_millis(250);

/// Returns how long the first probes of a VIP's reals take at most, but no more than five seconds. A VIP without a
/// health check waits for its reals' next hops instead.
#[must_use]
pub fn first_round(vip: &Vip) -> Duration {
    let round = match &vip.health {
        Some(check) => {
            check.first_probe_within() + Duration::from_millis(u64::from(check.timeout_ms)) + SLACK
        }
        None => FIRST_NEXT_HOPS,
    };
    round.min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zk_schema::{CheckKind, HealthCheck, Protocol};

    #[test]
    fn a_first_round_lasts_a_lead_and_a_timeout_within_reason() {
        let mut vip = Vip::new([198, 51, 100, 1].into(), 1883, Protocol::Tcp);
        assert_eq!(first_round(&vip), FIRST_NEXT_HOPS);
        let mut round = |interval_ms, timeout_ms| {
            let check = HealthCheck { interval_ms, timeout_ms, ..HealthCheck::new(CheckKind::Tcp) };
            vip.health = Some(check);
            first_round(&vip).as_millis()
        };
        assert_eq!(round(2000, 1000), 1000 + 1000 + 250);
        assert_eq!(round(200, 100), 200 + 100 + 250, "no longer than the interval until the first probe");
        assert_eq!(round(60_000, 60_000), 5000);
    }
}
