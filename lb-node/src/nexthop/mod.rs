//! Next hops: for each real's address the interface and MAC addresses that packets to it need,
//! learnt by netlink and followed as they change.
//!
//! Routing stays the kernel's business: it is asked per address which way a packet goes
//! (`kernel`), and its neighbour tables say which MAC address that is. What follows from the
//! answers, and what is kept when they get worse, is decided by the pure [`resolve`] and `kick`;
//! `follow` is the task that keeps the picture fresh and publishes. [`sources`] finds the node's
//! own addresses, [`pmtu`] listens for routers that say "too big".

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

mod decode;
mod events;
mod follow;
mod kernel;
mod kick;
pub mod pmtu;
pub mod resolve;
pub mod sources;

pub use follow::{Follower, spawn};
pub use kernel::KernelError;
pub use resolve::{Problem, Problems};

/// A MAC address (EUI-48).
pub type Mac = [u8; 6];

/// The addresses that next hops are wanted for.
pub type Wanted = Arc<BTreeSet<IpAddr>>;

/// How a frame reaches a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// Interface that the frame leaves by (the physical one, where the route names a VLAN on it).
    pub ifindex: u32,
    /// Source MAC: that of the outgoing interface.
    pub source_mac: Mac,
    /// Destination MAC: the real's own, or its gateway's.
    pub destination_mac: Mac,
    /// VLAN identifier to tag with, 1..=4094.
    pub vlan: Option<u16>,
    /// Largest IP packet that the path takes, in bytes: the route's MTU or the interface's, lowered
    /// by what ICMP has taught.
    pub mtu: u32,
}

/// Next hops by the real's address. An address that is not (yet) resolved is absent.
pub type NextHops = BTreeMap<IpAddr, NextHop>;
