//! Decodes the kernel's rtnetlink messages. Pure.

use super::{Address, Link, Neighbour, NeighbourKey, NoPath, Path, Reachability, Vlan, Xdp};
use rtnetlink::packet_core::ErrorMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
    VlanProtocol, XdpAttached,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use std::net::IpAddr;

/// Decodes a refused route lookup. Linux refuses with an errno where the matching route leads nowhere
/// (`fib_props` in net/ipv4/fib_semantics.c, and its likes for IPv6).
pub(super) fn refused(refusal: &ErrorMessage) -> NoPath {
    match refusal.raw_code().abs() {
        libc::ENETUNREACH | libc::EHOSTUNREACH => NoPath::NoRoute,
        libc::EINVAL => NoPath::Blackhole,
        libc::EACCES => NoPath::Prohibited,
        _ => NoPath::Refused(refusal.to_io().to_string()),
    }
}

/// Decodes a route lookup's answer.
pub(super) fn path(message: &RouteMessage) -> Result<Path, NoPath> {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(NoPath::Local),
        RouteType::BlackHole => return Err(NoPath::Blackhole),
        RouteType::Prohibit => return Err(NoPath::Prohibited),
        RouteType::Unreachable | RouteType::Throw => return Err(NoPath::NoRoute),
        _ => return Err(NoPath::NotUnicast),
    }
    let (mut ifindex, mut gateway, mut mtu) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let ifindex = ifindex.ok_or_else(|| NoPath::Refused("its answer names no interface".into()))?;
    Ok(Path { ifindex, gateway, mtu })
}

/// Decodes an interface.
pub(super) fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    let (mut lower, mut elsewhere, mut tag) = (None, false, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) if message.header.link_layer_type == LinkLayerType::Ether => {
                link.mac = mac.as_slice().try_into().ok();
            }
            LinkAttribute::Xdp(attributes) => link.xdp = xdp(attributes),
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Vlan)) => {
                tag = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vlan(attributes)) => vlan_tag(attributes),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link.vlan = tag.map(|(id, dot1q)| Vlan { id, dot1q, lower: lower.filter(|_| !elsewhere) });
    link
}

fn xdp(attributes: &[LinkXdp]) -> Option<Xdp> {
    let (mut native, mut program) = (None, 0);
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(XdpAttached::None) => {}
            LinkXdp::Attached(XdpAttached::SocketBuffer) => native = Some(false),
            LinkXdp::Attached(_) => native = Some(true),
            LinkXdp::ProgId(id) => program = *id,
            _ => {}
        }
    }
    Some(Xdp { native: native?, program })
}

fn vlan_tag(attributes: &[InfoVlan]) -> Option<(u16, bool)> {
    let id = attributes.iter().find_map(|attribute| match attribute {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })?;
    Some((id, !attributes.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad))))
}

/// Decodes a neighbour table's entry; `None` for a bridge's forwarding entry or a proxy, which are no neighbours.
#[must_use]
pub fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = match message.header.state {
        NeighbourState::Incomplete => Reachability::Incomplete,
        NeighbourState::Reachable | NeighbourState::Delay | NeighbourState::Probe => Reachability::Tracked,
        NeighbourState::Stale => Reachability::Stale,
        NeighbourState::Failed => Reachability::Failed,
        NeighbourState::Noarp | NeighbourState::Permanent => Reachability::Fixed,
        _ => Reachability::Idle,
    };
    Some(((message.header.ifindex, address?), Neighbour { state, mac }))
}

