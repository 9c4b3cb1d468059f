//! The node file: what a node of a cluster cannot learn from the tree, in TOML.
//!
//! `docs/node-file.md` describes every field.

use crate::fields::fields;
use crate::file::{FileErrors, has_table, parse, parse_amended};
use crate::named_files::{TlsIdentity, check_needs};
use crate::names::NodeName;
use crate::problem::{Problems, Scope, quoted};
use crate::reader::{Decode, Fields};
use crate::records::{Node, Words, words};
use crate::validate::{Rules, is_authority};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A node file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeFile {
    /// The node itself.
    pub node: Node,
    /// The way to the cluster's tree.
    pub zookeeper: ZookeeperSettings,
    /// The announcement of the node's VIPs.
    pub front: FrontSettings,
    /// The node's life as one of many.
    pub cluster: ClusterSettings,
}

impl NodeFile {
    /// A node file with every optional setting at its default.
    #[must_use]
    pub fn new(node: Node, servers: impl Into<String>) -> Self {
        Self {
            node,
            zookeeper: ZookeeperSettings::new(servers),
            front: FrontSettings::default(),
            cluster: ClusterSettings::default(),
        }
    }

    /// Returns whether a text is meant as a node file rather than a [cluster file](crate::ClusterFile): it has a table
    /// `zookeeper`. It may be wrong all the same.
    #[must_use]
    pub fn is_meant_by(text: &str) -> bool {
        has_table(text, "zookeeper")
    }

    /// Returns whether a text is meant as a node file rather than an [operator's file](crate::OperatorFile): it has a
    /// table that only a node file has. It may be wrong all the same.
    #[must_use]
    pub fn is_told_apart(text: &str) -> bool {
        ["node", "front", "cluster"].iter().any(|table| has_table(text, table))
    }

    /// Reads and validates a file's text. `name` is what messages call the file.
    ///
    /// # Errors
    ///
    /// All problems by line. An unknown field is one, so that no misspelt setting passes for its default.
    pub fn parse(text: &str, name: &str) -> Result<Self, FileErrors> {
        parse(text, name)
    }

    /// As [`parse`](Self::parse), with some of the node's settings from elsewhere: one file can then serve many nodes.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse).
    pub fn parse_with(text: &str, name: &str, instead: &NodeOverrides) -> Result<Self, FileErrors> {
        parse_amended(text, name, |file| instead.put_into(file))
    }

    /// Checks every rule.
    ///
    /// # Errors
    ///
    /// All problems, each with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), Problems> {
        self.validated()
    }

    /// Writes the file that [`parse`](Self::parse) reads as this.
    ///
    /// # Errors
    ///
    /// If serialisation fails, as it does for a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

/// Settings that differ from node to node where the rest of the file does not. Each counts instead of the field of its
/// name in the table `node`, which the file may then leave out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeOverrides {
    /// The node's name.
    pub name: Option<NodeName>,
    /// Interface that clients' packets arrive on.
    pub interface: Option<String>,
    /// Address and port of the admin pages.
    pub admin: Option<SocketAddr>,
}

impl NodeOverrides {
    fn put_into(&self, file: &mut Map<String, Value>) {
        let fields = [
            ("name", self.name.as_ref().map(ToString::to_string)),
            ("interface", self.interface.clone()),
            ("admin", self.admin.map(|admin| admin.to_string())),
        ];
        for (field, value) in fields {
            let Some(value) = value else { continue };
            // Where `node` is no table, it stays what it is, to be refused.
            if let Value::Object(node) = file.entry("node").or_insert_with(|| Map::new().into()) {
                node.insert(field.to_owned(), value.into());
            }
        }
    }
}

/// The configuration of a real's agent that registers its host: the way to the cluster's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RealFile {
    /// The way to the cluster's tree.
    pub zookeeper: ZookeeperSettings,
}

impl RealFile {
    /// A file with every optional setting at its default.
    #[must_use]
    pub fn new(servers: impl Into<String>) -> Self {
        Self { zookeeper: ZookeeperSettings::new(servers) }
    }

