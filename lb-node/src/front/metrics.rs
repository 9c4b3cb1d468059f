//! Metrics of the front.

use super::FrontStatus;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use tokio::sync::watch;

/// Encodes a front's status, as it is when somebody asks:
///
/// - `announced{address="…"}`, for each address that is wanted or announced: 1 if it is announced, else 0;
/// - `announcements_total`, `withdrawals_total`: times that an address was announced or withdrawn;
/// - `announcer_errors_total`: times that the driver has failed.
#[derive(Debug)]
pub struct FrontMetrics {
    status: watch::Receiver<FrontStatus>,
}

impl FrontMetrics {
    /// The metrics of the front with this status, to be registered as a collector.
    #[must_use]
    pub fn new(status: watch::Receiver<FrontStatus>) -> Self {
        Self { status }
    }
}

impl Collector for FrontMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.status.borrow().clone();
        let help = "Whether routers are told to send packets for the address to this node: 0 or 1";
        let mut family = encoder.encode_descriptor("announced", help, None, MetricType::Gauge)?;
        for address in status.wanted.union(&status.announced) {
            let announced = f64::from(u8::from(status.announced.contains(address)));
            let labels = [("address", address.to_string())];
            ConstGauge::new(announced).encode(family.encode_family(&labels)?)?;
        }
        let counters = [
            ("announcements", "Times that an address was announced", status.announcements),
            ("withdrawals", "Times that an address was withdrawn", status.withdrawals),
            (
                "announcer_errors",
                "Times that announcing, withdrawing or looking after announcements has failed",
                status.errors,
            ),
        ];
        for (name, help, value) in counters {
            let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(counter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    #[test]
    fn an_address_that_is_wanted_and_not_announced_shows_as_zero() {
        let status = FrontStatus {
            wanted: ["198.51.100.10".parse().unwrap(), "2001:db8::10".parse().unwrap()].into(),
            announced: ["198.51.100.9".parse().unwrap(), "2001:db8::10".parse().unwrap()].into(),
            announcements: 5,
            withdrawals: 4,
            errors: 3,
            problem: None,
        };
        let mut registry = Registry::with_prefix("drover");
        registry.register_collector(Box::new(FrontMetrics::new(watch::channel(status).1)));
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "drover_announced{address=\"198.51.100.9\"} 1.0",
                "drover_announced{address=\"198.51.100.10\"} 0.0",
                "drover_announced{address=\"2001:db8::10\"} 1.0",
                "drover_announcements_total 5",
                "drover_withdrawals_total 4",
                "drover_announcer_errors_total 3",
            ]
        );
    }
}
