//! Answers of hostile servers to health probes, through loopback: a probe ends in time, in little memory, blames
//! the server and not the node, and repeats only so much of what the server said.

use crate::memory::within;
use health::Target;
use health::probe::Prober;
use health::scheduler::Probe as _;
use health::state::Outcome;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use zk_schema::{CheckKind, HealthCheck, HttpCheck, MqttCheck, MqttVersion, ProbePath};

/// Memory that a probe and this end of it may take, in bytes: TLS has buffers.
const LIMIT: usize = 4 << 20;

/// The checks, by an input's first byte.
pub const CHECKS: [&str; 5] = ["mqtt 3.1.1", "mqtt 5", "http", "http body", "https"];

struct State {
    runtime: Runtime,
    listener: TcpListener,
    address: SocketAddr,
    prober: Prober,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new({
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        State {
            address: listener.local_addr().unwrap(),
            runtime,
            listener,
            prober: Prober::new("lb-1".parse().unwrap()),
        }
    });
}

fn check(kind: &str) -> CheckKind {
    let http = HttpCheck { verify_tls: false, ..HttpCheck::default() };
    match kind {
        "mqtt 3.1.1" => CheckKind::Mqtt(MqttCheck::default()),
        "mqtt 5" => CheckKind::Mqtt(MqttCheck { version: MqttVersion::V5, ..MqttCheck::default() }),
        "http" => CheckKind::Http(http),
        "http body" => CheckKind::Http(HttpCheck { body_contains: Some("ready".into()), ..http }),
        _ => CheckKind::Https(http),
    }
}

/// Has a server answer with these bytes, and close.
///
/// # Panics
/// If the probe fares as it must not.
pub fn run(input: &[u8]) {
    let Some((kind, answer)) = input.split_first() else { return };
    let kind = CHECKS[usize::from(*kind) % CHECKS.len()];
    STATE.with_borrow_mut(|state| {
        let check = HealthCheck { path: ProbePath::Direct, ..HealthCheck::new(check(kind)) };
        let target = Arc::new(Target {
            vip: "mqtt".parse().unwrap(),
            real: "broker-1".parse().unwrap(),
            connect: state.address,
            mark: None,
            check,
        });
        let server = async {
            let (mut stream, _) = state.listener.accept().await.unwrap();
            let _ = stream.set_nodelay(true);
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            while stream.read(&mut request).await.is_ok_and(|count| count > 0) {}
        };
        let outcome = within(LIMIT, || {
            state.runtime.block_on(async { tokio::join!(state.prober.probe(target), server).0 })
        });
        match outcome {
            Outcome::Success => match kind {
                "mqtt 3.1.1" | "mqtt 5" => assert_eq!(answer[..1], [0x20], "no CONNACK"),
                // Empty lines before the answer are let pass (RFC 9112, section 2.2, asks that of servers).
                "http" | "http body" => assert!(answer.trim_ascii_start().starts_with(b"HTTP/1."), "no HTTP"),
                _ => panic!("a TLS server without a key"),
            },
            Outcome::Failure(reason) => {
                assert!(!reason.is_empty() && reason.chars().count() < 600, "{reason:?}");
                assert!(!reason.contains(char::is_control), "it would garble a log: {reason:?}");
            }
            // Only a machine that stands still may lead to that.
            Outcome::Inconclusive(reason) => assert!(reason.contains("stood still"), "{kind}: {reason}"),
        }
    });
}

/// Answers of servers that are well, and of some that are not.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let answers: [(&str, &[u8]); 17] = [
        ("mqtt 3.1.1", b"\x20\x02\x00\x00"),
        ("mqtt 3.1.1", b"\x20\x02\x00\x05"),
        ("mqtt 3.1.1", b"\x20\xff\xff\xff\x7f"),
        ("mqtt 3.1.1", b"\x30\x02ab"),
        ("mqtt 5", b"\x20\x03\x00\x00\x00"),
        ("mqtt 5", b"\x20\x09\x00\x8c\x06\x1f\x00\x03bad"),
        ("mqtt 5", b"\x20\x02\x00\x01"),
        ("mqtt 5", b"\x20\x10\x01\x00\x0d\x21\x00\x0a\x24\x01\x27\x00\x00\x10\x00\x25\x00\x2a\x01"),
        ("http", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
        ("http", b"HTTP/1.0 503 Unavailable\r\n\r\n"),
        ("http", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
        ("http body", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready"),
        (
            "http body",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nrea\r\n2\r\ndy\r\n0\r\na: b\r\n\r\n",
        ),
        ("http body", b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\nno"),
        ("https", b"\x15\x03\x01\x00\x02\x02\x28"),
        ("https", b"\x16\x03\x03\x00\x04\x0e\x00\x00\x00"),
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    ];
    answers.iter().map(|(kind, answer)| crate::seeds::of_kind(&CHECKS, kind, answer)).collect()
}
