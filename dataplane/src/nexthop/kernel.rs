//! Asks the kernel for routes, neighbours and links, by rtnetlink.

use super::features;
use super::resolve::{Picture, Problem};
use futures_util::{StreamExt as _, TryStreamExt as _};
use host::netlink::{self, NeighbourKey, Netlink, NetlinkError};
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Route lookups in flight. The kernel drops answers that do not fit the socket's buffer (208 KiB by
/// default; an answer takes some 5 KiB of it).
const IN_FLIGHT: usize = 16;

/// A connection to the kernel of the network namespace of the thread that opened it.
pub(super) struct Kernel {
    netlink: Netlink,
}

impl Kernel {
    /// Opens a connection; must be called within a tokio runtime.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        Ok(Kernel { netlink: Netlink::open()? })
    }

    /// Everything that matters for the wanted addresses.
    pub(super) async fn picture(&self, wanted: &BTreeSet<IpAddr>) -> Result<Picture, NetlinkError> {
        let links = self.netlink.links().await?.into_iter().map(|link| (link.index, link)).collect();
        let lookup = |address| async move {
            let path = self.netlink.route(address).await?;
            Ok::<_, NetlinkError>((address, path.map_err(Problem::from)))
        };
        let routes = futures_util::stream::iter(wanted.iter().copied().map(lookup))
            .buffered(IN_FLIGHT)
            .try_collect::<BTreeMap<_, _>>()
            .await?;
        let takes_redirects = features::takes_redirects().unwrap_or_else(|error| {
            tracing::debug!(%error, "the kernel does not tell which interfaces take redirected frames");
            BTreeMap::new()
        });
        let mut picture = Picture { links, routes, neighbours: BTreeMap::new(), takes_redirects };
        let in_use = picture.neighbours_in_use();
        if !in_use.is_empty() {
            picture.neighbours = self.netlink.neighbours().await?;
            picture.neighbours.retain(|key, _| in_use.contains(key));
        }
        Ok(picture)
    }

    /// Makes the kernel behave as if a packet of its own were to go to the neighbour: it resolves a
    /// missing entry and confirms a stale one.
    pub(super) async fn kick(&self, (ifindex, address): NeighbourKey) -> Result<(), NetlinkError> {
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
            .netlink
            .handle()
            .clone()
            .request(request)
            .map_err(|reason| NetlinkError::Request { what: WHAT, reason })?
            .map(|reply| match reply.payload {
                NetlinkPayload::Error(ErrorMessage { code: None, .. }) => Ok(()),
                NetlinkPayload::Error(refusal) => Err(rtnetlink::Error::NetlinkError(refusal)),
                _ => Ok(()),
            });
        netlink::answers(WHAT, replies).await.map(|_| ())
    }
}
