//! News from other nodes, for a node that has lost sight of the tree: whether they have something newer in force.
//!
//! From inside, to be cut off alone looks like an outage of all of ZooKeeper, in which every node must go on. So while
//! ZooKeeper does not answer, a node asks the nodes that the newest head names, every second and by UDP, what they have
//! in force. It is [`Overtaken`] once at least half of those that answer, itself among them, have had something newer for
//! a while: then at most half of them withdraw, whatever happened to ZooKeeper and when.
//!
//! A question and an answer are as long as each other, so that nobody can use a node to send more than he sends himself:
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | `drover`, 0, version 1 |
//! | 8 | 1 for a question, 2 for an answer |
//! | 9..16 | 0 |
//! | 16..24 | a number of the asker's choice, which the answer repeats |
//! | 24..32, 32..40 | in an answer: term and epoch of what is in force; else 0 |
//! | 40..72 | HMAC-SHA-256 (RFC 2104) of all before, by a key that follows from the cluster's seed |
//!
//! Numbers are big-endian. What is told only ever rises, so an answer that somebody repeats later is harmless.

use super::link::Link;
use crate::control::report::Report;
use coordination::follow::Followed;
use dataplane::nexthop::sources::Sources;
use host::log_limit::LogLimit;
use ring::hmac;
use serde::Serialize;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::warn;
use zk_schema::NodeName;
use zk_schema::tree::{Head, is_plausible};

/// Time between the questions of a node that is cut off.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// For how long an answer counts.
const FRESH: Duration = Duration::from_secs(5);
/// Datagrams that are looked at between two questions; the others are dropped.
const MOST_DATAGRAMS: u32 = 1000;
/// Time between log lines that say that there is no socket.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The purpose of the key, so that it is no other key of the seed's.
const PURPOSE: &[u8] = b"drover: what nodes tell each other";
const MAGIC: [u8; 8] = *b"drover\0\x01";
const UNSIGNED: usize = 40;
const LENGTH: usize = UNSIGNED + 32;

/// The order in force: (term, epoch).
type Order = (u64, u64);

/// Other nodes have something newer in force, and this one does not reach ZooKeeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Overtaken {
    /// The number of those that have.
    pub ahead: usize,
    /// The number of those that answered.
    pub answered: usize,
}

impl fmt::Display for Overtaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ahead, answered } = self;
        write!(
            f,
            "nothing is announced: this node does not reach ZooKeeper, and {ahead} of {answered} other nodes that answer have \
             something newer in force; it announces again once it has caught up"
        )
    }
}

/// A node among others.
#[derive(Clone, Debug)]
pub struct Peers {
    /// The node.
    pub node: NodeName,
    /// The addresses that it asks and answers from.
    pub sources: Sources,
    /// The UDP port of all nodes.
    pub port: u16,
    /// Cut off for so long, and for the last half of that with others ahead, it counts as overtaken; `None`: never.
    pub withdraw_after: Option<Duration>,
}

/// A node's knowledge of itself.
#[derive(Clone, Debug)]
pub struct Known {
    /// The leader's decision, as far as it learnt.
    pub followed: watch::Receiver<Followed>,
    /// Its connection to ZooKeeper.
    pub link: watch::Receiver<Link>,
    /// Its report of what it has in force.
    pub report: watch::Receiver<Arc<Report>>,
}

