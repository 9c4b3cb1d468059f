//! The records themselves.
//!
//! They are plain data: whoever builds one in code calls its `validate`. Reading them is not derived, since serde
//! stops at the first error and forgets where it was; `decode` reads them and lists all that is wrong.

use crate::{MacAddress, NodeName, RealName, VipName};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Fields of newer versions, as they stood in the znode: kept when the record is written again.
///
/// A field from within a table that this version knows stays within it, e.g. `{"limits": {"new": 1}}`.
pub type Extra = BTreeMap<String, Value>;

/// The cluster's own record, which all nodes must share before they can agree on anything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// Key of the flow hash and of table building.
    pub seed: ClusterSeed,
    /// Slots per VIP (M): 65537 or 655373.
    pub table_size: u32,
    /// Fields of newer versions, kept by [`to_json`](crate::to_json).
    #[serde(skip)]
    pub extra: Extra,
}

impl Cluster {
    /// The seed's two halves, as the flow hash takes them: (k0, k1).
    #[must_use]
    pub const fn seed(&self) -> (u64, u64) {
        self.seed.halves()
    }
}

impl Default for Cluster {
    /// The smaller table, and the seed of a node that shares its state with no other.
    fn default() -> Self {
        Self { seed: ClusterSeed::STANDALONE, table_size: TABLE_SIZES[0], extra: Extra::new() }
    }
}

/// The allowed values of [`Cluster::table_size`]: primes, as Maglev needs, with room for some 650 and 6,500 reals
/// at a hundred slots each.
pub const TABLE_SIZES: [u32; 2] = [65_537, 655_373];

/// A cluster's seed: 128 bits, written as 32 hexadecimal digits, the most significant first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterSeed(u128);

impl ClusterSeed {
    /// The seed where none is configured: the text `drover-standalon`. It is no secret, so that whoever may choose
    /// client addresses could aim connections at one real; a cluster that faces the internet sets its own.
    pub const STANDALONE: Self = Self(u128::from_be_bytes(*b"drover-standalon"));

    /// The first 16 digits and the last 16.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
    pub const fn halves(self) -> (u64, u64) {
        ((self.0 >> 64) as u64, self.0 as u64)
    }
}

impl From<u128> for ClusterSeed {
    fn from(bits: u128) -> Self {
        Self(bits)
    }
}

/// A text that is not a [`ClusterSeed`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not a seed: 32 hexadecimal digits, such as `openssl rand -hex 16` prints", crate::problem::quoted(.text))]
pub struct SeedError {
    text: String,
}

impl FromStr for ClusterSeed {
    type Err = SeedError;

    fn from_str(text: &str) -> Result<Self, SeedError> {
        // `from_str_radix` alone would take a sign and fewer digits.
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let bits = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        bits.map(Self).ok_or_else(|| SeedError { text: text.to_owned() })
    }
}

impl fmt::Display for ClusterSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterSeed({self})")
    }
}

impl Serialize for ClusterSeed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Transport protocol of a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
}

/// The encapsulation of packets from the node to a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Encapsulation {
    /// Generic UDP Encapsulation, variant 0 (draft-ietf-intarea-gue), UDP port [`Node::gue_port`].
    #[default]
    Gue,
    /// IP in IP (RFC 2003, RFC 2473, RFC 4213): 4in4, 6in4, 4in6 or 6in6 as the addresses require.
    Ipip,
    /// None: the destination MAC is rewritten; the real is on the node's own segment.
    L2,
}

/// The rule that keeps packets of one client together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Affinity {
    /// Each connection (client address, client port, service port) is placed on its own.
    #[default]
    Flow,
    /// All connections of a client's address go to one real.
    Source,
}

