//! The operator's file: how `lbctl` reaches the tree and the nodes, in TOML.
//!
//! `docs/lbctl.md` describes every field.

use crate::fields::fields;
use crate::file::{FileErrors, parse, parse_amended};
use crate::named_files::TlsIdentity;
use crate::node_file::ZookeeperSettings;
use crate::problem::{Problems, Scope};
use crate::reader::{Decode, Fields};
use crate::validate::Rules;
use serde::Serialize;
use std::path::PathBuf;

/// An operator's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OperatorFile {
    /// The way to the cluster's tree.
    pub zookeeper: ZookeeperSettings,
    /// The credentials for nodes' admin pages.
    pub admin: AdminAccess,
}

impl OperatorFile {
    /// A file with every optional setting at its default.
    #[must_use]
    pub fn new(servers: impl Into<String>) -> Self {
        Self { zookeeper: ZookeeperSettings::new(servers), admin: AdminAccess::default() }
    }

    /// Reads and validates a file's text. `name` is what messages call the file.
    ///
    /// # Errors
    ///
    /// All problems by line. An unknown field is one, so that no misspelt setting passes for its default.
    pub fn parse(text: &str, name: &str) -> Result<Self, FileErrors> {
        parse(text, name)
    }

    /// Reads the table `zookeeper` of a [node file](crate::NodeFile), and nothing else: the node's own settings may be
    /// given to its daemon on the command line, or be of a newer version.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse), of that table.
    pub fn of_node_file(text: &str, name: &str) -> Result<Self, FileErrors> {
        parse_amended(text, name, |file| file.retain(|table, _| table == "zookeeper"))
    }

    /// Checks every rule.
    ///
    /// # Errors
    ///
    /// All problems, each with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), Problems> {
        self.validated()
    }
}

/// The credentials that nodes ask for on their admin pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AdminAccess {
    /// File with the token that nodes ask for, in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// PEM file with the certificates that nodes' are signed by. With it pages are asked for by HTTPS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// PEM file with the operator's own certificate, where nodes ask for one. Goes with `tls_key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of `tls_cert`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
}

impl Decode for OperatorFile {
    fn decode(fields: &mut Fields<'_>) -> Self {
        Self {
            zookeeper: ZookeeperSettings::required(fields),
            admin: fields.table("admin", Decode::decode).unwrap_or_default(),
        }
    }
}

impl Decode for AdminAccess {
    fn decode(fields: &mut Fields<'_>) -> Self {
        let mut access = Self::default();
        access.read_fields(fields);
        access
    }
}

fields!(AdminAccess {
    optional_path token_file,
    optional_path tls_ca,
    optional_path tls_cert,
    optional_path tls_key,
});

impl Rules for OperatorFile {
    fn check(&self, scope: &mut Scope<'_>) {
        self.zookeeper.check(&mut scope.at("zookeeper"));
        self.admin.check(&mut scope.at("admin"));
    }
}

impl Rules for AdminAccess {
    fn check(&self, scope: &mut Scope<'_>) {
        self.check_fields(scope);
        let identity = TlsIdentity {
            cert: ("tls_cert", &self.tls_cert),
            key: ("tls_key", &self.tls_key),
            what: "a certificate of the operator's own",
        };
        identity.check_client(scope, ("tls_ca", &self.tls_ca));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_servers_alone_has_defaults_for_the_rest() {
        let file = OperatorFile::parse("[zookeeper]\nservers = \"zk-1:2181\"\n", "lbctl.toml").unwrap();
        assert_eq!(file, OperatorFile::new("zk-1:2181"));
    }

    #[test]
    fn mistakes_are_told_all_at_once() {
        let text = "[zookeeper]\n[admin]\ntls_cert = \"/cert.pem\"\ntls_ca = \"ca.pem\"\ntoken = \"hush\"\n";
        let problems = OperatorFile::parse(text, "lbctl.toml").unwrap_err().to_string();
        for told in [
            "zookeeper.servers: missing",
            "\"ca.pem\" is not an absolute path",
            "needs tls_key",
            "admin.token",
        ] {
            assert!(problems.contains(told), "{told} is not in\n{problems}");
        }
    }
}
