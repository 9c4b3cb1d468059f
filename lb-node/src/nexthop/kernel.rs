//! Questions to the kernel by rtnetlink, and its answers in our own words.

use super::resolve::{Link, Neighbour, NeighbourKey, Path, Picture, Problem, Reachability, Vlan};
use super::sources::Address;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    VlanProtocol,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::task::JoinHandle;

/// An answer takes microseconds; one that never comes (it did not fit the socket's buffer, or could
/// not be parsed) must not stop the asker for good.
const PATIENCE: Duration = Duration::from_secs(5);

/// Route lookups in flight. The kernel drops answers that do not fit the socket's buffer (208 KiB by
/// default; an answer takes some 5 KiB of it).
const IN_FLIGHT: usize = 16;

/// Why the kernel could not be asked. All of these may pass: try again with a new connection.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The socket could not be opened or read.
    #[error("netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The kernel refused, or the connection broke.
    #[error("the kernel did not tell its {what}: {reason}")]
    Request {
        /// What was asked for.
        what: &'static str,
        /// Error in words.
        reason: rtnetlink::Error,
    },
    /// No answer.
    #[error("the kernel did not tell its {what} within {PATIENCE:?}")]
    Silent {
        /// What was asked for.
        what: &'static str,
    },
}

/// A connection to the kernel of the network namespace of the thread that opened it.
pub(super) struct Kernel {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Kernel {
    /// Opens a connection; must be called within a tokio runtime.
    pub(super) fn open() -> Result<Self, KernelError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Kernel { handle, connection: tokio::spawn(connection) })
    }

    /// Everything that matters for the wanted addresses.
    pub(super) async fn picture(&self, wanted: &BTreeSet<IpAddr>) -> Result<Picture, KernelError> {
        let links = self.links().await?;
        let lookup = |address| async move { Ok::<_, KernelError>((address, self.route(address).await?)) };
        let routes = futures_util::stream::iter(wanted.iter().copied().map(lookup))
            .buffered(IN_FLIGHT)
            .try_collect::<BTreeMap<_, _>>()
            .await?;
        let mut picture = Picture { links, routes, neighbours: BTreeMap::new() };
        let in_use = picture.neighbours_in_use();
        if !in_use.is_empty() {
            picture.neighbours = self.neighbours().await?;
            picture.neighbours.retain(|key, _| in_use.contains(key));
        }
        Ok(picture)
    }

    /// All interfaces by index.
    pub(super) async fn links(&self) -> Result<BTreeMap<u32, Link>, KernelError> {
        let links = patient("interfaces", self.handle.link().get().execute()).await?;
        Ok(links.iter().map(|message| (message.header.index, link(message))).collect())
    }

    /// All addresses of this machine, in the kernel's order.
    pub(super) async fn addresses(&self) -> Result<Vec<Address>, KernelError> {
        let addresses = patient("addresses", self.handle.address().get().execute()).await?;
        Ok(addresses.iter().filter_map(address).collect())
    }

    /// The way that packets to an address take.
    async fn route(&self, address: IpAddr) -> Result<Result<Path, Problem>, KernelError> {
        let mut question = RouteMessage::default();
        (question.header.address_family, question.header.destination_prefix_length) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        question.attributes.push(RouteAttribute::Destination(address.into()));
        match patient("route to a real", self.handle.route().get(question).execute()).await {
            Ok(answers) => Ok(answers.first().map_or(Err(Problem::NoRoute), path)),
            Err(KernelError::Request { reason: rtnetlink::Error::NetlinkError(refusal), .. }) => {
                Ok(Err(refused(&refusal)))
            }
            Err(other) => Err(other),
        }
    }

    async fn neighbours(&self) -> Result<BTreeMap<NeighbourKey, Neighbour>, KernelError> {
        let neighbours = patient("neighbours", self.handle.neighbours().get().execute()).await?;
        Ok(neighbours.iter().filter_map(neighbour).collect())
    }

    /// Makes the kernel behave as if a packet of its own were to go to the neighbour: it resolves a
    /// missing entry and confirms a stale one.
    pub(super) async fn kick(&self, (ifindex, address): NeighbourKey) -> Result<(), KernelError> {
        const WHAT: &str = "neighbour's entry";
        let mut message = NeighbourMessage::default();
        message.header.family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.ifindex = ifindex;
        message.header.state = NeighbourState::None;
        message.header.flags = NeighbourFlags::Use;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
        let replies = self
            .handle
            .clone()
            .request(request)
            .map_err(|reason| KernelError::Request { what: WHAT, reason })?
            .map(|reply| match reply.payload {
                NetlinkPayload::Error(ErrorMessage { code: None, .. }) => Ok(()),
                NetlinkPayload::Error(refusal) => Err(rtnetlink::Error::NetlinkError(refusal)),
                _ => Ok(()),
            });
        patient(WHAT, replies).await.map(|_| ())
    }
}

