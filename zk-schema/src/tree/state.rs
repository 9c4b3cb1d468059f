//! Records that nodes and the leader write.
//!
//! They are read by derived code, since people do not edit them by hand, but what is read is as hostile as any other
//! input: sizes are bounded, and whatever is wrong is an error that says what.

use super::SCHEMA_VERSION;
use crate::json::{RecordError, check_version};
use crate::records::{Cluster, Extra, Real, Vip};
use crate::{NodeName, RealName, VipName, fnv1a};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Largest such record, in bytes: ZooKeeper breaks connections over records near 1 MiB.
pub const MAX_STATE_BYTES: usize = 512 * 1024;

/// The greatest term and the greatest epoch that count. Nobody gets there by counting: what exceeds it was made up, and
/// what it stands in is refused.
pub const MAX_ORDER: u64 = 1 << 62;

/// The most by which a number that others wrote may be ahead of what is known for a leader to go on beyond it. What is
/// further ahead is ignored and told, so that nobody can use the numbers up.
pub const MAX_ORDER_STEP: u64 = 1 << 32;

/// Returns whether a (term, epoch) is one that leaders may have come to.
#[must_use]
pub const fn is_plausible((term, epoch): (u64, u64)) -> bool {
    term <= MAX_ORDER && epoch <= MAX_ORDER
}

/// A record that nodes or the leader write.
pub trait StateRecord: Serialize + DeserializeOwned {
    /// Reads a record.
    ///
    /// # Errors
    /// If it is too large, not such a record, or of a newer schema.
    fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_STATE_BYTES {
            return Err(RecordError::TooLarge { bytes: bytes.len(), limit: MAX_STATE_BYTES });
        }
        let Value::Object(mut object) = serde_json::from_slice(bytes)? else {
            return Err(RecordError::NotAnObject);
        };
        check_version(&mut object)?;
        Ok(serde_json::from_value(Value::Object(object))?)
    }

    /// Writes the record on one line, fields in alphabetical order.
    ///
    /// # Errors
    /// If it would be too large to read.
    fn bytes(&self) -> Result<Vec<u8>, RecordError> {
        let unsorted = serde_json::to_vec(self)?;
        let mut fields: BTreeMap<String, &RawValue> = serde_json::from_slice(&unsorted)?;
        let version = serde_json::value::to_raw_value(&SCHEMA_VERSION)?;
        fields.insert("version".to_owned(), &version);
        let bytes = serde_json::to_vec(&fields)?;
        if bytes.len() > MAX_STATE_BYTES {
            return Err(RecordError::TooLarge { bytes: bytes.len(), limit: MAX_STATE_BYTES });
        }
        Ok(bytes)
    }
}

/// Writes what is within a record and does not come in alphabetical order by itself. Structures do if they are declared
/// so, and maps by name.
fn sorted<T: Serialize, S: Serializer>(part: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serde_json::to_value(part).map_err(serde::ser::Error::custom)?.serialize(serializer)
}

macro_rules! state_records {
    ($($name:ident),+) => { $(impl StateRecord for $name {})+ };
}

state_records!(Term, Candidacy, Head, Assignment, Member, Vote, Applied, Load, Event);

/// A leadership: the record at [`paths::LEADER`](super::paths::LEADER).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// The node that leads.
    pub node: NodeName,
    /// The leadership's number; each is greater than all before it.
    pub term: u64,
    /// The time at which it began, in seconds since 1970.
    pub since: u64,
}

/// A place in the line of candidates for leadership: a record below [`paths::ELECTION`](super::paths::ELECTION).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidacy {
    /// The node that stands for election.
    pub node: NodeName,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The head: what is in force, by VIP: the record at [`paths::ASSIGNMENTS`](super::paths::ASSIGNMENTS).
