//! Questions to the kernel by rtnetlink.

use super::resolve::{Link, Neighbour, NeighbourKey, Path, Picture, Problem};
use super::sources::Address;
use super::{decode, features};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
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
        let takes_redirects = features::takes_redirects().unwrap_or_else(|error| {
            tracing::debug!(%error, "the kernel does not tell which interfaces take redirected frames");
            BTreeMap::new()
        });
        let mut picture = Picture { links, routes, neighbours: BTreeMap::new(), takes_redirects };
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
        Ok(links.iter().map(|message| (message.header.index, decode::link(message))).collect())
    }

    /// All addresses of this machine, in the kernel's order.
    pub(super) async fn addresses(&self) -> Result<Vec<Address>, KernelError> {
        let addresses = patient("addresses", self.handle.address().get().execute()).await?;
        Ok(addresses.iter().filter_map(decode::address).collect())
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
            Ok(answers) => Ok(answers.first().map_or(Err(Problem::NoRoute), decode::path)),
            Err(KernelError::Request { reason: rtnetlink::Error::NetlinkError(refusal), .. }) => {
                Ok(Err(decode::refused(&refusal)))
            }
            Err(other) => Err(other),
        }
    }

    async fn neighbours(&self) -> Result<BTreeMap<NeighbourKey, Neighbour>, KernelError> {
        let neighbours = patient("neighbours", self.handle.neighbours().get().execute()).await?;
        Ok(neighbours.iter().filter_map(decode::neighbour).collect())
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
