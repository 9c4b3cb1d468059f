//! What the kernel's network knows, by rtnetlink: links, addresses, routes, neighbours.

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp, XdpAttached};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use std::net::IpAddr;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// An answer takes microseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to the kernel.
pub(super) struct Network {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

/// An interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Switched on.
    pub(super) up: bool,
    /// And linked to something.
    pub(super) carrier: bool,
    pub(super) loopback: bool,
    pub(super) mtu: u32,
    pub(super) xdp: Option<Xdp>,
}

/// What runs on an interface before the network stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Xdp {
    pub(super) native: bool,
    pub(super) program: u32,
}

/// An address of this machine.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) link: u32,
    pub(super) address: IpAddr,
    pub(super) global: bool,
}

/// A way to an address.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) link: u32,
    pub(super) gateway: Option<IpAddr>,
    /// The route's own MTU, if it has one.
    pub(super) mtu: Option<u32>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Network {
    /// Opens a connection; must be called within a tokio runtime.
    pub(super) fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// All interfaces.
    pub(super) async fn links(&self) -> Result<Vec<Link>> {
        let messages =
            timeout(PATIENCE, self.handle.link().get().execute().try_collect::<Vec<_>>()).await??;
        Ok(messages.iter().map(link).collect())
    }

    /// All addresses.
    pub(super) async fn addresses(&self) -> Result<Vec<Address>> {
        let messages =
            timeout(PATIENCE, self.handle.address().get().execute().try_collect::<Vec<_>>()).await??;
        Ok(messages.iter().filter_map(address).collect())
    }

    /// The way to an address, or why there is none.
    pub(super) async fn route(&self, to: IpAddr) -> Result<Route, String> {
        let mut question = RouteMessage::default();
        (question.header.address_family, question.header.destination_prefix_length) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        question.attributes.push(RouteAttribute::Destination(to.into()));
        let answers = self.handle.route().get(question).execute().try_collect::<Vec<_>>();
        match timeout(PATIENCE, answers).await {
            Err(_) => Err("the kernel does not answer".to_owned()),
            Ok(Ok(answers)) => answers.first().ok_or_else(|| "no route".to_owned()).and_then(route),
            Ok(Err(rtnetlink::Error::NetlinkError(refusal))) => Err(refusal.to_io().to_string()),
            Ok(Err(error)) => Err(error.to_string()),
        }
    }

    /// Whether an address on an interface's segment answers by ARP or neighbour discovery; `None`: nobody has asked.
    pub(super) async fn neighbour(&self, link: u32, address: IpAddr) -> Option<bool> {
        let answers = self.handle.neighbours().get().execute().try_collect::<Vec<_>>();
        let messages = timeout(PATIENCE, answers).await.ok()?.ok()?;
        let is_it = |attribute: &NeighbourAttribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => IpAddr::V4(*v4) == address,
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => IpAddr::V6(*v6) == address,
            _ => false,
        };
        let found = messages
            .iter()
            .find(|message| message.header.ifindex == link && message.attributes.iter().any(is_it))?;
        match found.header.state {
            NeighbourState::Failed | NeighbourState::Incomplete => Some(false),
            NeighbourState::None => None,
            _ => Some(true),
        }
    }
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Xdp(attributes) => link.xdp = xdp(attributes),
            _ => {}
        }
    }
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

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // On point-to-point links the other one is the other end's.
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            _ => {}
        }
    }
    let global = message.header.scope == AddressScope::Universe;
    Some(Address { link: message.header.index, address: local.or(peer)?, global })
}

fn route(message: &RouteMessage) -> Result<Route, String> {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err("it is an address of this machine".to_owned()),
        kind => return Err(format!("the route is of type {kind:?}")),
    }
    let mut route = Route { link: 0, gateway: None, mtu: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.link = *index,
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) | RouteAttribute::Via(RouteVia::Inet(v4)) => {
                route.gateway = Some(IpAddr::V4(*v4));
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) | RouteAttribute::Via(RouteVia::Inet6(v6)) => {
                route.gateway = Some(IpAddr::V6(*v6));
            }
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Ok(route)
}
