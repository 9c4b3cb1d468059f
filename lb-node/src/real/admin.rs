//! `/healthz` and `/metrics` of a real.

use super::host::Host;
use super::program::Counters;
use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, text};
use prometheus_client::metrics::{MetricType, counter::ConstCounter};
use prometheus_client::registry::Registry;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;

/// What the endpoints look at.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) host: Host,
    pub(super) interface: String,
    /// The kernel's number of the program that should be on the interface.
    pub(super) program: u32,
    pub(super) vips: BTreeSet<IpAddr>,
}

impl Status {
    /// What keeps this real from serving its VIPs; empty when nothing does.
    async fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match self.host.attached(&self.interface).await {
            Ok(Some(found)) if found.program == self.program => {}
            Ok(_) => problems.push(format!("the decapsulation program is not on {}", self.interface)),
            Err(error) => problems.push(format!("{error:#}")),
        }
        match self.host.loopback_addresses().await {
            Ok(present) => {
                let missing = self.vips.difference(&present);
                problems.extend(missing.map(|vip| format!("{vip} is not on the loopback")));
            }
            Err(error) => problems.push(format!("{error:#}")),
        }
        problems
    }
}

/// Listens on `address` and serves until the returned task is aborted.
pub(super) async fn serve(
    address: SocketAddr,
    status: Status,
    counters: Counters,
) -> Result<tokio::task::JoinHandle<()>> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: choose another address and port with --admin")
    })?;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(counters));
    let router = Router::new()
        .route("/healthz", get(healthz))
        .with_state(Arc::new(status))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(registry));
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("the admin endpoint on {address} has stopped: {error}");
        }
    }))
}

async fn healthz(State(status): State<Arc<Status>>) -> (StatusCode, String) {
    let problems = status.problems().await;
    if problems.is_empty() {
        (StatusCode::OK, "ok\n".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n")
    }
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut body = String::new();
    match text::encode(&mut body, &registry) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], body).into_response()
        }
        Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "the program's counters cannot be read\n").into_response()
        }
    }
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