/// A virtual IP service that clients use.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Vip {
    /// Address that clients connect to.
    pub address: IpAddr,
    /// Port, or 0 for all ports of the address.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Encapsulation towards the reals.
    pub encapsulation: Encapsulation,
    /// Affinity.
    pub affinity: Affinity,
    /// Health check; without one every real counts as up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// Admission limits.
    pub limits: Limits,
    /// Share of the VIP's reals, in percent, that may be down before removals are held: 0..=100.
    pub panic_threshold: u8,
    /// Fields of newer versions, kept by [`to_json`](crate::to_json).
    #[serde(skip)]
    pub extra: Extra,
}

impl Vip {
    /// A VIP with every optional setting at its default.
    #[must_use]
    pub fn new(address: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self {
            address,
            port,
            protocol,
            encapsulation: Encapsulation::default(),
            affinity: Affinity::default(),
            health: None,
            limits: Limits::default(),
            panic_threshold: 50,
            extra: Extra::new(),
        }
    }
}

/// A server behind a VIP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Real {
    /// Address that packets are sent to.
    pub address: IpAddr,
    /// Share of the VIP's new connections relative to its other reals: 0..=65535; 0 takes none.
    pub weight: u16,
    /// Fields of newer versions, kept by [`to_json`](crate::to_json).
    #[serde(skip)]
    pub extra: Extra,
}

impl Real {
    /// A real of weight 100.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self { address, weight: 100, extra: Extra::new() }
    }
}

/// Limits of what is admitted; 0 means no limit. Each node counts for itself, by the kernel's tick (1 to 10 ms): a
/// burst of less than what the rate allows in a tick counts as that much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Limits {
    /// New connections a second to the VIP on one node: 0..=100000000, as both bursts.
    pub connections_per_second: u32,
    /// Connections that may come at once before the rate counts; 0 means one second's worth.
    pub burst: u32,
    /// New connections a second from one source prefix on one node: 0..=100000.
    pub connections_per_second_per_prefix: u32,
    /// The prefix's burst, at most 2000 seconds' worth; 0 means one second's worth.
    pub prefix_burst: u32,
    /// Prefix length for IPv4 sources: 8..=32; 0 means 24.
    pub prefix_length_v4: u8,
    /// Prefix length for IPv6 sources: 16..=64; 0 means 56.
    pub prefix_length_v6: u8,
    /// Packets a second on one node, of any kind: 0..=100000000.
    #[serde(skip_serializing_if = "is_zero")]
    pub packets_per_second: u32,
    /// Packets that may come at once before the rate counts; 0 means one second's worth.
    #[serde(skip_serializing_if = "is_zero")]
    pub packet_burst: u32,
    /// Packets a second from one source prefix on one node: 0..=1000000.
    #[serde(skip_serializing_if = "is_zero")]
    pub packets_per_second_per_prefix: u32,
    /// The prefix's burst of packets, at most 120 seconds' worth; 0 means one second's worth.
    #[serde(skip_serializing_if = "is_zero")]
    pub prefix_packet_burst: u32,
}

/// Limits that came later stay out of records that do not use them, so that older nodes meet nothing new.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Limits {
    /// Most seconds that a prefix's burst may be worth: what 31 bits of the limiter's ticks hold.
    pub const MOST_SECONDS_PER_BURST: u32 = 2_000;
    /// The same for packets, whose ticks are shorter.
    pub const MOST_SECONDS_PER_PACKET_BURST: u32 = 120;

    /// The limits with each 0 that stands for a default replaced by it: bursts by one second's worth, prefix
    /// lengths by 24 and 56. A rate of 0 remains, and means no limit.
    #[must_use]
    pub const fn resolved(self) -> Self {
        const fn or(value: u32, default: u32) -> u32 {
            if value == 0 { default } else { value }
        }
        Self {
            burst: or(self.burst, self.connections_per_second),
            prefix_burst: or(self.prefix_burst, self.connections_per_second_per_prefix),
            prefix_length_v4: if self.prefix_length_v4 == 0 { 24 } else { self.prefix_length_v4 },
            prefix_length_v6: if self.prefix_length_v6 == 0 { 56 } else { self.prefix_length_v6 },
            packet_burst: or(self.packet_burst, self.packets_per_second),
            prefix_packet_burst: or(self.prefix_packet_burst, self.packets_per_second_per_prefix),
            ..self
        }
    }
}

