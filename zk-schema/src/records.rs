//! The records themselves.

use crate::{NodeName, RealName, VipName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What all nodes of a cluster must share before they can agree on anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cluster {
    /// Key of the flow hash and of table building: 32 hexadecimal digits.
    pub seed: String,
    /// Slots per VIP (M): 65537 or 655373.
    pub table_size: u32,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { seed: "64726f7665722d7374616e64616c6f6e".into(), table_size: 65_537 }
    }
}

/// Transport protocol of a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
}

/// How packets travel from the node to a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encapsulation {
    /// Generic UDP Encapsulation, variant 0 (draft-ietf-intarea-gue), UDP port [`Node::gue_port`].
    #[default]
    Gue,
    /// IP in IP (RFC 2003, RFC 2473, RFC 4213): 4in4, 6in4, 4in6 or 6in6 as the addresses require.
    Ipip,
    /// None: the destination MAC is rewritten; the real is on the node's own segment.
    L2,
}

/// What keeps packets of one client together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Affinity {
    /// Each connection (client address, client port, service port) is placed on its own.
    #[default]
    Flow,
    /// All connections of a client's address go to one real.
    Source,
}

/// A virtual IP service that clients use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vip {
    /// Address that clients connect to.
    pub address: IpAddr,
    /// Port, or 0 for all ports of the address.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Encapsulation towards the reals.
    #[serde(default)]
    pub encapsulation: Encapsulation,
    /// Affinity.
    #[serde(default)]
    pub affinity: Affinity,
    /// Health check; without one every real counts as up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// Admission limits.
    #[serde(default)]
    pub limits: Limits,
    /// Share of the VIP's reals, in percent, that may be down before removals are held: 0..=100.
    #[serde(default = "default_panic_threshold")]
    pub panic_threshold: u8,
    /// Fields of newer versions, kept on rewrite.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

fn default_panic_threshold() -> u8 {
    50
}

/// A server behind a VIP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Real {
    /// Address that packets are sent to.
    pub address: IpAddr,
    /// Share of the VIP's new connections relative to its other reals: 0..=65535; 0 takes none.
    #[serde(default = "default_weight")]
    pub weight: u16,
    /// Fields of newer versions, kept on rewrite.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

fn default_weight() -> u16 {
    100
}

/// Admission limits for new TCP connections; 0 means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// New connections a second to the VIP on one node.
    pub connections_per_second: u32,
    /// Connections that may come at once before the rate counts; 0 means one second's worth.
    pub burst: u32,
    /// New connections a second from one source prefix on one node.
    pub connections_per_second_per_prefix: u32,
    /// The prefix's burst; 0 means one second's worth.
    pub prefix_burst: u32,
    /// Prefix length for IPv4 sources: 8..=32; 0 means 24.
    pub prefix_length_v4: u8,
    /// Prefix length for IPv6 sources: 16..=64; 0 means 56.
    pub prefix_length_v6: u8,
}

/// How a real's health is found out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is asked of the real.
    #[serde(flatten)]
    pub kind: CheckKind,
    /// Port to probe; the VIP's own if absent. Required on a VIP of all ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Way the probe takes.
    #[serde(default)]
    pub path: ProbePath,
    /// Milliseconds between probes of one real: 100..=3600000.
    #[serde(default = "default_interval_ms")]
    pub interval_ms: u32,
    /// Milliseconds until a probe counts as failed: 10..=60000.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u32,
    /// Successes in a row that bring a real up: 1..=100.
    #[serde(default = "default_healthy")]
    pub healthy_threshold: u32,
    /// Failures in a row that take it down: 1..=100.
    #[serde(default = "default_unhealthy")]
    pub unhealthy_threshold: u32,
}

fn default_interval_ms() -> u32 {
    2000
}
fn default_timeout_ms() -> u32 {
    1000
}
fn default_healthy() -> u32 {
    2
}
fn default_unhealthy() -> u32 {
    3
}

