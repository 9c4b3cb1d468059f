//! Who gets in, and what those who do not can cost.

use super::*;
use axum::routing::get;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

const TOKEN: &str = "0123456789abcdef0123";
const QUICK: Limits =
    Limits { connections: 4, head: Duration::from_millis(300), unread: Duration::from_secs(5) };
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Files in a folder of their own.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let (path, next) = (self.0.path().join(name), self.0.path().join("next"));
        std::fs::write(&next, text).unwrap();
        std::fs::set_permissions(&next, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::rename(&next, &path).unwrap();
        path
    }

    fn token(&self, text: &str) -> Files {
        Files { token: Some(self.write("token", text, 0o600)), ..Files::default() }
    }
}

async fn open(files: &Files) -> SocketAddr {
    let door = Door::new(LOOPBACK, files).unwrap();
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap();
    let ready = get(|| async { (StatusCode::SERVICE_UNAVAILABLE, "VIP mqtt has no table yet\n") });
    let router = Router::new().route("/healthz", get(|| async { "ok, and more\n" })).route("/readyz", ready);
    let router = router.route("/status", get(|| async { "all of it\n" }));
    tokio::spawn(door.serve(listener, router, QUICK));
    address
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(page: &str, header: &str) -> String {
    format!("GET {page} HTTP/1.1\r\nhost: lb\r\nconnection: close\r\n{header}\r\n")
}

/// Code and body of a page.
async fn ask(address: SocketAddr, page: &str, header: &str) -> (u16, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    read(&exchange(stream, &request(page, header)).await)
}

fn read(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), body.to_owned())
}

#[tokio::test]
async fn with_a_token_pages_are_for_those_who_bear_it_and_probes_get_their_code() {
    let folder = Folder::new();
    let address = open(&folder.token(&format!("{TOKEN}\n"))).await;
    for header in [
        String::new(),
        "authorization: Bearer wrong\r\n".into(),
        format!("authorization: Basic {TOKEN}\r\n"),
        format!("authorization: Bearer {TOKEN}x\r\n"),
        format!("authorization: Bearer {}\r\n", &TOKEN[1..]),
        "authorization: Bearer \r\n".into(),
    ] {
        let (code, body) = ask(address, "/status", &header).await;
        assert_eq!(code, 401, "{header}");
        assert!(!body.contains("all of it") && body.contains("admin_token_file"), "{body}");
        assert_eq!(ask(address, "/healthz", &header).await, (200, "ok\n".into()));
        let (code, body) = ask(address, "/readyz", &header).await;
        assert!(code == 503 && !body.contains("mqtt"), "{body}");
        assert_eq!(ask(address, "/no-such-page", &header).await.0, 401);
    }
    for scheme in ["Bearer", "bearer"] {
        let header = format!("authorization: {scheme} {TOKEN}\r\n");
        assert_eq!(ask(address, "/status", &header).await, (200, "all of it\n".into()));
        assert!(ask(address, "/readyz", &header).await.1.contains("mqtt"));
    }
}

#[tokio::test]
async fn a_token_that_changes_counts_from_the_next_request_on_and_a_broken_file_changes_nothing() {
    let folder = Folder::new();
    let address = open(&folder.token(TOKEN)).await;
    let header = |token: &str| format!("authorization: Bearer {token}\r\n");
    let another = TOKEN.repeat(2);
    folder.write("token", &another, 0o600);
    assert_eq!(ask(address, "/status", &header(TOKEN)).await.0, 401);
    assert_eq!(ask(address, "/status", &header(&another)).await.0, 200);
    folder.write("token", TOKEN, 0o644);
    assert_eq!(ask(address, "/status", &header(&another)).await.0, 200);
    std::fs::remove_file(folder.0.path().join("token")).unwrap();
    assert_eq!(ask(address, "/status", &header(&another)).await.0, 200);
}

#[tokio::test]
async fn without_a_token_the_loopback_is_open() {
    let address = open(&Files::default()).await;
    assert_eq!(ask(address, "/status", "").await, (200, "all of it\n".into()));
}

#[test]
fn an_address_beyond_the_loopback_without_a_guard_is_refused_with_the_mend() {
    for address in ["0.0.0.0:9940", "10.0.0.7:9940", "[::]:9940"] {
        let error = Door::new(address.parse().unwrap(), &Files::default()).unwrap_err().to_string();
        assert!(error.contains("admin_token_file") && error.contains("127.0.0.1:9940"), "{error}");
    }
    Door::new("[::1]:9940".parse().unwrap(), &Files::default()).unwrap();
    let folder = Folder::new();
    Door::new("0.0.0.0:9940".parse().unwrap(), &folder.token(TOKEN)).unwrap();
}