/// A health check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HealthCheck {
    /// The question that the probe asks.
    #[serde(flatten)]
    pub kind: CheckKind,
    /// Port to probe; the VIP's own if absent. Required on a VIP of all ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Way the probe takes.
    pub path: ProbePath,
    /// Milliseconds between probes of one real: 100..=3600000.
    pub interval_ms: u32,
    /// Milliseconds until a probe counts as failed: 10..=60000, and no more than the interval.
    pub timeout_ms: u32,
    /// Successes in a row that bring a real up: 1..=100.
    pub healthy_threshold: u32,
    /// Failures in a row that take it down: 1..=100.
    pub unhealthy_threshold: u32,
}

impl HealthCheck {
    /// A check with every optional setting at its default.
    #[must_use]
    pub const fn new(kind: CheckKind) -> Self {
        Self {
            kind,
            port: None,
            path: ProbePath::Tunnel,
            interval_ms: 2000,
            timeout_ms: 1000,
            healthy_threshold: 2,
            unhealthy_threshold: 3,
        }
    }

    /// The time within which a node starts the first probe of a new real: a second, or the interval if that is shorter.
    #[must_use]
    pub fn first_probe_within(&self) -> Duration {
        Duration::from_millis(u64::from(self.interval_ms)).min(FIRST_PROBE_WITHIN)
    }
}

/// A new real is probed this soon, however long the interval is.
const FIRST_PROBE_WITHIN: Duration = Duration::from_secs(1);

/// The question that a probe asks.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HttpCheck {
    /// Request target: starts with `/`, at most 2048 visible ASCII characters, no `#`.
    pub target: String,
    /// Host header (`host` or `host:port`) and TLS server name (`host`); the probed address if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Accepted status codes: at least one, each 100..=599.
    pub status: Vec<u16>,
    /// Text that the first 64 KiB of the body must contain: 1 to 1024 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_contains: Option<String>,
    /// True if an `https` check's certificate must be valid for `host` under the system's trust roots.
    pub verify_tls: bool,
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self { target: "/".into(), host: None, status: vec![200], body_contains: None, verify_tls: true }
    }
}

/// Parameters of an MQTT check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MqttCheck {
    /// Protocol version: `"3.1.1"` or `"5"`.
    pub version: MqttVersion,
    /// Client id prefix, to which the node's and real's names are appended: 1 to 64 letters, digits, `.`, `_`, `-`.
    pub client_id: String,
}

impl Default for MqttCheck {
    fn default() -> Self {
        Self { version: MqttVersion::V311, client_id: "drover-probe".into() }
    }
}

/// MQTT protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MqttVersion {
    /// MQTT 3.1.1 (OASIS, 2014).
    V311,
    /// MQTT 5.0 (OASIS, 2019).
    V5,
}

/// Way a probe takes to the real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ProbePath {
    /// To the VIP's address, encapsulated as clients' packets are: a broken decapsulation is seen.
    #[default]
    Tunnel,
    /// To the real's own address.
    Direct,
}

/// The mode in which XDP attaches to the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum XdpMode {
    /// Native where the driver has it, generic (with a warning) where it has not.
    #[default]
    Auto,
    /// In the driver, or fail.
    Native,
    /// In the network stack: works everywhere, slow.
    Generic,
}

/// The fate of a packet to a VIP's address that no VIP serves: another port, or another protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Unserved {
    /// It is dropped and counted.
    #[default]
    Drop,
    /// It is left to the node's kernel. One that forwards packets sends it to its gateway, which may send it back.
    Pass,
}

