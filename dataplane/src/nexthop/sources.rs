//! The node's own side of its tunnels: the front interface by name, and the addresses that
//! encapsulated packets leave from.

use super::Mac;
use host::netlink::{Address, Link, Netlink, NetlinkError};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses that encapsulated packets leave from, and that ICMP errors about them come back to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// For reals with IPv4 addresses.
    pub v4: Option<Ipv4Addr>,
    /// For reals with IPv6 addresses.
    pub v6: Option<Ipv6Addr>,
}

/// The front interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Index.
    pub index: u32,
    /// MAC address.
    pub mac: Mac,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Its own addresses for tunnels.
    pub sources: Sources,
}

/// The reason why there is no usable front interface.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// No interface of that name.
    #[error("interface {name} does not exist; this machine has: {existing}")]
    Missing {
        /// The name asked for.
        name: String,
        /// The names there are, separated by commas.
        existing: String,
    },
    /// It has no MAC address.
    #[error("interface {name} is not an Ethernet interface: choose the one that clients' packets arrive on")]
    NotEthernet {
        /// Interface's name.
        name: String,
    },
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
}

/// Finds an interface by name, and its first global IPv4 and its first global, lasting IPv6 address.
///
/// # Errors
///
/// If there is no such interface, if it has no MAC address, or if the kernel cannot be asked.
pub async fn interface(name: &str) -> Result<Interface, InterfaceError> {
    let netlink = Netlink::open()?;
    find(name, &netlink.links().await?, &netlink.addresses().await?)
}

fn find(name: &str, links: &[Link], addresses: &[Address]) -> Result<Interface, InterfaceError> {
    let Some(link) = links.iter().find(|link| link.name == name) else {
        let existing = links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(InterfaceError::Missing { name: name.into(), existing });
    };
    let mac = link
        .mac
        .filter(|_| !link.loopback)
        .ok_or_else(|| InterfaceError::NotEthernet { name: name.into() })?;
    let mut sources = Sources::default();
    for candidate in addresses {
        match candidate.address {
            _ if candidate.ifindex != link.index || !candidate.global || !candidate.lasting => {}
            IpAddr::V4(address) => sources.v4 = sources.v4.or(Some(address)),
            IpAddr::V6(address) => sources.v6 = sources.v6.or(Some(address)),
        }
    }
    Ok(Interface { index: link.index, mac, mtu: link.mtu, sources })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Vec<Link> {
        let link = |index, name: &str, mac| Link {
            index,
            name: name.into(),
            mac,
            mtu: 1500,
            loopback: name == "lo",
            ..Link::default()
        };
        vec![link(1, "lo", Some([0; 6])), link(2, "eth0", Some([2; 6])), link(3, "tun0", None)]
    }

    fn address(ifindex: u32, address: &str) -> Address {
        let address = address.parse().expect("an address");
        Address { ifindex, address, global: true, primary: true, lasting: true }
    }

    #[test]
    fn the_first_global_and_lasting_address_of_each_family_is_taken() {
        let addresses = [
            address(3, "192.0.2.7"),
            Address { global: false, ..address(2, "169.254.0.1") },
            address(2, "192.0.2.1"),
            address(2, "192.0.2.2"),
            Address { lasting: false, ..address(2, "2001:db8::aaaa") },
            Address { global: false, ..address(2, "fe80::1") },
            address(2, "2001:db8::1"),
        ];
        let found = find("eth0", &links(), &addresses).expect("the interface");
        let sources =
            Sources { v4: Some([192, 0, 2, 1].into()), v6: Some("2001:db8::1".parse().expect("an address")) };
        assert_eq!(found, Interface { index: 2, mac: [2; 6], mtu: 1500, sources });
    }

    #[test]
    fn a_missing_interface_is_reported_with_those_there_are() {
        let error = find("eth7", &links(), &[]).expect_err("no eth7");
        assert_eq!(error.to_string(), "interface eth7 does not exist; this machine has: lo, eth0, tun0");
    }

    #[test]
    fn interfaces_without_ethernet_are_refused() {
        for name in ["lo", "tun0"] {
            assert!(matches!(find(name, &links(), &[]), Err(InterfaceError::NotEthernet { .. })), "{name}");
        }
    }
}
