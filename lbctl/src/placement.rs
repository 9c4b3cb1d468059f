//! Places flows by what is in force. Pure: what the data plane computes, computed from the tree.

use crate::overview::text::service;
use crate::tree::Tree;
use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use slot_table::flow::Flow;
use slot_table::maglev::Table;
use slot_table::placement::{TableParams, weighted};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use zk_schema::picture::Found;
use zk_schema::tree::{Assignment, Mode};
use zk_schema::{Affinity, NodeName, Protocol, RealName, VipName};

/// A VIP as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// By its name.
    Name(VipName),
    /// By its address and port, and its protocol if that was said.
    At(SocketAddr, Option<Protocol>),
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(name) = text.parse() {
            return Ok(Self::Name(name));
        }
        let (at, protocol) = match text.rsplit_once('/') {
            Some((at, "tcp")) => (at, Some(Protocol::Tcp)),
            Some((at, "udp")) => (at, Some(Protocol::Udp)),
            Some((_, other)) => return Err(format!("{other:?} is not a protocol: tcp or udp")),
            None => (text, None),
        };
        at.parse().map(|at| Self::At(at, protocol)).map_err(|_| {
            format!("{text:?} is neither a VIP's name nor address:port/protocol, such as 198.51.100.10:1883/tcp or [2001:db8::10]:1883/tcp")
        })
    }
}

/// A client as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its address.
    pub address: IpAddr,
    /// Its port, if that was said.
    pub port: Option<u16>,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not address:port, such as 192.0.2.7:40123 or [2001:db8::7]:40123");
        let (address, port) = match text.parse::<SocketAddr>() {
            Ok(at) => (at.ip(), Some(at.port())),
            Err(_) => (text.trim_matches(['[', ']']).parse().map_err(|_| wrong())?, None),
        };
        match address {
            IpAddr::V6(six) if six.to_ipv4_mapped().is_some() => {
                Err(format!("{text:?} is an IPv4-mapped address: write it as IPv4"))
            }
            _ => Ok(Self { address, port }),
        }
    }
}

/// A VIP as it is in force, as far as placing flows goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its name.
    pub vip: VipName,
    /// Address that clients use.
    pub address: IpAddr,
    /// Port, or 0 for all.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The rule that keeps packets of a client together.
    pub affinity: Affinity,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}/{})", self.vip, service(self.address, self.port), self.protocol)
    }
}

/// The tables of a VIP: the one in force, and the one announced.
#[derive(Clone, Debug, Serialize)]
pub struct Outlook {
    /// The VIP.
    #[serde(flatten)]
    pub service: Service,
    /// Slots of its table.
    pub table_size: u32,
    /// The epoch of its assignment.
    pub epoch: u64,
    /// The epoch at which other weights were announced, if any are.
    pub next_epoch: Option<u64>,
    /// The nodes on which this is in force.
    pub nodes: Holders,
    #[serde(skip)]
    params: TableParams,
    #[serde(skip)]
    reals: Vec<(RealName, IpAddr)>,
    #[serde(skip)]
    table: Table,
    #[serde(skip)]
    next: Option<Table>,
}

/// The nodes that have an assignment in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Holders {
    /// Those that have.
    pub in_force: BTreeSet<NodeName>,
    /// Those that may have other tables, and why.
    pub may_differ: BTreeMap<NodeName, String>,
}

/// The place of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// The client, as it was asked for.
    pub source: String,
    /// The slot that the flow falls into.
    pub slot: u32,
    /// The real that owns the slot; `None`: nobody, and the packet is dropped.
    pub real: Option<RealName>,
    /// That real's address.
    pub address: Option<IpAddr>,
    /// The real that will own the slot, if weights are announced.
    pub next_real: Option<RealName>,
    /// True if what is announced gives the slot to another real.
    pub moves: bool,
}

impl Outlook {
    /// Returns what `tree` has in force for a VIP.
    ///
    /// # Errors
    /// If there is no such VIP, or nothing was decided on it.
    pub fn of(tree: &Tree, destination: &Destination) -> Result<Self> {
        let head = tree.head.as_ref().and_then(Found::ok);
        let head = head.context("nothing was decided yet, so no flow goes anywhere: see `lbctl status`")?;
        let (name, assignment) = find(tree, destination)?;
        let params = TableParams::of(&head.cluster)?;
        let table = |weights| params.table(&weighted(assignment.reals.keys(), weights));
        let vip = &assignment.vip;
        Ok(Self {
            service: Service {
                vip: name.clone(),
                address: vip.address,
                port: vip.port,
                protocol: vip.protocol,
                affinity: vip.affinity,
            },
            table_size: params.size.slots(),
            epoch: assignment.epoch,
            next_epoch: assignment.next.as_ref().map(|next| next.epoch),
            nodes: holders(tree, assignment.epoch),
            params,
            reals: assignment.reals.iter().map(|(real, record)| (real.clone(), record.address)).collect(),
            table: table(&assignment.weights)?,
            next: assignment.next.as_ref().map(|next| table(&next.weights)).transpose()?,
        })
    }

