//! Admin pages that ask for something: a token, TLS, certificates of clients.

use super::super::report::Level;
use super::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::collections::BTreeMap;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const TOKEN: &str = "0123456789abcdef0123";
const PATIENCE: Duration = Duration::from_secs(10);

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A node whose file names a token, and a certificate that `authority` signed.
fn node(folder: &TempDir, authority: &Authority) -> Node {
    let key = KeyPair::generate().unwrap();
    // Not the address that the doctor asks: it knows the node by the certificate itself.
    let params = CertificateParams::new(["lb-1.example".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        Some(path)
    };
    let mut node = Node::new("lb-1".parse().unwrap(), "eth0");
    node.admin_token_file = file("token", TOKEN.to_owned());
    node.admin_tls_cert = file("node.pem", certificate.pem());
    node.admin_tls_key = file("node.key", key.serialize_pem());
    node
}

/// Serves a node's pages by its files; with `clients`, to those alone that show a certificate of that authority.
async fn serve(node: &mut Node, clients: Option<&Authority>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            config.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let certificate = CertificateDer::from_pem_file(node.admin_tls_cert.as_ref().unwrap()).unwrap();
    let key = PrivateKeyDer::from_pem_file(node.admin_tls_key.as_ref().unwrap()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).unwrap()));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    node.admin = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let (code, body) = match request.contains(&format!("authorization: Bearer {TOKEN}")) {
                false => ("401 Unauthorized", "who are you?"),
                true if request.starts_with("GET /status ") => ("200 OK", r#"{"node":"lb-1"}"#),
                true => ("200 OK", "ok"),
            };
            let answer = format!(
                "HTTP/1.1 {code}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
}

async fn levels(node: &Node) -> BTreeMap<&'static str, Level> {
    let findings = daemon(node, PATIENCE, Some(1)).await;
    findings.into_iter().map(|finding| (finding.check, finding.level)).collect()
}

#[tokio::test]
async fn a_node_that_asks_for_a_token_by_tls_is_asked_by_the_files_that_it_uses() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let mut node = node(&folder, &authority);
    serve(&mut node, None).await;
    let found = levels(&node).await;
    assert!(found.values().all(|level| *level == Level::Ok), "{found:?}");
    assert!(found.contains_key(HEALTH), "{found:?}");
    // Its own certificate serves where clients have to show one of the same authority.
    serve(&mut node, Some(&authority)).await;
    let found = levels(&node).await;
    assert!(found.values().all(|level| *level == Level::Ok), "{found:?}");
}

#[tokio::test]
async fn a_node_that_wants_another_certificate_is_well_and_merely_not_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(&folder, &authority());
    serve(&mut node, Some(&authority())).await;
    let found = levels(&node).await;
    assert_eq!((found[ADMIN], found[HEALTH]), (Level::Ok, Level::Skipped), "{found:?}");
}

#[tokio::test]
async fn who_shows_another_certificate_is_not_this_node_and_gets_no_token() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let mut node = node(&folder, &authority);
    serve(&mut node, None).await;
    let newer = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([]).unwrap().signed_by(&newer, &authority).unwrap();
    fs::write(node.admin_tls_cert.as_ref().unwrap(), certificate.pem()).unwrap();
    fs::write(node.admin_tls_key.as_ref().unwrap(), newer.serialize_pem()).unwrap();
    let findings = daemon(&node, PATIENCE, Some(1)).await;
    let fault = findings.iter().find(|finding| finding.level == Level::Fault).unwrap();
    assert!(fault.check == ADMIN && fault.seen.contains("not that of admin_tls_cert"), "{fault:?}");
}

#[tokio::test]
async fn a_token_that_cannot_be_read_is_a_finding_among_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(&folder, &authority());
    serve(&mut node, None).await;
    node.admin_token_file = Some(folder.path().join("nothing"));
    let found = levels(&node).await;
    assert_eq!(found[ADMIN], Level::Fault, "{found:?}");
}