#[test]
fn a_token_that_others_read_or_can_guess_is_refused_and_not_shown() {
    let folder = Folder::new();
    for (text, mode, expected) in [
        (TOKEN, 0o640, "chmod 600"),
        (TOKEN, 0o604, "chmod 600"),
        ("hunter2", 0o600, "openssl rand"),
        ("", 0o600, "openssl rand"),
    ] {
        let files = Files { token: Some(folder.write("t", text, mode)), ..Files::default() };
        let error = format!("{:#}", Door::new(LOOPBACK, &files).unwrap_err());
        assert!(error.contains(expected) && (text.is_empty() || !error.contains(text)), "{error}");
    }
}

#[tokio::test]
async fn slow_and_huge_requests_are_cut_off_and_others_are_served_meanwhile() {
    let address = open(&Files::default()).await;
    let started = Instant::now();
    // Never ends its head; and one that says nothing at all.
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /status HTTP/1.1\r\nhost: lb\r\nx: ").await.unwrap();
    let silent = TcpStream::connect(address).await.unwrap();
    assert_eq!(ask(address, "/status", "").await.0, 200);
    let slow = tokio::spawn(exchange(slow, "y"));
    assert_eq!(timeout(QUICK.head * 20, exchange(silent, "")).await.unwrap(), "");
    let told = timeout(QUICK.head * 20, slow).await.unwrap().unwrap();
    assert!(!told.contains("all of it"), "{told}");
    assert!(started.elapsed() >= QUICK.head);

    let huge = format!("x: {}\r\n", "y".repeat(64 * 1024));
    assert_eq!(ask(address, "/status", &huge).await.0, 431);
    let many = "x: y\r\n".repeat(1000);
    assert_eq!(ask(address, "/status", &many).await.0, 431);
    let (code, _) = ask(address, &format!("/{}", "y".repeat(64 * 1024)), "").await;
    assert!(matches!(code, 414 | 431), "{code}");
}

#[tokio::test]
async fn more_connections_than_allowed_wait_for_those_before_them() {
    let address = open(&Files::default()).await;
    let mut held = Vec::new();
    for _ in 0..QUICK.connections {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    // The others are cut off after a while, since they say nothing.
    let served = timeout(QUICK.head * 20, ask(address, "/status", "")).await.unwrap();
    assert_eq!(served.0, 200);
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key, DER.
    fn identity(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["lb".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }
}

fn pem(kind: &str, der: &[u8]) -> String {
    let lines = data_encoding::BASE64.encode(der);
    let lines: Vec<&str> =
        (0..lines.len()).step_by(64).map(|at| &lines[at..lines.len().min(at + 64)]).collect();
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"))
}

async fn ask_by_tls(
    address: SocketAddr,
    servers: &Authority,
    identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> Result<(u16, String)> {
    let mut roots = RootCertStore::empty();
    roots.add(servers.0.der().clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match identity {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key)?,
        None => builder.with_no_client_auth(),
    };
    let stream = TcpStream::connect(address).await?;
    let stream = TlsConnector::from(Arc::new(config)).connect("lb".try_into()?, stream).await?;
    let answer = exchange(stream, &request("/status", "")).await;
    ensure!(!answer.is_empty(), "no answer");
    Ok(read(&answer))
}

#[tokio::test]
async fn with_an_authority_for_clients_only_its_certificates_get_in() {
    let (servers, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let folder = Folder::new();
    let (cert, key) = servers.identity();
    let files = Files {
        token: None,
        cert: Some(folder.write("cert", &pem("CERTIFICATE", &cert), 0o644)),
        key: Some(folder.write("key", &pem("PRIVATE KEY", key.secret_der()), 0o600)),
        client_ca: Some(folder.write("ca", &pem("CERTIFICATE", clients.0.der()), 0o644)),
    };
    let address = open(&files).await;
    let served = ask_by_tls(address, &servers, Some(clients.identity())).await.unwrap();
    assert_eq!(served, (200, "all of it\n".into()));
    assert!(ask_by_tls(address, &servers, None).await.is_err());
    assert!(ask_by_tls(address, &servers, Some(others.identity())).await.is_err());
    // Plain HTTP is no way around it.
    let stream = TcpStream::connect(address).await.unwrap();
    assert!(!exchange(stream, &request("/status", "")).await.contains("all of it"));

    // Another authority, from the next connection on.
    folder.write("ca", &pem("CERTIFICATE", others.0.der()), 0o644);
    assert!(ask_by_tls(address, &servers, Some(clients.identity())).await.is_err());
    assert!(ask_by_tls(address, &servers, Some(others.identity())).await.is_ok());

    let readable =
        Files { key: Some(folder.write("k", &pem("PRIVATE KEY", key.secret_der()), 0o644)), ..files };
    let error = format!("{:#}", Door::new(LOOPBACK, &readable).unwrap_err());
    assert!(error.contains("chmod 600"), "{error}");
}
