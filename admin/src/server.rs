//! Serves admin pages to those who may see them.
//!
//! Limits what strangers can cost: connections at once, time for a handshake and a request's head, the head's size, and
//! the time that an answer may lie unread.

use crate::auth::Auth;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Largest head of a request, in bytes. Hyper takes no less than 8 KiB.
const HEAD: usize = 16 * 1024;
/// Most headers of a request.
const HEADERS: usize = 64;
/// Pages of which everybody may learn the status code: orchestrators need no more.
const PROBED: [&str; 4] = ["/livez", "/healthz", "/readyz", "/announced"];

/// Limits on strangers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most connections at once. More wait.
    pub connections: usize,
    /// Longest time for a TLS handshake, and for each request's head, idle time before it included.
    pub head: Duration,
    /// Longest time that sent bytes stay unacknowledged, or find no room at the other end.
    pub unread: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let (head, unread) = (Duration::from_secs(30), Duration::from_secs(30));
        Self { connections: 256, head, unread }
    }
}

/// Serves the pages of `router` on `listener` to those whom `auth` admits, until the future is dropped.
///
/// Those who lack the token learn only the status codes of `/livez`, `/healthz`, `/readyz` and `/announced`.
pub async fn serve(listener: TcpListener, auth: Auth, router: Router, limits: Limits) -> Infallible {
    let auth = Arc::new(auth);
    let router = router.layer(from_fn_with_state(Arc::clone(&auth), admit));
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { continue };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of descriptors, most likely: others are closed in a moment.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (auth, router) = (Arc::clone(&auth), router.clone());
        connections.spawn(async move {
            let _permit = permit;
            attend(&auth, stream, router, limits).await;
        });
    }
}

async fn attend(auth: &Auth, stream: TcpStream, router: Router, limits: Limits) {
    // Without it a client that never reads would hold its connection for ever.
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(limits.unread));
    let Some(tls) = auth.acceptor() else { return speak(stream, router, limits).await };
    if let Ok(Ok(stream)) = timeout(limits.head, tls.accept(stream)).await {
        speak(stream, router, limits).await;
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router, limits: Limits) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // How it ends is the client's affair.
    let _ = connection.await;
}

/// Refuses requests without the token, if there is one.
async fn admit(State(auth): State<Arc<Auth>>, request: Request, next: Next) -> Response {
    if auth.admits(request.headers()) {
        return next.run(request).await;
    }
    if PROBED.contains(&request.uri().path()) {
        let code = next.run(request).await.status();
        let said = if code.is_success() { "ok\n" } else { "not ok; who bears the token is told why\n" };
        return (code, said).into_response();
    }
    let told = "this page is for who bears the token of admin_token_file: Authorization: Bearer <token>\n";
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], told).into_response()
}

#[cfg(test)]
mod tests;
