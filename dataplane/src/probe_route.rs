//! The way that marked probes take to the program that wraps them.
//!
//! A probe through the tunnel is a connection to the VIP, and the egress program of the front interface sends it to
//! the real that its mark names. It sees the packet only after the kernel has routed it and resolved its next hop.
//! The routing table's own way to the VIP must not matter there: without a route nothing would be sent, and on a
//! link where nobody answers for the VIP, neighbour resolution would fail on the real's account.
//!
//! So marked packets have a table of their own ([`TABLE`]) with one default route: by the front interface, to a
//! gateway whose MAC address is written down, so that nobody is asked. Neither address appears on the wire, as the
//! egress program writes the MAC addresses anew. The route also names the source address, since replies come back to
//! it directly from the real.

use crate::nexthop::sources;
use futures_util::TryStreamExt as _;
use host::netlink::{Netlink, NetlinkError};
use lb_ebpf::lb::{PROBE_MARK, PROBE_MARK_MASK};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use zk_schema::{Desired, ProbePath, VipName};

/// The routing table, and the priority of the rule that leads to it.
pub const TABLE: u32 = 5580;

const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 58, 80);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x64, 0x5580);
/// Locally administered; never seen on the wire.
const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x55, 0x80];

/// The reason why probes through the tunnel may not leave.
#[derive(Debug, thiserror::Error)]
pub enum ProbeRouteError {
    /// The front interface is unusable.
    #[error(transparent)]
    Interface(#[from] sources::InterfaceError),
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// The kernel refused.
    #[error("the kernel refuses the {what} for {family} probes through the tunnel: {reason}")]
    Refused {
        /// The request that it refused.
        what: &'static str,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Its words.
        reason: rtnetlink::Error,
    },
}

/// Something that keeps probes through the tunnel from working, which the operator can fix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum RouteProblem {
    /// No address for replies.
    #[error(
        "VIP {vip}: interface {interface} has no {family} address that probes could be sent from: give it one, or \
         set `path = \"direct\"` in the VIP's health check"
    )]
    NoSource {
        /// The VIP.
        vip: VipName,
        /// The front interface.
        interface: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The kernel keeps probes to itself.
    #[error(
        "VIP {vip}: its address {address} is one of this machine's own, so probes through the tunnel end here: \
         remove it (`ip address del {address} dev ...`), or set `path = \"direct\"` in the VIP's health check"
    )]
    Local {
        /// The VIP.
        vip: VipName,
        /// Its address.
        address: IpAddr,
    },
}

/// Keeps the probes' route in place. Cheap to ask for again; the kernel drops routes and neighbours when an interface goes
/// down.
#[derive(Debug)]
pub struct ProbeRoute {
    interface: String,
    /// Sources that operators chose, which are preferred if they are the machine's own.
    preferred: sources::Sources,
    kernel: Kernel,
}

impl ProbeRoute {
    /// For probes that leave by `interface`.
    ///
    /// # Errors
    /// If a netlink socket cannot be opened.
    pub fn new(interface: &str, preferred: sources::Sources) -> Result<Self, ProbeRouteError> {
        Ok(Self { interface: interface.into(), preferred, kernel: Kernel::open()? })
    }

    /// Makes sure of rule, route and gateway for the families of the VIPs that are probed through the tunnel.
    /// Returns what remains in the way.
    ///
    /// # Errors
    /// If the interface is unusable, or if the kernel refuses.
    pub async fn ensure(&self, desired: &Desired) -> Result<BTreeSet<RouteProblem>, ProbeRouteError> {
        let tunnelled = tunnelled(desired);
        if tunnelled.is_empty() {
            return Ok(BTreeSet::new());
        }
        let front = sources::interface(&self.interface).await?;
        let own = self.kernel.addresses().await?;
        let mut obstacles = obstacles(&tunnelled, &front.sources, &own, &self.interface);
        for family in [Family::V4, Family::V6] {
            if !tunnelled.values().any(|vip| Family::of(*vip) == family) {
                continue;
            }
            let Some(source) = source(family, &self.preferred, &front.sources, &own) else { continue };
            self.kernel.gateway(family, front.index).await?;
            self.kernel.route(family, front.index, source).await?;
            self.kernel.rule(family).await?;
            // With a chosen source on another interface the front needs none of its own.
            obstacles.retain(
                |obstacle| !matches!(obstacle, RouteProblem::NoSource { family: named, .. } if *named == family.name()),
            );
        }
        Ok(obstacles)
    }
}

