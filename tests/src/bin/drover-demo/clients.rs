//! MQTT clients, those that stay and those that come and go, and who of them is at which broker by the brokers' own
//! logs.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use drover_tests::{Broker, Fleet, Host, Session, SessionState};

use crate::report::Report;

/// Where clients are, and the VIP that they go to.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) from: Host,
    pub(crate) to: SocketAddr,
    /// What the VIP is called in the output, without blanks.
    pub(crate) name: &'static str,
}

/// Clients that hold their connections.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    fleets: Vec<(Way, Fleet)>,
}

impl Crowd {
    /// Connects `each` clients by each of these ways. Their identifiers begin with `prefix`.
    pub(crate) fn connect(&mut self, ways: &[Way], each: usize, prefix: &str) -> Result<()> {
        for way in ways {
            let ids = (1..=each).map(|n| format!("{prefix}-{}-{}-{n}", way.from.name(), way.name));
            self.fleets.push((way.clone(), Fleet::connect(&way.from, way.to, ids)?));
        }
        Ok(())
    }

    /// All of them, also those whose connection has broken.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = Session> {
        self.fleets.iter().flat_map(|(_, fleet)| fleet.sessions())
    }

    /// The identifiers of those that are connected.
    pub(crate) fn alive(&self) -> Vec<String> {
        self.fleets.iter().flat_map(|(_, fleet)| fleet.alive()).collect()
    }

    /// Waits until each has had a message back since this was called, or has broken.
    pub(crate) fn settle(&self) -> Result<()> {
        self.fleets.iter().try_for_each(|(_, fleet)| fleet.settle(1))
    }

    /// The longest that a message of theirs took since the last call of this.
    pub(crate) fn take_slowest(&self) -> Duration {
        self.fleets.iter().map(|(_, fleet)| fleet.take_slowest()).max().unwrap_or_default()
    }

    /// How long after `since` the connections of these clients broke, of those that did.
    pub(crate) fn broken_after(&self, ids: &BTreeSet<String>, since: Instant) -> Vec<Duration> {
        let theirs = self.sessions().filter(|session| ids.contains(&session.id));
        let broken = theirs.filter_map(|session| match session.state {
            SessionState::Broken { at, .. } => Some(at.saturating_duration_since(since)),
            _ => None,
        });
        broken.collect()
    }

    /// Prints who is at which broker, and who could not connect. Returns the clients that each broker has.
    pub(crate) fn show(&self, brokers: &[Broker], report: &Report) -> Result<Vec<usize>> {
        let placed = placement(brokers)?;
        let columns = self.fleets.iter().map(|(way, _)| format!("{} {}", way.from.name(), way.name));
        let head: String = columns.map(|column| format!("{column:>19}")).collect();
        report.line(format_args!("{:9}{head}{:>8}", "", "sum"));
        let mut shares = Vec::new();
        for broker in 0..brokers.len() {
            let is_here = |session: &&Session| placed.get(&session.id).is_some_and(|(at, _)| *at == broker);
            let counts = self.fleets.iter().map(|(_, fleet)| fleet.sessions().iter().filter(is_here).count());
            let counts: Vec<usize> = counts.collect();
            let cells: String = counts.iter().map(|count| format!("{count:>19}")).collect();
            let sum = counts.iter().sum();
            report.line(format_args!("{:9}{cells}{sum:>8}", broker_name(broker)));
            shares.push(sum);
        }
        for session in self.sessions() {
            if let SessionState::Broken { why, .. } = &session.state {
                report.line(format_args!("{} could not connect to {}: {why}", session.id, session.vip));
            }
        }
        Ok(shares)
    }
}

/// Connections that must not break.
#[derive(Debug)]
pub(crate) struct Survivors(Vec<Survivor>);

#[derive(Debug)]
struct Survivor {
    /// The client's MQTT identifier.
    id: String,
    /// The broker's number.
    broker: usize,
    /// The client's address and port.
    peer: SocketAddr,
}

impl Survivors {
    /// All connections as they are now.
    pub(crate) fn all(crowd: &Crowd, brokers: &[Broker]) -> Result<Survivors> {
        let placed = placement(brokers)?;
        let survivor = |id: String| placed.get(&id).map(|&(broker, peer)| Survivor { id, broker, peer });
        Ok(Survivors(crowd.alive().into_iter().filter_map(survivor).collect()))
    }

