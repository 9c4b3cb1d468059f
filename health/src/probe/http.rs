//! HTTP/1.1 checks (RFC 9110, RFC 9112).

use super::{Connection, Deadline, Fault, closed, quoted};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use zk_schema::HttpCheck;

/// Bytes of a body that are searched, as documented at [`HttpCheck::body_contains`].
const BODY: usize = 64 * 1024;
/// Room for the status line and headers.
const HEAD: usize = 32 * 1024;
const HEADERS: usize = 100;

/// Sends the request on `stream` and judges the answer.
pub(super) async fn check(
    stream: impl Connection,
    address: SocketAddr,
    scheme: &str,
    check: &HttpCheck,
    deadline: Deadline,
) -> Result<(), Fault> {
    let request = request(address, scheme, check)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| fault(&error))?;
    let mut connection = std::pin::pin!(connection.without_shutdown());

    let exchange = async {
        let response = deadline
            .limit("waiting for the HTTP response", async {
                sender.send_request(request).await.map_err(|error| fault(&error))
            })
            .await?;
        judge(response, check, deadline).await
    };
    let mut exchange = std::pin::pin!(exchange);
    let (verdict, finished) = tokio::select! {
        verdict = &mut exchange => (verdict, None),
        parts = &mut connection => (exchange.await, Some(parts)),
    };
    // `Connection: close` has been asked for: the rest of the answer is dropped until the server closes.
    let closed = async {
        let parts = match finished {
            Some(parts) => parts,
            None => connection.await,
        };
        if let Ok(parts) = parts {
            closed(parts.io.into_inner().into_tcp()).await;
        }
    };
    deadline.closing(closed).await;
    verdict
}

fn request(address: SocketAddr, scheme: &str, check: &HttpCheck) -> Result<Request<Empty<Bytes>>, Fault> {
    let default_port = if scheme == "https" { 443 } else { 80 };
    let host = match &check.host {
        Some(host) => host.clone(),
        None if address.port() != default_port => address.to_string(),
        None if address.is_ipv6() => format!("[{}]", address.ip()),
        None => address.ip().to_string(),
    };
    Request::builder()
        .method(Method::GET)
        .uri(&check.target)
        .header(header::HOST, &host)
        .header(header::USER_AGENT, concat!("drover/", env!("CARGO_PKG_VERSION"), " (health check)"))
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| {
            let target = &check.target;
            Fault::node(format!("target \"{target}\" or host \"{host}\" of the check is not valid: {error}"))
        })
}

async fn judge(response: Response<Incoming>, check: &HttpCheck, deadline: Deadline) -> Result<(), Fault> {
    let status = response.status();
    if !check.status.contains(&status.as_u16()) {
        return Err(Fault::real(format!("HTTP status {status}")));
    }
    let Some(text) = &check.body_contains else {
        return Ok(());
    };
    let body = response.into_body();
    deadline.limit("reading the HTTP body", search(body, text)).await
}

/// Looks for `text` in the first [`BODY`] bytes of `body`.
async fn search(mut body: Incoming, text: &str) -> Result<(), Fault> {
    let needle = text.as_bytes();
    if needle.is_empty() {
        return Ok(());
    }
    let mut read = Vec::new();
    while read.len() < BODY {
        let Some(frame) = body.frame().await else {
            return Err(Fault::real(format!("HTTP body does not contain \"{}\"", quoted(text))));
        };
        let Ok(data) = frame.map_err(|error| fault(&error))?.into_data() else {
            continue; // trailers
        };
        // What was searched before need not be searched again, but for a match across the seam.
        let from = read.len().saturating_sub(needle.len() - 1);
        read.extend_from_slice(&data[..data.len().min(BODY - read.len())]);
        if read[from..].windows(needle.len()).any(|window| window == needle) {
            return Ok(());
        }
    }
    Err(Fault::real(format!("the first {BODY} bytes of the HTTP body do not contain \"{}\"", quoted(text))))
}

/// hyper's errors speak of the peer; their causes say most.
fn fault(error: &hyper::Error) -> Fault {
    let mut text = format!("HTTP: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && io.raw_os_error().is_some()
        {
            return super::tcp::in_time(io, "talking HTTP");
        }
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Fault::real(quoted(&text))
}