async fn patient<T>(
    what: &'static str,
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, KernelError> {
    match tokio::time::timeout(PATIENCE, answers.try_collect()).await {
        Ok(Ok(answers)) => Ok(answers),
        Ok(Err(reason)) => Err(KernelError::Request { what, reason }),
        Err(_) => Err(KernelError::Silent { what }),
    }
}

/// What a refused route lookup means. Linux answers with an errno where the matching route is not
/// a way (`fib_props` in net/ipv4/fib_semantics.c, and its likes for IPv6).
fn refused(refusal: &ErrorMessage) -> Problem {
    match refusal.raw_code().abs() {
        libc::ENETUNREACH | libc::EHOSTUNREACH => Problem::NoRoute,
        libc::EINVAL => Problem::Blackhole,
        libc::EACCES => Problem::Prohibited,
        _ => Problem::Refused(refusal.to_io().to_string()),
    }
}

fn path(message: &RouteMessage) -> Result<Path, Problem> {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(Problem::Local),
        RouteType::BlackHole => return Err(Problem::Blackhole),
        RouteType::Prohibit => return Err(Problem::Prohibited),
        RouteType::Unreachable | RouteType::Throw => return Err(Problem::NoRoute),
        _ => return Err(Problem::NotUnicast),
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
    let ifindex = ifindex.ok_or_else(|| Problem::Refused("its answer names no interface".into()))?;
    Ok(Path { ifindex, gateway, mtu })
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        vlan: None,
    };
    let (mut lower, mut elsewhere, mut tag) = (None, false, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) if message.header.link_layer_type == LinkLayerType::Ether => {
                link.mac = mac.as_slice().try_into().ok();
            }
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

fn vlan_tag(attributes: &[InfoVlan]) -> Option<(u16, bool)> {
    let id = attributes.iter().find_map(|attribute| match attribute {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })?;
    Some((id, !attributes.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad))))
}

/// A neighbour table's entry, or `None` for what is none (bridge forwarding entries, proxies).
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
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

fn address(message: &AddressMessage) -> Option<Address> {
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
        lasting: !temporary && !flags.intersects(unusable),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(path(&route(RouteType::Local, oif())), Err(Problem::Local));
        assert_eq!(path(&route(RouteType::Unreachable, oif())), Err(Problem::NoRoute));
        assert_eq!(path(&route(RouteType::BlackHole, oif())), Err(Problem::Blackhole));
        assert_eq!(path(&route(RouteType::Multicast, oif())), Err(Problem::NotUnicast));
        assert!(matches!(path(&route(RouteType::Unicast, vec![])), Err(Problem::Refused(_))));
        let errno = |code: i32| {
            let mut message = ErrorMessage::default();
            message.code = NonZeroI32::new(-code);
            refused(&message)
        };
        assert_eq!(errno(libc::ENETUNREACH), Problem::NoRoute);
        assert_eq!(errno(libc::EINVAL), Problem::Blackhole);
        assert_eq!(errno(libc::EACCES), Problem::Prohibited);
        assert!(matches!(errno(libc::EPERM), Problem::Refused(_)));
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
            loopback: false,
            vlan: Some(Vlan { id: 7, dot1q: true, lower: Some(2) }),
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
}
