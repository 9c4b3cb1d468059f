//! From a picture of the kernel's links, routes and neighbours to next hops. Pure.
//!
//! The rule of fail-static: an address that was resolved once stays resolved while it is wanted. A
//! neighbour that falls silent, a route that goes away, even one that turns into a blackhole (which
//! is how a withdrawn prefix looks under an aggregate), leave the last next hop in force; the
//! reason is reported, and a new answer replaces the old one as soon as it is complete. Whether a
//! real lives is for health checks to say.

use super::{Mac, NextHop, NextHops};
use host::netlink::{Link, Neighbour, NeighbourKey, NoPath, Path, Reachability};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The kernel's routes, neighbours and links, as far as they matter to the wanted addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// The kernel's route lookup for each wanted address.
    pub routes: BTreeMap<IpAddr, Result<Path, Problem>>,
    /// Neighbours that the routes lead to. One that the kernel does not know is absent.
    pub neighbours: BTreeMap<NeighbourKey, Neighbour>,
    /// The interfaces that take frames which XDP redirects to them, and those that do not, as far as the kernel tells.
    pub takes_redirects: BTreeMap<u32, bool>,
}

/// The reason why an address has no fresh next hop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// ENETUNREACH or EHOSTUNREACH.
    #[error("the kernel has no route to it: add one, or correct the real's address")]
    NoRoute,
    /// A route of type `blackhole`.
    #[error("its route is a blackhole")]
    Blackhole,
    /// A route of type `prohibit`.
    #[error("its route prohibits packets to it")]
    Prohibited,
    /// The address is the node's own, or routed via loopback.
    #[error("it is an address of this machine itself: a node cannot be its own real")]
    Local,
    /// Broadcast, multicast or anycast.
    #[error("it is not a unicast address")]
    NotUnicast,
    /// The interface vanished between two answers.
    #[error("its route leaves by interface number {0}, which is gone")]
    NoInterface(u32),
    /// Tunnels and other devices without MAC addresses.
    #[error("its route leaves by {0}, which is not an Ethernet interface")]
    NotEthernet(String),
    /// Stacked VLANs, 802.1ad, or a VLAN whose lower interface lives in another network namespace.
    #[error("its route leaves by {0}: only one 802.1Q tag on an interface of this machine is supported")]
    UnsupportedVlan(String),
    /// The interface is down or has no carrier.
    #[error("its route leaves by {0}, which is down")]
    InterfaceDown(String),
    /// The neighbour has not been resolved yet.
    #[error("{neighbour} on {interface} is being resolved")]
    Resolving {
        /// The address itself, or its gateway.
        neighbour: IpAddr,
        /// Interface's name.
        interface: String,
    },
    /// The neighbour does not answer.
    #[error("{neighbour} does not answer on {interface} (ARP or neighbour discovery)")]
    NeighbourFailed {
        /// The address itself, or its gateway.
        neighbour: IpAddr,
        /// Interface's name.
        interface: String,
    },
    /// The kernel refused the question.
    #[error("the kernel refused to look up its route: {0}")]
    Refused(String),
}

impl From<NoPath> for Problem {
    fn from(reason: NoPath) -> Self {
        match reason {
            NoPath::NoRoute => Self::NoRoute,
            NoPath::Blackhole => Self::Blackhole,
            NoPath::Prohibited => Self::Prohibited,
            NoPath::Local => Self::Local,
            NoPath::NotUnicast => Self::NotUnicast,
            NoPath::Refused(why) => Self::Refused(why),
        }
    }
}

impl Problem {
    /// That a neighbour which did not answer is being asked again is no news.
    fn after(self, before: Option<&Problem>) -> Problem {
        match (self, before) {
            (
                Problem::Resolving { neighbour, interface },
                Some(Problem::NeighbourFailed { neighbour: failed, interface: on }),
            ) if neighbour == *failed && interface == *on => {
                Problem::NeighbourFailed { neighbour, interface }
            }
            (problem, _) => problem,
        }
    }
}

/// The reasons why addresses have no fresh next hop, by address. An address may be here and yet have a next hop: the
/// last one that was known.
pub type Problems = BTreeMap<IpAddr, Problem>;

impl Picture {
    /// The neighbour that packets to a wanted address are handed to.
    pub fn neighbour_of(&self, address: &IpAddr) -> Option<NeighbourKey> {
        let path = self.routes.get(address)?.as_ref().ok()?;
        Some((path.ifindex, path.gateway.unwrap_or(*address)))
    }

