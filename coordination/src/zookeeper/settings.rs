//! From a configuration file's settings to a store.

use super::{Acl, Identity, Login, Options, Tls, ZooKeeper};
use crate::Error;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use zk_schema::{ZookeeperAcl, ZookeeperAuth, ZookeeperSettings};

/// Bits of a file's mode that let others than its owner read or write it.
const OTHERS: u32 = 0o077;

/// The store that `settings` describe. Reads credentials and certificates; connects to nothing.
///
/// # Errors
/// [`Error::Other`] if a file cannot be used; each says what to fix.
pub fn store(settings: &ZookeeperSettings) -> Result<ZooKeeper, Error> {
    let mut options = Options::new(settings.servers.clone());
    options.session_timeout = settings.session_timeout();
    options.acl = match settings.acl {
        ZookeeperAcl::Open => Acl::Open,
        ZookeeperAcl::Creator => Acl::Creator,
        ZookeeperAcl::Groups => Acl::Groups,
    };
    if let Some(path) = &settings.credentials_file {
        let login = Some(login(path)?);
        match settings.auth {
            ZookeeperAuth::Digest => options.digest = login,
            ZookeeperAuth::Sasl => options.sasl = login,
        }
    }
    let pem = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| unreadable(path, "cannot be read as PEM text", &error))
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
    ZooKeeper::new(options)
}

fn unreadable(path: &Path, what: &str, error: &io::Error) -> Error {
    Error::Other(format!("{}: {what}: {error}", path.display()))
}

/// Reads credentials: a file of one line, `user:password`, that nobody else may read.
///
/// # Errors
/// [`Error::Other`] if it cannot be used, with the fix, and without the password.
pub fn login(path: &Path) -> Result<Login, Error> {
    let shown = path.display();
    let cannot_be_read = |error: io::Error| unreadable(path, "cannot be read", &error);
    let mode = std::fs::metadata(path).map_err(cannot_be_read)?.mode();
    if mode & OTHERS != 0 {
        return Err(Error::Other(format!(
            "{shown}: others than its owner may use it (mode {:03o}); `chmod 600 {shown}` fixes that",
            mode & 0o777
        )));
    }
    let text = std::fs::read_to_string(path).map_err(cannot_be_read)?;
    match text.trim().split_once(':') {
        Some((user, password)) if !user.is_empty() && !password.is_empty() => {
            Ok(Login { user: user.to_owned(), password: password.to_owned() })
        }
        _ => {
            let problem = "holds no credentials; one line `user:password` is expected";
            Err(Error::Other(format!("{shown}: {problem}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    fn secret(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    fn settings(credentials: &Path) -> ZookeeperSettings {
        let mut settings = ZookeeperSettings::new("zk-1:2181,zk-2:2181/site");
        settings.credentials_file = Some(credentials.to_owned());
        settings
    }

    #[test]
    fn credentials_come_from_a_file_that_only_its_owner_may_read() {
        let (_directory, path) = secret("anna:swordfish\n", 0o600);
        store(&settings(&path)).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            let (_directory, path) = secret("anna:swordfish", mode);
            let error = format!("{}", store(&settings(&path)).unwrap_err());
            assert!(error.contains("chmod 600") && !error.contains("swordfish"), "{error}");
        }
    }

    #[test]
    fn credentials_that_are_none_are_told_without_showing_them() {
        for text in ["", "anna", ":swordfish", "anna:"] {
            let (_directory, path) = secret(text, 0o600);
            let error = format!("{}", store(&settings(&path)).unwrap_err());
            assert!(error.contains("user:password") && !error.contains("swordfish"), "{error}");
        }
        let error = format!("{}", store(&settings(Path::new("/nonexistent/file"))).unwrap_err());
        assert!(error.contains("/nonexistent/file"), "{error}");
    }

    #[test]
    fn a_certificate_that_cannot_be_read_is_named() {
        let mut settings = ZookeeperSettings::new("zk-1:2281");
        settings.tls_ca = Some("/nonexistent/ca.pem".into());
        let error = format!("{}", store(&settings).unwrap_err());
        assert!(error.contains("/nonexistent/ca.pem"), "{error}");
    }
}
