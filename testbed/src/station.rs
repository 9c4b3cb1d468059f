//! A host and where it stands in the network.

use crate::host::Host;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A host with one interface, and its addresses there.
#[derive(Clone, Debug)]
pub struct Station {
    /// The host.
    pub host: Host,
    /// Its interface.
    pub interface: &'static str,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// The router's IPv4 address on its link.
    pub gateway_v4: Ipv4Addr,
    /// The router's IPv6 address on its link.
    pub gateway_v6: Ipv6Addr,
}

impl Station {
    /// Its address of the family that `like` has.
    #[must_use]
    pub fn address_like(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }
}
