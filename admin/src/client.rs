//! A client of admin pages, by HTTP or HTTPS.

use crate::token::bearer;
use crate::{auth, files};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Largest page, in bytes.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// A client of admin pages.
#[derive(Clone)]
pub struct Client {
    token: Option<String>,
    tls: Option<Arc<ClientConfig>>,
    patience: Duration,
}

/// The files by which a client proves itself and trusts servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// File with the token that servers ask for, in one line.
    pub token: Option<PathBuf>,
    /// PEM file with the authorities that have signed servers' certificates. If it is set, the client speaks HTTPS.
    pub ca: Option<PathBuf>,
    /// PEM file with the client's own certificate, where servers ask for one. Goes with `key`.
    pub cert: Option<PathBuf>,
    /// PEM file with the private key of `cert`.
    pub key: Option<PathBuf>,
}

/// A page.
#[derive(Clone, Debug)]
pub struct Page {
    /// HTTP status code.
    pub code: u16,
    /// Body. Bytes that are not UTF-8 are replaced.
    pub body: String,
}

/// A page that arrives in pieces.
pub struct Stream {
    body: Incoming,
    connection: JoinHandle<()>,
}

impl Client {
    /// Reads `files`. The client waits at most `patience` for an answer.
    ///
    /// # Errors
    /// If a file cannot be used.
    pub fn new(files: &ClientFiles, patience: Duration) -> Result<Self> {
        let token = files.token.as_deref().map(bearer).transpose()?;
        let tls = files.ca.as_deref().map(|ca| tls(ca, files)).transpose()?;
        Ok(Self { token, tls: tls.map(Arc::new), patience })
    }

    /// Makes a client of a server on the same host from the server's own files.
    ///
    /// It bears the server's token. It trusts the server's certificate alone, whatever names that has, and shows it if
    /// the server asks clients for one.
    ///
    /// # Errors
    /// If a file cannot be used.
    pub fn of_server(files: &auth::ServerFiles, patience: Duration) -> Result<Self> {
        let token = files.token.as_deref().map(bearer).transpose()?;
        let tls = match (&files.cert, &files.key) {
            (Some(certificate), Some(key)) => Some(Arc::new(own_tls(certificate, key)?)),
            _ => None,
        };
        Ok(Self { token, tls, patience })
    }

    /// Returns whether an error means that the server refused the client's certificate or the lack of one.
    #[must_use]
    pub fn is_turned_away(error: &anyhow::Error) -> bool {
        let of_tls = |cause: &(dyn std::error::Error + 'static)| {
            let io = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            let inner = io.and_then(|inner| inner.downcast_ref::<rustls::Error>());
            matches!(inner.or(cause.downcast_ref()), Some(rustls::Error::AlertReceived(_)))
        };
        error.chain().any(of_tls)
    }

    /// Gets a page, such as `/status`, with any status code.
    ///
    /// # Errors
    /// If no answer comes in time, or it is longer than 16 MiB.
    pub async fn get(&self, node: SocketAddr, page: &str) -> Result<Page> {
        let get = async {
            let (code, mut stream) = self.open(node, page).await?;
            let mut body = Vec::new();
            while let Some(piece) = stream.next().await? {
                body.extend_from_slice(&piece);
                if body.len() > MOST_BYTES {
                    bail!("more than {MOST_BYTES} bytes");
                }
            }
            Ok(Page { code, body: String::from_utf8_lossy(&body).into_owned() })
        };
        let answer = timeout(self.patience, get).await;
        let answer = answer.unwrap_or_else(|_| bail!("no answer in {:?}", self.patience));
        answer.with_context(|| self.shown(node, page))
    }