/// A node's own settings: from its file, never from the tree.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// Name, unique in the cluster.
    pub name: NodeName,
    /// Interface that clients' packets arrive on.
    pub interface: String,
    /// XDP mode.
    pub xdp_mode: XdpMode,
    /// Outer IPv4 source of encapsulated packets; the interface's first address if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_v4: Option<Ipv4Addr>,
    /// Outer IPv6 source of encapsulated packets; the interface's first global address if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_v6: Option<Ipv6Addr>,
    /// UDP destination port of GUE: 1..=65535.
    pub gue_port: u16,
    /// The fate of packets to VIPs' addresses that no VIP serves.
    pub unserved: Unserved,
    /// MAC addresses beside the interface's own whose frames are taken for clients' packets: at most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accept_macs: Vec<MacAddress>,
    /// The address on which `/healthz`, `/readyz` and `/metrics` listen. Beyond the loopback only with a token or
    /// clients' certificates.
    pub admin: SocketAddr,
    /// File with the token that requests to `admin` must bear, which only its owner may read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_token_file: Option<PathBuf>,
    /// PEM file with the certificate of `admin`, which speaks TLS where this is there. Goes with `admin_tls_key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_tls_cert: Option<PathBuf>,
    /// PEM file with the private key of `admin_tls_cert`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_tls_key: Option<PathBuf>,
    /// PEM file with the certificates that clients' are to be signed by. Without it, clients need none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_tls_client_ca: Option<PathBuf>,
    /// Probes in flight at once: 1..=10000.
    pub probes_in_flight: u32,
    /// Room in the data plane's maps. Changing it reloads them.
    pub capacity: Capacity,
}

impl Node {
    /// Most MAC addresses in [`accept_macs`](Self::accept_macs).
    pub const MOST_MACS: usize = 8;

    /// A node with every optional setting at its default.
    #[must_use]
    pub fn new(name: NodeName, interface: impl Into<String>) -> Self {
        Self {
            name,
            interface: interface.into(),
            xdp_mode: XdpMode::default(),
            source_v4: None,
            source_v6: None,
            gue_port: 6080,
            unserved: Unserved::default(),
            accept_macs: Vec::new(),
            admin: SocketAddr::from(([127, 0, 0, 1], 9940)),
            admin_token_file: None,
            admin_tls_cert: None,
            admin_tls_key: None,
            admin_tls_client_ca: None,
            probes_in_flight: 256,
            capacity: Capacity::default(),
        }
    }
}

/// Room in the data plane's maps; memory is taken when the maps are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// VIPs: 1..=4096.
    pub vips: u32,
    /// Reals, counted once per VIP they serve: 1..=1000000.
    pub reals: u32,
    /// Slot tables: 2..=8192, or 0 for 128. Each VIP holds one; at least one more is needed to build the next
    /// table of a VIP that changes. They take `tables` x `table_size` x 4 bytes: 34 MB for 128 of 65,537 slots.
    pub tables: u32,
}

impl Capacity {
    /// Slot tables to make room for: [`tables`](Self::tables) with its 0 resolved.
    #[must_use]
    pub const fn slot_tables(&self) -> u32 {
        if self.tables == 0 { 128 } else { self.tables }
    }
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
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Desired {
    /// The cluster's record.
    pub cluster: Cluster,
    /// VIPs by name.
    pub vips: BTreeMap<VipName, VipState>,
}

/// An enumeration whose values are written as words.
pub(crate) trait Words: Copy + 'static {
    /// Every value with its word.
    const WORDS: &'static [(&'static str, Self)];
}

macro_rules! words {
    ($name:ident { $($value:ident = $word:literal),+ }) => {
        impl Words for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$value)),+];
        }

        impl $name {
            /// The word for it in records, logs and metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $word),+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

pub(crate) use words;

words!(Protocol { Tcp = "tcp", Udp = "udp" });
words!(Encapsulation { Gue = "gue", Ipip = "ipip", L2 = "l2" });
words!(Affinity { Flow = "flow", Source = "source" });
words!(MqttVersion { V311 = "3.1.1", V5 = "5" });
words!(ProbePath { Tunnel = "tunnel", Direct = "direct" });
words!(Unserved { Drop = "drop", Pass = "pass" });
words!(XdpMode { Auto = "auto", Native = "native", Generic = "generic" });