    /// Returns the place of a flow from `source` to `port` of the VIP.
    ///
    /// # Errors
    /// If such a flow cannot be: the address is of another family, or the port is missing where it counts.
    pub fn fate(&self, source: &Source, port: u16) -> Result<Placement> {
        let Service { vip, address, affinity, .. } = &self.service;
        ensure!(
            source.address.is_ipv4() == address.is_ipv4(),
            "{}: no client of {vip}, which is at {address}: give addresses of its family",
            source.address
        );
        let (client_port, shown) = match (source.port, affinity) {
            (Some(port), _) => (port, SocketAddr::new(source.address, port).to_string()),
            (None, Affinity::Source) => (0, source.address.to_string()),
            (None, Affinity::Flow) => {
                bail!("{}: {vip} places each connection on its own: give a port, too", source.address)
            }
        };
        let flow = Flow { client: SocketAddr::new(source.address, client_port), service_port: port };
        let slot = self.params.slot(&flow, *affinity);
        let owner = |table: &Table| table.owner(slot).and_then(|owner| self.reals.get(owner));
        let (now, next) = (owner(&self.table), self.next.as_ref().map(owner));
        Ok(Placement {
            source: shown,
            slot,
            real: now.map(|(real, _)| real.clone()),
            address: now.map(|(_, address)| *address),
            next_real: next.flatten().map(|(real, _)| real.clone()),
            moves: next.is_some_and(|next| next != now),
        })
    }
}

fn find<'a>(tree: &'a Tree, destination: &Destination) -> Result<(&'a VipName, &'a Assignment)> {
    let in_force = tree.assignments.iter().filter_map(|(name, found)| Some((name, found.ok()?)));
    let found: Vec<_> = in_force
        .filter(|(name, assignment)| match destination {
            Destination::Name(wanted) => *name == wanted,
            Destination::At(at, protocol) => {
                let vip = &assignment.vip;
                vip.address == at.ip()
                    && (vip.port == at.port() || vip.port == 0)
                    && protocol.is_none_or(|protocol| vip.protocol == protocol)
            }
        })
        .collect();
    // One at this very port goes before one of all ports, as in the data plane.
    let exact: Vec<_> = match destination {
        Destination::At(at, _) => found.iter().copied().filter(|(_, a)| a.vip.port == at.port()).collect(),
        Destination::Name(_) => Vec::new(),
    };
    match if exact.is_empty() { found } else { exact }.as_slice() {
        [one] => Ok(*one),
        [] => {
            if let Destination::Name(name) = destination
                && tree.vips.contains_key(name)
            {
                bail!("{name} is defined, but nothing is in force for it yet: see `lbctl status {name}`");
            }
            let there: Vec<&str> = tree.assignments.keys().map(VipName::as_str).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            bail!("no such VIP is in force; there are: {there}")
        }
        _ => bail!("several VIPs are there: name the protocol, as in 198.51.100.10:1883/tcp"),
    }
}

