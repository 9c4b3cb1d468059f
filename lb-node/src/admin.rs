//! The admin endpoint: `/livez`, `/healthz`, `/readyz`, `/announced`, `/metrics`, `/status` and `/capture`.
//!
//! | path | answers 200 | else |
//! |---|---|---|
//! | `/livez` | while a restart would fix nothing: as `/healthz`, and while the node waits for its first decision | 503, with what hangs or failed |
//! | `/healthz` | while the newest self-test has passed (a packet through the loaded program) and all core tasks turn | 503, with what failed |
//! | `/readyz` | once every VIP has its table, while all core tasks turn | 503, with what is missing |
//! | `/announced` | while all that it serves is announced: see [`crate::announced`] | 503, with what is not, and why |
//! | `/metrics` | always: Prometheus' text (OpenMetrics); before the first decision what is known by then | |
//! | `/status` | always: JSON; 503 before the first decision | |
//! | `/capture` | samples of forwarded packets as pcapng, see [`capture`] | with what is in the way |

mod capture;

use crate::announced;
use crate::cluster::agent::ClusterView;
use crate::control::SELF_TEST_EVERY;
use crate::front::FrontStatus;
use crate::standalone::FileStatus;
use crate::status::{ClusterStatus, KeptStatus, Status, VipStatus};
use ::admin::auth::Auth;
use ::admin::pages::{self, verdict};
use ::admin::server::{self, Limits};
use anyhow::{Context as _, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use host::clock::seconds;
use host::supervisor::Supervisor;
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use zk_schema::tree::Mode;
use zk_schema::{NodeName, VipName};

/// The sources of the endpoint's pages.
#[derive(Clone, Debug)]
pub struct Shown {
    /// This node.
    pub node: NodeName,
    /// The control loop's status.
    pub status: watch::Receiver<Arc<Status>>,
    /// The cluster file's status.
    pub file: watch::Receiver<FileStatus>,
    /// The cluster's state, as the node knows it; `None` on a standalone node.
    pub cluster: Option<ClusterView>,
    /// The addresses announced.
    pub announced: watch::Receiver<FrontStatus>,
    /// The time of the control loop's last turn; `None` while the node waits for its first decision.
    pub turned: watch::Receiver<Option<Instant>>,
    /// The core tasks.
    pub tasks: Supervisor,
    /// The state of the cache on disk.
    pub kept: watch::Receiver<KeptStatus>,
    /// The metrics.
    pub registry: watch::Receiver<Arc<Registry>>,
    /// The folder of the data plane's pins, if there is one.
    pub pins: Option<PathBuf>,
}

/// A control loop that has not turned for so long hangs: it does every second, unless it is applying something.
const HUNG_AFTER: Duration = Duration::from_secs(3 * SELF_TEST_EVERY.as_secs());

impl Shown {
    /// Returns whether there is nothing to go by yet.
    fn is_waiting(&self) -> bool {
        self.turned.borrow().is_none()
    }

    /// Returns what hangs, a line for each.
    fn hung(&self) -> Vec<String> {
        let mut hung = self.tasks.hung();
        let silence = self.turned.borrow().map_or(Duration::ZERO, |turned| turned.elapsed());
        if silence > HUNG_AFTER {
            hung.push(format!("the control loop hangs: it last turned {} s ago", silence.as_secs()));
        }
        hung
    }

    /// Returns what keeps a node that waits from forwarding by a decision; nothing where it does not wait.
    fn waits_for(&self) -> Option<String> {
        self.is_waiting().then(|| match &self.cluster {
            Some(_) => "waiting for the first decision of a leader; the kernel forwards as before".to_owned(),
            None => "starting".to_owned(),
        })
    }
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

/// Answers on `listener`, to those whom `auth` lets in, until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, auth: Auth, shown: Shown) -> Infallible {
    server::serve(listener, auth, router(shown), Limits::default()).await
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/announced", get(all_announced))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/capture", get(capture::capture))
        .with_state(shown)
}

async fn livez(State(shown): State<Shown>) -> (StatusCode, String) {
    let mut problems = shown.hung();
    if !shown.is_waiting() {
        problems.extend(shown.status.borrow().not_healthy());
    }
    verdict(&problems, shown.waits_for().as_slice())
}

async fn healthz(State(shown): State<Shown>) -> (StatusCode, String) {
    let mut problems: Vec<String> = shown.waits_for().into_iter().collect();
    problems.extend(shown.status.borrow().not_healthy());
    problems.extend(shown.hung());
    verdict(&problems, &[])
}