    /// Reads and validates a file's text. `name` is what messages call the file.
    ///
    /// # Errors
    ///
    /// All problems by line. An unknown field is one, so that no misspelt setting passes for its default.
    pub fn parse(text: &str, name: &str) -> Result<Self, FileErrors> {
        parse(text, name)
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

/// The way to the cluster's ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZookeeperSettings {
    /// Connect string: `host:port` of each server, separated by commas, and perhaps a chroot such as `/site-a`.
    pub servers: String,
    /// Session timeout in milliseconds that is asked for: 2000..=60000.
    pub session_timeout_ms: u32,
    /// File with `user:password` in one line, which only its owner may read; nobody is asked for if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// The use of the credentials, if there are any.
    pub auth: ZookeeperAuth,
    /// PEM file with the certificates that the servers' are to be signed by. TLS is used where this is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// PEM file with the node's own certificate, where the servers ask for one. Goes with `tls_key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of `tls_cert`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// The rights to change the znodes that this node creates.
    pub acl: ZookeeperAcl,
}

impl ZookeeperSettings {
    /// These servers, with every optional setting at its default.
    #[must_use]
    pub fn new(servers: impl Into<String>) -> Self {
        Self {
            servers: servers.into(),
            session_timeout_ms: 6000,
            credentials_file: None,
            auth: ZookeeperAuth::default(),
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            acl: ZookeeperAcl::default(),
        }
    }

    /// The session timeout that is asked for.
    #[must_use]
    pub fn session_timeout(&self) -> Duration {
        Duration::from_millis(self.session_timeout_ms.into())
    }
}

/// The way in which a client proves to ZooKeeper who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ZookeeperAuth {
    /// The `digest` scheme: user and password are sent to the server.
    #[default]
    Digest,
    /// SASL with DIGEST-MD5: the password is not sent.
    Sasl,
}

/// Rights to change znodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ZookeeperAcl {
    /// Everyone who reaches ZooKeeper.
    #[default]
    Open,
    /// Whoever has the credentials of the creator; everyone may read.
    Creator,
    /// Those whom the tree names, which must be closed.
    Groups,
}

/// The way in which routers learn to send the node packets for its VIPs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrontSettings {
    /// The program that announces.
    pub driver: FrontDriver,
    /// The file that BIRD's configuration includes and this node writes.
    pub bird_file: PathBuf,
    /// BIRD's control socket.
    pub bird_socket: PathBuf,
    /// Time in milliseconds that a VIP must be fit without a break before it is announced: 0..=600000.
    pub announce_hold_ms: u32,
    /// Time in milliseconds without a sign of life of the daemon after which its guard withdraws its VIPs: 3000..=600000,
    /// or 0 for never. It must be longer than a restart takes.
    pub withdraw_after_ms: u32,
}

impl Default for FrontSettings {
    fn default() -> Self {
        Self {
            driver: FrontDriver::default(),
            bird_file: "/run/drover/bird.conf".into(),
            bird_socket: "/run/bird/bird.ctl".into(),
            announce_hold_ms: 1000,
            withdraw_after_ms: 10_000,
        }
    }
}

impl FrontSettings {
    /// Time that a VIP must be fit without a break before it is announced.
    #[must_use]
    pub fn announce_hold(&self) -> Duration {
        Duration::from_millis(self.announce_hold_ms.into())
    }

    /// Time without a sign of life of the daemon after which its guard withdraws its VIPs; `None`: never.
    #[must_use]
    pub fn withdraw_after(&self) -> Option<Duration> {
        (self.withdraw_after_ms > 0).then(|| Duration::from_millis(self.withdraw_after_ms.into()))
    }
}

/// The program that announces the VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FrontDriver {
    /// Nothing: routes to the node are somebody else's care.
    #[default]
    None,
    /// A BIRD on the same host.
    Bird,
}

