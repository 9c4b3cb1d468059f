//! The content of an overview. Its JSON is what `lbctl status -o json` prints: docs/lbctl.md describes it.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use zk_schema::tree::{Applied, Flag, Mode};
use zk_schema::{Affinity, Encapsulation, NodeName, Protocol, RealName, VipName};

/// A cluster at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overview {
    /// The time at which the tree was read, in seconds since 1970.
    pub at: u64,
    /// The session that it was read in.
    pub zookeeper: Link,
    /// The node that leads, or led last.
    pub leader: Option<LeaderView>,
    /// The head: what every node is to have in force.
    pub head: Option<Order>,
    /// Set while the leader changes nothing.
    pub frozen: Option<FlagView>,
    /// Nodes that are there, or were and have not been forgotten.
    pub nodes: BTreeMap<NodeName, NodeView>,
    /// VIPs, as operators define them or as they are served.
    pub vips: BTreeMap<VipName, VipView>,
    /// The things that need attention; empty when all is well.
    pub problems: Vec<Problem>,
}

/// The session with ZooKeeper.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Link {
    /// The connect string.
    pub servers: String,
    /// The session's number, in hexadecimal.
    pub session: String,
    /// Time that it took to read the tree, in milliseconds.
    pub read_ms: u64,
}

/// Term and epoch, by which heads are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Order {
    /// The leadership.
    pub term: u64,
    /// The epoch.
    pub epoch: u64,
}

/// A leadership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeaderView {
    /// The node that leads.
    pub node: NodeName,
    /// The leadership's number.
    pub term: u64,
    /// The time at which it began, in seconds since 1970.
    pub since: u64,
    /// True if that node is there.
    pub present: bool,
    /// True if it leads now: it is there, and the first in the line of candidates.
    pub leads: bool,
    /// True if it is new or just back, and removes nothing.
    pub settling: bool,
}

/// An operator's flag that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlagView {
    /// The person who set it; may be empty.
    pub by: String,
    /// The reason; may be empty.
    pub why: String,
    /// The time at which it ceases to count, in seconds since 1970.
    pub until: Option<u64>,
}

impl From<&Flag> for FlagView {
    fn from(flag: &Flag) -> Self {
        Self { by: flag.by.clone(), why: flag.why.clone(), until: flag.until }
    }
}

impl FlagView {
    /// By whom and what for: ` by anna: disk`, or nothing.
    #[must_use]
    pub fn words(&self) -> String {
        let by = if self.by.is_empty() { String::new() } else { format!(" by {}", self.by) };
        let why = if self.why.is_empty() { String::new() } else { format!(": {}", self.why) };
        by + &why
    }
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NodeView {
    /// True if it is there: it has a session, and all in force that it read when it started.
    pub present: bool,
    /// True if it leads.
    pub leader: bool,
    /// The address of its admin pages.
    pub admin: Option<SocketAddr>,
    /// Its daemon's version.
    pub software: Option<String>,
    /// The time at which its daemon started, in seconds since 1970.
    pub started: Option<u64>,
    /// The head that it has in force.
    pub applied: Option<Order>,
    /// The number of epochs by which that is behind the head.
    pub behind: Option<u64>,
    /// The way in which it came to what it has in force.
    pub mode: Option<Mode>,
    /// Digest of the tables in its maps.
    pub digest: Option<String>,
    /// True if other nodes have another digest at the same term and epoch.
    pub differs: bool,
    /// The reason why something newer is not in force there, in its own words.
    pub problem: Option<String>,
    /// Another machine that had its name until lately.
    pub replaced: Option<ReplacedView>,
    /// True if the leader has given up waiting for it.
    pub lagging: bool,
    /// True if it is not in the tree and, as it told last, announces addresses.
    pub cut_off: bool,
    /// Set while it is out of service.
    pub maintenance: Option<FlagView>,
}

/// A machine that had a node's name until another one took it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplacedView {
    /// Its boot id.
    pub boot: String,
    /// The source addresses of its packets to reals.
    pub sources: BTreeSet<IpAddr>,
    /// The time at which the other one took over, in seconds since 1970.
    pub at: u64,
    /// All of it in words, and what to do.
    pub words: String,
}

