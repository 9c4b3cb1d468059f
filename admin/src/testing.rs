//! ServerFiles, authorities and a server for tests.

use crate::auth::{Auth, ServerFiles};
use crate::server::{Limits, serve};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpListener;

pub(crate) const TOKEN: &str = "0123456789abcdef0123";
pub(crate) const QUICK: Limits =
    Limits { connections: 4, head: Duration::from_millis(300), unread: Duration::from_secs(5) };
pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Files in a folder of their own.
pub(crate) struct Folder(pub(crate) tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Puts a file into place in one step.
    pub(crate) fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let (path, next) = (self.0.path().join(name), self.0.path().join("next"));
        std::fs::write(&next, text).unwrap();
        std::fs::set_permissions(&next, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::rename(&next, &path).unwrap();
        path
    }

    pub(crate) fn token(&self, text: &str) -> ServerFiles {
        ServerFiles { token: Some(self.write("token", text, 0o600)), ..ServerFiles::default() }
    }

    /// The certificate of an authority.
    pub(crate) fn authority(&self, name: &str, authority: &Authority) -> PathBuf {
        self.write(name, &authority.0.pem(), 0o644)
    }

    /// A certificate that `authority` signed for 127.0.0.1, and its key.
    pub(crate) fn identity(&self, name: &str, authority: &Authority) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority.0).unwrap();
        (
            self.write(&format!("{name}.pem"), &certificate.pem(), 0o644),
            self.write(&format!("{name}.key"), &key.serialize_pem(), 0o600),
        )
    }
}

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }
}

/// Serves some pages behind these files until the runtime ends.
pub(crate) async fn open(files: &ServerFiles) -> SocketAddr {
    let auth = Auth::new(LOOPBACK, files).unwrap();
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap();
    let ready = get(|| async { (StatusCode::SERVICE_UNAVAILABLE, "VIP mqtt has no table yet\n") });
    let router = Router::new()
        .route("/healthz", get(|| async { "ok, and more\n" }))
        .route("/readyz", ready)
        .route("/status", get(|| async { "all of it\n" }))
        .route("/json", get(|| async { axum::Json(["all", "of", "it"]) }));
    tokio::spawn(serve(listener, auth, router, QUICK));
    address
}
