//! Problems of a leader: the records that it does not follow, what it holds back, and why. Words come last: `Display`
//! gives the sentence that is written.

use super::explain::few;
use crate::panic;
use std::collections::BTreeSet;
use std::fmt;
use zk_schema::tree::{Target, paths};
use zk_schema::{ClusterSeed, NodeName, RealName, VipName};

/// Something in the tree that a leader does not follow, or holds back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// An operator's flag keeps everything as it is.
    Frozen,
    /// VIPs vanished in a way that looks like an accident, and are served on.
    HeldVips {
        /// Those that vanished.
        vips: BTreeSet<VipName>,
        /// How many VIPs are in force, with these.
        of: usize,
    },
    /// Reals of a VIP vanished in a way that looks like an accident, and are used on.
    HeldReals {
        /// The VIP.
        vip: VipName,
        /// Those that vanished.
        reals: BTreeSet<RealName>,
        /// How many reals of the VIP are in force, with these.
        of: usize,
        /// Set if all that take connections are among them.
        nothing_left: bool,
    },
    /// Nodes vanished together with most others, and stay on the list.
    HeldNodes(BTreeSet<NodeName>),
    /// Most nodes vanished, so that no real is removed.
    MostNodesMissing,
    /// There are more nodes than take part in probing.
    ManyNodes {
        /// How many there are.
        nodes: usize,
        /// How many take part.
        most: usize,
    },
    /// The cluster has no record.
    NoCluster,
    /// The cluster's record is broken.
    BrokenCluster {
        /// In what way.
        why: String,
    },
    /// The cluster's record changes what may not change while there are VIPs.
    FixedCluster {
        /// The seed in force.
        seed: ClusterSeed,
        /// The table size in force.
        table_size: u32,
    },
    /// A VIP's record is refused.
    RefusedVip {
        /// The VIP.
        vip: VipName,
        /// Why.
        why: String,
        /// Set if an earlier record of it stays in force.
        in_force: bool,
    },
    /// A real's record is refused.
    RefusedReal {
        /// The real.
        real: Target,
        /// Why.
        why: String,
        /// Set if an earlier record of it stays in force.
        in_force: bool,
    },
    /// A node has more in force than the head says.
    Ahead {
        /// The node.
        node: NodeName,
        /// The (term, epoch) that it has in force.
        order: (u64, u64),
    },
    /// A node says that it has in force what no leader can have written.
    MadeUp {
        /// The node.
        node: NodeName,
        /// The (term, epoch) that it claims.
        order: (u64, u64),
    },
    /// Another record cannot be read: its path, and why.
    Unreadable(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frozen => write!(f, "{}: nothing changes until it is deleted", paths::FREEZE),
            Self::HeldVips { vips, of } => write!(
                f,
                "{}: {} of {of} VIPs vanished in a way that looks like an accident: {}; each is still served until it \
                 returns or `create {}` confirms it",
                paths::VIPS,
                vips.len(),
                few(vips, ", "),
                paths::CONFIRM_VIPS,
            ),
            Self::HeldReals { vip, reals, of, nothing_left } => write!(
                f,
                "{}: {} of {of} reals vanished in a way that looks like an accident: {}{}; each stays in use until it \
                 returns or `create {}` confirms it",
                paths::reals(vip),
                reals.len(),
                few(reals, ", "),
                if *nothing_left { ", and nothing is left to take connections" } else { "" },
                paths::confirm(vip),
            ),
            Self::HeldNodes(nodes) => write!(
                f,
                "{}: {} vanished when most nodes did; each stays on the list until it returns or `create {}` confirms \
                 it",
                paths::NODES,
                few(nodes, ", "),
                paths::CONFIRM_NODES
            ),
            Self::MostNodesMissing => write!(
                f,
                "{}: most nodes vanished at once; nothing is removed until they return or `create {}` confirms it",
                paths::NODES,
                paths::CONFIRM_NODES
            ),
            Self::ManyNodes { nodes, most } => {
                write!(f, "{}: {nodes} nodes, of which {most} take part in probing", paths::NODES)
            }
            Self::NoCluster => {
                write!(f, "{}: no such znode; the last record stays in force", paths::CLUSTER)
            }
            Self::BrokenCluster { why } => {
                write!(f, "{}: {why}; the last good record stays in force", paths::CLUSTER)
            }
            Self::FixedCluster { seed, table_size } => write!(
                f,
                "{}: seed and table_size cannot change while there are VIPs, since every connection would move; set \
                 them back to {seed} and {table_size}",
                paths::CLUSTER,
            ),
            Self::RefusedVip { vip, why, in_force } => refused(f, &paths::vip(vip), why, *in_force),
            Self::RefusedReal { real, why, in_force } => {
                refused(f, &paths::real(&real.vip, &real.real), why, *in_force)
            }
            Self::Ahead { node, order } => write!(
                f,
                "{}: (term, epoch) {order:?} is ahead of the head, so that the node follows nobody; the next head goes \
                 beyond it",
                paths::applied(node)
            ),
            Self::MadeUp { node, order } => write!(
                f,
                "{}: (term, epoch) {order:?} is made up: no leader has come near it; it is ignored, `delete` it",
                paths::applied(node)
            ),
            Self::Unreadable(problem) => f.write_str(problem),
        }
    }
}

fn refused(f: &mut fmt::Formatter<'_>, path: &str, why: &str, in_force: bool) -> fmt::Result {
    let so = if in_force { "the last good record stays in force" } else { "it is not served" };
    write!(f, "{path}: {why}; {so} until it is fixed")
}

/// Why reals of a VIP stay in its table against what is known of them or asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// More reals are down than may leave.
    Panic {
        /// The VIP.
        vip: VipName,
        /// How many.
        held: panic::Held,
    },
    /// These are down, and the leader does not remove any while it settles or most nodes are missing.
    NoTrust(Vec<RealName>),
    /// Every real is drained or of weight 0.
    NothingUsable,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic { vip, held } => write!(f, "{held}; `create {}` lets them go", paths::confirm(vip)),
            Self::NoTrust(reals) => write!(
                f,
                "{} is down; nothing is removed while the leader settles or most nodes are missing",
                few(reals, ", ")
            ),
            Self::NothingUsable => {
                f.write_str("every real is drained or of weight 0; those in the table are kept")
            }
        }
    }
}
