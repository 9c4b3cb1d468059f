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
use zk_schema::Encapsulation;

mod events;
mod features;
mod follow;
mod kernel;
mod kick;
pub mod pmtu;
pub mod resolve;
pub mod sources;

pub use follow::{Follower, spawn};
pub use resolve::{Problem, Problems};

/// A MAC address (EUI-48).
pub type Mac = [u8; 6];

/// The addresses that next hops are wanted for.
pub type Wanted = Arc<BTreeSet<IpAddr>>;

/// The way by which a frame reaches a real.
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
    /// The address is on the link itself, so that the destination MAC is its own and no gateway's.
    pub on_link: bool,
    /// XDP programs of other interfaces may redirect frames to this one. `true` where the kernel does not tell.
    pub takes_redirects: bool,
}

/// The reason why packets of a VIP cannot go to one of its reals although there is a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Obstacle {
    /// Without encapsulation the real's MAC address is all that leads to it: a gateway would send the packet to the VIP's
    /// address, back to the nodes, until its TTL ends.
    #[error(
        "it is not on a link of this node: without encapsulation packets to it would go to the gateway, and come back"
    )]
    NotOnLink,
    /// XDP in the driver would hand the frame to an interface that cannot take it, where it vanishes.
    #[error(
        "it is reached by another interface (number {0}) than clients' packets arrive on, and that one's driver takes no \
         redirected frames: make it able to (many drivers are while an XDP program is loaded on it), or set xdp_mode to \
         generic"
    )]
    NoRedirect(u32),
}

impl NextHop {
    /// Returns the obstacle to packets with this encapsulation, if any. They arrive on the interface `front`; `native`:
    /// XDP runs in its driver.
    #[must_use]
    pub fn obstacle(&self, encapsulation: Encapsulation, front: u32, native: bool) -> Option<Obstacle> {
        if encapsulation == Encapsulation::L2 && !self.on_link {
            return Some(Obstacle::NotOnLink);
        }
        let redirects = native && self.ifindex != front;
        (redirects && !self.takes_redirects).then_some(Obstacle::NoRedirect(self.ifindex))
    }
}

/// Next hops by the real's address. An address that is not (yet) resolved is absent.
pub type NextHops = BTreeMap<IpAddr, NextHop>;
