//! Next hops: for each real's address the interface and MAC addresses that packets to it need,
//! learnt by netlink and followed as they change.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// How a frame reaches a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// Interface that the frame leaves by (the physical one, where the route names a VLAN on it).
    pub ifindex: u32,
    /// Source MAC: that of the outgoing interface.
    pub source_mac: [u8; 6],
    /// Destination MAC: the real's own, or its gateway's.
    pub destination_mac: [u8; 6],
    /// VLAN identifier to tag with, 1..=4094.
    pub vlan: Option<u16>,
    /// Largest IP packet that the path takes, in bytes: the route's MTU or the interface's, lowered
    /// by what ICMP has taught.
    pub mtu: u32,
}

/// Next hops by the real's address. An address that is not (yet) resolved is absent.
pub type NextHops = BTreeMap<IpAddr, NextHop>;
