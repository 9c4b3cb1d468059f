//! Who is connected to which broker, by the brokers' own logs, and short-lived clients that try it out.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use drover_tests::{Broker, Fleet, MQTT_PORT};

use crate::stage::{Stage, VIP4, VIP6, broker_name};

/// Client identifier -> the broker that accepted it (by number), and the client's address and port as that broker
/// sees them.
pub(crate) fn placement(brokers: &[Broker]) -> Result<HashMap<String, (usize, SocketAddr)>> {
    let mut placed = HashMap::new();
    for (number, broker) in brokers.iter().enumerate() {
        placed.extend(broker.accepted()?.into_iter().map(|one| (one.client, (number, one.peer))));
    }
    Ok(placed)
}

/// Clients that connect, get one message back, and leave.
#[derive(Debug, Default)]
pub(crate) struct Waves {
    sent: usize,
}

/// How a wave fared.
#[derive(Debug)]
pub(crate) struct Wave {
    size: usize,
    /// For each VIP, the clients that each broker served.
    shares: [Vec<usize>; 2],
}

impl Waves {
    /// Sends `size` clients at once, half of them from the first client host over IPv4, half from the second over
    /// IPv6.
    pub(crate) fn send(&mut self, stage: &Stage, size: usize) -> Result<Wave> {
        self.sent += 1;
        let [half, rest] = [size / 2, size - size / 2];
        let parts = [(VIP4, half, &stage.net.clients[0]), (VIP6, rest, &stage.net.clients[1])];
        let mut fleets = Vec::new();
        for (vip, count, client) in parts {
            let ids = (0..count).map(|n| format!("demo-wave-{}-{}-{n}", self.sent, family(vip)));
            fleets.push(Fleet::connect(&client.host, socket(vip), ids)?);
        }
        let placed = placement(&stage.brokers)?;
        let mut shares = [vec![0; stage.brokers.len()], vec![0; stage.brokers.len()]];
        for (shares, fleet) in shares.iter_mut().zip(&fleets) {
            for (broker, _) in fleet.alive().iter().filter_map(|id| placed.get(id)) {
                shares[*broker] += 1;
            }
        }
        Ok(Wave { size, shares })
    }
}

impl Wave {
    /// Clients that each broker served, by both VIPs.
    pub(crate) fn shares(&self) -> Vec<usize> {
        let [v4, v6] = &self.shares;
        v4.iter().zip(v6).map(|(v4, v6)| v4 + v6).collect()
    }

    /// Clients that got their message back.
    pub(crate) fn served(&self) -> usize {
        self.shares().iter().sum()
    }

    /// Clients that did not.
    pub(crate) fn failed(&self) -> usize {
        self.size - self.served()
    }

    /// Whether a broker was met by either VIP: IPv4, IPv6.
    pub(crate) fn met(&self, broker: usize) -> [bool; 2] {
        self.shares.each_ref().map(|shares| shares[broker] > 0)
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

/// `broker-1 20, broker-2 21, broker-3 19`
pub(crate) fn shown_shares(shares: &[usize]) -> String {
    let shares: Vec<String> =
        shares.iter().enumerate().map(|(number, share)| format!("{} {share}", broker_name(number))).collect();
    shares.join(", ")
}

pub(crate) fn family(vip: IpAddr) -> &'static str {
    if vip.is_ipv4() { "IPv4" } else { "IPv6" }
}

pub(crate) fn socket(vip: IpAddr) -> SocketAddr {
    SocketAddr::new(vip, MQTT_PORT)
}
