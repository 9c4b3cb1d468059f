//! `/livez`, `/healthz`, `/readyz`, `/status` and `/metrics` of a real.

use super::network::Network;
use super::program::Counters;
use super::registration::Standing;
use admin::auth::{Auth, ServerFiles};
use admin::pages::{self, verdict};
use admin::server::{self, Limits};
use anyhow::{Context as _, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use host::attached;
use host::process_metrics::ProcessMetrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info};
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The state that the pages show.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) network: Network,
    pub(super) interface: String,
    /// The kernel's number of the program that should be on the interface.
    pub(super) program: u32,
    /// The pin of the link that should have it there.
    pub(super) link: PathBuf,
    /// The VIPs that should be in place.
    pub(super) vips: watch::Receiver<BTreeSet<IpAddr>>,
    /// The obstacle to that, if any.
    pub(super) obstacle: watch::Receiver<Option<String>>,
    /// State of the registration, if there is to be one.
    pub(super) registration: Option<watch::Receiver<Standing>>,
}

/// The content of `/status`.
#[derive(Debug, Serialize)]
struct Shown {
    interface: String,
    vips: BTreeSet<IpAddr>,
    problems: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registration: Option<Standing>,
}

impl Status {
    /// Finds what keeps this real from serving its VIPs; empty when nothing does.
    async fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match self.network.interface_index(&self.interface).await {
            Ok(index) => {
                if let Err(why) = attached::check(&self.link, self.program, index) {
                    problems.push(format!("the decapsulation program is not on {}: {why}", self.interface));
                }
            }
            Err(error) => problems.push(format!("{error:#}")),
        }
        problems.extend(self.obstacle.borrow().clone());
        match self.network.loopback_addresses().await {
            Ok(present) => {
                let vips = self.vips.borrow();
                let missing = vips.difference(&present);
                problems.extend(missing.map(|vip| format!("{vip} is not on the loopback")));
            }
            Err(error) => problems.push(format!("{error:#}")),
        }
        problems
    }

    /// Finds what keeps this real from serving, or from being asked to; empty when nothing does.
    async fn shortcomings(&self) -> Vec<String> {
        let mut shortcomings = self.problems().await;
        if let Some(registration) = &self.registration {
            shortcomings.extend(registration.borrow().problems());
        }
        shortcomings
    }
}

/// Listens on `address`; the returned future serves until it is dropped.
pub(super) async fn serve(
    address: SocketAddr,
    files: &ServerFiles,
    status: Status,
    counters: Counters,
) -> Result<impl Future<Output = Infallible> + use<>> {
    let auth = Auth::new(address, files)?;
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: choose another address and port with --admin")
    })?;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessMetrics));
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("drover_build", "The program that answers", version);
    registry.register_collector(Box::new(counters));
    if let Some(registration) = &status.registration {
        registry.register_collector(Box::new(Registration(registration.clone())));
    }
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/status", get(shown))
        .with_state(Arc::new(status))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(registry));
    Ok(server::serve(listener, auth, router, Limits::default()))
}

/// Always well: problems are for the agent itself to fix, or for people. A restart fixes none.
async fn livez() -> &'static str {
    "ok\n"
}

async fn healthz(State(status): State<Arc<Status>>) -> (StatusCode, String) {
    verdict(&status.problems().await, &[])
}

async fn readyz(State(status): State<Arc<Status>>) -> (StatusCode, String) {
    verdict(&status.shortcomings().await, &[])
}

async fn shown(State(status): State<Arc<Status>>) -> Json<Shown> {
    let problems = status.shortcomings().await;
    Json(Shown {
        interface: status.interface.clone(),
        vips: status.vips.borrow().clone(),
        problems,
        registration: status.registration.as_ref().map(|registration| registration.borrow().clone()),
    })
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    pages::metrics(registry).await
}

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let unreadable = |error| {
            tracing::error!("cannot read the program's counters: {error}");
            std::fmt::Error
        };
        let decapsulated = self.decapsulated().map_err(unreadable)?;
        let mut packets = encoder.encode_descriptor(
            "drover_decap_packets",
            "Packets decapsulated",
            None,
            MetricType::Counter,
        )?;
        for (encapsulation, inner, traffic) in &decapsulated {
            let labels = [("encapsulation", encapsulation.name()), ("inner", inner.name())];
            ConstCounter::new(traffic.packets).encode(packets.encode_family(&labels)?)?;
        }
        let mut bytes = encoder.encode_descriptor(
            "drover_decap_bytes",
            "Bytes of the inner packets, from their IP header on",
            None,
            MetricType::Counter,
        )?;
        for (encapsulation, inner, traffic) in &decapsulated {
            let labels = [("encapsulation", encapsulation.name()), ("inner", inner.name())];
            ConstCounter::new(traffic.bytes).encode(bytes.encode_family(&labels)?)?;
        }
        let mut drops = encoder.encode_descriptor(
            "drover_decap_drops",
            "Tunnel packets to this host that were dropped",
            None,
            MetricType::Counter,
        )?;
        for (reason, packets) in self.drops().map_err(unreadable)? {
            ConstCounter::new(packets).encode(drops.encode_family(&[("reason", reason.name())])?)?;
        }
        Ok(())
    }
}

/// The registration's metrics.
#[derive(Debug)]
struct Registration(watch::Receiver<Standing>);

impl Collector for Registration {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let standing = self.0.borrow().clone();
        let connected = encoder.encode_descriptor(
            "drover_real_zookeeper_connected",
            "1 while a server of ZooKeeper answers",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(i64::from(standing.connected)).encode(connected)?;
        let mut registered = encoder.encode_descriptor(
            "drover_real_registered",
            "1 while this host is a real of the VIP by a record of its own, as far as is known",
            None,
            MetricType::Gauge,
        )?;
        for (vip, place) in &standing.vips {
            let labels = [("vip", vip.as_str())];
            ConstGauge::new(i64::from(place.registered)).encode(registered.encode_family(&labels)?)?;
        }
        let mut connections = encoder.encode_descriptor(
            "drover_real_connections",
            "Clients' connections to the VIP that are established at this host",
            None,
            MetricType::Gauge,
        )?;
        for (vip, place) in &standing.vips {
            let Some(count) = place.connections else { continue };
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(connections.encode_family(&[("vip", vip.as_str())])?)?;
        }
        Ok(())
    }
}
