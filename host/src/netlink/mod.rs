//! Asks the kernel about its network by rtnetlink: interfaces, addresses, routes, neighbours.
//!
//! [`Netlink`] asks, and gives up after five seconds; [`Changes`] tells when to ask again. Requests that only one program makes, and all changes, stay with
//! that program, which sends them through [`Netlink::handle`].

mod decode;

pub use decode::neighbour;
pub use rtnetlink::MulticastGroup;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Longest wait for an answer. Answers take microseconds, but the kernel gives them under one lock for all network
/// namespaces, which it holds for seconds where many namespaces are removed. And one may never come: it did not fit the
/// socket's buffer, or could not be parsed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The kernel could not be asked. Retry with a new connection: all of these may pass.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be opened or read.
    #[error("netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The kernel refused, or the connection broke.
    #[error("the kernel did not tell its {what}: {reason}")]
    Request {
        /// The subject of the request.
        what: &'static str,
        /// The cause.
        reason: rtnetlink::Error,
    },
    /// The kernel did not answer within five seconds.
    #[error("the kernel did not tell its {what} within {PATIENCE:?}")]
    Silent {
        /// The subject of the request.
        what: &'static str,
    },
}

/// Key of a neighbour table: the interface's index and the neighbour's address.
pub type NeighbourKey = (u32, IpAddr);

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Index.
    pub index: u32,
    /// Name, e.g. `eth0`.
    pub name: String,
    /// MAC address; `None` where the interface is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Has a carrier. Only meaningful for an interface that is up.
    pub carrier: bool,
    /// Is the loopback interface.
    pub loopback: bool,
    /// Tag, if the interface is a VLAN on another one.
    pub vlan: Option<Vlan>,
    /// Attached XDP program.
    pub xdp: Option<Xdp>,
}

/// The tag of a VLAN interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// VLAN identifier, 1..=4094.
    pub id: u16,
    /// IEEE 802.1Q's tag (EtherType 0x8100), not a provider's 802.1ad.
    pub dot1q: bool,
    /// The interface below; `None` if it lives in another network namespace.
    pub lower: Option<u32>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Runs in the driver or the device, not in the network stack (generic mode).
    pub native: bool,
    /// Kernel's id of the program; 0 if programs are attached in several modes.
    pub program: u32,
}

/// An address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface that has it.
    pub ifindex: u32,
    /// Address. On a point-to-point link, this machine's own end.
    pub address: IpAddr,
    /// Valid beyond the link (scope `global`).
    pub global: bool,
    /// Neither secondary (on IPv6: temporary, RFC 8981) nor deprecated.
    pub primary: bool,
    /// Not temporary, deprecated, tentative or a duplicate.
    pub lasting: bool,
}

/// A route lookup's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Index of the interface that packets leave by.
    pub ifindex: u32,
    /// Router; `None` if the address is on the link itself. May be IPv6 for an IPv4 address (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// MTU in bytes that the route sets (RTAX_MTU) or that the kernel has learnt.
    pub mtu: Option<u32>,
}

/// There is no path to an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPath {
    /// ENETUNREACH or EHOSTUNREACH.
    #[error("the kernel has no route to it")]
    NoRoute,
    /// A route of type `blackhole`.
    #[error("its route is a blackhole")]
    Blackhole,
    /// A route of type `prohibit`.
    #[error("its route prohibits packets to it")]
    Prohibited,
    /// The address is the machine's own.
    #[error("it is an address of this machine")]
    Local,
    /// A broadcast, multicast or anycast address.
    #[error("it is not a unicast address")]
    NotUnicast,
    /// The kernel refused the question.
    #[error("the kernel refused to look up its route: {0}")]
    Refused(String),
}

/// A neighbour table's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// State of the entry.
    pub state: Reachability,
    /// MAC address. Entries that are being resolved, or failed, may carry an outdated one.
    pub mac: Option<[u8; 6]>,
}

/// States of neighbour unreachability detection (RFC 4861 section 7.3.2), without distinctions that nobody here needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Just created. The kernel does nothing about it until it is used.
    Idle,
    /// Asked, but no answer yet.
    Incomplete,
    /// Confirmed lately, or being confirmed by the kernel.
    Tracked,
    /// Usable, and confirmed only when it is used.
    Stale,
    /// Did not answer.
    Failed,
    /// Set by hand, or on a link that needs no resolution.
    Fixed,
}

/// A connection to the kernel, in the network namespace of the thread that opened it. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// `None` where the caller runs the connection.
    _connection: Option<Arc<Connection>>,
}

