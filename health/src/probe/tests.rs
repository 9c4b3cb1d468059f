//! Probes against small real servers on loopback, honest and hostile ones.

use super::*;
use crate::{State, Target, scheduler};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use socket2::{Domain, SockRef, Socket, Type};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use zk_schema::testing::name;
use zk_schema::{HealthCheck, HttpCheck, MqttCheck, MqttVersion};

/// Long enough for a busy machine where an answer is expected.
const PATIENT: u32 = 10_000;
/// Short where none is.
const BRIEF: u32 = 300;

fn target(connect: SocketAddr, kind: CheckKind, timeout_ms: u32) -> Target {
    Target {
        vip: name("web"),
        real: name("r1"),
        connect,
        mark: None,
        check: HealthCheck {
            kind,
            port: None,
            path: ProbePath::Direct,
            interval_ms: 1000,
            timeout_ms,
            healthy_threshold: 1,
            unhealthy_threshold: 1,
        },
    }
}

fn prober() -> Prober {
    Prober::new(name("n1"))
}

async fn probe(connect: SocketAddr, kind: CheckKind, timeout_ms: u32) -> Outcome {
    prober().probe(Arc::new(target(connect, kind, timeout_ms))).await
}

fn http() -> HttpCheck {
    HttpCheck::default()
}

fn body(text: &str) -> CheckKind {
    CheckKind::Http(HttpCheck { body_contains: Some(text.into()), ..http() })
}

fn mqtt(version: MqttVersion) -> CheckKind {
    CheckKind::Mqtt(MqttCheck { version, ..MqttCheck::default() })
}

/// The reason of a failure.
#[track_caller]
fn failure(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failure(reason) => reason,
        other => panic!("expected a failure, not {other:?}"),
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a loopback port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// A server that treats its only client as `serve` does.
async fn server<F, R>(serve: F) -> SocketAddr
where
    F: FnOnce(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        serve(stream).await;
    });
    address
}

/// A server that says `answer` after it got something, then closes in good order.
async fn answering(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let answer = answer.into();
    server(async move |mut stream| {
        let mut request = [0; 2048];
        assert!(stream.read(&mut request).await.is_ok_and(|count| count > 0), "a request");
        let _ = stream.write_all(&answer).await;
    })
    .await
}

