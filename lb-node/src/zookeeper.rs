//! From a node file's settings to a store.

use crate::standalone::read_text;
use anyhow::{Context as _, Result, bail};
use coordination::zookeeper::{Acl, Identity, Login, Options, Tls, ZooKeeper};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use zk_schema::{NodeFile, ZookeeperAcl, ZookeeperAuth, ZookeeperSettings};

/// Bits of a file's mode that let others than its owner read or write it.
const OTHERS: u32 = 0o077;

/// Reads and validates a node file.
///
/// # Errors
/// If it cannot be read, or with everything that is wrong with it.
pub fn read_node_file(path: &Path) -> Result<NodeFile> {
    Ok(NodeFile::parse(&read_text(path)?, &path.display().to_string())?)
}

/// The store that `settings` describe. Reads credentials and certificates; connects to nothing.
///
/// # Errors
/// If a file cannot be used; each says what to mend.
pub fn store(settings: &ZookeeperSettings) -> Result<ZooKeeper> {
    let mut options = Options::new(settings.servers.clone());
    options.session_timeout = settings.session_timeout();
    options.acl = match settings.acl {
        ZookeeperAcl::Open => Acl::Open,
        ZookeeperAcl::Creator => Acl::Creator,
    };
    if let Some(path) = &settings.credentials_file {
        let login = Some(login(path)?);
        match settings.auth {
            ZookeeperAuth::Digest => options.digest = login,
            ZookeeperAuth::Sasl => options.sasl = login,
        }
    }
    let pem = |path: &Path| {
        std::fs::read_to_string(path)
            .with_context(|| format!("{}: cannot be read as PEM text", path.display()))
    };
    if let Some(ca) = &settings.tls_ca {
        let identity = match (&settings.tls_cert, &settings.tls_key) {
            (Some(certificates), Some(key)) => {
                Some(Identity { certificates: pem(certificates)?, key: pem(key)? })
            }
            _ => None,
        };
        options.tls = Some(Tls { ca: pem(ca)?, identity });
    }
    Ok(ZooKeeper::new(options)?)
}

/// A file of one line, `user:password`, that nobody else may read.
fn login(path: &Path) -> Result<Login> {
    let shown = path.display();
    let mode = std::fs::metadata(path).with_context(|| format!("{shown}: cannot be read"))?.mode();
    if mode & OTHERS != 0 {
        bail!(
            "{shown}: others than its owner may use it (mode {:03o}); `chmod 600 {shown}` mends that",
            mode & 0o777
        );
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("{shown}: cannot be read"))?;
    match text.trim().split_once(':') {
        Some((user, password)) if !user.is_empty() && !password.is_empty() => {
            Ok(Login { user: user.to_owned(), password: password.to_owned() })
        }
        _ => bail!("{shown}: holds no credentials; one line `user:password` is expected"),
    }
}