/// Nodes by whether they have in force what was decided at `epoch`. Nodes that are gone may forward on: their data plane
/// needs no daemon.
fn holders(tree: &Tree, epoch: u64) -> Holders {
    let mut holders = Holders::default();
    let names: BTreeSet<&NodeName> = tree.nodes.keys().chain(tree.applied.keys()).collect();
    for name in names {
        let applied = tree.applied.get(name).and_then(Found::ok);
        let why = match applied {
            None => Some("it has nothing in force yet".to_owned()),
            Some(applied) if applied.mode == Mode::Autonomous => {
                Some("it is autonomous, and leaves out reals that it finds down itself".to_owned())
            }
            Some(applied) if applied.epoch < epoch => {
                let mode = if applied.mode == Mode::Static { ", cut off from the tree" } else { "" };
                Some(format!("it has epoch {} in force{mode}", applied.epoch))
            }
            // Its machine may be gone, too; if it still forwards, it does so by this table.
            Some(_) if !tree.nodes.contains_key(name) => continue,
            Some(_) => None,
        };
        match why {
            None => drop(holders.in_force.insert(name.clone())),
            Some(why) => drop(holders.may_differ.insert(name.clone(), why)),
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use crate::testing::{applied, assignment, good, name};
    use zk_schema::tree::Adoption;

    fn mqtt() -> Destination {
        Destination::Name(name("mqtt"))
    }

    fn fates(outlook: &Outlook) -> Vec<Placement> {
        let source = |port| Source { address: [192, 0, 2, 7].into(), port: Some(port) };
        (1000..1300).map(|port| outlook.fate(&source(port), 1883).unwrap()).collect()
    }

    #[test]
    fn flows_spread_over_the_reals_in_force_and_what_is_announced_is_told_where_it_differs() {
        let mut tree = good();
        let outlook = Outlook::of(&tree, &mqtt()).unwrap();
        let before = fates(&outlook);
        let reals: BTreeSet<_> = before.iter().filter_map(|fate| fate.real.clone()).collect();
        assert_eq!(reals.len(), 3);
        assert!(before.iter().all(|fate| !fate.moves && fate.next_real.is_none()));

        let mut weights = assignment(&mut tree).weights.clone();
        weights.remove("a");
        assignment(&mut tree).next = Some(Adoption { epoch: 41, weights: weights.clone() });
        let announced = fates(&Outlook::of(&tree, &mqtt()).unwrap());
        for (fate, before) in announced.iter().zip(&before) {
            assert_eq!((&fate.real, fate.slot), (&before.real, before.slot), "still in force");
            assert_eq!(fate.moves, fate.next_real != fate.real);
            assert_ne!(fate.next_real, Some(name("a")));
        }
        assert!(announced.iter().any(|fate| fate.moves) && !announced.iter().all(|fate| fate.moves));

        let current = assignment(&mut tree);
        (current.weights, current.next) = (weights, None);
        for (fate, announced) in fates(&Outlook::of(&tree, &mqtt()).unwrap()).iter().zip(&announced) {
            assert_eq!(fate.real, announced.next_real);
        }
        assignment(&mut tree).weights.clear();
        let nobody = fates(&Outlook::of(&tree, &mqtt()).unwrap());
        assert!(nobody.iter().all(|fate| fate.real.is_none()));
    }

    #[test]
    fn with_source_affinity_the_port_does_not_matter_and_need_not_be_said() {
        let mut tree = good();
        assignment(&mut tree).vip.affinity = Affinity::Source;
        let outlook = Outlook::of(&tree, &mqtt()).unwrap();
        let slots: BTreeSet<u32> = fates(&outlook).iter().map(|fate| fate.slot).collect();
        assert_eq!(slots.len(), 1);
        let source = Source { address: [192, 0, 2, 7].into(), port: None };
        let fate = outlook.fate(&source, 1883).unwrap();
        assert_eq!((slots.contains(&fate.slot), fate.source.as_str()), (true, "192.0.2.7"));
        let error = Outlook::of(&good(), &mqtt()).unwrap().fate(&source, 1883).unwrap_err().to_string();
        assert!(error.contains("give a port"), "{error}");
        let source = Source { address: "2001:db8::7".parse().unwrap(), port: None };
        assert!(outlook.fate(&source, 1883).unwrap_err().to_string().contains("of its family"));
    }

    #[test]
    fn nodes_that_have_not_applied_it_or_decide_themselves_may_differ() {
        let mut tree = good();
        applied(&mut tree, "lb-2").epoch = 39;
        applied(&mut tree, "lb-3").mode = Mode::Autonomous;
        let nodes = Outlook::of(&tree, &mqtt()).unwrap().nodes;
        assert_eq!(nodes.in_force, [name("lb-1")].into());
        assert_eq!(nodes.may_differ["lb-2"], "it has epoch 39 in force");
        assert!(nodes.may_differ["lb-3"].contains("autonomous"));
    }

    #[test]
    fn a_vip_at_this_very_port_goes_before_one_of_all_ports() {
        let mut tree = good();
        let mut all = tree.assignments["mqtt"].clone();
        all.record.as_mut().unwrap().vip.port = 0;
        tree.assignments.insert(name("all"), all);
        let named =
            |at: &str| Outlook::of(&tree, &at.parse().unwrap()).map(|found| found.service.vip.to_string());
        assert_eq!(named("198.51.100.10:1883/tcp").unwrap(), "mqtt");
        assert_eq!(named("198.51.100.10:1884").unwrap(), "all");
        assert!(named("198.51.100.10:1883/udp").unwrap_err().to_string().contains("there are: all, mqtt"));
        assert!(named("nobody").is_err());
    }

    #[test]
    fn vips_are_asked_for_by_name_or_by_address() {
        let parse = |text: &str| text.parse::<Destination>();
        assert_eq!(parse("mqtt"), Ok(Destination::Name("mqtt".parse().unwrap())));
        let at = "198.51.100.10:1883".parse().unwrap();
        assert_eq!(parse("198.51.100.10:1883/tcp"), Ok(Destination::At(at, Some(Protocol::Tcp))));
        assert_eq!(parse("198.51.100.10:1883"), Ok(Destination::At(at, None)));
        let at = "[2001:db8::10]:1883".parse().unwrap();
        assert_eq!(parse("[2001:db8::10]:1883/udp"), Ok(Destination::At(at, Some(Protocol::Udp))));
        for wrong in ["", "MQTT", "198.51.100.10", "2001:db8::10:1883/udp/x", "198.51.100.10:1883/sctp"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sources_have_an_address_and_may_have_a_port() {
        let parse = |text: &str| text.parse::<Source>();
        let source = |address: &str, port| Ok(Source { address: address.parse().unwrap(), port });
        assert_eq!(parse("192.0.2.7:40123"), source("192.0.2.7", Some(40123)));
        assert_eq!(parse("[2001:db8::7]:40123"), source("2001:db8::7", Some(40123)));
        assert_eq!(parse("192.0.2.7"), source("192.0.2.7", None));
        assert_eq!(parse("[2001:db8::7]"), source("2001:db8::7", None));
        assert!(parse("[::ffff:192.0.2.7]:1").unwrap_err().contains("write it as IPv4"));
        for wrong in ["", "192.0.2.7:", "192.0.2.7:65536", "host:1", "192.0.2"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
