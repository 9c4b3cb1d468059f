//! Decides who may use an admin address: everybody on the loopback, others by a token, a certificate, or both.

use crate::files;
use crate::token::Token;
use anyhow::{Context as _, Result, bail, ensure};
use axum::http::HeaderMap;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_rustls::TlsAcceptor;
use tracing::{error, info};

/// The files that guard an admin address.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ServerFiles {
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

/// Admits connections and requests by the token and certificates in files.
///
/// Rereads files that have changed. If a changed file is wrong, logs that and keeps what was read before.
pub struct Auth {
    token: Option<Kept<Token>>,
    tls: Option<Kept<TlsAcceptor>>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (token, tls) = (self.token.is_some(), self.tls.is_some());
        f.debug_struct("Auth").field("token", &token).field("tls", &tls).finish()
    }
}

impl Auth {
    /// Reads `files` for a server at `address`.
    ///
    /// # Errors
    ///
    /// If other machines can reach the address and neither a token nor an authority for clients is named, or if a file
    /// cannot be used. The message says what to change.
    pub fn new(address: SocketAddr, files: &ServerFiles) -> Result<Self> {
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

    /// Returns whether a request with these headers may be answered.
    pub(crate) fn admits(&self, headers: &HeaderMap) -> bool {
        self.token.as_ref().is_none_or(|token| token.newest().is_borne(headers))
    }

    /// Returns the acceptor of TLS connections; `None` if the address speaks plain HTTP.
    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.tls.as_ref().map(Kept::newest)
    }
}

fn acceptor(files: &ServerFiles) -> Result<TlsAcceptor> {
    let (Some(cert), Some(key)) = (&files.cert, &files.key) else { bail!("a certificate needs its key") };
    let chain = files::certificates(cert)?;
    let private = files::private_key(key, &files::secret(key)?)?;
    let provider = files::provider();
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(files::authorities(path)?);
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(roots, provider).build()?,
            )
        }
    };
    let config = builder.with_single_cert(chain, private);
    Ok(TlsAcceptor::from(Arc::new(config.with_context(|| files::mismatch(cert, key))?)))
}

/// A value read from files, and read again when they change.
struct Kept<T> {
    paths: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T> + Send + Sync>,
    current: Mutex<(Vec<Stamp>, T)>,
}

/// Changes when a file is written or replaced: inode, size, time in nanoseconds. `None` if there is no file.
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
