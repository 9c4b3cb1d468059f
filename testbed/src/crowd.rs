//! MQTT clients, those that stay and those that come and go, and who of them is at which broker by the brokers' own
//! logs.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::broker::Broker;
use crate::fleet::{Fleet, Session, SessionState};
use crate::host::Host;

/// Where clients are, and the VIP that they go to.
#[derive(Clone, Debug)]
pub struct Way {
    /// Where the clients are.
    pub from: Host,
    /// The VIP.
    pub to: SocketAddr,
    /// What the VIP is called in the output and in identifiers, without blanks.
    pub name: String,
}

/// Clients that hold their connections.
#[derive(Debug, Default)]
pub struct Crowd {
    fleets: Vec<(Way, Fleet)>,
}

impl Crowd {
    /// Connects `each` clients by each of these ways. Their identifiers begin with `prefix`.
    ///
    /// # Errors
    ///
    /// As [`Fleet::connect`]; a failed connection is none.
    pub fn connect(&mut self, ways: &[Way], each: usize, prefix: &str) -> Result<()> {
        for way in ways {
            let ids = (1..=each).map(|n| format!("{prefix}-{}-{}-{n}", way.from.name(), way.name));
            self.fleets.push((way.clone(), Fleet::connect(&way.from, way.to, ids)?));
        }
        Ok(())
    }

    /// All of them, also those whose connection has broken.
    pub fn sessions(&self) -> impl Iterator<Item = Session> {
        self.fleets.iter().flat_map(|(_, fleet)| fleet.sessions())
    }

    /// The clients by their way.
    pub fn by_way(&self) -> impl Iterator<Item = (&Way, &Fleet)> {
        self.fleets.iter().map(|(way, fleet)| (way, fleet))
    }

    /// The identifiers of those that are connected.
    #[must_use]
    pub fn alive(&self) -> Vec<String> {
        self.fleets.iter().flat_map(|(_, fleet)| fleet.alive()).collect()
    }

    /// Waits until each has had a message back since this was called, or has broken.
    ///
    /// # Errors
    ///
    /// When that takes longer than a message may take.
    pub fn settle(&self) -> Result<()> {
        self.fleets.iter().try_for_each(|(_, fleet)| fleet.settle(1))
    }

    /// The longest that a message of theirs took since the last call of this.
    #[must_use]
    pub fn take_slowest(&self) -> Duration {
        self.fleets.iter().map(|(_, fleet)| fleet.take_slowest()).max().unwrap_or_default()
    }

    /// The longest that a message of one of these clients took since [`Crowd::take_slowest`].
    #[must_use]
    pub fn slowest_of(&self, ids: &BTreeSet<String>) -> Duration {
        let theirs = self.sessions().filter(|session| ids.contains(&session.id));
        theirs.map(|session| session.slowest).max().unwrap_or_default()
    }

    /// How long after `since` the connections of these clients broke, of those that did.
    #[must_use]
    pub fn broken_after(&self, ids: &BTreeSet<String>, since: Instant) -> Vec<Duration> {
        let theirs = self.sessions().filter(|session| ids.contains(&session.id));
        let broken = theirs.filter_map(|session| match session.state {
            SessionState::Broken { at, .. } => Some(at.saturating_duration_since(since)),
            _ => None,
        });
        broken.collect()
    }
}

/// Connections that must not break.
#[derive(Debug)]
pub struct Survivors(Vec<Survivor>);

#[derive(Debug)]
struct Survivor {
    /// The client's MQTT identifier.
    id: String,
    /// The broker's number.
    broker: usize,
    /// The client's address and port.
    peer: SocketAddr,
}

/// What has become of [`Survivors`].
#[derive(Clone, Debug)]
pub struct HeldOn {
    /// How many are the same connections still.
    pub same: usize,
    /// What happened to each of the others.
    pub lost: Vec<String>,
}

impl Survivors {
    /// All connections as they are now.
    ///
    /// # Errors
    ///
    /// When a broker's log cannot be read.
    pub fn all(crowd: &Crowd, brokers: &[Broker]) -> Result<Survivors> {
        let placed = placement(brokers)?;
        let survivor = |id: String| placed.get(&id).map(|&(broker, peer)| Survivor { id, broker, peer });
        Ok(Survivors(crowd.alive().into_iter().filter_map(survivor).collect()))
    }

    /// Those at other brokers, and the clients that are at this one.
    #[must_use]
    pub fn parted(self, victim: usize) -> (Survivors, BTreeSet<String>) {
        let (doomed, others): (Vec<_>, Vec<_>) = self.0.into_iter().partition(|one| one.broker == victim);
        (Survivors(others), doomed.into_iter().map(|one| one.id).collect())
    }

