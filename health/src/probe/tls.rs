//! TLS for `https` checks.

use super::{Connection, Deadline, Fault, quoted, tcp};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zk_schema::HttpCheck;

/// Client configurations, made at their first use.
#[derive(Default)]
pub(super) struct Configs {
    verifying: OnceLock<Result<Arc<ClientConfig>, String>>,
    trusting: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Configs {
    /// The configuration for checks that verify certificates, or for those that do not.
    pub(super) fn config(&self, verify: bool) -> Result<Arc<ClientConfig>, Fault> {
        let config = if verify {
            self.verifying.get_or_init(|| {
                let loaded = rustls_native_certs::load_native_certs();
                let mut roots = RootCertStore::empty();
                let (usable, _) = roots.add_parsable_certificates(loaded.certs);
                if usable == 0 {
                    let error = loaded.errors.first().map(ToString::to_string).unwrap_or_default();
                    return Err(format!(
                        "no trust roots on this node: install ca-certificates and restart. {error}"
                    ));
                }
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
                    .build()
                    .map_err(|error| format!("the system's trust roots cannot be used: {error}"))?;
                client(verifier)
            })
        } else {
            self.trusting.get_or_init(|| client(Arc::new(AnyCertificate)))
        };
        config.clone().map_err(Fault::Node)
    }

    /// With `verifying` in place of the system's trust roots.
    #[cfg(test)]
    pub(super) fn with_roots(roots: RootCertStore) -> Self {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .expect("roots are given");
        Self { verifying: OnceLock::from(client(verifier)), trusting: OnceLock::new() }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn client(verifier: Arc<dyn ServerCertVerifier>) -> Result<Arc<ClientConfig>, String> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session would not show the certificate.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

impl Connection for TlsStream<TcpStream> {
    fn into_tcp(self) -> TcpStream {
        self.into_inner().0
    }
}

/// Completes the TLS handshake on `stream`.
pub(super) async fn connect(
    stream: TcpStream,
    address: SocketAddr,
    check: &HttpCheck,
    config: Arc<ClientConfig>,
    deadline: Deadline,
) -> Result<TlsStream<TcpStream>, Fault> {
    let name = server_name(check.host.as_deref(), address)?;
    deadline
        .limit("shaking hands over TLS", async {
            TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
                match error.raw_os_error() {
                    Some(_) => tcp::in_time(&error, "shaking hands over TLS"),
                    None => Fault::real(format!("TLS: {}", quoted(&error.to_string()))),
                }
            })
        })
        .await
}

/// The name to ask for and to verify: `host` without its port, or the probed address.
fn server_name(host: Option<&str>, address: SocketAddr) -> Result<ServerName<'static>, Fault> {
    let Some(host) = host else {
        return Ok(ServerName::from(address.ip()));
    };
    let name = match host.parse::<hyper::http::uri::Authority>() {
        Ok(authority) => authority.host().trim_matches(['[', ']']).to_owned(),
        Err(_) => host.to_owned(),
    };
    ServerName::try_from(name)
        .map_err(|_| Fault::node(format!("host \"{host}\" of the check is not a host name: correct it")))
}

/// Accepts whatever certificate is shown; the handshake is completed all the same.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_name_is_the_host_without_its_port_or_else_the_address() {
        let address: SocketAddr = "192.0.2.1:443".parse().expect("an address");
        let name = |host| server_name(host, address).map(|name| name.to_str().into_owned());
        assert_eq!(name(None), Ok("192.0.2.1".into()));
        assert_eq!(name(Some("broker.example")), Ok("broker.example".into()));
        assert_eq!(name(Some("broker.example:8443")), Ok("broker.example".into()));
        assert_eq!(name(Some("[2001:db8::1]:8443")), Ok("2001:db8::1".into()));
        assert!(matches!(name(Some("no host")), Err(Fault::Node(_))));
    }
}
