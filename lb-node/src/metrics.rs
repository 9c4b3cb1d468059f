//! A node's metrics, beside the probes' own counters.
//!
//! Counters of packets are the kernel's, and are read when somebody asks. They go on through restarts of this
//! process, and those of a real vanish with it.

use crate::cluster::agent::ClusterView;
use crate::control::forwarding::{Forwarding, Shared, locked};
use crate::front::{FrontMetrics, FrontStatus};
use crate::standalone::FileStatus;
use crate::status::{ClusterStatus, KeptStatus, RealStatus, Status};
use crate::tree_metrics::TreeMetrics;
use dataplane::{Applied, Statistics};
use health::metrics::ProbeMetrics;
use host::process_metrics::ProcessMetrics;
use lb_ebpf::lb::RealCounters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;
use zk_schema::Capacity;
use zk_schema::tree::Mode;

/// Upper bounds of the buckets of the time to apply, in seconds; 10 ms for one VIP is the aim.
const APPLY_BUCKETS: [f64; 8] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];

/// The control loop's own counters. Clones share them.
#[derive(Clone, Debug)]
pub struct ControlMetrics {
    duration: Histogram,
    tables: Counter,
    failures: Counter,
}

impl Default for ControlMetrics {
    fn default() -> Self {
        Self {
            duration: Histogram::new(APPLY_BUCKETS),
            tables: Counter::default(),
            failures: Counter::default(),
        }
    }
}

impl ControlMetrics {
    /// Counts a program that was applied.
    pub(crate) fn applied(&self, applied: &Applied) {
        self.duration.observe(applied.duration.as_secs_f64());
        self.tables.inc_by(u64::try_from(applied.tables).unwrap_or(u64::MAX));
    }

    /// Counts a program that could not be applied.
    pub(crate) fn apply_failed(&self) {
        self.failures.inc();
    }

    fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "apply_duration",
            "Time from having a new state in hand to packets following it",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register("tables_switched", "Slot tables that were switched", self.tables.clone());
        registry.register("apply_failures", "Attempts to apply a state that failed", self.failures.clone());
    }
}

/// The sources of the metrics at the time of a scrape.
pub struct Scraped<D> {
    /// The data plane, for the kernel's counters; `None` before there is something to forward by.
    pub dataplane: Option<Shared<D>>,
    /// The control loop's status.
    pub status: watch::Receiver<Arc<Status>>,
    /// The cluster file's status.
    pub file: watch::Receiver<FileStatus>,
    /// The cluster's state, as the node knows it; `None` on a standalone node.
    pub cluster: Option<ClusterView>,
    /// The addresses announced.
    pub announced: watch::Receiver<FrontStatus>,
    /// The way to the tree.
    pub tree: TreeMetrics,
    /// The state of the cache on disk.
    pub kept: watch::Receiver<KeptStatus>,
    /// The node's capacity.
    pub capacity: Capacity,
}

/// All metrics of a node: its own below the prefix `drover`, and those of any process. `docs/metrics.md` explains each.
#[must_use]
pub fn registry<D: Forwarding>(
    sources: Scraped<D>,
    control: &ControlMetrics,
    probes: &ProbeMetrics,
) -> Registry {
    let mut all = Registry::default();
    all.register_collector(Box::new(ProcessMetrics));
    let registry = all.sub_registry_with_prefix("drover");
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The program that answers", version);
    control.register(registry);
    probes.register(registry);
    if sources.cluster.is_some() {
        sources.tree.register(registry);
        registry.register_collector(Box::new(FrontMetrics::new(sources.announced.clone())));
    }
    registry.register_collector(Box::new(Scrape { sources, unreadable: AtomicBool::new(false) }));
    all
}

const NO_LABELS: [(&str, &str); 0] = [];

struct Scrape<D> {
    sources: Scraped<D>,
    /// True if the counters could not be read at the last scrape.
    unreadable: AtomicBool,
}

impl<D> fmt::Debug for Scrape<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

impl<D: Forwarding> Collector for Scrape<D> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families { encoder };
        let status = Arc::clone(&self.sources.status.borrow());
        let file_is_valid = self.sources.file.borrow().is_valid();
        let (statistics, unresolved) = match &self.sources.dataplane {
            Some(dataplane) => {
                let dataplane = locked(dataplane);
                (dataplane.statistics(), dataplane.unresolved().len())
            }
            None => (Ok(Statistics::default()), 0),
        };
        encode_status(&mut families, &status, file_is_valid, unresolved)?;
        encode_capacity(&mut families, &status, &self.sources.capacity)?;
        if let Some(cluster) = &self.sources.cluster {
            encode_cluster(&mut families, &ClusterStatus::of(cluster), &status)?;
            encode_behind(&mut families, &self.sources.tree)?;
            families.gauge(
                "cache_current",
                "Whether the newest decision, and what is left out of it, is kept on disk: 0 or 1",
                flag(self.sources.kept.borrow().problem.is_none()),
            )?;
        }
        match statistics {
            Ok(statistics) => {
                self.unreadable.store(false, Ordering::Relaxed);
                encode_statistics(&mut families, &statistics)
            }
            Err(error) => {
                if !self.unreadable.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "packets' counters cannot be read and are left out of /metrics");
                }
                Ok(())
            }
        }
    }
}

