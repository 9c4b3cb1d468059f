//! Reads and checks the files that guard admin pages: secrets, certificates, keys, authorities.
//!
//! An error names the file and what is wrong with it, never its content.

use anyhow::{Context as _, Result, ensure};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

/// Bits of a file's mode that give rights to others than its owner.
pub const OTHERS: u32 = 0o077;

/// Reads a file that only its owner may use, who must be this user or root.
pub(crate) fn secret(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).with_context(|| format!("{shown}: cannot be read"))?;
    let mode = metadata.mode() & 0o777;
    ensure!(
        mode & OTHERS == 0,
        "{shown}: others than its owner may use it (mode {mode:03o}); run `chmod 600 {shown}`"
    );
    let own = rustix::process::geteuid().as_raw();
    ensure!(
        metadata.uid() == 0 || metadata.uid() == own,
        "{shown}: it belongs to user {}, who could change it; run `chown root {shown}`",
        metadata.uid()
    );
    read(path)
}

/// Reads a file, whatever its mode.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))
}

/// Reads the certificates in a PEM file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = read.with_context(|| format!("{shown}: cannot be read as certificates in PEM"))?;
    ensure!(!all.is_empty(), "{shown}: holds no certificate; it must be PEM");
    Ok(all)
}

/// Reads the authorities in a PEM file, at least one.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.with_context(|| format!("{}: not an authority's certificate", path.display()))?;
    }
    Ok(roots)
}

/// Parses the private key in `pem`, which was read from `path`.
pub(crate) fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem)
        .with_context(|| format!("{}: holds no private key in PEM", path.display()))
}

/// Describes a certificate and a key that do not match.
pub(crate) fn mismatch(certificate: &Path, key: &Path) -> String {
    format!("{} and {} do not go together", certificate.display(), key.display())
}

/// Returns the cryptography of client and server.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
