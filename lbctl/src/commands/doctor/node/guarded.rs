//! Admin pages that ask for something: a token, TLS, certificates of clients.

use super::super::report::Level;
use super::*;
use admin::auth::Auth;
use admin::server::{self, Limits};
use axum::{Json, Router, routing::get};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use tempfile::TempDir;
use tokio::net::TcpListener;

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
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Some(path)
    };
    let mut node = Node::new("lb-1".parse().unwrap(), "eth0");
    node.admin_token_file = file("token", TOKEN.to_owned());
    node.admin_tls_cert = file("node.pem", certificate.pem());
    node.admin_tls_key = file("node.key", key.serialize_pem());
    node
}

/// Serves a node's pages by its files; with `clients`, to those alone that show a certificate of that authority.
async fn serve(folder: &TempDir, node: &mut Node, clients: Option<&Authority>) {
    node.admin_tls_client_ca = clients.map(|authority| {
        let path = folder.path().join("clients.pem");
        fs::write(&path, authority.pem()).unwrap();
        path
    });
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    node.admin = listener.local_addr().unwrap();
    let auth = Auth::new(node.admin, &admin_files(node)).unwrap();
    let router = Router::new()
        .route("/status", get(|| async { Json(serde_json::json!({"node": "lb-1"})) }))
        .fallback(|| async { "ok" });
    tokio::spawn(server::serve(listener, auth, router, Limits::default()));
}

async fn levels(node: &Node) -> BTreeMap<&'static str, Level> {
    let findings = daemon(node, PATIENCE, Some(1)).await;
    findings.into_iter().map(|finding| (finding.check, finding.level)).collect()
}

#[tokio::test]
async fn a_node_that_asks_for_a_token_by_tls_is_asked_by_the_files_that_it_uses() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let mut node = node(&folder, &authority);
    serve(&folder, &mut node, None).await;
    let found = levels(&node).await;
    assert!(found.values().all(|level| *level == Level::Ok), "{found:?}");
    assert!(found.contains_key(HEALTH), "{found:?}");
    // Its own certificate serves where clients have to show one of the same authority.
    serve(&folder, &mut node, Some(&authority)).await;
    let found = levels(&node).await;
    assert!(found.values().all(|level| *level == Level::Ok), "{found:?}");
}

#[tokio::test]
async fn a_node_that_wants_another_certificate_is_well_and_merely_not_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(&folder, &authority());
    serve(&folder, &mut node, Some(&authority())).await;
    let found = levels(&node).await;
    assert_eq!((found[ADMIN], found[HEALTH]), (Level::Ok, Level::Skipped), "{found:?}");
}

#[tokio::test]
async fn who_shows_another_certificate_is_not_this_node_and_gets_no_token() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let mut node = node(&folder, &authority);
    serve(&folder, &mut node, None).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let newer = self::node(&elsewhere, &authority);
    (node.admin_tls_cert, node.admin_tls_key) = (newer.admin_tls_cert, newer.admin_tls_key);
    let findings = daemon(&node, PATIENCE, Some(1)).await;
    let fault = findings.iter().find(|finding| finding.level == Level::Fault).unwrap();
    assert!(fault.check == ADMIN && fault.seen.contains("not that of admin_tls_cert"), "{fault:?}");
}

#[tokio::test]
async fn a_token_that_cannot_be_read_is_a_finding_among_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(&folder, &authority());
    serve(&folder, &mut node, None).await;
    node.admin_token_file = Some(folder.path().join("nothing"));
    let found = levels(&node).await;
    assert_eq!(found[ADMIN], Level::Fault, "{found:?}");
}