fn encode_status(
    families: &mut Families<'_>,
    status: &Status,
    file_is_valid: bool,
    unresolved: usize,
) -> fmt::Result {
    let reals = || {
        status.vips.iter().flat_map(|(vip, state)| {
            state
                .reals
                .iter()
                .map(move |(real, status)| ([("vip", vip.as_str()), ("real", real.as_str())], status))
        })
    };
    let mut of_reals = |name, help, value: fn(&RealStatus) -> f64| {
        families.gauges(name, help, reals().map(|(labels, real)| (labels, value(real))))
    };
    of_reals("real_healthy", "Whether the real is thought to take connections: 0 or 1", |real| {
        f64::from(u8::from(real.is_healthy()))
    })?;
    of_reals("real_weight", "Weight in the table in force, 0 if the real is not in it", |real| {
        f64::from(real.weight)
    })?;
    of_reals("real_share", "Part of the VIP's slots that the real holds, from 0 to 1", |real| real.share)?;

    let vips = || status.vips.iter().map(|(name, vip)| ([("vip", name.as_str())], vip));
    families.gauges(
        "vip_held_removals",
        "Reals that are down and keep their slots, since more than the panic threshold are",
        vips().map(|(labels, vip)| {
            let down_but_used =
                vip.reals.values().filter(|real| !real.is_healthy() && real.weight > 0).count();
            (labels, count(if vip.held.is_some() { down_but_used } else { 0 }))
        }),
    )?;
    families.gauges(
        "vip_ready",
        "Whether the VIP has a slot table in force: 0 or 1",
        vips().map(|(labels, vip)| (labels, f64::from(u8::from(vip.ready)))),
    )?;
    families.gauges(
        "vip_table_digest",
        "A number that stands for the VIP's table in the maps: where it differs, nodes route differently",
        vips().filter_map(|(labels, vip)| Some((labels, digest(vip.table_digest.as_deref()?)?))),
    )?;
    let failures = status.self_test.as_ref().map_or(0, |test| test.failures.len());
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; epochs stay far below 2^53")]
    let epoch = status.epoch as f64;
    let single = [
        ("epoch", "Number of the assignment in force", epoch),
        ("self_test_failures", "VIPs that failed the newest self-test", count(failures)),
        (
            "unresolved_reals",
            "Reals whose next hop is not known; packets to them are dropped",
            count(unresolved),
        ),
        ("config_valid", "Whether the cluster file as it is now is in force: 0 or 1", flag(file_is_valid)),
        (
            "attached",
            "Whether packets meet this node's programs, as far as the kernel says: 0 or 1",
            flag(status.detached.is_none()),
        ),
        (
            "xdp_native",
            "Whether XDP runs in the driver rather than in the network stack: 0 or 1",
            flag(status.xdp_native),
        ),
    ];
    for (name, help, value) in single {
        families.gauge(name, help, value)?;
    }
    families.counters(
        "reattachments",
        "Times that a program which had been taken off the interface was put back",
        [(NO_LABELS, status.reattachments)],
    )
}

/// The part of a table's digest that a float holds.
#[expect(clippy::cast_precision_loss, reason = "13 of 16 hexadecimal digits are 52 bits")]
fn digest(digest: &str) -> Option<f64> {
    Some(u64::from_str_radix(digest.get(3..)?, 16).ok()? as f64)
}