///
/// A node applies a head only if its (term, epoch) is greater than that of the head it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The leadership that wrote it.
    pub term: u64,
    /// Rises with every head.
    pub epoch: u64,
    /// The cluster's record as it was accepted.
    #[serde(with = "operators")]
    pub cluster: Cluster,
    /// The nodes among which probing is divided.
    pub nodes: BTreeSet<NodeName>,
    /// The addresses at which these nodes answer each other, of those that tell: one of each family at most. A node
    /// that loses sight of the tree knows from here whom to ask.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<NodeName, BTreeSet<IpAddr>>,
    /// The epoch at which what is to be probed, and by whom, changed last.
    pub targets: u64,
    /// Set while the leader, new or just back, removes nothing.
    #[serde(default)]
    pub settling: bool,
    /// Nodes that did not acknowledge in time; to be alarmed about.
    #[serde(default)]
    pub lagging: BTreeSet<NodeName>,
    /// Nodes that are not in the tree and, as they told last, announce addresses: they forward by what they have, and
    /// follow nothing new.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub cut_off: BTreeSet<NodeName>,
    /// VIPs whose records are gone in a way that looks like an accident: still served, each until its record returns or
    /// an operator confirms.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub held_vips: BTreeSet<VipName>,
    /// Nodes that are gone in such a way, and stay in `nodes`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub held_nodes: BTreeSet<NodeName>,
    /// The things that the leader refused or holds back, in words.
    #[serde(default)]
    pub problems: BTreeSet<String>,
    /// The VIPs and the newest assignment of each.
    pub vips: BTreeMap<VipName, Entry>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Head {
    /// Returns (term, epoch), by which heads are ordered.
    #[must_use]
    pub const fn order(&self) -> (u64, u64) {
        (self.term, self.epoch)
    }
}

/// A VIP in a [`Head`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Digest of the assignment's bytes: see [`Assignment::digest`].
    pub digest: String,
    /// Epoch of its assignment.
    pub epoch: u64,
}

/// A VIP as all nodes are to serve it: the record at [`paths::assignment`](super::paths::assignment).
///
/// It holds the definition that the leader accepted, so that every node acts on the same one at the same epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The leadership that wrote it.
    pub term: u64,
    /// The head's epoch at which it was written.
    pub epoch: u64,
    /// The VIP.
    #[serde(with = "operators")]
    pub vip: Vip,
    /// Its reals, in the table or not, with the weights that operators gave them.
    #[serde(with = "operators::map")]
    pub reals: BTreeMap<RealName, Real>,
    /// The weights that give the slots to reals, each above 0. Empty until the reals have been judged.
    pub weights: BTreeMap<RealName, u16>,
    /// The epoch at which these weights came into force.
    pub since: u64,
    /// Weights that are announced, and take effect when every node has acknowledged them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Adoption>,
    /// Weights of earlier epochs, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Past>,
    /// Set while reals that are down keep their slots: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// Reals whose records are gone in a way that looks like an accident: still in use, each until its record returns or an
    /// operator confirms.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub held_reals: BTreeSet<RealName>,
    /// The reason for which it was written.
    pub why: String,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Assignment {
    /// Digest of an assignment's bytes as they stand in the tree: 64-bit FNV-1a, in hexadecimal. It finds edits by
    /// hand and mix-ups, not forgery.
    #[must_use]
    pub fn digest(bytes: &[u8]) -> String {
        format!("{:016x}", fnv1a(bytes.iter().copied()))
    }
}

/// Weights that are announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// The epoch at which they were announced.
    pub epoch: u64,
    /// The weights.
    pub weights: BTreeMap<RealName, u16>,
}

/// Weights of an earlier epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The first epoch at which they were in force.
    pub epoch: u64,
    /// The weights.
    pub weights: BTreeMap<RealName, u16>,
}

/// A node that is there: the record at [`paths::node`](super::paths::node).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Differs with every start of the daemon.
    pub instance: String,
    /// The machine's boot id.
    pub boot: String,
    /// Outer IPv4 source of what it sends to reals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_v4: Option<Ipv4Addr>,
    /// Outer IPv6 source of what it sends to reals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_v6: Option<Ipv6Addr>,
    /// The address of its admin pages.
    pub admin: SocketAddr,
    /// The daemon's version.
    pub software: String,
    /// The time at which it started, in seconds since 1970.
    pub started: u64,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Member {
    /// The source addresses of the node's packets to reals.
    pub fn sources(&self) -> impl Iterator<Item = IpAddr> {
        self.source_v4.map(IpAddr::from).into_iter().chain(self.source_v6.map(IpAddr::from))
    }
}

/// A real of a VIP, written `<vip>/<real>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The VIP.
    pub vip: VipName,
    /// The real.
    pub real: RealName,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vip, self.real)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (vip, real) = text.split_once('/').ok_or_else(|| format!("{text:?} is not <vip>/<real>"))?;
        let vip = vip.parse().map_err(|error: crate::NameError| error.to_string())?;
        let real = real.parse().map_err(|error: crate::NameError| error.to_string())?;
        Ok(Self { vip, real })
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A vote, which says what a node's probes find: the record at [`paths::health`](super::paths::health). Exceptions
/// only: a target of the node's that is not named is up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    /// The [`Head::targets`] that the node's probes have followed. Of targets that were added later it says nothing.
    pub targets: u64,
    /// Set if the node finds more than half of its targets down, so that the fault may be its own.
    #[serde(default)]
    pub suspect: bool,
    /// Targets that are down.
    #[serde(default, serialize_with = "sorted")]
    pub down: BTreeMap<Target, Finding>,
    /// Targets of which the node cannot tell, or not yet.
    #[serde(default)]
    pub unknown: BTreeSet<Target>,
    /// The number of targets that are missing above since they found no room; then `targets` is 0, and the vote says
    /// nothing of any target that it does not name.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A real that is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// The last probe's outcome.
    pub reason: String,
}

