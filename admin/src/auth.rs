//! Who gets in to an admin endpoint: everybody on the loopback, others by a token, a certificate, or both.
//!
//! What strangers can cost is bounded: connections at once, time to shake hands and to send a request's head, the
//! head's size, and how long an answer may lie unread.

use anyhow::{Context as _, Result, bail, ensure};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info};

/// Bits of a file's mode that let others than its owner read or write it.
const OTHERS: u32 = 0o077;
/// Shortest token: 16 random characters cannot be guessed over a network.
const SHORTEST_TOKEN: usize = 16;
/// Room for a request's head, in bytes; hyper's least is 8 KiB.
const HEAD: usize = 16 * 1024;
/// Headers of a request.
const HEADERS: usize = 64;
/// Pages that say by their code alone what orchestrators ask for.
const PROBED: [&str; 4] = ["/livez", "/healthz", "/readyz", "/announced"];

/// What a stranger may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait.
    pub connections: usize,
    /// Time for a TLS handshake, and for each request's head, idle time before it included.
    pub head: Duration,
    /// Time that sent bytes may stay unacknowledged, or find no room at the other end.
    pub unread: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let (head, unread) = (Duration::from_secs(30), Duration::from_secs(30));
        Self { connections: 256, head, unread }
    }
}

/// The files that the door is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Files {
    /// File with the token that requests to the admin address must bear (mode 0600).
    #[arg(long = "admin-token-file", value_name = "FILE")]
    pub token: Option<PathBuf>,

    /// PEM file with the certificate of the admin address, which speaks TLS then.
    #[arg(long = "admin-tls-cert", value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,

    /// PEM file with the private key of --admin-tls-cert (mode 0600).
    #[arg(long = "admin-tls-key", value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,

    /// PEM file with the authorities that must have signed the certificates of clients.
    #[arg(long = "admin-tls-client-ca", value_name = "FILE", requires = "cert")]
    pub client_ca: Option<PathBuf>,
}

/// Lets requests in, or not. Files are read again when they change; one that is wrong by then is told, and what was read
/// before stays in force.
pub struct Door {
    token: Option<Kept<Token>>,
    tls: Option<Kept<TlsAcceptor>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (token, tls) = (self.token.is_some(), self.tls.is_some());
        f.debug_struct("Door").field("token", &token).field("tls", &tls).finish()
    }
}

impl Door {
    /// The door of an endpoint at `address`.
    ///
    /// # Errors
    /// If other machines reach the address and nothing would keep them out, or a file cannot be used.
    pub fn new(address: SocketAddr, files: &Files) -> Result<Self> {
        ensure!(
            address.ip().is_loopback() || files.token.is_some() || files.client_ca.is_some(),
            "{address} can be reached from other machines, so the admin endpoint needs a token (admin_token_file, \
             --admin-token-file) or certificates of clients (admin_tls_client_ca, --admin-tls-client-ca); add one, or \
             let it listen on 127.0.0.1:{}",
            address.port()
        );
        let token = files.token.clone().map(|path| {
            let read = path.clone();
            Kept::new(vec![path], move || Token::read(&read))
        });
        let tls = match (&files.cert, &files.key) {
            (Some(_), Some(_)) => {
                let all = [&files.cert, &files.key, &files.client_ca];
                let all = all.into_iter().flatten().cloned().collect();
                let files = files.clone();
                Some(Kept::new(all, move || acceptor(&files)).context("TLS of the admin endpoint")?)
            }
            (None, None) if files.client_ca.is_none() => None,
            _ => bail!("TLS of the admin endpoint needs a certificate and its key: name both files"),
        };
        Ok(Self { token: token.transpose().context("the token of the admin endpoint")?, tls })
    }

