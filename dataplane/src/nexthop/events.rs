//! News from the kernel: a netlink socket that hears of links, neighbours, routes and rules.
//!
//! Neighbour news is taken as it is; of everything else only that something changed is noted, since
//! the kernel is asked again anyway. So a flood of route changes costs little more than reading it.

use host::netlink::{self, Neighbour, NeighbourKey};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Messages read at a time, so that a flood does not keep the reader from publishing.
const BATCH: usize = 4096;

/// Room for one datagram; the kernel's are smaller than 32 KiB.
const DATAGRAM: usize = 64 * 1024;

/// The events since last time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Links, routes or rules changed, or news was lost: ask the kernel for everything.
    pub(super) ask_again: bool,
    /// Neighbours in the order of their changes; `None`: removed.
    pub(super) neighbours: Vec<(NeighbourKey, Option<Neighbour>)>,
}

/// The socket. It belongs to the network namespace of the thread that opened it.
pub(super) struct Events(AsyncFd<Socket>);

impl Events {
    /// Opens the socket; must be called within a tokio runtime.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group as u32)?;
        }
        // Nexthop objects came with Linux 5.3; without them there is nothing to hear of.
        if let Err(error) = socket.add_membership(MulticastGroup::Nexthop as u32) {
            tracing::debug!(%error, "the kernel has no nexthop objects");
        }
        // SAFETY: `Socket` owns its descriptor, names no other, and is closed only when dropped.
        Ok(Events(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?))
    }

    /// Waits until there is news.
    pub(super) async fn arrive(&self) -> io::Result<()> {
        self.0.readable().await?.retain_ready();
        Ok(())
    }

    /// Takes the news that there is, without waiting.
    pub(super) fn take(&self) -> io::Result<News> {
        let mut news = News::default();
        let mut buffer = Vec::with_capacity(DATAGRAM);
        for _ in 0..BATCH {
            buffer.clear();
            match self.0.try_io(Interest::READABLE, |socket| socket.recv_from(&mut buffer, 0)) {
                Ok((_, sender)) if sender.port_number() == 0 => news.add(&buffer),
                Ok(_) => {} // not from the kernel
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => news.ask_again = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(news)
    }
}

impl News {
    /// Adds a datagram of one or more messages. What cannot be understood asks for everything.
    fn add(&mut self, mut datagram: &[u8]) {
        while let Some(header) = datagram.first_chunk::<16>() {
            let [a, b, c, d, kind @ ..] = *header;
            let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            let kind = u16::from_ne_bytes([kind[0], kind[1]]);
            let Some(message) = datagram.get(..length).filter(|message| message.len() >= 16) else {
                self.ask_again = true;
                return;
            };
            if matches!(kind, libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH) {
                self.add_neighbour(message);
            } else {
                self.ask_again = true;
            }
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn add_neighbour(&mut self, message: &[u8]) {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else {
            self.ask_again = true;
            return;
        };
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
                let found = netlink::neighbour(&message);
                self.neighbours.extend(found.map(|(key, neighbour)| (key, Some(neighbour))));
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(message)) => {
                self.neighbours.extend(netlink::neighbour(&message).map(|(key, _)| (key, None)));
            }
            _ => self.ask_again = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::netlink::Reachability;
    use proptest::prelude::*;
    use rtnetlink::packet_route::AddressFamily;
    use rtnetlink::packet_route::link::LinkMessage;
    use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
    use std::net::IpAddr;

    const REAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    fn datagram(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn neighbour() -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 2;
        message.header.state = NeighbourState::Stale;
        message.attributes = vec![
            NeighbourAttribute::Destination(REAL.into()),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
        ];
        message
    }

    fn news(datagram: &[u8]) -> News {
        let mut news = News::default();
        news.add(datagram);
        news
    }

    #[test]
    fn neighbour_news_is_taken_in_order_and_asks_for_nothing() {
        let mut bytes = datagram(RouteNetlinkMessage::NewNeighbour(neighbour()));
        bytes.extend(datagram(RouteNetlinkMessage::DelNeighbour(neighbour())));
        let entry = Neighbour { state: Reachability::Stale, mac: Some([2, 0, 0, 0, 0, 9]) };
        let neighbours = vec![((2, REAL), Some(entry)), ((2, REAL), None)];
        assert_eq!(news(&bytes), News { ask_again: false, neighbours });
    }

    #[test]
    fn any_other_news_and_truncated_news_ask_for_everything() {
        let link = datagram(RouteNetlinkMessage::NewLink(LinkMessage::default()));
        assert_eq!(news(&link), News { ask_again: true, neighbours: vec![] });
        let bytes = datagram(RouteNetlinkMessage::NewNeighbour(neighbour()));
        assert!(news(&bytes[..bytes.len() - 4]).ask_again);
    }

    proptest! {
        #[test]
        fn arbitrary_datagrams_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            news(&bytes);
        }

        #[test]
        fn damaged_neighbour_messages_do_no_harm(at in 0_usize..200, byte in any::<u8>()) {
            let mut bytes = datagram(RouteNetlinkMessage::NewNeighbour(neighbour()));
            let at = at % bytes.len();
            bytes[at] = byte;
            news(&bytes);
        }
    }
}