impl Peers {
    /// Asks and answers for ever, and keeps `overtaken`.
    pub async fn run(self, known: Known, overtaken: watch::Sender<Option<Overtaken>>) -> Infallible {
        let mut sockets = Sockets::default();
        let mut opinion = Opinion::default();
        let mut asked = random();
        let mut log_limit = LogLimit::new(1, TOLD_EVERY);
        let mut left = MOST_DATAGRAMS;
        let mut ticks = tokio::time::interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut datagram = [0; LENGTH + 1];
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => {
                    left = MOST_DATAGRAMS;
                    if let Err(error) = sockets.open(self.sources, self.port).await
                        && let Some(skipped) = log_limit.allows(Instant::now())
                    {
                        warn!(port = self.port, %error, skipped, "cannot ask other nodes, nor answer them");
                    }
                    let now = self.judge(&known, &mut opinion);
                    overtaken.send_if_modified(|before| std::mem::replace(before, now) != now);
                    if !known.link.borrow().connected {
                        asked = asked.wrapping_add(1);
                        self.ask(&known, &sockets, asked).await;
                    }
                }
                (length, from) = sockets.receive(&mut datagram), if left > 0 => {
                    left -= 1;
                    let Some(key) = known.key() else { continue };
                    match Message::decode(&datagram[..length], &key) {
                        Some(Message { number, kind: Kind::Question }) => {
                            let in_force = known.report.borrow().order;
                            if let Some(order) = in_force {
                                let answer = Message { number, kind: Kind::Answer(order) };
                                sockets.send(&answer.encode(&key), from).await;
                            }
                        }
                        Some(Message { number, kind: Kind::Answer(order) })
                            // One that took longer than a second counts as well.
                            if number == asked || number == asked.wrapping_sub(1) =>
                        {
                            if let Some(peer) = self.peer_at(&known, from.ip()) {
                                opinion.hear(peer, order, Instant::now());
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    /// Returns since when this node has been overtaken, if it has; while it reaches ZooKeeper, what others told before
    /// is forgotten.
    fn judge(&self, known: &Known, opinion: &mut Opinion) -> Option<Overtaken> {
        let (connected, since) = {
            let link = known.link.borrow();
            (link.connected, link.since)
        };
        if connected {
            *opinion = Opinion::default();
            return None;
        }
        let own = known.report.borrow().order?;
        let now = Instant::now();
        let (found, ahead_since) = opinion.overtaken(own, now)?;
        // Back from an outage of all of ZooKeeper, nodes return one by one, and the first of them already lead on.
        let is_due = |after: Duration| now >= since + after && now >= ahead_since + after / 2;
        self.withdraw_after.is_some_and(is_due).then_some(found)
    }

    async fn ask(&self, known: &Known, sockets: &Sockets, number: u64) {
        let Some(key) = known.key() else { return };
        let question = Message { number, kind: Kind::Question }.encode(&key);
        let peers = known.of_head(|head| head.peers.clone()).unwrap_or_default();
        for address in peers.iter().filter(|(node, _)| **node != self.node).flat_map(|(_, peer)| peer) {
            sockets.send(&question, SocketAddr::new(*address, self.port)).await;
        }
    }

    /// The other node with this address.
    fn peer_at(&self, known: &Known, address: IpAddr) -> Option<NodeName> {
        known.of_head(|head| {
            let mut peers = head.peers.iter().filter(|(node, _)| **node != self.node);
            peers.find(|(_, peer)| peer.contains(&address)).map(|(node, _)| node.clone())
        })?
    }
}

impl Known {
    fn of_head<T>(&self, look: impl FnOnce(&Head) -> T) -> Option<T> {
        self.followed.borrow().decided.as_ref().map(|decided| look(&decided.head))
    }

    fn key(&self) -> Option<hmac::Key> {
        self.of_head(|head| key(head.cluster.seed()))
    }
}

/// The answers of others.
#[derive(Debug, Default)]
struct Opinion {
    heard: BTreeMap<NodeName, (Order, Instant)>,
    /// Since when without a break at least half are ahead.
    ahead_since: Option<Instant>,
}

impl Opinion {
    fn hear(&mut self, peer: NodeName, order: Order, now: Instant) {
        self.heard.insert(peer, (order, now));
    }

    /// Returns whether at least half of those that answered, and of this node, which has `own` in force, are ahead, and
    /// since when it was found so each time.
    fn overtaken(&mut self, own: Order, now: Instant) -> Option<(Overtaken, Instant)> {
        let fresh = self.heard.values().filter(|(_, heard)| now.duration_since(*heard) < FRESH);
        let orders: Vec<Order> = fresh.map(|(order, _)| *order).collect();
        let ahead = orders.iter().filter(|order| **order > own).count();
        let answered = orders.len();
        if ahead == 0 || 2 * ahead <= answered {
            self.ahead_since = None;
            return None;
        }
        Some((Overtaken { ahead, answered }, *self.ahead_since.get_or_insert(now)))
    }
}

/// A socket for each family that the node has an address of.
#[derive(Debug, Default)]
struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Sockets {
    /// Opens those that are not open yet.
    async fn open(&mut self, sources: Sources, port: u16) -> io::Result<()> {
        if let Some(source) = sources.v4.filter(|_| self.v4.is_none()) {
            self.v4 = Some(UdpSocket::bind((source, port)).await?);
        }
        if let Some(source) = sources.v6.filter(|_| self.v6.is_none()) {
            self.v6 = Some(UdpSocket::bind((source, port)).await?);
        }
        Ok(())
    }

    /// Sends, or does not: who asks, asks again.
    async fn send(&self, datagram: &[u8], to: SocketAddr) {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        if let Some(socket) = socket {
            let _ = socket.send_to(datagram, to).await;
        }
    }

    /// The next datagram's length and sender.
    async fn receive(&self, datagram: &mut [u8; LENGTH + 1]) -> (usize, SocketAddr) {
        let readable = async |socket: &Option<UdpSocket>| match socket {
            Some(socket) => socket.readable().await,
            None => std::future::pending().await,
        };
        loop {
            let socket = tokio::select! {
                _ = readable(&self.v4) => &self.v4,
                _ = readable(&self.v6) => &self.v6,
            };
            // An error is of a datagram that was sent before, to where nobody listens.
            if let Some(Ok(received)) = socket.as_ref().map(|socket| socket.try_recv_from(datagram)) {
                return received;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    /// The question's number.
    number: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Question,
    /// The order in force.
    Answer(Order),
}

impl Message {
    fn encode(self, key: &hmac::Key) -> [u8; LENGTH] {
        let (kind, (term, epoch)) = match self.kind {
            Kind::Question => (1, (0, 0)),
            Kind::Answer(order) => (2, order),
        };
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8] = kind;
        for (at, number) in [(16, self.number), (24, term), (32, epoch)] {
            bytes[at..at + 8].copy_from_slice(&number.to_be_bytes());
        }
        let tag = hmac::sign(key, &bytes[..UNSIGNED]);
        bytes[UNSIGNED..].copy_from_slice(tag.as_ref());
        bytes
    }

    /// Reads what another node of the cluster wrote; anything else is nothing.
    fn decode(bytes: &[u8], key: &hmac::Key) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        if bytes[..8] != MAGIC || hmac::verify(key, &bytes[..UNSIGNED], &bytes[UNSIGNED..]).is_err() {
            return None;
        }
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_be_bytes).ok();
        let order = (number(24)?, number(32)?);
        let kind = match bytes[8] {
            1 => Kind::Question,
            2 if is_plausible(order) => Kind::Answer(order),
            _ => return None,
        };
        Some(Self { number: number(16)?, kind })
    }
}

fn key((one, other): (u64, u64)) -> hmac::Key {
    let seed = [one.to_be_bytes(), other.to_be_bytes()].concat();
    let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &seed), PURPOSE);
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}

/// Differs between nodes and starts, so that an answer to another question is not taken for one to this.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without, an old answer might count, which says nothing wrong either.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests;
