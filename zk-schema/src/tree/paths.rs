//! Paths of the znodes.

use crate::{NodeName, RealName, VipName};

/// The cluster's record, and the root of all.
pub const CLUSTER: &str = "/drover";
/// The rights, if the tree is closed.
pub const ACCESS: &str = "/drover/access";
/// VIPs, by name.
pub const VIPS: &str = "/drover/vips";
/// Flags by which operators steer.
pub const OPS: &str = "/drover/ops";
/// Nodes that operators took out of service: withdrawn from the front, still forwarding.
pub const MAINTENANCE: &str = "/drover/ops/maintenance";
/// Reals that are to get no new connections, as `<vip>.<real>`.
pub const DRAIN: &str = "/drover/ops/drain";
/// While it is there the leader changes nothing.
pub const FREEZE: &str = "/drover/ops/freeze";
/// Suspect changes that operators confirmed: one per VIP name, [`CONFIRM_VIPS`] or [`CONFIRM_NODES`].
pub const CONFIRM: &str = "/drover/ops/confirm";
/// Confirms that most of the VIPs are to go. No VIP's name has an underscore.
pub const CONFIRM_VIPS: &str = "/drover/ops/confirm/_vips";
/// Confirms that most of the nodes are gone.
pub const CONFIRM_NODES: &str = "/drover/ops/confirm/_nodes";
/// Nodes that are there: ephemeral.
pub const NODES: &str = "/drover/nodes";
/// The heads that nodes have in force.
pub const APPLIED: &str = "/drover/applied";
/// The votes of nodes: ephemeral.
pub const HEALTH: &str = "/drover/health";
/// Candidates for leadership, in order: ephemeral and sequential.
pub const ELECTION: &str = "/drover/election";
/// The leadership's number; the version of this znode is the fence.
pub const LEADER: &str = "/drover/leader";
/// The head: what is in force, by VIP. The one znode that every node watches for weights.
pub const ASSIGNMENTS: &str = "/drover/assignments";

/// The load of reals, as their agents tell, by VIP: ephemeral.
pub const LOAD: &str = "/drover/load";
/// The last decisions, by epoch.
pub const EVENTS: &str = "/drover/events";

/// Every znode that must be there before nodes can work, parents first.
pub const SKELETON: [&str; 13] = [
    CLUSTER,
    VIPS,
    OPS,
    MAINTENANCE,
    DRAIN,
    CONFIRM,
    NODES,
    APPLIED,
    HEALTH,
    ELECTION,
    ASSIGNMENTS,
    LOAD,
    EVENTS,
];

/// A VIP's record.
#[must_use]
pub fn vip(vip: &VipName) -> String {
    format!("{VIPS}/{vip}")
}

/// The parent of a VIP's reals.
#[must_use]
pub fn reals(vip: &VipName) -> String {
    format!("{VIPS}/{vip}/reals")
}

/// A real's record.
#[must_use]
pub fn real(vip: &VipName, real: &RealName) -> String {
    format!("{VIPS}/{vip}/reals/{real}")
}

/// A VIP's assignment.
#[must_use]
pub fn assignment(vip: &VipName) -> String {
    format!("{ASSIGNMENTS}/{vip}")
}

/// A node's presence.
#[must_use]
pub fn node(node: &NodeName) -> String {
    format!("{NODES}/{node}")
}

/// The head that a node has in force.
#[must_use]
pub fn applied(node: &NodeName) -> String {
    format!("{APPLIED}/{node}")
}

/// The vote of a node.
#[must_use]
pub fn health(node: &NodeName) -> String {
    format!("{HEALTH}/{node}")
}

/// Takes a node out of service.
#[must_use]
pub fn maintenance(node: &NodeName) -> String {
    format!("{MAINTENANCE}/{node}")
}

/// Drains a real.
#[must_use]
pub fn drain(vip: &VipName, real: &RealName) -> String {
    format!("{DRAIN}/{vip}.{real}")
}

/// Confirms a VIP's suspect change.
#[must_use]
pub fn confirm(vip: &VipName) -> String {
    format!("{CONFIRM}/{vip}")
}

/// The parent of what a VIP's reals tell of their load.
#[must_use]
pub fn loads(vip: &VipName) -> String {
    format!("{LOAD}/{vip}")
}

/// The load of a real.
#[must_use]
pub fn load(vip: &VipName, real: &RealName) -> String {
    format!("{LOAD}/{vip}/{real}")
}

/// The decisions of an epoch. Names sort as their epochs do.
#[must_use]
pub fn event(epoch: u64) -> String {
    format!("{EVENTS}/{epoch:020}")
}

/// The last component of a path.
#[must_use]
pub fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