/// Removes rules and routes. True if there were any.
///
/// # Errors
/// If the kernel refuses to tell or to remove them.
pub async fn remove() -> Result<bool, ProbeRouteError> {
    let kernel = Kernel::open()?;
    let mut found = false;
    for family in [Family::V4, Family::V6] {
        found |= kernel.remove(family).await?;
    }
    Ok(found)
}

/// The VIPs that are probed through the tunnel.
fn tunnelled(desired: &Desired) -> BTreeMap<VipName, IpAddr> {
    let vips = desired
        .vips
        .iter()
        .filter(|(_, state)| state.vip.health.as_ref().is_some_and(|check| check.path == ProbePath::Tunnel));
    vips.map(|(name, state)| (name.clone(), state.vip.address)).collect()
}

fn obstacles(
    vips: &BTreeMap<VipName, IpAddr>,
    front: &sources::Sources,
    own: &BTreeSet<IpAddr>,
    interface: &str,
) -> BTreeSet<RouteProblem> {
    let mut obstacles = BTreeSet::new();
    for (vip, address) in vips {
        let family = Family::of(*address);
        if own.contains(address) {
            obstacles.insert(RouteProblem::Local { vip: vip.clone(), address: *address });
        }
        if family.source(front).is_none() {
            let (vip, interface) = (vip.clone(), interface.to_owned());
            obstacles.insert(RouteProblem::NoSource { vip, interface, family: family.name() });
        }
    }
    obstacles
}

/// The address that probes come from: the kernel takes none but the machine's own.
fn source(
    family: Family,
    preferred: &sources::Sources,
    front: &sources::Sources,
    own: &BTreeSet<IpAddr>,
) -> Option<IpAddr> {
    family.source(preferred).filter(|address| own.contains(address)).or(family.source(front))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    const fn version(self) -> IpVersion {
        match self {
            Self::V4 => IpVersion::V4,
            Self::V6 => IpVersion::V6,
        }
    }

    fn gateway(self) -> IpAddr {
        match self {
            Self::V4 => GATEWAY_V4.into(),
            Self::V6 => GATEWAY_V6.into(),
        }
    }

    fn source(self, sources: &sources::Sources) -> Option<IpAddr> {
        match self {
            Self::V4 => sources.v4.map(IpAddr::from),
            Self::V6 => sources.v6.map(IpAddr::from),
        }
    }

    fn refused(self, what: &'static str) -> impl FnOnce(rtnetlink::Error) -> ProbeRouteError {
        move |reason| ProbeRouteError::Refused { what, family: self.name(), reason }
    }
}

/// The kernel, as far as the probes' route asks it and changes it.
#[derive(Debug)]
struct Kernel(Netlink);

impl Kernel {
    fn open() -> Result<Self, NetlinkError> {
        Ok(Self(Netlink::open()?))
    }

    /// Every address of this machine.
    async fn addresses(&self) -> Result<BTreeSet<IpAddr>, NetlinkError> {
        Ok(self.0.addresses().await?.into_iter().map(|own| own.address).collect())
    }

    async fn gateway(&self, family: Family, ifindex: u32) -> Result<(), ProbeRouteError> {
        let add =
            self.0.handle().neighbours().add(ifindex, family.gateway()).link_layer_address(&GATEWAY_MAC);
        add.replace().execute().await.map_err(family.refused("neighbour"))
    }

    async fn route(&self, family: Family, ifindex: u32, source: IpAddr) -> Result<(), ProbeRouteError> {
        let message = match (family.gateway(), source) {
            (IpAddr::V4(gateway), IpAddr::V4(source)) => RouteMessageBuilder::<Ipv4Addr>::new()
                .table_id(TABLE)
                .output_interface(ifindex)
                .gateway(gateway)
                .onlink()
                .pref_source(source)
                .protocol(RouteProtocol::Static)
                .build(),
            (IpAddr::V6(gateway), IpAddr::V6(source)) => RouteMessageBuilder::<Ipv6Addr>::new()
                .table_id(TABLE)
                .output_interface(ifindex)
                .gateway(gateway)
                .onlink()
                .pref_source(source)
                .protocol(RouteProtocol::Static)
                .build(),
            _ => unreachable!("gateway and source are of one family"),
        };
        self.0.handle().route().add(message).replace().execute().await.map_err(family.refused("route"))
    }