/// A server that after `opening` says `again` without end, every `pause`.
async fn droning(opening: &'static str, again: &'static [u8], pause: Duration) -> SocketAddr {
    server(async move |mut stream| {
        let mut request = [0; 2048];
        let _ = stream.read(&mut request).await;
        if stream.write_all(opening.as_bytes()).await.is_err() {
            return;
        }
        while stream.write_all(again).await.is_ok() {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    })
    .await
}

/// A server that takes connections and never says anything.
async fn silent() -> SocketAddr {
    server(closed).await
}

mod tcp_checks {
    use super::*;

    #[tokio::test]
    async fn a_listener_is_up() {
        let (_listener, address) = listen().await;
        assert_eq!(probe(address, CheckKind::Tcp, PATIENT).await, Outcome::Success);
    }

    #[tokio::test]
    async fn a_closed_port_is_a_failure() {
        let (listener, address) = listen().await;
        drop(listener);
        let reason = failure(probe(address, CheckKind::Tcp, PATIENT).await);
        assert_eq!(reason, "connection refused while connecting");
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_the_handshake_times_out() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a loopback port");
        socket.listen(0).expect("listening");
        let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("bound");
        // A full backlog drops further SYNs.
        let _fill: Vec<_> = {
            let mut fill = Vec::new();
            while let Ok(Ok(stream)) =
                tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
            {
                fill.push(stream);
                assert!(fill.len() < 16, "the backlog does not fill up");
            }
            fill
        };
        let reason = failure(probe(address, CheckKind::Tcp, BRIEF).await);
        assert_eq!(reason, "timed out after 300 ms while connecting");
    }

    #[tokio::test]
    async fn a_probe_leaves_no_time_wait_behind() {
        let (_listener, address) = listen().await;
        assert_eq!(probe(address, CheckKind::Tcp, PATIENT).await, Outcome::Success);
        let sockets = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
        let remote = format!("0100007F:{:04X}", address.port());
        let left: Vec<_> =
            sockets.lines().filter(|line| line.split_whitespace().nth(2) == Some(remote.as_str())).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[tokio::test]
    async fn a_destination_without_a_route_is_inconclusive() {
        // TCP to a multicast address is refused by the kernel itself, whatever the routes are.
        let nowhere = SocketAddr::from(([224, 0, 0, 1], 9));
        let outcome = probe(nowhere, CheckKind::Tcp, PATIENT).await;
        assert_eq!(outcome, Outcome::Inconclusive("cannot connect: network is unreachable".into()));
    }

    #[tokio::test]
    async fn a_tunnel_probe_without_a_mark_is_inconclusive_and_not_sent() {
        let (listener, address) = listen().await;
        let mut target = target(address, CheckKind::Tcp, PATIENT);
        target.check.path = ProbePath::Tunnel;
        let outcome = prober().probe(Arc::new(target)).await;
        assert!(matches!(&outcome, Outcome::Inconclusive(reason) if reason.contains("mark")), "{outcome:?}");
        let client = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(client.is_err(), "a connection came");
    }

    #[tokio::test]
    async fn the_socket_is_marked_or_the_probe_is_inconclusive_for_want_of_permission() {
        let (_listener, address) = listen().await;
        match tcp::connect(address, Some(0x5eed)).await {
            Ok(stream) => assert_eq!(SockRef::from(&stream).mark().expect("SO_MARK"), 0x5eed),
            Err(fault) => {
                assert!(
                    matches!(&fault, Fault::Node(reason) if reason.contains("CAP_NET_ADMIN")),
                    "{fault:?}"
                );
                assert!(!rustix::process::geteuid().is_root());
            }
        }
    }
}

#[tokio::test]
async fn a_real_whose_server_dies_and_returns_goes_down_and_up() {
    let (listener, address) = listen().await;
    let mut target = target(address, CheckKind::Tcp, 1000);
    target.check.interval_ms = 100;
    let key = target.key();
    let (_targets, receiver) = tokio::sync::watch::channel(Arc::new(vec![target]));
    let settings = scheduler::Options { probes_in_flight: 10, ..Default::default() };
    let scheduler = scheduler::spawn(prober(), receiver, settings);
    let mut verdicts = scheduler.verdicts();
    let mut wait_for = async |state| {
        let reached = verdicts.wait_for(|v| v[&key].state == state);
        let reached = tokio::time::timeout(Duration::from_secs(10), reached).await.expect("in time");
        reached.expect("the scheduler lives")[&key].reason.clone()
    };
    wait_for(State::Up).await;
    drop(listener);
    assert_eq!(wait_for(State::Down).await, "connection refused while connecting");
    let _listener = TcpListener::bind(address).await.expect("the port is free again");
    assert_eq!(wait_for(State::Up).await, "probe succeeded");
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_fires_very_late_is_the_nodes_fault() {
    let deadline = Deadline::after(Duration::from_millis(100));
    tokio::time::advance(Duration::from_millis(150)).await;
    assert_eq!(deadline.passed("x"), Fault::real("timed out after 100 ms while x"));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(matches!(deadline.passed("x"), Fault::Node(reason) if reason.contains("stood still")));
}

#[test]
fn a_servers_words_are_quoted_short_and_without_control_characters() {
    assert_eq!(quoted("plain"), "plain");
    assert_eq!(quoted("a\nb\x1b"), "a\u{fffd}b\u{fffd}");
    let long = quoted(&"ü".repeat(500)).into_owned();
    assert_eq!(long.chars().count(), QUOTED + 1);
    assert!(long.ends_with('…'));
}

mod http_checks {
    use super::*;

    fn get() -> CheckKind {
        CheckKind::Http(http())
    }

    #[tokio::test]
    async fn the_expected_status_is_a_success() {
        let address = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(probe(address, get(), PATIENT).await, Outcome::Success);
        let address = answering("HTTP/1.0 204 No Content\r\n\r\n").await;
        let check = CheckKind::Http(HttpCheck { status: vec![200, 204], ..http() });
        assert_eq!(probe(address, check, PATIENT).await, Outcome::Success);
    }

    #[tokio::test]
    async fn another_status_is_a_failure_that_names_it() {
        let address = answering("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(failure(probe(address, get(), PATIENT).await), "HTTP status 503 Service Unavailable");
    }

    #[tokio::test]
    async fn the_request_asks_for_the_target_of_the_host_and_for_the_end_of_the_connection() {
        let (sender, request) = tokio::sync::oneshot::channel();
        let address = server(async move |stream| {
            let mut lines = BufReader::new(stream).lines();
            let mut seen = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                if line.is_empty() {
                    break;
                }
                seen.push(line.to_lowercase());
            }
            let _ = sender.send(seen);
            let mut stream = lines.into_inner();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        })
        .await;
        let check = HttpCheck { target: "/live?x=1".into(), host: Some("www.example".into()), ..http() };
        assert_eq!(probe(address, CheckKind::Http(check), PATIENT).await, Outcome::Success);
        let request = request.await.expect("a request");
        assert_eq!(request[0], "get /live?x=1 http/1.1");
        for line in ["host: www.example", "connection: close"] {
            assert!(request.iter().any(|l| l == line), "{line} is missing in {request:?}");
        }
    }

    #[tokio::test]
    async fn a_body_is_searched_across_the_seams_of_its_chunks() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nI a\r\n4\r\nm al\r\n4\r\nive!\r\n0\r\n\r\n";
        assert_eq!(probe(answering(chunked).await, body("I am alive"), PATIENT).await, Outcome::Success);
    }

    #[tokio::test]
    async fn a_body_without_the_text_is_a_failure() {
        let address = answering("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nso tired").await;
        let reason = failure(probe(address, body("alive"), PATIENT).await);
        assert_eq!(reason, "HTTP body does not contain \"alive\"");
    }

    #[tokio::test]
    async fn a_server_that_closes_after_its_answer_sees_no_reset() {
        let (sender, end) = tokio::sync::oneshot::channel();
        let address = server(async move |mut stream| {
            let mut request = [0; 2048];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            let _ = stream.shutdown().await;
            let _ = sender.send(stream.read(&mut request).await);
        })
        .await;
        assert_eq!(probe(address, get(), PATIENT).await, Outcome::Success);
        let end = end.await.expect("the server ran");
        assert!(matches!(end, Ok(0)), "{end:?}");
    }

    #[tokio::test]
    async fn garbage_is_a_failure() {
        for garbage in
            ["SSH-2.0-OpenSSH_9.6\r\n", "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "HTTP/1.1 2000 ?\r\n\r\n"]
        {
            let reason = failure(probe(answering(garbage).await, get(), PATIENT).await);
            assert!(reason.starts_with("HTTP: "), "{reason}");
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_without_an_answer_is_a_failure() {
        failure(probe(answering("").await, get(), PATIENT).await);
    }

    #[tokio::test]
    async fn silence_times_out() {
        let reason = failure(probe(silent().await, get(), BRIEF).await);
        assert_eq!(reason, "timed out after 300 ms while waiting for the HTTP response");
    }

    #[tokio::test]
    async fn headers_without_end_are_cut_off() {
        let address = droning("HTTP/1.1 200 OK\r\n", b"X-More: and more and more\r\n", Duration::ZERO).await;
        let reason = failure(probe(address, get(), PATIENT).await);
        assert!(reason.starts_with("HTTP: "), "{reason}");
    }

    #[tokio::test]
    async fn one_header_without_end_is_cut_off() {
        let address = droning("HTTP/1.1 200 OK\r\nX-Long: ", &[b'x'; 4096], Duration::ZERO).await;
        let reason = failure(probe(address, get(), PATIENT).await);
        assert!(reason.starts_with("HTTP: "), "{reason}");
    }

    #[tokio::test]
    async fn a_body_without_end_is_searched_up_to_its_limit() {
        let address = droning("HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 4096], Duration::ZERO).await;
        let reason = failure(probe(address, body("alive"), PATIENT).await);
        assert_eq!(reason, "the first 65536 bytes of the HTTP body do not contain \"alive\"");
    }

    #[tokio::test]
    async fn a_body_without_end_does_not_hold_up_a_check_of_the_status() {
        let address = droning("HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 4096], Duration::from_millis(1)).await;
        assert_eq!(probe(address, get(), PATIENT).await, Outcome::Success);
    }

    #[tokio::test]
    async fn slow_drips_and_interim_responses_without_end_run_into_the_one_timeout() {
        let drip = Duration::from_millis(20);
        let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
        for address in [
            droning("HTTP/1.1 200 OK\r\nX-Slow: ", b"x", drip).await,
            droning("HTTP/1.1 100 Continue\r\n\r\n", interim, drip).await,
        ] {
            let reason = failure(probe(address, get(), BRIEF).await);
            assert_eq!(reason, "timed out after 300 ms while waiting for the HTTP response");
        }
        let address = droning("HTTP/1.1 200 OK\r\n\r\n", b"x", drip).await;
        let reason = failure(probe(address, body("alive"), BRIEF).await);
        assert_eq!(reason, "timed out after 300 ms while reading the HTTP body");
    }

    #[tokio::test]
    async fn a_check_that_cannot_be_sent_is_not_the_reals_fault() {
        let check = HttpCheck { target: "/a b".into(), ..http() };
        let outcome = probe(silent().await, CheckKind::Http(check), PATIENT).await;
        assert!(matches!(&outcome, Outcome::Inconclusive(reason) if reason.contains("/a b")), "{outcome:?}");
    }
}

mod https_checks {
    use super::*;

    fn https(host: &str, verify_tls: bool) -> CheckKind {
        CheckKind::Https(HttpCheck { host: Some(host.into()), verify_tls, ..http() })
    }

    /// An HTTPS server with a certificate of its own making for `localhost`, and a store that trusts it.
    async fn tls_server() -> (SocketAddr, rustls::RootCertStore) {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(own.cert.der().clone()).expect("parses");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .expect("they match");
        let address = server(async move |stream| {
            let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await else { return };
            let mut request = [0; 2048];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            let _ = stream.shutdown().await;
        })
        .await;
        (address, roots)
    }

    #[tokio::test]
    async fn any_certificate_will_do_when_it_is_not_to_be_verified() {
        let (address, _) = tls_server().await;
        assert_eq!(probe(address, https("other.example", false), PATIENT).await, Outcome::Success);
    }

    #[tokio::test]
    async fn a_trusted_certificate_for_the_host_is_a_success() {
        let (address, roots) = tls_server().await;
        let prober = Prober { node: name("n1"), tls: tls::Configs::with_roots(roots) };
        let target = target(address, https("localhost", true), PATIENT);
        assert_eq!(prober.probe(Arc::new(target)).await, Outcome::Success);
    }

    #[tokio::test]
    async fn a_certificate_for_another_host_is_a_failure() {
        let (address, roots) = tls_server().await;
        let prober = Prober { node: name("n1"), tls: tls::Configs::with_roots(roots) };
        let target = target(address, https("other.example", true), PATIENT);
        let reason = failure(prober.probe(Arc::new(target)).await);
        assert!(reason.starts_with("TLS: invalid peer certificate"), "{reason}");
    }

    #[tokio::test]
    async fn an_untrusted_certificate_is_a_failure() {
        let (address, _) = tls_server().await;
        let (_, other_roots) = tls_server().await;
        let prober = Prober { node: name("n1"), tls: tls::Configs::with_roots(other_roots) };
        let target = target(address, https("localhost", true), PATIENT);
        let reason = failure(prober.probe(Arc::new(target)).await);
        assert!(reason.starts_with("TLS: invalid peer certificate"), "{reason}");
    }

    #[tokio::test]
    async fn a_server_without_tls_is_a_failure() {
        let address = answering("HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let reason = failure(probe(address, https("localhost", false), PATIENT).await);
        assert!(reason.starts_with("TLS: "), "{reason}");
    }

    #[tokio::test]
    async fn a_handshake_that_never_ends_times_out() {
        let reason = failure(probe(silent().await, https("localhost", false), BRIEF).await);
        assert_eq!(reason, "timed out after 300 ms while shaking hands over TLS");
    }
}

mod mqtt_checks {
    use super::*;
    use MqttVersion::{V5, V311};

    #[tokio::test]
    async fn an_accepted_client_disconnects_and_waits_for_the_broker_to_close() {
        let (sender, rest) = tokio::sync::oneshot::channel();
        let address = server(async move |mut stream| {
            let mut connect = [0; 2048];
            let _ = stream.read(&mut connect).await;
            let _ = stream.write_all(&[0x20, 2, 0, 0]).await;
            let mut rest = [0; 2];
            let read = stream.read_exact(&mut rest).await;
            let _ = stream.shutdown().await;
            let end = stream.read(&mut [0]).await;
            let _ = sender.send((read.map(|_| rest), end));
        })
        .await;
        assert_eq!(probe(address, mqtt(V311), PATIENT).await, Outcome::Success);
        let (rest, end) = rest.await.expect("the server ran");
        assert_eq!(rest.expect("no RST before DISCONNECT"), [0xe0, 0]);
        assert!(matches!(end, Ok(0)), "nor after it: {end:?}");
    }

    #[tokio::test]
    async fn a_refusal_is_a_failure_that_names_the_code() {
        let reason = failure(probe(answering([0x20, 2, 0, 3]).await, mqtt(V311), PATIENT).await);
        assert_eq!(reason, "CONNACK: server unavailable");
        let reason = failure(probe(answering([0x20, 3, 0, 0x88, 0]).await, mqtt(V5), PATIENT).await);
        assert_eq!(reason, "CONNACK: server unavailable");
    }

    #[tokio::test]
    async fn another_protocol_is_a_failure() {
        let reason =
            failure(probe(answering("HTTP/1.1 400 Bad Request\r\n\r\n").await, mqtt(V5), PATIENT).await);
        assert_eq!(reason, "not MQTT: the answer begins with 0x48, not with CONNACK");
    }

    #[tokio::test]
    async fn a_huge_connack_is_refused_before_it_is_read() {
        let address = droning("\x20", &[0xff, 0xff, 0xff, 0x7f], Duration::ZERO).await;
        let reason = failure(probe(address, mqtt(V5), PATIENT).await);
        assert_eq!(reason, "CONNACK of 268435455 bytes is longer than 16384");
        let address = droning("\x20", &[0xff], Duration::ZERO).await;
        let reason = failure(probe(address, mqtt(V5), PATIENT).await);
        assert_eq!(reason, "malformed CONNACK: its length has more than four bytes");
    }

    #[tokio::test]
    async fn a_broker_that_hangs_up_is_a_failure() {
        let reason = failure(probe(answering([0x20, 2]).await, mqtt(V311), PATIENT).await);
        assert_eq!(reason, "connection closed before CONNACK");
    }

    #[tokio::test]
    async fn silence_and_slow_drips_run_into_the_one_timeout() {
        let reason = failure(probe(silent().await, mqtt(V311), BRIEF).await);
        assert_eq!(reason, "timed out after 300 ms while waiting for CONNACK");
        // Length 7,967, then a byte at a time.
        let address = droning("\x20\x1f", &[0x1f], Duration::from_millis(20)).await;
        let reason = failure(probe(address, mqtt(V5), BRIEF).await);
        assert_eq!(reason, "timed out after 300 ms while waiting for CONNACK");
    }

    /// A mosquitto that lets everyone in at one port and nobody at another, killed when dropped or when the
    /// test's process dies.
    struct Mosquitto {
        open: SocketAddr,
        closed: SocketAddr,
        process: tokio::process::Child,
        _directory: tempfile::TempDir,
    }

    impl Mosquitto {
        async fn start() -> Self {
            let (free, open) = listen().await;
            let (free_too, closed) = listen().await;
            drop((free, free_too));
            let directory = tempfile::tempdir().expect("a directory");
            let file = directory.path().join("mosquitto.conf");
            let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
            let configuration = format!(
                "{user}per_listener_settings true\nlog_dest stderr\nlog_type all\n\
                 listener {} 127.0.0.1\nallow_anonymous true\n\
                 listener {} 127.0.0.1\nallow_anonymous false\n",
                open.port(),
                closed.port()
            );
            std::fs::write(&file, configuration).expect("a file");
            let search = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
            let process = tokio::process::Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "mosquitto", "-c"])
                .arg(&file)
                .env("PATH", search)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .expect("setpriv (util-linux) and mosquitto are installed by `cargo xtask setup`");
            let mut broker = Self { open, closed, process, _directory: directory };
            for _ in 0..200 {
                let both = (TcpStream::connect(open).await, TcpStream::connect(closed).await);
                if let (Ok(_), Ok(_)) = both {
                    return broker;
                }
                assert!(broker.process.try_wait().expect("a child").is_none(), "{}", broker.log().await);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("mosquitto does not listen: {}", broker.log().await);
        }

        /// Returns what it printed, after its end.
        async fn log(mut self) -> String {
            let _ = self.process.start_kill();
            let mut log = String::new();
            if let Some(mut stderr) = self.process.stderr.take() {
                let _ = stderr.read_to_string(&mut log).await;
            }
            let _ = self.process.wait().await;
            log
        }
    }

    #[tokio::test]
    async fn mosquitto_accepts_both_versions_and_sees_clients_that_leave_in_good_order() {
        let broker = Mosquitto::start().await;
        assert_eq!(probe(broker.open, mqtt(V311), PATIENT).await, Outcome::Success);
        assert_eq!(probe(broker.open, mqtt(V5), PATIENT).await, Outcome::Success);
        let log = broker.log().await;
        for line in ["Client drover-probe-n1-web-r1 disconnected.", "(p2, c1, k10)", "(p5, c1, k10)"] {
            assert!(log.contains(line), "{line} is missing in\n{log}");
        }
        assert!(!log.contains("drover-probe-n1-web-r1 closed its connection"), "{log}");
        assert!(!log.contains("drover-probe-n1-web-r1 already connected"), "{log}");
    }

    #[tokio::test]
    async fn mosquitto_that_lets_nobody_in_is_a_failure() {
        let broker = Mosquitto::start().await;
        assert_eq!(failure(probe(broker.closed, mqtt(V311), PATIENT).await), "CONNACK: not authorized");
        assert_eq!(failure(probe(broker.closed, mqtt(V5), PATIENT).await), "CONNACK: not authorized");
    }
}