    /// All neighbours that wanted addresses need.
    pub fn neighbours_in_use(&self) -> BTreeSet<NeighbourKey> {
        self.routes.keys().filter_map(|address| self.neighbour_of(address)).collect()
    }

    fn next_hop(&self, address: &IpAddr, front: u32) -> Result<NextHop, Problem> {
        let path = match self.routes.get(address) {
            Some(Ok(path)) => path,
            Some(Err(problem)) => return Err(problem.clone()),
            None => return Err(Problem::NoRoute),
        };
        let link = self.links.get(&path.ifindex).ok_or(Problem::NoInterface(path.ifindex))?;
        if link.loopback {
            return Err(Problem::Local);
        }
        let source_mac = link.mac.ok_or_else(|| Problem::NotEthernet(link.name.clone()))?;
        let (ifindex, vlan) = self.physical(path.ifindex, link, front)?;
        if !(link.up && link.carrier) {
            return Err(Problem::InterfaceDown(link.name.clone()));
        }
        let neighbour = path.gateway.unwrap_or(*address);
        let destination_mac = self.mac_of((path.ifindex, neighbour), link)?;
        let mtu = path.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
        let on_link = path.gateway.is_none();
        let takes_redirects = self.takes_redirects.get(&ifindex).copied().unwrap_or(true);
        Ok(NextHop { ifindex, source_mac, destination_mac, vlan, mtu, on_link, takes_redirects })
    }

    /// The interface that the frame leaves by, and the tag it needs there. Where the balancer's
    /// own interface is a VLAN device, its program sees untagged frames: no tag then.
    fn physical(&self, ifindex: u32, link: &Link, front: u32) -> Result<(u32, Option<u16>), Problem> {
        let Some(vlan) = link.vlan.filter(|_| ifindex != front) else { return Ok((ifindex, None)) };
        let unsupported = || Problem::UnsupportedVlan(link.name.clone());
        let lower = vlan.lower.filter(|_| vlan.dot1q).ok_or_else(unsupported)?;
        let below = self.links.get(&lower).ok_or_else(unsupported)?;
        if below.vlan.is_some() && lower != front {
            return Err(unsupported());
        }
        Ok((lower, Some(vlan.id)))
    }

    fn mac_of(&self, key: NeighbourKey, link: &Link) -> Result<Mac, Problem> {
        let (neighbour, interface) = (key.1, link.name.clone());
        match self.neighbours.get(&key) {
            Some(Neighbour { state: Reachability::Failed, .. }) => {
                Err(Problem::NeighbourFailed { neighbour, interface })
            }
            Some(Neighbour {
                state: Reachability::Tracked | Reachability::Stale | Reachability::Fixed,
                mac: Some(mac),
            }) if *mac != [0; 6] => Ok(*mac),
            _ => Err(Problem::Resolving { neighbour, interface }),
        }
    }
}

/// The last next hop of each wanted address, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Resolver {
    front: u32,
    known: NextHops,
    problems: Problems,
}

impl Resolver {
    /// Knows nothing yet. `front` is the index of the interface that the balancer's program is on.
    pub fn new(front: u32) -> Self {
        Resolver { front, known: NextHops::new(), problems: Problems::new() }
    }

    /// Takes a new picture: fresh next hops replace known ones, problems leave them as they are,
    /// and addresses that the picture has no route lookup for are forgotten.
    pub fn update(&mut self, picture: &Picture) {
        self.known.retain(|address, _| picture.routes.contains_key(address));
        let before = std::mem::take(&mut self.problems);
        for address in picture.routes.keys() {
            match picture.next_hop(address, self.front) {
                Ok(next_hop) => {
                    self.known.insert(*address, next_hop);
                }
                Err(problem) => {
                    let problem = problem.after(before.get(address));
                    self.problems.insert(*address, problem);
                }
            }
        }
    }

    /// The next hops, their MTUs lowered to what the paths are known to take (bytes by address).
    pub fn next_hops(&self, path_mtus: &BTreeMap<IpAddr, u32>) -> NextHops {
        let lowered = |(address, next_hop): (&IpAddr, &NextHop)| {
            let mtu = path_mtus.get(address).map_or(next_hop.mtu, |mtu| next_hop.mtu.min(*mtu));
            (*address, NextHop { mtu, ..*next_hop })
        };
        self.known.iter().map(lowered).collect()
    }

    /// Returns the problems, by address.
    pub fn problems(&self) -> &Problems {
        &self.problems
    }
}

#[cfg(test)]
mod tests;
