//! The metrics that Prometheus' client libraries have for every process, from `/proc/self` (proc(5)).

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use std::fs;

/// Encodes the metrics `process_…`, without those that cannot be read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessMetrics;

/// A process' use of resources, in seconds and bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Account {
    cpu: f64,
    resident: f64,
    /// Start of the process, after the machine's.
    started: f64,
}

impl Account {
    /// Reads the line of `/proc/<pid>/stat`. The second field is a name in parentheses, and may hold anything.
    fn parse(stat: &str, ticks: f64, page: f64) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<f64> =
            rest.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        // The first of these is the fourth field.
        let field = |number: usize| fields.get(number - 4).copied();
        Some(Self {
            cpu: (field(14)? + field(15)?) / ticks,
            started: field(22)? / ticks,
            resident: field(24)? * page,
        })
    }
}

/// Returns the machine's start, in seconds since 1970.
fn machine_started() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "ticks, pages and descriptors are few")]
fn read() -> (Option<Account>, Option<f64>) {
    let (ticks, page) = (rustix::param::clock_ticks_per_second(), rustix::param::page_size());
    let stat = fs::read_to_string("/proc/self/stat").ok();
    let account = stat.and_then(|stat| Account::parse(&stat, ticks as f64, page as f64));
    // One of them is for the folder that is being read.
    let files = fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1) as f64);
    (account, files)
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (account, files) = read();
        if let Some(account) = account {
            let help = "Time that this process has had on processors";
            let cpu = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(account.cpu).encode(cpu)?;
        }
        let gauges = [
            ("process_resident_memory_bytes", "Memory that this process has", account.map(|of| of.resident)),
            (
                "process_start_time_seconds",
                "When this process started, since 1970",
                account.zip(machine_started()).map(|(of, machine)| machine + of.started),
            ),
            ("process_open_fds", "Files and sockets that this process has open", files),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                ConstGauge::new(value).encode(gauge)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_read_whatever_the_process_is_called() {
        let stat =
            "42 (a) R 1 (b) S 1 42 42 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 4 0 5000 1000000 300 184";
        let account = Account::parse(stat, 100.0, 4096.0).unwrap();
        assert_eq!(account, Account { cpu: 4.0, resident: 1_228_800.0, started: 50.0 });
        assert_eq!(Account::parse("42 (a) S 1", 100.0, 4096.0), None);
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let (account, files) = read();
        assert!(account.unwrap().resident > 1e6 && files.unwrap() >= 3.0);
        assert!(machine_started().unwrap() > 1e9);
    }
}