#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells that something changed in the kernel's network, not what: whoever needs to know asks.
pub struct Changes(BoxStream<'static, ()>);

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl Changes {
    /// Waits for a change. Returns `false` when no more will be told, as the connection has ended.
    pub async fn next(&mut self) -> bool {
        self.0.next().await.is_some()
    }

    /// Forgets the changes that were told until now.
    pub fn clear(&mut self) {
        while self.0.next().now_or_never().flatten().is_some() {}
    }
}

/// Opens a connection that is also told of changes in `groups`. It lives while the caller runs the returned future. Must be
/// called within a tokio runtime.
///
/// # Errors
///
/// [`NetlinkError::Socket`].
pub fn with_changes(
    groups: &[MulticastGroup],
) -> Result<(impl Future<Output = ()> + use<>, Netlink, Changes), NetlinkError> {
    let (connection, handle, messages) = rtnetlink::new_multicast_connection(groups)?;
    Ok((connection, Netlink { handle, _connection: None }, Changes(messages.map(drop).boxed())))
}

impl Netlink {
    /// Opens a connection. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Socket`].
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = Connection(tokio::spawn(connection));
        Ok(Self { handle, _connection: Some(Arc::new(connection)) })
    }

    /// Returns the handle, for requests of other kinds.
    #[must_use]
    pub fn handle(&self) -> &rtnetlink::Handle {
        &self.handle
    }

    /// Lists all interfaces.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or does not answer.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let links = answers("interfaces", self.handle.link().get().execute()).await?;
        Ok(links.iter().map(decode::link).collect())
    }

    /// Returns the interface `name`; `None` if there is no such interface.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or does not answer.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let found = self.handle.link().get().match_name(name).execute();
        match answers("interface", found).await {
            Err(NetlinkError::Request { reason: rtnetlink::Error::NetlinkError(refusal), .. })
                if refusal.raw_code() == -libc::ENODEV =>
            {
                Ok(None)
            }
            found => Ok(found?.first().map(decode::link)),
        }
    }

    /// Lists all addresses of this machine, in the kernel's order.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or does not answer.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        Ok(self.address_messages().await?.iter().filter_map(decode::address).collect())
    }

    /// Lists the kernel's messages about one address of an interface, which serve as requests to remove it.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or does not answer.
    pub async fn messages_of(
        &self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<Vec<AddressMessage>, NetlinkError> {
        let mut messages = self.address_messages().await?;
        messages.retain(|message| {
            decode::address(message).is_some_and(|found| (found.ifindex, found.address) == (ifindex, address))
        });
        Ok(messages)
    }

    async fn address_messages(&self) -> Result<Vec<AddressMessage>, NetlinkError> {
        answers("addresses", self.handle.address().get().execute()).await
    }

    /// Looks up the path of packets to `to`, or why there is none.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or does not answer.
    pub async fn route(&self, to: IpAddr) -> Result<Result<Path, NoPath>, NetlinkError> {
        let mut question = RouteMessage::default();
        (question.header.address_family, question.header.destination_prefix_length) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        question.attributes.push(RouteAttribute::Destination(to.into()));
        match answers("route to an address", self.handle.route().get(question).execute()).await {
            Ok(answers) => Ok(answers.first().map_or(Err(NoPath::NoRoute), decode::path)),
            Err(NetlinkError::Request { reason: rtnetlink::Error::NetlinkError(refusal), .. }) => {
                Ok(Err(decode::refused(&refusal)))
            }
            Err(other) => Err(other),
        }
    }

    /// Reads the neighbour tables of all interfaces.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or does not answer.
    pub async fn neighbours(&self) -> Result<BTreeMap<NeighbourKey, Neighbour>, NetlinkError> {
        let neighbours = answers("neighbours", self.handle.neighbours().get().execute()).await?;
        Ok(neighbours.iter().filter_map(decode::neighbour).collect())
    }
}

/// Collects the answers to a request for at most five seconds. An error names `what` was asked for.
///
/// # Errors
///
/// If the kernel refuses or does not answer in time.
pub async fn answers<T>(
    what: &'static str,
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetlinkError> {
    match tokio::time::timeout(PATIENCE, answers.try_collect()).await {
        Ok(Ok(answers)) => Ok(answers),
        Ok(Err(reason)) => Err(NetlinkError::Request { what, reason }),
        Err(_) => Err(NetlinkError::Silent { what }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_knows_the_loopback_and_its_address_and_no_interface_of_another_name() {
        let netlink = Netlink::open().unwrap();
        let loopback = netlink.link("lo").await.unwrap().unwrap();
        assert!(loopback.loopback && loopback.index == 1 && loopback.xdp.is_none(), "{loopback:?}");
        assert!(netlink.links().await.unwrap().contains(&loopback));
        assert_eq!(netlink.link("drover-none").await.unwrap(), None);

        let own = IpAddr::from([127, 0, 0, 1]);
        let addresses = netlink.addresses().await.unwrap();
        let found = addresses.iter().find(|found| found.address == own).unwrap();
        assert!(found.ifindex == 1 && !found.global && found.lasting, "{found:?}");
        assert_eq!(netlink.messages_of(1, own).await.unwrap().len(), 1);
        assert_eq!(netlink.route(own).await.unwrap(), Err(NoPath::Local));
    }

    #[tokio::test]
    async fn changes_end_with_their_connection() {
        let (connection, netlink, mut changes) = with_changes(&[MulticastGroup::Link]).unwrap();
        let connection = tokio::spawn(connection);
        assert!(netlink.link("lo").await.unwrap().is_some(), "it also answers");
        changes.clear();
        connection.abort();
        while changes.next().await {}
    }
}