/// The node's life as one of many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterSettings {
    /// Directory of its own, kept over reboots. The last assignment is cached in it.
    pub state_dir: PathBuf,
    /// Time in milliseconds without ZooKeeper after which the node judges its reals by itself: 1000..=3600000.
    pub autonomy_after_ms: u32,
    /// Time in milliseconds between withdrawing the VIPs and stopping: 0..=600000.
    pub drain_wait_ms: u32,
    /// Time in milliseconds that the node, when it leads, waits for the others to acknowledge: 100..=600000.
    pub ack_timeout_ms: u32,
    /// UDP port on which nodes ask each other, when ZooKeeper is away, whether there is something newer: 1..=65535, or
    /// 0 for not at all. The same on all nodes.
    pub peer_port: u16,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/drover".into(),
            autonomy_after_ms: 10_000,
            drain_wait_ms: 5000,
            ack_timeout_ms: 3000,
            peer_port: 9942,
        }
    }
}

impl ClusterSettings {
    /// Time without ZooKeeper after which the node judges its reals by itself.
    #[must_use]
    pub fn autonomy_after(&self) -> Duration {
        Duration::from_millis(self.autonomy_after_ms.into())
    }

    /// Time between withdrawing the VIPs and stopping.
    #[must_use]
    pub fn drain_wait(&self) -> Duration {
        Duration::from_millis(self.drain_wait_ms.into())
    }

    /// Time that a leader waits for acknowledgements.
    #[must_use]
    pub fn ack_timeout(&self) -> Duration {
        Duration::from_millis(self.ack_timeout_ms.into())
    }
}

words!(ZookeeperAuth { Digest = "digest", Sasl = "sasl" });
words!(ZookeeperAcl { Open = "open", Creator = "creator", Groups = "groups" });
words!(FrontDriver { None = "none", Bird = "bird" });

impl Decode for NodeFile {
    fn decode(fields: &mut Fields<'_>) -> Self {
        Self {
            node: Node::required(fields),
            zookeeper: ZookeeperSettings::required(fields),
            front: fields.table("front", Decode::decode).unwrap_or_default(),
            cluster: fields.table("cluster", Decode::decode).unwrap_or_default(),
        }
    }
}

impl Decode for RealFile {
    fn decode(fields: &mut Fields<'_>) -> Self {
        Self { zookeeper: ZookeeperSettings::required(fields) }
    }
}

impl ZookeeperSettings {
    /// The table `zookeeper`, which must be there.
    pub(crate) fn required(fields: &mut Fields<'_>) -> Self {
        let zookeeper = fields.required_table("zookeeper", "a table with at least `servers`");
        zookeeper.unwrap_or_else(|| Self::new("missing"))
    }
}

impl Decode for ZookeeperSettings {
    fn decode(fields: &mut Fields<'_>) -> Self {
        fields.require("servers", "host:port of each server, separated by commas, and perhaps a chroot");
        let mut settings = Self::new(fields.text("servers").unwrap_or_default());
        settings.read_fields(fields);
        settings
    }
}

fields!(ZookeeperSettings {
    number session_timeout_ms in SESSION_TIMEOUT_MS,
    optional_path credentials_file,
    word auth,
    optional_path tls_ca,
    optional_path tls_cert,
    optional_path tls_key,
    word acl,
});

impl Decode for FrontSettings {
    fn decode(fields: &mut Fields<'_>) -> Self {
        let mut settings = Self::default();
        settings.read_fields(fields);
        settings
    }
}

fields!(FrontSettings {
    word driver,
    path bird_file,
    path bird_socket,
    number announce_hold_ms in ANNOUNCE_HOLD_MS,
    number withdraw_after_ms in WITHDRAW_AFTER_MS,
});

impl Decode for ClusterSettings {
    fn decode(fields: &mut Fields<'_>) -> Self {
        let mut settings = Self::default();
        settings.read_fields(fields);
        settings
    }
}