async fn readyz(State(shown): State<Shown>) -> (StatusCode, String) {
    let mut missing: Vec<String> = shown.waits_for().into_iter().collect();
    missing.extend(shown.status.borrow().not_ready());
    missing.extend(shown.hung());
    let file = shown.file.borrow();
    let mut remarks = Vec::new();
    if !file.is_valid() {
        remarks.push("the cluster file is refused and the last good state stays in force:".to_owned());
        remarks.extend(file.problems.iter().cloned());
    }
    if let Some(cluster) = &shown.cluster {
        remarks.extend(ClusterStatus::of(cluster).remarks());
    }
    remarks.extend(shown.announced.borrow().problem.iter().cloned());
    remarks.extend(shown.kept.borrow().problem.iter().cloned());
    remarks.extend(file.restart_for.iter().map(|field| format!("a change of {field} waits for a restart")));
    verdict(&missing, &remarks)
}

async fn all_announced(State(shown): State<Shown>) -> (StatusCode, String) {
    let status = Arc::clone(&shown.status.borrow());
    let cluster = shown.cluster.as_ref().map(ClusterStatus::of);
    let mut missing: Vec<String> = shown.waits_for().into_iter().collect();
    missing.extend(announced::missing(&status, cluster.as_ref(), &shown.announced.borrow()));
    missing.extend(shown.hung());
    verdict(&missing, &announced::remarks(&status))
}

async fn metrics(State(shown): State<Shown>) -> Response {
    let registry = Arc::clone(&shown.registry.borrow());
    pages::metrics(registry).await
}