    /// Gets a page of JSON.
    ///
    /// # Errors
    /// As [`get`](Self::get), and if the status code is not 200 or the page is not JSON.
    pub async fn json(&self, node: SocketAddr, page: &str) -> Result<serde_json::Value> {
        let Page { code, body } = self.get(node, page).await?;
        if code != 200 {
            bail!("{}: {}", self.shown(node, page), refusal(code, &body));
        }
        serde_json::from_str(&body).with_context(|| format!("{}: not JSON", self.shown(node, page)))
    }

    /// Gets a page in pieces, as they arrive.
    ///
    /// # Errors
    /// If no answer begins in time, or its status code is not 200.
    pub async fn stream(&self, node: SocketAddr, page: &str) -> Result<Stream> {
        let open = timeout(self.patience, async {
            let (code, mut stream) = self.open(node, page).await?;
            if code == 200 {
                return Ok(stream);
            }
            let body = stream.next().await?.unwrap_or_default();
            bail!("{}", refusal(code, &String::from_utf8_lossy(&body)))
        });
        let opened = open.await.unwrap_or_else(|_| bail!("no answer in {:?}", self.patience));
        opened.with_context(|| self.shown(node, page))
    }

    fn shown(&self, node: SocketAddr, page: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let page = page.split('?').next().unwrap_or(page);
        format!("{scheme}://{node}{page}")
    }

    async fn open(&self, node: SocketAddr, page: &str) -> Result<(u16, Stream)> {
        let stream = TcpStream::connect(node).await.context("cannot connect")?;
        match &self.tls {
            None => self.ask(stream, node, page).await,
            Some(tls) => {
                let name = ServerName::IpAddress(node.ip().into());
                let connected = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await;
                let stream = connected.context("no TLS (its certificate must name this address)")?;
                self.ask(stream, node, page).await
            }
        }
    }

    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        node: SocketAddr,
        page: &str,
    ) -> Result<(u16, Stream)> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its failure shows in the answer.
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut request = Request::get(page).header(header::HOST, node.to_string());
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::<Bytes>::new()).context("the request cannot be made")?;
        let answer = sender.send_request(request).await.context("no HTTP answer")?;
        let code = answer.status().as_u16();
        Ok((code, Stream { body: answer.into_body(), connection }))
    }
}

impl Stream {
    /// Waits for the next piece; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(piece) = frame.context("the connection broke")?.into_data() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Describes a refusal on one line. The body may hold anything.
fn refusal(code: u16, body: &str) -> String {
    let hint = match code {
        401 | 403 => " (does the operator's file have [admin].token_file, and is the token the node's?)",
        _ => "",
    };
    let body: String = body.trim().chars().take(300).collect();
    format!("{code} {}{hint}", one_line(&body))
}

/// Escapes control characters, line ends included.
fn one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Configures TLS with the one server that has this certificate.
fn own_tls(certificate: &Path, key: &Path) -> Result<ClientConfig> {
    let chain = files::certificates(certificate)?;
    let provider = files::provider();
    let expected = chain.first().context("a chain has a first certificate")?.clone();
    let verifier = Arc::new(Pinned { expected, algorithms: provider.signature_verification_algorithms });
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("no TLS")?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, files::private_key(key, &files::read(key)?)?)
        .with_context(|| files::mismatch(certificate, key))
}

/// Trusts one certificate and no other, whatever its names and dates: it stands for who has its key.
#[derive(Debug)]
struct Pinned {
    expected: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if end_entity == &self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("its certificate is not that of admin_tls_cert".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn tls(ca: &Path, own: &ClientFiles) -> Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(files::provider())
        .with_safe_default_protocol_versions()
        .context("no TLS")?
        .with_root_certificates(files::authorities(ca)?);
    match (&own.cert, &own.key) {
        (Some(certificate), Some(key)) => {
            let private = files::private_key(key, &files::read(key)?)?;
            let config = config.with_client_auth_cert(files::certificates(certificate)?, private);
            config.with_context(|| files::mismatch(certificate, key))
        }
        _ => Ok(config.with_no_client_auth()),
    }
}

#[cfg(test)]
mod tests;
