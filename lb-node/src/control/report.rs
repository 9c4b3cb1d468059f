//! The report of the control loop to other nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use zk_schema::tree::Mode;

/// The state in force, as other nodes are to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// (term, epoch) of the head in force; `None` until there is one.
    pub order: Option<(u64, u64)>,
    /// The head's `targets` that probing follows.
    pub targets: u64,
    /// Digest of all tables in the maps.
    pub digest: String,
    /// The way in which what is in force came to be.
    pub mode: Mode,
    /// The reason why something newer is not in force, if there is something newer.
    pub problem: Option<String>,
    /// True if packets have been seen to pass through the loaded program as they should.
    pub healthy: bool,
    /// Addresses of VIPs that this node serves: the self-test passes for all of an address' VIPs, and at least one of
    /// them has reals.
    pub serving: BTreeSet<IpAddr>,
}
