//! Questions to the kernel's network by rtnetlink: interfaces, addresses, routes, neighbours.
//!
//! [`Netlink`] asks and waits no longer than it takes; the kernel's messages are put in the words of this module's types.
//! What only one program asks or changes is sent by its own code, over [`Netlink::handle`].

mod decode;

pub use decode::neighbour;

use futures_util::{Stream, TryStreamExt as _};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// An answer takes microseconds; one that never comes (it did not fit the socket's buffer, or could not be parsed) must
/// not stop the asker for good.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the kernel could not be asked. All of these may pass: try again with a new connection.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
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

/// A neighbour table's key: the interface's index and the neighbour's address.
pub type NeighbourKey = (u32, IpAddr);

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it.
    pub index: u32,
    /// Name, e.g. `eth0`.
    pub name: String,
    /// MAC address; `None` where the interface is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Linked to something. Tells only of an interface that is up.
    pub carrier: bool,
    /// It is the loopback interface.
    pub loopback: bool,
    /// Set where the interface is a VLAN on another one.
    pub vlan: Option<Vlan>,
    /// The XDP program on it.
    pub xdp: Option<Xdp>,
}

/// The tag of a VLAN interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// VLAN identifier, 1..=4094.
    pub id: u16,
    /// Whether the tag is IEEE 802.1Q's (EtherType 0x8100), not a provider's 802.1ad.
    pub dot1q: bool,
    /// The interface below; `None` if it lives in another network namespace.
    pub lower: Option<u32>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Whether it runs in the driver, not in the network stack (generic mode).
    pub native: bool,
    /// The kernel's number of the program; 0 where programs are attached in several modes.
    pub program: u32,
}

/// An address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Interface that has it.
    pub ifindex: u32,
    /// The address: this machine's own end, where a link is point-to-point.
    pub address: IpAddr,
    /// Valid beyond the link (scope `global`).
    pub global: bool,
    /// Neither secondary (on IPv6: temporary, RFC 8981) nor deprecated.
    pub primary: bool,
    /// Neither temporary, nor deprecated, nor a duplicate, nor still being checked for one.
    pub lasting: bool,
}

/// A route lookup's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Index of the interface that packets leave by.
    pub ifindex: u32,
    /// Router; `None` where the address is on the link itself. May be IPv6 for an IPv4 address (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// MTU that the route sets (RTAX_MTU), or that the kernel itself has learnt, in bytes.
    pub mtu: Option<u32>,
}

/// Why packets to an address have no way.
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
    /// Broadcast, multicast or anycast.
    #[error("it is not a unicast address")]
    NotUnicast,
    /// The kernel refused the question.
    #[error("the kernel refused to look up its route: {0}")]
    Refused(String),
}

/// A neighbour table's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// How much the kernel trusts it.
    pub state: Reachability,
    /// MAC address. Entries that are being resolved, or failed, may carry an outdated one.
    pub mac: Option<[u8; 6]>,
}

/// The states of neighbour unreachability detection (RFC 4861 section 7.3.2), as far as they differ here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Just created; the kernel does nothing about it until it is used.
    Idle,
    /// Asked for, no answer yet.
    Incomplete,
    /// Confirmed lately, or being confirmed: the kernel looks after it.
    Tracked,
    /// Usable, but unconfirmed until somebody uses it.
    Stale,
    /// Did not answer.
    Failed,
    /// Set by hand, or the link needs no resolution.
    Fixed,
}

/// A connection to the kernel of the network namespace of the thread that opened it. Clones share it.
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

/// Asks over a connection that the caller runs.
impl From<rtnetlink::Handle> for Netlink {
    fn from(handle: rtnetlink::Handle) -> Self {
        Self { handle, _connection: None }
    }
}

impl Netlink {
    /// Opens a connection; must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// If there can be no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = Connection(tokio::spawn(connection));
        Ok(Self { handle, _connection: Some(Arc::new(connection)) })
    }

    /// For requests of other kinds.
    #[must_use]
    pub fn handle(&self) -> &rtnetlink::Handle {
        &self.handle
    }

    /// All interfaces.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let links = answers("interfaces", self.handle.link().get().execute()).await?;
        Ok(links.iter().map(decode::link).collect())
    }

    /// The interface of this name, if there is one.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
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

    /// All addresses of this machine, in the kernel's order.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        Ok(self.address_messages().await?.iter().filter_map(decode::address).collect())
    }

    /// The messages that the kernel has for an address on an interface, as it takes them to remove it.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
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

    /// The way that packets to an address take, or why there is none.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
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

    /// The neighbour tables of all interfaces.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn neighbours(&self) -> Result<BTreeMap<NeighbourKey, Neighbour>, NetlinkError> {
        let neighbours = answers("neighbours", self.handle.neighbours().get().execute()).await?;
        Ok(neighbours.iter().filter_map(decode::neighbour).collect())
    }
}

/// Collects the answers to a request, for at most five seconds. `what` is asked for, in the words of an error.
///
/// # Errors
///
/// If the kernel refuses or is silent.
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
}