/// The answer of `/status`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    node: &'a NodeName,
    version: &'static str,
    healthy: bool,
    ready: bool,
    config: Config<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterStatus>,
    announced: BTreeSet<IpAddr>,
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
    let hung = shown.hung();
    let code = if shown.is_waiting() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let file = shown.file.borrow();
    let report = Report {
        node: &shown.node,
        version: env!("CARGO_PKG_VERSION"),
        healthy: status.not_healthy().is_empty() && hung.is_empty(),
        ready: status.not_ready().is_empty() && hung.is_empty(),
        config: Config {
            valid: file.is_valid(),
            problems: &file.problems,
            restart_for: &file.restart_for,
            loaded: file.loaded.and_then(seconds),
        },
        term: status.term,
        epoch: status.epoch,
        mode: status.mode,
        cluster: shown.cluster.as_ref().map(ClusterStatus::of),
        announced: shown.announced.borrow().announced.clone(),
        xdp_native: status.xdp_native,
        apply_error: status.apply_error.as_deref(),
        self_test_failures: status.self_test.as_ref().map(|test| &test.failures),
        vips: &status.vips,
    };
    (code, Json(report)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::forwarding::Forwarding;
    use crate::metrics::{ControlMetrics, Scraped, registry};
    use crate::status::{RealState, RealStatus, SelfTestStatus};
    use crate::testing::name;
    use ::admin::auth::ServerFiles;
    use ::admin::client::{self, Client, Page};
    use dataplane::nexthop::NextHops;
    use dataplane::program::Program;
    use dataplane::{Applied, SelfTest, Statistics};
    use health::Key;
    use health::metrics::ProbeMetrics;
    use lb_ebpf::lb::RealCounters;
    use policy::panic::Held;
    use std::sync::Mutex;
    use zk_schema::{Desired, Protocol};

    /// A data plane with counters.
    struct Counting {
        readable: bool,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the map is gone")]
    struct Gone;

    impl Forwarding for Counting {
        type Error = Gone;

        fn apply(&mut self, _: &Program, _: &NextHops) -> Result<Applied, Gone> {
            Err(Gone)
        }
        fn apply_next_hops(&mut self, _: &NextHops) -> Result<(), Gone> {
            Err(Gone)
        }
        fn unresolved(&self) -> BTreeSet<Key> {
            [(name("mqtt"), name("b"))].into()
        }
        fn probe_marks(&self) -> BTreeMap<Key, u32> {
            BTreeMap::new()
        }
        fn in_force(&self, _: &Desired) -> BTreeSet<Key> {
            BTreeSet::new()
        }
        fn statistics(&self) -> Result<Statistics, Gone> {
            let counters = RealCounters { packets: 10, bytes: 640, connections: 3, icmp_errors: 1 };
            let statistics = Statistics {
                reals: [((name("mqtt"), name("a")), counters)].into(),
                drops: [((Some(name("mqtt")), "no_owner"), 4), ((None, "malformed"), 5)].into(),
                events: [("passed", 6)].into(),
            };
            if self.readable { Ok(statistics) } else { Err(Gone) }
        }
        fn self_test(&mut self) -> SelfTest {
            SelfTest::default()
        }
        fn table_digests(&self, _: &dyn Fn(&VipName) -> bool) -> BTreeMap<VipName, u64> {
            BTreeMap::new()
        }
        fn is_native(&self) -> bool {
            true
        }
    }

    fn real(state: RealState, weight: u16, share: f64) -> RealStatus {
        RealStatus {
            address: [10, 0, 2, 1].into(),
            state,
            blind: false,
            reason: "connection refused".into(),
            since: Some(1_700_000_000),
            configured_weight: 100,
            weight,
            share,
            next_hop: None,
            obstacle: None,
        }
    }

    fn working() -> Status {
        let reals =
            [(name("a"), real(RealState::Up, 100, 0.75)), (name("b"), real(RealState::Down, 50, 0.25))];
        let vip = VipStatus {
            address: [198, 51, 100, 1].into(),
            port: 1883,
            protocol: Protocol::Tcp,
            ready: true,
            epoch: 7,
            table_digest: Some("00c0ffee00c0ffee".into()),
            held: Some(Held { down: 1, total: 2, threshold: 20 }.to_string()),
            reals: reals.into(),
        };
        Status {
            term: None,
            epoch: 7,
            mode: None,
            xdp_native: true,
            apply_error: None,
            detached: None,
            reattachments: 0,
            self_test: Some(SelfTestStatus { tested: 1, failures: BTreeMap::new() }),
            vips: [(name("mqtt"), vip)].into(),
        }
    }

    /// Asks the endpoint for a page, over a socket.
    async fn ask(page: &str, status: Status, file: FileStatus, readable: bool) -> (u16, String) {
        ask_after(page, status, file, readable, Some(Instant::now())).await
    }

    /// As [`ask`], of a node whose control loop last turned then.
    async fn ask_after(
        page: &str,
        status: Status,
        file: FileStatus,
        readable: bool,
        turned: Option<Instant>,
    ) -> (u16, String) {
        let (status, file) = (watch::Sender::new(Arc::new(status)), watch::Sender::new(file));
        let sources = Scraped {
            dataplane: Some(Arc::new(Mutex::new(Counting { readable }))),
            status: status.subscribe(),
            file: file.subscribe(),
            cluster: None,
            announced: watch::channel(FrontStatus::default()).1,
            tree: Default::default(),
            kept: watch::channel(KeptStatus::default()).1,
            capacity: Default::default(),
        };
        let registry = registry(sources, &ControlMetrics::default(), &ProbeMetrics::default());
        let shown = Shown {
            node: name("lb-1"),
            status: status.subscribe(),
            file: file.subscribe(),
            cluster: None,
            announced: watch::channel(FrontStatus::default()).1,
            turned: watch::channel(turned).1,
            tasks: Supervisor::default(),
            kept: watch::channel(KeptStatus::default()).1,
            registry: watch::channel(Arc::new(registry)).1,
            pins: None,
        };
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let auth = Auth::new(address, &ServerFiles::default()).unwrap();
        let server = tokio::spawn(serve(listener, auth, shown));
        let client = Client::new(&client::ClientFiles::default(), Duration::from_secs(10)).unwrap();
        let Page { code, body } = client.get(address, page).await.unwrap();
        server.abort();
        (code, body)
    }

    #[tokio::test]
    async fn health_is_the_newest_self_test() {
        let mut status = working();
        let page = |status: &Status| {
            let status = status.clone();
            async { ask("/healthz", status, FileStatus::default(), true).await }
        };
        assert_eq!(page(&status).await, (200, "ok\n".into()));
        status.self_test =
            Some(SelfTestStatus { tested: 1, failures: [(name("mqtt"), "dropped".into())].into() });
        assert_eq!(page(&status).await, (503, "VIP mqtt: dropped\n".into()));
        status.self_test = None;
        assert_eq!(page(&status).await, (503, "there was no self-test yet\n".into()));
    }

    #[tokio::test]
    async fn a_control_loop_that_hangs_is_not_healthy_whatever_the_last_self_test_said() {
        let hung = Instant::now().checked_sub(HUNG_AFTER + Duration::from_secs(1)).unwrap();
        for page in ["/livez", "/healthz", "/readyz", "/announced"] {
            let (code, body) = ask_after(page, working(), FileStatus::default(), true, Some(hung)).await;
            assert_eq!(
                (code, body.as_str()),
                (503, "the control loop hangs: it last turned 31 s ago\n"),
                "{page}"
            );
        }
    }

    #[tokio::test]
    async fn before_the_first_decision_pages_say_what_is_missing_and_only_livez_is_content() {
        let ask = |page| ask_after(page, Status::default(), FileStatus::default(), true, None);
        for page in ["/healthz", "/readyz", "/announced"] {
            let (code, body) = ask(page).await;
            assert_eq!(code, 503, "{page}: {body}");
            assert!(body.contains("starting"), "{page}: {body}");
        }
        assert_eq!(ask("/livez").await, (200, "ok\nstarting\n".into()));
        let (code, body) = ask("/status").await;
        assert_eq!(code, 503);
        assert!(body.contains("\"ready\":false"), "{body}");
        assert_eq!(ask("/metrics").await.0, 200);
    }

    #[tokio::test]
    async fn readiness_is_every_vips_first_table() {
        let mut status = working();
        let (code, body) = ask("/readyz", status.clone(), FileStatus::default(), true).await;
        assert_eq!((code, body.as_str()), (200, "ok\n"));
        status.vips.get_mut("mqtt").unwrap().ready = false;
        let (code, body) = ask("/readyz", status, FileStatus::default(), true).await;
        assert_eq!(code, 503);
        assert_eq!(
            body,
            "VIP mqtt has no table yet: a is up (connection refused), b is down (connection refused)\n"
        );
        let (code, body) = ask("/readyz", Status::default(), FileStatus::default(), true).await;
        assert_eq!((code, body.as_str()), (503, "nothing is in force yet\n"));
    }

    #[tokio::test]
    async fn a_refused_cluster_file_is_told_but_a_node_that_serves_stays_ready() {
        let file = FileStatus { problems: vec!["c.toml:3:1: node: missing".into()], ..FileStatus::default() };
        let (code, body) = ask("/readyz", working(), file.clone(), true).await;
        assert_eq!(code, 200);
        assert!(body.contains("c.toml:3:1: node: missing"), "{body}");
        let (_, metrics) = ask("/metrics", working(), file, true).await;
        assert!(metrics.lines().any(|line| line == "drover_config_valid 0.0"), "{metrics}");
    }

    #[tokio::test]
    async fn every_metric_is_there_with_a_help_text() {
        let (code, text) = ask("/metrics", working(), FileStatus::default(), true).await;
        assert_eq!(code, 200);
        for line in [
            r#"drover_real_packets_total{vip="mqtt",real="a"} 10"#,
            r#"drover_real_bytes_total{vip="mqtt",real="a"} 640"#,
            r#"drover_real_new_connections_total{vip="mqtt",real="a"} 3"#,
            r#"drover_real_icmp_errors_total{vip="mqtt",real="a"} 1"#,
            r#"drover_real_healthy{vip="mqtt",real="a"} 1.0"#,
            r#"drover_real_healthy{vip="mqtt",real="b"} 0.0"#,
            r#"drover_real_weight{vip="mqtt",real="b"} 50.0"#,
            r#"drover_real_share{vip="mqtt",real="a"} 0.75"#,
            r#"drover_drops_total{vip="mqtt",reason="no_owner"} 4"#,
            r#"drover_drops_total{vip="",reason="malformed"} 5"#,
            r#"drover_packets_total{outcome="passed"} 6"#,
            r#"drover_vip_held_removals{vip="mqtt"} 1.0"#,
            r#"drover_vip_ready{vip="mqtt"} 1.0"#,
            r#"drover_vip_table_digest{vip="mqtt"} 281397679947758.0"#,
            r#"drover_capacity{what="vips"} 512.0"#,
            r#"drover_capacity_used{what="reals"} 2.0"#,
            "drover_epoch 7.0",
            "drover_unresolved_reals 1.0",
            "drover_config_valid 1.0",
            "drover_self_test_failures 0.0",
            "drover_xdp_native 1.0",
            "drover_tables_switched_total 0",
            "drover_apply_failures_total 0",
            "drover_apply_duration_seconds_count 0",
            "drover_probes_in_flight 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(text.contains("drover_build_info{version=\""), "{text}");
        let names = |kind: &str| -> BTreeSet<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(kind));
            lines.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
        };
        assert_eq!(names("# HELP "), names("# TYPE "));
    }

    #[tokio::test]
    async fn counters_that_cannot_be_read_do_not_take_the_rest_along() {
        let (code, text) = ask("/metrics", working(), FileStatus::default(), false).await;
        assert_eq!(code, 200);
        assert!(text.contains("drover_epoch 7.0") && !text.contains("drover_real_packets"), "{text}");
    }

    #[tokio::test]
    async fn the_status_tells_who_gets_connections_and_why() {
        let (code, text) = ask("/status", working(), FileStatus::default(), true).await;
        assert_eq!(code, 200);
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status["node"], "lb-1");
        assert_eq!(status["ready"], true);
        assert_eq!(status["config"]["valid"], true);
        let vip = &status["vips"]["mqtt"];
        assert!(vip["held"].as_str().unwrap().starts_with("1 of 2 reals are down"), "{text}");
        let b = &vip["reals"]["b"];
        assert_eq!((&b["state"], &b["share"]), (&"down".into(), &0.25.into()), "{text}");
        assert_eq!(b["reason"], "connection refused");
    }

    #[tokio::test]
    async fn an_address_in_use_is_reported_with_the_setting_that_names_it() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let error = bind(first.local_addr().unwrap()).await.unwrap_err();
        let message = format!("{error:#}");
        assert!(message.contains("`admin` in the [node] table") && message.contains("in use"), "{message}");
    }
}