fields!(ClusterSettings {
    path state_dir,
    number autonomy_after_ms in AUTONOMY_AFTER_MS,
    number drain_wait_ms in DRAIN_WAIT_MS,
    number ack_timeout_ms in ACK_TIMEOUT_MS,
    number peer_port in PEER_PORT,
});

impl Rules for NodeFile {
    fn check(&self, scope: &mut Scope<'_>) {
        self.node.check(&mut scope.at("node"));
        self.zookeeper.check(&mut scope.at("zookeeper"));
        self.front.check(&mut scope.at("front"));
        self.cluster.check(&mut scope.at("cluster"));
    }
}

impl Rules for RealFile {
    fn check(&self, scope: &mut Scope<'_>) {
        self.zookeeper.check(&mut scope.at("zookeeper"));
    }
}

impl Rules for ZookeeperSettings {
    fn check(&self, scope: &mut Scope<'_>) {
        if let Err(reason) = check_servers(&self.servers) {
            scope.problem("servers", reason);
        }
        self.check_fields(scope);
        let identity = TlsIdentity {
            cert: ("tls_cert", &self.tls_cert),
            key: ("tls_key", &self.tls_key),
            what: "a certificate of the node's own",
        };
        identity.check_client(scope, ("tls_ca", &self.tls_ca));
        let anonymous = self.credentials_file.is_none();
        let creator = self.acl == ZookeeperAcl::Creator && anonymous;
        check_needs(scope, "acl", creator, "credentials_file", "a creator that ZooKeeper knows again");
        // A certificate serves as well.
        let nobody = self.acl == ZookeeperAcl::Groups && anonymous && self.tls_cert.is_none();
        check_needs(scope, "acl", nobody, "credentials_file", "a member of a group");
        let sasl = self.auth == ZookeeperAuth::Sasl && anonymous;
        check_needs(scope, "auth", sasl, "credentials_file", "authentication by SASL");
    }
}

impl Rules for FrontSettings {
    fn check(&self, scope: &mut Scope<'_>) {
        self.check_fields(scope);
        if scope.sound("bird_file") && self.bird_file == self.bird_socket {
            scope.problem("bird_socket", "the same as bird_file; one is a file, the other a socket");
        }
    }
}

impl Rules for ClusterSettings {
    fn check(&self, scope: &mut Scope<'_>) {
        self.check_fields(scope);
    }
}