/// The head that a node has in force: the record at [`paths::applied`](super::paths::applied).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// Of the head in force.
    pub term: u64,
    /// Of the head in force.
    pub epoch: u64,
    /// Digest of the tables in the node's maps.
    pub digest: String,
    /// The way in which the node came to what it has in force.
    pub mode: Mode,
    /// The reason why something newer is not in force, if there is something newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Addresses of VIPs that the node announces to routers; `None` where the node does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<BTreeSet<IpAddr>>,
    /// Addresses that the node's packets to reals come from; empty where the node does not tell. Unlike the node's own
    /// record, this one stays when its session ends, while its kernel goes on forwarding.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub sources: BTreeSet<IpAddr>,
    /// The boot id of the machine that wrote this, as in [`Member::boot`]; `None` where the node does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// Another machine that had this node's name before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<Replaced>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Longest boot id that is passed on, in bytes, and most addresses: a node has one of each family.
const MAX_BOOT_BYTES: usize = 200;
const MAX_SOURCES: usize = 4;

/// A machine that had a node's name until another one took it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// Its boot id, as in [`Member::boot`].
    pub boot: String,
    /// The source addresses of its packets to reals.
    pub sources: BTreeSet<IpAddr>,
    /// The time at which the other one took over, in seconds since 1970.
    pub at: u64,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Replaced {
    /// Time for which it is told of, in seconds. Longer: who looks seldom hears of two machines of one name. Shorter:
    /// who replaced a machine on purpose is bothered for less.
    pub const TOLD_FOR_S: u64 = 24 * 3600;

    /// The node writes it into each record of its own, so what others made too large or made up is cut.
    fn bounded(boot: String, sources: BTreeSet<IpAddr>, at: u64) -> Self {
        let boot = if boot.len() > MAX_BOOT_BYTES { "too long to be told".to_owned() } else { boot };
        Self { boot, sources: sources.into_iter().take(MAX_SOURCES).collect(), at, extra: Extra::default() }
    }

    /// Returns whether it is still to be told of at `now`, in seconds since 1970.
    #[must_use]
    pub const fn counts(&self, now: u64) -> bool {
        now < self.at.saturating_add(Self::TOLD_FOR_S)
    }

    /// Returns what operators are told of it at `now`, in seconds since 1970, where the machine of this `boot` and
    /// these `sources` has the name now.
    #[must_use]
    pub fn words(&self, boot: &str, sources: &BTreeSet<IpAddr>, now: u64) -> String {
        let minutes = now.saturating_sub(self.at) / 60;
        let age = match minutes {
            0..60 => format!("{minutes} min"),
            _ => format!("{} h {} min", minutes / 60, minutes % 60),
        };
        format!(
            "another machine took this name over {age} ago: it is {} now and was {} before. If that one was replaced on \
             purpose, nothing is to be done, and this is told for a day; else two machines are configured by one name: \
             stop lb-node on one of them, and give it a name of its own",
            machine(boot, sources),
            machine(&self.boot, &self.sources)
        )
    }
}

/// A machine in words: where its packets to reals come from, and its boot id.
#[must_use]
pub fn machine(boot: &str, sources: &BTreeSet<IpAddr>) -> String {
    let sources = sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    let sources = if sources.is_empty() { "an unknown address".to_owned() } else { sources };
    format!("{sources} (boot {boot})")
}

impl Applied {
    /// Returns who had the name before the machine of this `boot` and these `sources`, which finds this record at
    /// `now`, in seconds since 1970; `None` where it was the same machine, as far as can be told.
    ///
    /// A machine is another one if it was booted another time and has no address in common: one that was booted keeps
    /// its addresses, and one that is given others in operation keeps its boot id.
    #[must_use]
    pub fn predecessor(self, boot: &str, sources: &BTreeSet<IpAddr>, now: u64) -> Option<Replaced> {
        let tells = !self.sources.is_empty() && !sources.is_empty();
        match self.boot {
            Some(other) if other != boot && tells && self.sources.is_disjoint(sources) => {
                Some(Replaced::bounded(other, self.sources, now))
            }
            _ => self
                .replaced
                .filter(|replaced| replaced.counts(now))
                .map(|replaced| Replaced::bounded(replaced.boot, replaced.sources, replaced.at.min(now))),
        }
    }

