//! The admin endpoint: `/healthz`, `/readyz`, `/metrics` and `/status`.
//!
//! | path | answers 200 | else |
//! |---|---|---|
//! | `/healthz` | while the newest self-test has passed: packets really are forwarded as they should be | 503, with what failed |
//! | `/readyz` | once every VIP has its table | 503, with what is missing |
//! | `/metrics` | always: Prometheus' text (OpenMetrics) | |
//! | `/status` | always: JSON | |

use crate::standalone::FileStatus;
use crate::status::{Status, VipStatus, seconds};
use anyhow::{Context as _, Result};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use zk_schema::{NodeName, VipName};

/// What the endpoint shows.
#[derive(Clone, Debug)]
pub struct Shown {
    /// This node.
    pub node: NodeName,
    /// The control loop's status.
    pub status: watch::Receiver<Arc<Status>>,
    /// The cluster file's status.
    pub file: watch::Receiver<FileStatus>,
    /// The metrics.
    pub registry: Arc<Registry>,
}

/// Listens on `address`, without answering yet.
///
/// # Errors
/// If the address cannot be had, with what to do about it.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen on {address} for /healthz, /readyz and /metrics: does an lb-node run here already? \
             Else set `admin` in the [node] table to a free port of an address of this machine"
        )
    })
}

/// Answers on `listener` until the future is dropped.
///
/// # Errors
/// If the listener breaks.
pub async fn serve(listener: TcpListener, shown: Shown) -> Result<()> {
    axum::serve(listener, router(shown)).await.context("the admin endpoint has stopped")
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(shown)
}

async fn healthz(State(shown): State<Shown>) -> (StatusCode, String) {
    verdict(&shown.status.borrow().not_healthy(), &[])
}

async fn readyz(State(shown): State<Shown>) -> (StatusCode, String) {
    let missing = shown.status.borrow().not_ready();
    let file = shown.file.borrow();
    let mut remarks = Vec::new();
    if !file.is_valid() {
        remarks.push("the cluster file is refused and the last good state stays in force:".to_owned());
        remarks.extend(file.problems.iter().cloned());
    }
    remarks.extend(file.restart_for.iter().map(|field| format!("a change of {field} waits for a restart")));
    verdict(&missing, &remarks)
}

/// 200 if there are no problems. Remarks are told either way.
fn verdict(problems: &[String], remarks: &[String]) -> (StatusCode, String) {
    let (code, mut body) = match problems {
        [] => (StatusCode::OK, "ok\n".to_owned()),
        _ => (StatusCode::SERVICE_UNAVAILABLE, String::new()),
    };
    for line in problems.iter().chain(remarks) {
        body += line;
        body.push('\n');
    }
    (code, body)
}

async fn metrics(State(shown): State<Shown>) -> Response {
    // Reading the kernel's counters takes system calls, and may wait for a table to be applied.
    let encoded = tokio::task::spawn_blocking(move || {
        let mut body = String::new();
        text::encode(&mut body, &shown.registry).map(|()| body)
    });
    match encoded.await {
        Ok(Ok(body)) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], body).into_response()
        }
        Ok(Err(_)) | Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be gathered\n").into_response()
        }
    }
}

/// The answer of `/status`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    node: &'a NodeName,
    version: &'static str,
    healthy: bool,
    ready: bool,
    config: Config<'a>,
    epoch: u64,
    xdp_native: bool,
    apply_error: Option<&'a str>,
    self_test_failures: Option<&'a BTreeMap<VipName, String>>,
    vips: &'a BTreeMap<VipName, VipStatus>,
}

#[derive(Debug, Serialize)]
struct Config<'a> {
    valid: bool,
    problems: &'a [String],
    restart_for: &'a BTreeSet<String>,
    /// Seconds since 1970.
    loaded: Option<u64>,
}

async fn status(State(shown): State<Shown>) -> Response {
    let status = Arc::clone(&shown.status.borrow());
    let file = shown.file.borrow();
    let report = Report {
        node: &shown.node,
        version: env!("CARGO_PKG_VERSION"),
        healthy: status.not_healthy().is_empty(),
        ready: status.not_ready().is_empty(),
        config: Config {
            valid: file.is_valid(),
            problems: &file.problems,
            restart_for: &file.restart_for,
            loaded: file.loaded.and_then(seconds),
        },
        epoch: status.epoch,
        xdp_native: status.xdp_native,
        apply_error: status.apply_error.as_deref(),
        self_test_failures: status.self_test.as_ref().map(|test| &test.failures),
        vips: &status.vips,
    };
    Json(report).into_response()
}
