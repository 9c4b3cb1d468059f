//! The rules between settings that name files: what TLS needs.

use crate::problem::Scope;
use std::path::PathBuf;

/// A setting that is of no use alone: if `lacks`, then `key` is there for `reason` and what it needs, `other`, is not.
/// Nothing is said where `other` is there and wrong.
pub(crate) fn check_needs(scope: &mut Scope<'_>, key: &str, lacks: bool, other: &str, reason: &str) {
    if lacks && scope.sound(other) {
        scope.problem(key, format!("{reason} needs {other}; add it, or remove {key}"));
    }
}

/// A certificate and its private key, as settings name them.
pub(crate) struct TlsIdentity<'a> {
    pub(crate) cert: (&'a str, &'a Option<PathBuf>),
    pub(crate) key: (&'a str, &'a Option<PathBuf>),
    /// What the certificate is, in words.
    pub(crate) what: &'a str,
}

impl TlsIdentity<'_> {
    /// A certificate and a key need each other.
    pub(crate) fn check(&self, scope: &mut Scope<'_>) {
        let ((cert, cert_file), (key, key_file)) = (self.cert, self.key);
        check_needs(scope, cert, cert_file.is_some() && key_file.is_none(), key, self.what);
        check_needs(scope, key, key_file.is_some() && cert_file.is_none(), cert, "a private key");
    }

    /// As [`check`](Self::check), for a client, who shows a certificate only where TLS is spoken: with the authorities
    /// that `ca` names.
    pub(crate) fn check_client(&self, scope: &mut Scope<'_>, (ca, ca_file): (&str, &Option<PathBuf>)) {
        self.check(scope);
        check_needs(scope, self.cert.0, self.cert.1.is_some() && ca_file.is_none(), ca, self.what);
    }
}