/// A connect string as ZooKeeper's own clients take it.
fn check_servers(servers: &str) -> Result<(), String> {
    let (hosts, chroot) = match servers.find('/') {
        Some(slash) => servers.split_at(slash),
        None => (servers, ""),
    };
    for server in hosts.split(',') {
        // An IPv6 address without brackets would leave open where its port begins.
        let bare_v6 = server.parse::<Ipv6Addr>().is_ok();
        if bare_v6 || !is_authority(server) {
            return Err(format!(
                "{} is not host:port of a ZooKeeper server; write them as zk-1:2181,zk-2:2181/chroot",
                quoted(server)
            ));
        }
    }
    let Some(path) = chroot.strip_prefix('/') else { return Ok(()) };
    let component = |name: &str| {
        !matches!(name, "" | "." | "..") && name.bytes().all(|b| b.is_ascii_graphic() && b != b',')
    };
    if path.split('/').all(component) {
        return Ok(());
    }
    let rule = "like /site-a, at the very end, of visible ASCII characters other than commas";
    Err(format!("{} is not a chroot: a path {rule}", quoted(chroot)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"[node]
name = "lb-1"
interface = "eth0"

[zookeeper]
servers = "zk-1:2181,zk-2:2181/site-a"

[front]
driver = "bird"
"#;

    /// The messages about `GOOD` after one replacement.
    fn refusal(old: &str, new: &str) -> String {
        assert_eq!(GOOD.matches(old).count(), 1, "{old:?} is to be in the text once");
        NodeFile::parse(&GOOD.replace(old, new), "node.toml").expect_err(new).to_string()
    }

    #[test]
    fn a_file_is_read_with_its_defaults() {
        let file = NodeFile::parse(GOOD, "node.toml").unwrap();
        let mut expected =
            NodeFile::new(Node::new("lb-1".parse().unwrap(), "eth0"), "zk-1:2181,zk-2:2181/site-a");
        expected.front.driver = FrontDriver::Bird;
        assert_eq!(file, expected);
        assert_eq!(file.validate(), Ok(()));
        assert_eq!(NodeFile::parse(&file.to_toml().unwrap(), "again").unwrap(), file);
    }

    #[test]
    fn what_differs_from_node_to_node_may_come_from_elsewhere() {
        let instead = NodeOverrides {
            name: Some("lb-2".parse().unwrap()),
            interface: Some("bond0".into()),
            admin: Some("127.0.0.1:9941".parse().unwrap()),
        };
        let shared = "[zookeeper]\nservers = \"zk-1:2181\"\n";
        let file = NodeFile::parse_with(shared, "node.toml", &instead).unwrap();
        assert_eq!((file.node.name.as_str(), file.node.interface.as_str()), ("lb-2", "bond0"));
        assert_eq!(file.node.admin, instead.admin.unwrap());
        let file = NodeFile::parse_with(GOOD, "node.toml", &instead).unwrap();
        assert_eq!(file.node.name.as_str(), "lb-2", "it counts instead of what the file says");

        let some = NodeOverrides { name: instead.name, ..NodeOverrides::default() };
        let refusal = NodeFile::parse_with(shared, "node.toml", &some).unwrap_err().to_string();
        assert!(refusal.contains("node.interface: missing"), "{refusal}");
        let refusal = NodeFile::parse_with(&["node = 1\n", shared].concat(), "node.toml", &some).unwrap_err();
        assert!(refusal.to_string().contains("node.toml:1:8: node:"), "{refusal}");
    }

    #[test]
    fn the_file_of_a_real_has_the_table_zookeeper_and_nothing_else() {
        let table = "[zookeeper]\nservers = \"zk-1:2181\"\n";
        let file = RealFile::parse(table, "real.toml").unwrap();
        assert_eq!(file, RealFile::new("zk-1:2181"));
        assert_eq!(file.validate(), Ok(()));
        let refusal = |text: &str| RealFile::parse(text, "real.toml").unwrap_err().to_string();
        assert!(refusal("").contains("zookeeper: missing"));
        assert!(refusal(&[table, "tls_key = \"/k\"\n"].concat()).contains("3:11: zookeeper.tls_key"));
        assert!(refusal(&[table, "[node]\n"].concat()).contains("node: unknown field"));
        assert!(RealFile::new("zk-1:x").validate().is_err());
    }

    #[test]
    fn each_mistake_is_named_with_its_line_column_and_field() {
        for (old, new, expected) in [
            (
                "[zookeeper]\nservers = \"zk-1:2181,zk-2:2181/site-a\"",
                "",
                "1:1: zookeeper: missing; it must be",
            ),
            ("servers", "server", "6:1: zookeeper.server: unknown field; did you mean `servers`?"),
            ("servers", "server", "5:2: zookeeper.servers: missing; it must be host:port of each server"),
            (
                "zk-2:2181",
                "zk-2:x",
                "6:11: zookeeper.servers: \"zk-2:x\" is not host:port of a ZooKeeper server",
            ),
            (",zk-2", ", zk-2", "6:11: zookeeper.servers: \" zk-2:2181\" is not host:port"),
            ("zk-1:2181,", ",", "6:11: zookeeper.servers: \"\" is not host:port"),
            ("/site-a", "/site-a/", "6:11: zookeeper.servers: \"/site-a/\" is not a chroot"),
            (
                "/site-a",
                "/site-a,zk-3:2181",
                "6:11: zookeeper.servers: \"/site-a,zk-3:2181\" is not a chroot",
            ),
            (
                "\"bird\"",
                "\"brid\"",
                "9:10: front.driver: \"brid\" is not one of none, bird; did you mean `bird`?",
            ),
            ("[front]", "[fornt]", "8:2: fornt: unknown field; did you mean `front`?"),
            (
                "[front]",
                "acl = \"creator\"\n[front]",
                "8:7: zookeeper.acl: a creator that ZooKeeper knows again needs credentials_file; add it, or remove acl",
            ),
            (
                "[front]",
                "auth = \"sasl\"\n[front]",
                "8:8: zookeeper.auth: authentication by SASL needs credentials_file",
            ),
            ("[front]", "tls_key = \"/k\"\n[front]", "8:11: zookeeper.tls_key: a private key needs tls_cert"),
            (
                "[front]",
                "tls_cert = \"/c\"\ntls_key = \"/k\"\n[front]",
                "8:12: zookeeper.tls_cert: a certificate of the node's own needs tls_ca",
            ),
            (
                "[front]",
                "session_timeout_ms = 1999\n[front]",
                "8:22: zookeeper.session_timeout_ms: 1999 is not in 2000..=60000",
            ),
            (
                "\"bird\"",
                "\"bird\"\nbird_file = \"bird.conf\"",
                "10:13: front.bird_file: \"bird.conf\" is not an absolute path",
            ),
            (
                "\"bird\"",
                "\"bird\"\nbird_socket = \"/run/drover/bird.conf\"",
                "10:15: front.bird_socket: the same as bird_file",
            ),
            (
                "interface = \"eth0\"",
                "interface = \"eth0\"\nadmin = \"0.0.0.0:9940\"",
                "4:9: node.admin: 0.0.0.0:9940 can be reached from other machines, so it needs admin_token_file",
            ),
            (
                "interface = \"eth0\"",
                "interface = \"eth0\"\nadmin_tls_client_ca = \"/ca\"",
                "4:23: node.admin_tls_client_ca: TLS needs admin_tls_cert",
            ),
            ("[front]", "[cluster]\nseed = \"0\"\n[front]", "9:1: cluster.seed: unknown field"),
            (
                "[front]",
                "[cluster]\nautonomy_after_ms = 999\n[front]",
                "9:21: cluster.autonomy_after_ms: 999 is not in 1000..=3600000",
            ),
            (
                "[front]",
                "[vips.a]\n[front]",
                "8:2: vips: unknown field; known here: node, zookeeper, front, cluster",
            ),
        ] {
            let found = refusal(old, new);
            assert!(
                found.lines().any(|line| line.starts_with(&format!("node.toml:{expected}"))),
                "{expected}\n{found}"
            );
        }
    }

    #[test]
    fn a_refused_value_raises_no_complaints_that_merely_follow_from_it() {
        let found = refusal("[front]", "acl = \"creator\"\ncredentials_file = 7\n[front]");
        assert_eq!(found, "node.toml:9:20: zookeeper.credentials_file: 7 is not an absolute path");
    }

    #[test]
    fn servers_are_named_as_zookeepers_own_clients_take_them() {
        for servers in ["zk", "zk:2181", "10.0.0.1:2181", "[2001:db8::1]:2181,zk-2/a/b-c_d.e", "a,b,c"] {
            assert_eq!(check_servers(servers), Ok(()), "{servers}");
        }
        for servers in ["", "/", "/a", "zk:0", "zk/", "zk//a", "zk/..", "zk/ä", "zk:2181,", "2001:db8::1"] {
            assert!(check_servers(servers).is_err(), "{servers}");
        }
    }

    #[test]
    fn a_node_file_is_told_from_a_cluster_file_even_if_it_is_wrong() {
        assert!(NodeFile::is_meant_by(GOOD));
        assert!(NodeFile::is_meant_by("[zookeeper]\nservers = \n"));
        assert!(!NodeFile::is_meant_by("[node]\nname = \"lb-1\"\n[vips.zookeeper]\n"));
        assert!(!NodeFile::is_meant_by("zookeeper = 1"));
    }
}