    async fn rule(&self, family: Family) -> Result<(), ProbeRouteError> {
        if self.rules(family).await?.iter().any(is_ours) {
            return Ok(());
        }
        let mut add = self
            .0
            .handle()
            .rule()
            .add()
            .table_id(TABLE)
            .priority(TABLE)
            .fw_mark(PROBE_MARK)
            .action(RuleAction::ToTable);
        add.message_mut().attributes.push(RuleAttribute::FwMask(PROBE_MARK_MASK));
        let added = match family {
            Family::V4 => add.v4().execute().await,
            Family::V6 => add.v6().execute().await,
        };
        added.map_err(family.refused("rule"))
    }

    async fn rules(&self, family: Family) -> Result<Vec<RuleMessage>, ProbeRouteError> {
        let rules = self.0.handle().rule().get(family.version()).execute();
        rules.try_collect().await.map_err(family.refused("list of rules"))
    }

    async fn remove(&self, family: Family) -> Result<bool, ProbeRouteError> {
        let mut found = false;
        for rule in self.rules(family).await?.into_iter().filter(is_ours) {
            self.0
                .handle()
                .rule()
                .del(rule)
                .execute()
                .await
                .map_err(family.refused("removal of the rule"))?;
            found = true;
        }
        let any = match family {
            Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let routes: Vec<RouteMessage> = self
            .0
            .handle()
            .route()
            .get(any)
            .execute()
            .try_collect()
            .await
            .map_err(family.refused("list of routes"))?;
        for route in
            routes.into_iter().filter(|route| route.attributes.contains(&RouteAttribute::Table(TABLE)))
        {
            let ifindex = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            self.0
                .handle()
                .route()
                .del(route)
                .execute()
                .await
                .map_err(family.refused("removal of the route"))?;
            if let Some(ifindex) = ifindex {
                let neighbour =
                    self.0.handle().neighbours().add(ifindex, family.gateway()).message_mut().clone();
                // It may have gone with the link already.
                let _ = self.0.handle().neighbours().del(neighbour).execute().await;
            }
            found = true;
        }
        Ok(found)
    }
}

fn is_ours(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Table(TABLE))
        && rule.attributes.contains(&RuleAttribute::FwMark(PROBE_MARK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zk_schema::testing::{checked_vip, desired, name, unchecked_vip};

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn only_vips_that_are_probed_through_the_tunnel_need_the_route() {
        let mut direct = checked_vip(&[]);
        direct.vip.health.as_mut().unwrap().path = ProbePath::Direct;
        let desired =
            desired([("direct", direct), ("tunnel", checked_vip(&[])), ("unchecked", unchecked_vip(&[]))]);
        let names: Vec<String> = tunnelled(&desired).keys().map(ToString::to_string).collect();
        assert_eq!(names, ["tunnel"]);
    }

    #[test]
    fn a_vip_on_this_machine_and_a_family_without_a_source_are_obstacles_with_their_fix() {
        let vips =
            [(name("v4"), "198.51.100.1".parse().unwrap()), (name("v6"), "2001:db8::1".parse().unwrap())];
        let front = sources::Sources { v4: Some([10, 0, 0, 2].into()), v6: None };
        let own = addresses(&["10.0.0.2", "198.51.100.1"]);
        let found: Vec<String> =
            obstacles(&vips.into(), &front, &own, "eth0").iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("VIP v6: interface eth0 has no IPv6 address"), "{found:?}");
        assert!(
            found[1].starts_with("VIP v4: its address 198.51.100.1 is one of this machine's own"),
            "{found:?}"
        );
    }

    #[test]
    fn a_chosen_source_is_used_only_if_it_is_the_machines_own() {
        let chosen = sources::Sources { v4: Some([192, 0, 2, 1].into()), v6: None };
        let front = sources::Sources { v4: Some([10, 0, 0, 2].into()), v6: None };
        let with = |own: &[&str]| source(Family::V4, &chosen, &front, &addresses(own));
        assert_eq!(with(&["10.0.0.2", "192.0.2.1"]), chosen.v4.map(IpAddr::from));
        assert_eq!(with(&["10.0.0.2"]), front.v4.map(IpAddr::from));
        assert_eq!(source(Family::V6, &chosen, &front, &addresses(&[])), None);
    }
}