/// What a probe asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum CheckKind {
    /// The TCP handshake completes.
    Tcp,
    /// An HTTP/1.1 GET answers as expected.
    Http(HttpCheck),
    /// The same over TLS.
    Https(HttpCheck),
    /// MQTT CONNECT is answered by a CONNACK that accepts.
    Mqtt(MqttCheck),
}

/// Expectations of an HTTP check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpCheck {
    /// Request target, starting with `/`.
    pub target: String,
    /// Host header and TLS server name; the probed address if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Accepted status codes.
    pub status: Vec<u16>,
    /// Text that the first 64 KiB of the body must contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_contains: Option<String>,
    /// Whether a certificate must be valid for `host` under the system's trust roots.
    pub verify_tls: bool,
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self { target: "/".into(), host: None, status: vec![200], body_contains: None, verify_tls: true }
    }
}

/// Parameters of an MQTT check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MqttCheck {
    /// Protocol version: `"3.1.1"` or `"5"`.
    pub version: MqttVersion,
    /// Client id prefix; the node's and real's names are appended.
    pub client_id: String,
}

impl Default for MqttCheck {
    fn default() -> Self {
        Self { version: MqttVersion::V311, client_id: "drover-probe".into() }
    }
}

/// MQTT protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MqttVersion {
    /// MQTT 3.1.1 (OASIS, 2014).
    #[serde(rename = "3.1.1")]
    V311,
    /// MQTT 5.0 (OASIS, 2019).
    #[serde(rename = "5")]
    V5,
}

/// Way a probe takes to the real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbePath {
    /// To the VIP's address, encapsulated as clients' packets are: a broken decapsulation is seen.
    #[default]
    Tunnel,
    /// To the real's own address.
    Direct,
}

/// How XDP attaches to the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native where the driver has it, generic (with a warning) where it has not.
    #[default]
    Auto,
    /// In the driver, or fail.
    Native,
    /// In the network stack: works everywhere, slow.
    Generic,
}

/// A node's own settings: from its file, never from the tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Name, unique in the cluster.
    pub name: NodeName,
    /// Interface that clients' packets arrive on.
    pub interface: String,
    /// XDP mode.
    #[serde(default)]
    pub xdp_mode: XdpMode,
    /// Outer IPv4 source of encapsulated packets; the interface's first address if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_v4: Option<Ipv4Addr>,
    /// Outer IPv6 source of encapsulated packets; the interface's first global address if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_v6: Option<Ipv6Addr>,
    /// UDP destination port of GUE: 1..=65535.
    #[serde(default = "default_gue_port")]
    pub gue_port: u16,
    /// Where `/healthz`, `/readyz` and `/metrics` listen.
    #[serde(default = "default_admin")]
    pub admin: SocketAddr,
    /// Probes in flight at once: 1..=10000.
    #[serde(default = "default_probe_limit")]
    pub probes_in_flight: u32,
    /// Room in the data plane's maps. Changing it reloads them.
    #[serde(default)]
    pub capacity: Capacity,
}

fn default_gue_port() -> u16 {
    6080
}
fn default_admin() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9940))
}
fn default_probe_limit() -> u32 {
    256
}

/// Room in the data plane's maps; memory is taken when the maps are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capacity {
    /// VIPs: 1..=4096.
    pub vips: u32,
    /// Reals, counted once per VIP they serve: 1..=1000000.
    pub reals: u32,
    /// Slot tables of M cells; a VIP needs one, and a second one while it changes: 2..=8192.
    pub tables: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { vips: 512, reals: 4096, tables: 0 }
    }
}

/// A VIP with its reals.
#[derive(Clone, Debug, PartialEq)]
pub struct VipState {
    /// The VIP's record.
    pub vip: Vip,
    /// Its reals.
    pub reals: BTreeMap<RealName, Real>,
}

/// All that operators asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// The cluster's record.
    pub cluster: Cluster,
    /// VIPs by name.
    pub vips: BTreeMap<VipName, VipState>,
}