    /// The (term, epoch) of the head in force.
    #[must_use]
    pub const fn order(&self) -> (u64, u64) {
        (self.term, self.epoch)
    }

    /// Returns whether the node follows, and has what was written at `order`, where `head` is the newest. A node that
    /// has more than that refuses the head, and follows nobody.
    #[must_use]
    pub fn acknowledges(&self, order: (u64, u64), head: (u64, u64)) -> bool {
        self.mode == Mode::Live && order <= self.order() && self.order() <= head
    }
}

/// The way in which a node came to what it has in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// From the tree, as it is.
    #[default]
    Live,
    /// From the tree or the disk, as it was when the node lost sight of it.
    Static,
    /// As [`Mode::Static`], without reals that the node itself finds down.
    Autonomous,
}

/// The load of a real, as its agent tells: the record at [`paths::load`](super::paths::load).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Connections of the VIP's that are established at the real.
    pub connections: u64,
    /// The time at which they were counted, in seconds since 1970.
    pub at: u64,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The decisions of an epoch: the record at [`paths::event`](super::paths::event), written in one transaction with
/// the head that it tells of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The leadership that decided.
    pub term: u64,
    /// The head's epoch.
    pub epoch: u64,
    /// The node that led.
    pub node: NodeName,
    /// When, in milliseconds since 1970, by the leader's clock.
    pub at_ms: u64,
    /// The decisions, in order.
    #[serde(serialize_with = "sorted")]
    pub decisions: Vec<Decision>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One decision of a leader's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// The kind of decision: `leader`, `settled`, `nodes`, `lagging`, `cut-off`, `vip` (it came, went or changed),
    /// `verdict` (a real is down or up), `announced`, `weights`, `held`, `refused`, or a newer kind.
    pub kind: String,
    /// The VIP that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip: Option<VipName>,
    /// The real that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real: Option<RealName>,
    /// What, and why, in words.
    pub text: String,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An operator's flag. It counts from being there; all fields are for people, but for `until`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flag {
    /// The person who set it.
    #[serde(default)]
    pub by: String,
    /// The reason for it.
    #[serde(default)]
    pub why: String,
    /// The time at which it ceases to count, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Flag {
    /// Reads a flag. One that cannot be read counts too, for ever: what it is for is more likely meant than not.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    /// Returns whether it counts at `now`, in seconds since 1970.
    #[must_use]
    pub fn counts(&self, now: u64) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// Operators' records within others: read by the code that reads them in their own znodes.
mod operators {
    use super::{Deserialize as _, Deserializer, Serialize, Serializer, Value};
    use crate::json::{Record, from_value, to_value};
    use serde::{de::Error as _, ser::Error as _};

    pub(super) fn serialize<T: Record, S: Serializer>(record: &T, serializer: S) -> Result<S::Ok, S::Error> {
        to_value(record).map_err(S::Error::custom)?.serialize(serializer)
    }

    pub(super) fn deserialize<'de, T: Record, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let value = Value::deserialize(deserializer)?;
        from_value(value).map_err(D::Error::custom)
    }

    pub(super) mod map {
        use super::*;
        use std::collections::BTreeMap;

        pub(in super::super) fn serialize<K, T, S>(
            records: &BTreeMap<K, T>,
            serializer: S,
        ) -> Result<S::Ok, S::Error>
        where
            K: Serialize,
            T: Record,
            S: Serializer,
        {
            serializer.collect_map(records.iter().map(|(key, record)| (key, One(record))))
        }

        struct One<'a, T>(&'a T);

        impl<T: Record> Serialize for One<'_, T> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                super::serialize(self.0, serializer)
            }
        }

        pub(in super::super) fn deserialize<'de, K, T, D>(deserializer: D) -> Result<BTreeMap<K, T>, D::Error>
        where
            K: for<'a> TryFrom<&'a str, Error = crate::NameError> + Ord,
            T: Record,
            D: Deserializer<'de>,
        {
            let values = serde_json::Map::<String, Value>::deserialize(deserializer)?;
            let record = |(key, value): (String, Value)| {
                let name = K::try_from(&key).map_err(D::Error::custom)?;
                let record =
                    from_value(value).map_err(|error| D::Error::custom(format!("{key}: {error}")))?;
                Ok((name, record))
            };
            values.into_iter().map(record).collect()
        }
    }
}