impl ReplacedView {
    /// Returns what to tell at `now`, in seconds since 1970, of the node that wrote this record.
    #[must_use]
    pub fn of(applied: &Applied, now: u64) -> Option<Self> {
        let replaced = applied.replaced.as_ref().filter(|replaced| replaced.counts(now))?;
        let boot = applied.boot.as_deref().unwrap_or("unknown");
        Some(Self {
            boot: replaced.boot.clone(),
            sources: replaced.sources.clone(),
            at: replaced.at,
            words: replaced.words(boot, &applied.sources, now),
        })
    }
}

/// A VIP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VipView {
    /// Address that clients use.
    pub address: IpAddr,
    /// Port, or 0 for all.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The encapsulation of its packets to the reals.
    pub encapsulation: Encapsulation,
    /// The rule that keeps packets of a client together.
    pub affinity: Affinity,
    /// Its standing between operators and leader.
    pub standing: Standing,
    /// The epoch of its assignment; `None` until it has one.
    pub epoch: Option<u64>,
    /// The epoch at which its weights came into force.
    pub since: Option<u64>,
    /// The reason for which its assignment was written.
    pub why: Option<String>,
    /// The reasons why reals that are down keep their slots, if they do.
    pub held: Option<String>,
    /// The weights that are announced.
    pub next: Option<NextView>,
    /// Its reals, defined or in the table.
    pub reals: BTreeMap<RealName, RealView>,
}

/// The standing of a VIP between operators and leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// As operators defined it.
    Served,
    /// In force as it was before an edit, which the leader refused, holds back or has not seen yet.
    Edited,
    /// Defined, and not in force yet.
    New,
    /// In force, and defined no more.
    Deleted,
}

/// Weights that are announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextView {
    /// The epoch at which they were announced.
    pub epoch: u64,
    /// Nodes that are there and have not acknowledged them.
    pub waits_for: BTreeSet<NodeName>,
}

/// A real of a VIP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RealView {
    /// Address that packets are sent to.
    pub address: IpAddr,
    /// The verdict of the nodes' votes.
    pub health: Health,
    /// Since when it is down, in seconds since 1970, if it is.
    pub down_since: Option<u64>,
    /// The nodes that find it down, and why.
    pub found_down_by: BTreeMap<NodeName, FindingView>,
    /// The weight in the operator's record; `None` where there is none that can be read.
    pub operator_weight: Option<u16>,
    /// The weight in force; 0: it is not in the table.
    pub weight: u16,
    /// The weight that is announced, where that differs.
    pub next_weight: Option<u16>,
    /// Slots that it holds.
    pub slots: u32,
    /// Part of the VIP's slots that it holds, 0 to 1.
    pub share: f64,
    /// Set while it is drained.
    pub drain: Option<FlagView>,
    /// True if that is for good: see `lbctl real disable`.
    pub disabled: bool,
    /// True if its own agent registered it.
    pub self_registered: bool,
    /// Connections that its agent counted last.
    pub connections: Option<u64>,
    /// The time at which they were counted, in seconds since 1970.
    pub counted: Option<u64>,
    /// The reason for its weight in force, if that is not simply the operator's.
    pub why: String,
}

/// The verdict of the nodes' votes on a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// At least half of those that have an opinion find it up.
    Up,
    /// Most of them find it down.
    Down,
    /// Nobody has an opinion.
    Unknown,
    /// The VIP has no health check.
    Unchecked,
}

impl Health {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Unknown => "unknown",
            Self::Unchecked => "unchecked",
        }
    }
}

/// The finding of a node's probes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FindingView {
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// The last probe's outcome.
    pub reason: String,
}

/// Something that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The VIP that it is about, if it is about one.
    pub vip: Option<VipName>,
    /// The node that it is about, if it is about one.
    pub node: Option<NodeName>,
    /// The problem, and how to fix it where that can be said.
    pub text: String,
    /// True if it is likely to be over in a moment, as when a node is about to apply what was just decided.
    pub passing: bool,
}