    /// Answers with `router` on `listener`, to those who may ask, until the future is dropped.
    pub async fn serve(self, listener: TcpListener, router: Router, limits: Limits) -> Infallible {
        let door = Arc::new(self);
        let router = router.layer(from_fn_with_state(Arc::clone(&door), admit));
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
            let (door, router) = (Arc::clone(&door), router.clone());
            connections.spawn(async move {
                let _permit = permit;
                door.attend(stream, router, limits).await;
            });
        }
    }

    async fn attend(&self, stream: TcpStream, router: Router, limits: Limits) {
        // Without it a client that never reads would hold its connection for ever.
        let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(limits.unread));
        let Some(tls) = &self.tls else { return speak(stream, router, limits).await };
        if let Ok(Ok(stream)) = timeout(limits.head, tls.newest().accept(stream)).await {
            speak(stream, router, limits).await;
        }
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

/// Asks for the token, if there is one to ask for.
async fn admit(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let Some(token) = &door.token else { return next.run(request).await };
    if borne(request.headers()).is_some_and(|given| token.newest().is(given)) {
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

/// The token that a request bears (RFC 6750, section 2.1).
fn borne(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// A token, of which only the hash is kept.
#[derive(Clone)]
struct Token([u8; 32]);

impl Token {
    fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = secret(path)?;
        let token = text.trim_ascii();
        ensure!(
            token.len() >= SHORTEST_TOKEN && token.iter().all(u8::is_ascii_graphic),
            "{shown}: no token; at least {SHORTEST_TOKEN} visible ASCII characters are, such as `openssl rand -hex 32` \
             prints"
        );
        Ok(Self(hash(token)))
    }

    /// Takes the same time whatever the answer is.
    fn is(&self, given: &[u8]) -> bool {
        self.0.ct_eq(&hash(given)).into()
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// A file's content that nobody else may read.
fn secret(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).with_context(|| format!("{shown}: cannot be read"))?;
    let mode = metadata.mode() & 0o777;
    ensure!(
        mode & OTHERS == 0,
        "{shown}: others than its owner may use it (mode {mode:03o}); `chmod 600 {shown}` mends that"
    );
    let own = rustix::process::geteuid().as_raw();
    ensure!(
        metadata.uid() == 0 || metadata.uid() == own,
        "{shown}: it belongs to user {}, who could change it; `chown root {shown}` mends that",
        metadata.uid()
    );
    std::fs::read(path).with_context(|| format!("{shown}: cannot be read"))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = read.with_context(|| format!("{shown}: cannot be read as certificates in PEM"))?;
    ensure!(!all.is_empty(), "{shown}: holds no certificate; it must be PEM");
    Ok(all)
}

fn acceptor(files: &Files) -> Result<TlsAcceptor> {
    let (Some(cert), Some(key)) = (&files.cert, &files.key) else { bail!("a certificate needs its key") };
    let chain = certificates(cert)?;
    let pem = secret(key)?;
    let private = PrivateKeyDer::from_pem_slice(&pem)
        .with_context(|| format!("{}: holds no private key in PEM", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                let added = roots.add(certificate);
                added.with_context(|| format!("{}: not an authority's certificate", path.display()))?;
            }
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?,
            )
        }
    };
    let config = builder.with_single_cert(chain, private);
    let config =
        config.with_context(|| format!("{} and {} do not go together", cert.display(), key.display()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Something made from files, made again when they change.
struct Kept<T> {
    paths: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T> + Send + Sync>,
    current: Mutex<(Vec<Stamp>, T)>,
}

/// What a file shows when it is written or replaced: inode, size, time in nanoseconds. `None`: it is not there.
type Stamp = Option<(u64, u64, i64, i64)>;

impl<T: Clone> Kept<T> {
    fn new(paths: Vec<PathBuf>, read: impl Fn() -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        // Stamps before content: a change in between is seen as one.
        let (stamps, value) = (stamps(&paths), read()?);
        Ok(Self { paths, read: Box::new(read), current: Mutex::new((stamps, value)) })
    }

    fn newest(&self) -> T {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.paths);
        if stamps != current.0 {
            match (self.read)() {
                Ok(value) => {
                    info!(files = ?self.paths, "read again");
                    current.1 = value;
                }
                Err(problem) => error!("{problem:#}; what was read before stays in force"),
            }
            current.0 = stamps;
        }
        current.1.clone()
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
    };
    paths.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests;
