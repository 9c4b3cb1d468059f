//! Access to admin pages, and the cost of those who have none.

use crate::auth::ServerFiles;
use crate::testing::{Folder, QUICK, TOKEN, open};
use std::net::SocketAddr;
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

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
    let address = open(&ServerFiles::default()).await;
    assert_eq!(ask(address, "/status", "").await, (200, "all of it\n".into()));
}

#[tokio::test]
async fn slow_and_huge_requests_are_cut_off_and_others_are_served_meanwhile() {
    let address = open(&ServerFiles::default()).await;
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
    let address = open(&ServerFiles::default()).await;
    let mut held = Vec::new();
    for _ in 0..QUICK.connections {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    // The others are cut off after a while, since they say nothing.
    let served = timeout(QUICK.head * 20, ask(address, "/status", "")).await.unwrap();
    assert_eq!(served.0, 200);
}