/// Decodes an address of this machine; `None` if the message names none.
pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut peer) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            // On point-to-point links IFA_ADDRESS is the other end; IFA_LOCAL is always ours.
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let address = local.or(peer)?;
    // Linux uses one bit for both: on IPv6, "secondary" says "temporary" (RFC 8981).
    let temporary = address.is_ipv6() && flags.contains(AddressFlags::Secondary);
    let unusable = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    Some(Address {
        ifindex: message.header.index,
        address,
        global: message.header.scope == AddressScope::Universe,
        primary: !flags.intersects(AddressFlags::Secondary | AddressFlags::Deprecated),
        lasting: !temporary && !flags.intersects(unusable),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_core::Parseable as _;
    use std::num::NonZeroI32;

    fn route(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.kind = kind;
        message.attributes = attributes;
        message
    }

    #[test]
    fn a_route_answer_gives_interface_gateway_and_mtu() {
        let via = RouteVia::Inet6("fe80::1".parse().expect("an address"));
        let metrics = RouteAttribute::Metrics(vec![RouteMetric::Advmss(1), RouteMetric::Mtu(1400)]);
        let message =
            route(RouteType::Unicast, vec![RouteAttribute::Oif(3), RouteAttribute::Via(via), metrics]);
        let gateway = Some("fe80::1".parse().expect("an address"));
        assert_eq!(path(&message), Ok(Path { ifindex: 3, gateway, mtu: Some(1400) }));

        let gateway = RouteAddress::Inet([10, 0, 0, 1].into());
        let message =
            route(RouteType::Unicast, vec![RouteAttribute::Oif(3), RouteAttribute::Gateway(gateway)]);
        let gateway = Some(IpAddr::from([10, 0, 0, 1]));
        assert_eq!(path(&message), Ok(Path { ifindex: 3, gateway, mtu: None }));
    }

    #[test]
    fn routes_that_are_no_way_say_why() {
        let oif = || vec![RouteAttribute::Oif(1)];
        assert_eq!(path(&route(RouteType::Local, oif())), Err(NoPath::Local));
        assert_eq!(path(&route(RouteType::Unreachable, oif())), Err(NoPath::NoRoute));
        assert_eq!(path(&route(RouteType::BlackHole, oif())), Err(NoPath::Blackhole));
        assert_eq!(path(&route(RouteType::Multicast, oif())), Err(NoPath::NotUnicast));
        assert!(matches!(path(&route(RouteType::Unicast, vec![])), Err(NoPath::Refused(_))));
        let errno = |code: i32| {
            let mut message = ErrorMessage::default();
            message.code = NonZeroI32::new(-code);
            refused(&message)
        };
        assert_eq!(errno(libc::ENETUNREACH), NoPath::NoRoute);
        assert_eq!(errno(libc::EINVAL), NoPath::Blackhole);
        assert_eq!(errno(libc::EACCES), NoPath::Prohibited);
        assert!(matches!(errno(libc::EPERM), NoPath::Refused(_)));
    }

    fn vlan_link(protocol: VlanProtocol, more: Vec<LinkAttribute>) -> Link {
        let mut message = LinkMessage::default();
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        let data = InfoData::Vlan(vec![InfoVlan::Protocol(protocol), InfoVlan::Id(7)]);
        message.attributes = vec![
            LinkAttribute::IfName("eth0.7".into()),
            LinkAttribute::Mtu(1496),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]),
            LinkAttribute::Link(2),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(data)]),
        ];
        message.attributes.extend(more);
        link(&message)
    }

    #[test]
    fn a_vlan_device_tells_its_tag_and_its_lower_interface() {
        let expected = Link {
            name: "eth0.7".into(),
            mac: Some([2, 0, 0, 0, 0, 7]),
            mtu: 1496,
            up: true,
            carrier: true,
            vlan: Some(Vlan { id: 7, dot1q: true, lower: Some(2) }),
            ..Link::default()
        };
        assert_eq!(vlan_link(VlanProtocol::Ieee8021Q, vec![]), expected);
        let provider = vlan_link(VlanProtocol::Ieee8021Ad, vec![]);
        assert_eq!(provider.vlan, Some(Vlan { id: 7, dot1q: false, lower: Some(2) }));
        let elsewhere = vlan_link(VlanProtocol::Ieee8021Q, vec![LinkAttribute::LinkNetNsId(0)]);
        assert_eq!(elsewhere.vlan, Some(Vlan { id: 7, dot1q: true, lower: None }));
    }

    #[test]
    fn only_ethernet_links_have_a_mac() {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::Address(vec![10, 0, 0, 1])];
        message.header.link_layer_type = LinkLayerType::Tunnel;
        assert_eq!(link(&message).mac, None);
        message.header.link_layer_type = LinkLayerType::Ether;
        assert_eq!(link(&message).mac, None, "four bytes are no MAC address");
    }

    #[test]
    fn bridge_forwarding_entries_and_proxies_are_no_neighbours() {
        let mut message = NeighbourMessage::default();
        message.header.state = NeighbourState::Reachable;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(vec![2; 6])];
        assert_eq!(neighbour(&message), None);
        let destination = NeighbourAddress::Inet([10, 0, 0, 9].into());
        message.attributes.push(NeighbourAttribute::Destination(destination));
        let expected = Neighbour { state: Reachability::Tracked, mac: Some([2; 6]) };
        assert_eq!(neighbour(&message), Some(((0, IpAddr::from([10, 0, 0, 9])), expected)));
        message.header.flags = NeighbourFlags::Proxy;
        assert_eq!(neighbour(&message), None);
    }

    #[test]
    fn a_secondary_ipv4_address_lasts_and_a_temporary_ipv6_address_does_not() {
        let flagged = |ip: &str, flags| {
            let mut message = AddressMessage::default();
            let ip = ip.parse().expect("an address");
            message.attributes = vec![AddressAttribute::Address(ip), AddressAttribute::Flags(flags)];
            address(&message).expect("an address").lasting
        };
        assert!(flagged("192.0.2.1", AddressFlags::Secondary));
        assert!(!flagged("2001:db8::1", AddressFlags::Secondary));
        assert!(flagged("2001:db8::1", AddressFlags::Permanent));
        assert!(!flagged("2001:db8::1", AddressFlags::Deprecated));
        assert!(!flagged("2001:db8::1", AddressFlags::Tentative));
    }

    #[test]
    fn ones_own_end_of_a_point_to_point_link_is_the_local_address() {
        let mut message = AddressMessage::default();
        let (own, peer) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        message.attributes = vec![AddressAttribute::Address(peer), AddressAttribute::Local(own)];
        assert_eq!(address(&message).unwrap().address, own);
        message.attributes.pop();
        assert_eq!(address(&message).unwrap().address, peer, "on other links there is no local address");
        message.attributes.pop();
        assert_eq!(address(&message), None);
    }

    #[test]
    fn a_secondary_or_deprecated_address_is_not_primary() {
        let primary = |flags| {
            let mut message = AddressMessage::default();
            let ip = [192, 0, 2, 1].into();
            message.attributes = vec![AddressAttribute::Address(ip), AddressAttribute::Flags(flags)];
            address(&message).unwrap().primary
        };
        assert!(primary(AddressFlags::Permanent));
        assert!(!primary(AddressFlags::Secondary | AddressFlags::Permanent));
        assert!(!primary(AddressFlags::Deprecated));
    }

    #[test]
    fn an_xdp_program_is_told_with_its_mode() {
        let found = |attached| xdp(&[LinkXdp::Attached(attached), LinkXdp::ProgId(7)]);
        assert_eq!(found(XdpAttached::Driver), Some(Xdp { native: true, program: 7 }));
        assert_eq!(found(XdpAttached::SocketBuffer), Some(Xdp { native: false, program: 7 }));
        assert_eq!(xdp(&[LinkXdp::Attached(XdpAttached::None)]), None);
    }

    /// A netlink attribute (RFC 3549 section 2.2): length, type, value, padded to four bytes.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_vlan_device_is_recognised_in_the_bytes_of_the_kernel() {
        let vlan = [
            attribute(5, &[0x81, 0x00]),                     // IFLA_VLAN_PROTOCOL
            attribute(1, &7_u16.to_ne_bytes()),              // IFLA_VLAN_ID
            attribute(2, &[1, 0, 0, 0, 255, 255, 255, 255]), // IFLA_VLAN_FLAGS
        ];
        let info = [attribute(1, b"vlan\0"), attribute(2, &vlan.concat())]; // IFLA_INFO_KIND, _DATA
        let bytes = [
            vec![0, 0],                             // family, padding
            1_u16.to_ne_bytes().to_vec(),           // ARPHRD_ETHER
            9_u32.to_ne_bytes().to_vec(),           // index
            0x0001_1043_u32.to_ne_bytes().to_vec(), // up, broadcast, running, multicast, lower up
            vec![0; 4],                             // change
            attribute(3, b"eth0.7\0"),              // IFLA_IFNAME
            attribute(4, &1496_u32.to_ne_bytes()),  // IFLA_MTU
            attribute(5, &2_u32.to_ne_bytes()),     // IFLA_LINK
            attribute(1, &[2, 0, 0, 0, 0, 7]),      // IFLA_ADDRESS
            attribute(18, &info.concat()),          // IFLA_LINKINFO
        ];
        let message = LinkMessage::parse(&bytes.concat()).expect("a link message");
        assert_eq!(link(&message), Link { index: 9, ..vlan_link(VlanProtocol::Ieee8021Q, vec![]) });
    }
}