fn encode_capacity(families: &mut Families<'_>, status: &Status, capacity: &Capacity) -> fmt::Result {
    let reals = status.vips.values().map(|vip| vip.reals.len()).sum();
    let tables = status.vips.values().filter(|vip| vip.table_digest.is_some()).count();
    let of = |what| [("what", what)];
    families.gauges(
        "capacity",
        "What the maps have room for",
        [
            (of("vips"), f64::from(capacity.vips)),
            (of("reals"), f64::from(capacity.reals)),
            (of("tables"), f64::from(capacity.slot_tables())),
        ],
    )?;
    families.gauges(
        "capacity_used",
        "How much of that is in use; a VIP whose table changes has two for a moment",
        [(of("vips"), count(status.vips.len())), (of("reals"), count(reals)), (of("tables"), count(tables))],
    )
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; epochs stay far below 2^53")]
fn encode_behind(families: &mut Families<'_>, tree: &TreeMetrics) -> fmt::Result {
    let behind = tree.behind();
    families.gauge(
        "epochs_behind",
        "Epochs that the newest head is ahead of what is in force",
        behind.epochs as f64,
    )?;
    families.gauge(
        "behind_seconds",
        "For how long there has been a newer head than is in force",
        behind.duration().as_secs_f64(),
    )?;
    families.counters(
        "leader_changes",
        "Leaderships that have begun since this process first saw one",
        [(NO_LABELS, behind.leader_changes())],
    )
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; terms and sessions stay far below 2^53")]
fn encode_cluster(families: &mut Families<'_>, cluster: &ClusterStatus, status: &Status) -> fmt::Result {
    let single = [
        ("term", "Leadership that decided on what is in force", status.term.unwrap_or(0) as f64),
        ("leader", "Whether this node leads: 0 or 1", flag(cluster.leading.is_some())),
        (
            "cannot_lead",
            "Whether this node has found that it cannot lead: 0 or 1",
            flag(cluster.election_problem.is_some()),
        ),
        ("zookeeper_connected", "Whether ZooKeeper answers: 0 or 1", flag(cluster.connected)),
        (
            "autonomous",
            "Whether reals are left out by this node's own judgement: 0 or 1",
            flag(status.mode == Some(Mode::Autonomous)),
        ),
        ("maintenance", "Whether operators took this node out of service: 0 or 1", flag(cluster.maintenance)),
        (
            "overtaken",
            "Whether this node announces nothing since it is cut off and others have something newer: 0 or 1",
            flag(cluster.overtaken.is_some()),
        ),
        ("settling", "Whether the leader removes nothing since it is new: 0 or 1", flag(cluster.settling)),
        (
            "refused_records",
            "What the leader refuses or holds back of operators' records",
            count(cluster.leader_problems.len()),
        ),
        ("lagging_nodes", "Nodes that did not acknowledge in time", count(cluster.lagging.len())),
        (
            "cut_off_nodes",
            "Nodes that are not in the tree and, as they told last, announce addresses",
            count(cluster.cut_off.len()),
        ),
    ];
    for (name, help, value) in single {
        families.gauge(name, help, value)?;
    }
    families.gauges(
        "mode",
        "1 for how what is in force came to be: live from the tree, static since it is out of sight, or autonomous",
        [("live", Mode::Live), ("static", Mode::Static), ("autonomous", Mode::Autonomous)]
            .map(|(name, mode)| ([("mode", name)], flag(status.mode == Some(mode)))),
    )?;
    families.counters("zookeeper_sessions", "Sessions begun", [(NO_LABELS, cluster.sessions)])
}

fn encode_statistics(families: &mut Families<'_>, statistics: &Statistics) -> fmt::Result {
    let mut of_reals = |name, help, value: fn(&RealCounters) -> u64| {
        families.counters(
            name,
            help,
            statistics.reals.iter().map(|((vip, real), counters)| {
                ([("vip", vip.as_str()), ("real", real.as_str())], value(counters))
            }),
        )
    };
    of_reals("real_packets", "Packets sent to the real", |counters| counters.packets)?;
    of_reals(
        "real_bytes",
        "Bytes of those packets before encapsulation, from their IP header on",
        |counters| counters.bytes,
    )?;
    of_reals("real_new_connections", "TCP SYNs sent to the real", |counters| counters.connections)?;
    of_reals(
        "real_icmp_errors",
        "ICMP errors about the real's packets that were passed on to it",
        |counters| counters.icmp_errors,
    )?;
    families.counters(
        "drops",
        "Packets dropped, by reason; without a VIP where that was not known yet",
        statistics.drops.iter().map(|((vip, reason), packets)| {
            ([("vip", vip.as_ref().map_or("", |vip| vip.as_str())), ("reason", *reason)], *packets)
        }),
    )?;
    families.counters(
        "packets",
        "What else became of packets, by outcome",
        statistics.events.iter().map(|(outcome, packets)| ([("outcome", *outcome)], *packets)),
    )
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; nothing here is counted beyond 2^53")]
fn count(number: usize) -> f64 {
    number as f64
}

fn flag(flag: bool) -> f64 {
    f64::from(u8::from(flag))
}

/// Writes families of samples.
struct Families<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Families<'_> {
    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let samples = samples.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family(name, help, MetricType::Counter, samples)
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let samples = samples.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family(name, help, MetricType::Gauge, samples)
    }

    /// A gauge without labels.
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    fn family<L: EncodeLabelSet, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        samples: impl Iterator<Item = (L, M)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (labels, metric) in samples {
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