    /// How many of them are at this broker.
    #[must_use]
    pub fn held_by(&self, broker: usize) -> usize {
        self.0.iter().filter(|one| one.broker == broker).count()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The clients' identifiers.
    #[must_use]
    pub fn ids(&self) -> BTreeSet<String> {
        self.0.iter().map(|one| one.id.clone()).collect()
    }

    /// How many are the same connections still, by the brokers' kernels as well as by the clients.
    ///
    /// # Errors
    ///
    /// When clients neither get a message back nor break, and when a broker's kernel cannot be asked.
    pub fn count(&self, crowd: &Crowd, brokers: &[Broker]) -> Result<HeldOn> {
        crowd.settle()?;
        let states: HashMap<String, SessionState> =
            crowd.sessions().map(|session| (session.id, session.state)).collect();
        let mut established = Vec::new();
        for broker in brokers {
            established.push(broker.established()?);
        }
        let mut held = HeldOn { same: 0, lost: Vec::new() };
        for one in &self.0 {
            let name = broker_name(one.broker);
            match states.get(&one.id) {
                Some(SessionState::Broken { why, .. }) => {
                    held.lost.push(format!("{} lost {name}: {why}", one.id))
                }
                _ if established[one.broker].contains(&one.peer) => held.same += 1,
                _ => held.lost.push(format!("{name} has no longer {} as its peer", one.peer)),
            }
        }
        Ok(held)
    }
}

/// Clients that connect, get one message back, and leave.
#[derive(Debug)]
pub struct Waves {
    ways: Vec<Way>,
    sent: usize,
}

/// How a wave fared.
#[derive(Debug)]
pub struct Wave {
    size: usize,
    /// For each way, the clients that each broker served.
    shares: Vec<Vec<usize>>,
}

impl Waves {
    /// Waves that go these ways.
    #[must_use]
    pub fn new(ways: Vec<Way>) -> Waves {
        Waves { ways, sent: 0 }
    }

    /// Sends some `size` clients at once, as many by each way.
    ///
    /// # Errors
    ///
    /// As [`Fleet::connect`], and when a broker's log cannot be read.
    pub fn send(&mut self, brokers: &[Broker], size: usize) -> Result<Wave> {
        self.sent += 1;
        let each = size / self.ways.len();
        let mut fleets = Vec::new();
        for way in &self.ways {
            let ids = (0..each).map(|n| format!("demo-wave-{}-{}-{n}", self.sent, way.name));
            fleets.push(Fleet::connect(&way.from, way.to, ids)?);
        }
        let placed = placement(brokers)?;
        let mut shares = Vec::new();
        for fleet in &fleets {
            let mut served = vec![0; brokers.len()];
            for (broker, _) in fleet.alive().iter().filter_map(|id| placed.get(id)) {
                served[*broker] += 1;
            }
            shares.push(served);
        }
        Ok(Wave { size: each * self.ways.len(), shares })
    }
}

impl Wave {
    /// Its clients.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Clients that each broker served.
    #[must_use]
    pub fn shares(&self) -> Vec<usize> {
        let brokers = self.shares.first().map_or(0, Vec::len);
        (0..brokers).map(|broker| self.shares.iter().map(|served| served[broker]).sum()).collect()
    }

    /// Clients that got their message back.
    #[must_use]
    pub fn served(&self) -> usize {
        self.shares().iter().sum()
    }

    /// Clients that did not.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.size - self.served()
    }

    /// Whether a broker was met, by way.
    #[must_use]
    pub fn met(&self, broker: usize) -> Vec<bool> {
        self.shares.iter().map(|served| served[broker] > 0).collect()
    }

    /// For people.
    #[must_use]
    pub fn shown(&self) -> String {
        let shares = shown_shares(&self.shares());
        match self.failed() {
            0 => format!("{} new clients: {shares}", self.size),
            failed => format!("{} new clients: {shares}, {failed} refused", self.size),
        }
    }
}

/// Client identifier -> the broker that accepted it (by number), and the client's address and port as that broker
/// sees them.
///
/// # Errors
///
/// When a broker's log cannot be read.
pub fn placement(brokers: &[Broker]) -> Result<HashMap<String, (usize, SocketAddr)>> {
    let mut placed = HashMap::new();
    for (number, broker) in brokers.iter().enumerate() {
        placed.extend(broker.accepted()?.into_iter().map(|one| (one.client, (number, one.peer))));
    }
    Ok(placed)
}

/// `broker-1 20, broker-2 21, broker-3 19`
#[must_use]
pub fn shown_shares(shares: &[usize]) -> String {
    let shares: Vec<String> =
        shares.iter().enumerate().map(|(number, share)| format!("{} {share}", broker_name(number))).collect();
    shares.join(", ")
}

/// What a broker is called as a real and in the output.
#[must_use]
pub fn broker_name(number: usize) -> String {
    format!("broker-{}", number + 1)
}