    /// Those at other brokers, and the clients that are at this one.
    pub(crate) fn parted(self, victim: usize) -> (Survivors, BTreeSet<String>) {
        let (doomed, others): (Vec<_>, Vec<_>) = self.0.into_iter().partition(|one| one.broker == victim);
        (Survivors(others), doomed.into_iter().map(|one| one.id).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many are the same connections still, by the brokers' kernels as well as by the clients. The others are
    /// printed.
    pub(crate) fn count(&self, crowd: &Crowd, brokers: &[Broker], report: &Report) -> Result<usize> {
        crowd.settle()?;
        let states: HashMap<String, SessionState> =
            crowd.sessions().map(|session| (session.id, session.state)).collect();
        let mut established = Vec::new();
        for broker in brokers {
            established.push(broker.established()?);
        }
        let mut same = 0;
        for one in &self.0 {
            let name = broker_name(one.broker);
            match states.get(&one.id) {
                Some(SessionState::Broken { why, .. }) => {
                    report.line(format_args!("{} lost {name}: {why}", one.id));
                }
                _ if established[one.broker].contains(&one.peer) => same += 1,
                _ => report.line(format_args!("{name} has no longer {} as its peer", one.peer)),
            }
        }
        Ok(same)
    }
}

/// Clients that connect, get one message back, and leave.
#[derive(Debug)]
pub(crate) struct Waves {
    ways: Vec<Way>,
    sent: usize,
}

/// How a wave fared.
#[derive(Debug)]
pub(crate) struct Wave {
    size: usize,
    /// For each way, the clients that each broker served.
    shares: Vec<Vec<usize>>,
}

impl Waves {
    pub(crate) fn new(ways: Vec<Way>) -> Waves {
        Waves { ways, sent: 0 }
    }

    /// Sends some `size` clients at once, as many by each way.
    pub(crate) fn send(&mut self, brokers: &[Broker], size: usize) -> Result<Wave> {
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
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Clients that each broker served.
    pub(crate) fn shares(&self) -> Vec<usize> {
        let brokers = self.shares.first().map_or(0, Vec::len);
        (0..brokers).map(|broker| self.shares.iter().map(|served| served[broker]).sum()).collect()
    }

    /// Clients that got their message back.
    pub(crate) fn served(&self) -> usize {
        self.shares().iter().sum()
    }

    /// Clients that did not.
    pub(crate) fn failed(&self) -> usize {
        self.size - self.served()
    }

    /// Whether a broker was met, by way.
    pub(crate) fn met(&self, broker: usize) -> Vec<bool> {
        self.shares.iter().map(|served| served[broker] > 0).collect()
    }

    /// For people.
    pub(crate) fn shown(&self) -> String {
        let shares = shown_shares(&self.shares());
        match self.failed() {
            0 => format!("{} new clients: {shares}", self.size),
            failed => format!("{} new clients: {shares}, {failed} refused", self.size),
        }
    }
}

/// Client identifier -> the broker that accepted it (by number), and the client's address and port as that broker
/// sees them.
pub(crate) fn placement(brokers: &[Broker]) -> Result<HashMap<String, (usize, SocketAddr)>> {
    let mut placed = HashMap::new();
    for (number, broker) in brokers.iter().enumerate() {
        placed.extend(broker.accepted()?.into_iter().map(|one| (one.client, (number, one.peer))));
    }
    Ok(placed)
}

/// `broker-1 20, broker-2 21, broker-3 19`
pub(crate) fn shown_shares(shares: &[usize]) -> String {
    let shares: Vec<String> =
        shares.iter().enumerate().map(|(number, share)| format!("{} {share}", broker_name(number))).collect();
    shares.join(", ")
}

/// What a broker is called as a real and in the output.
pub(crate) fn broker_name(number: usize) -> String {
    format!("broker-{}", number + 1)
}

pub(crate) fn family(vip: IpAddr) -> &'static str {
    if vip.is_ipv4() { "IPv4" } else { "IPv6" }
}
