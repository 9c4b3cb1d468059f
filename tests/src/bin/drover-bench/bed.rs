//! The data plane under test, on a host of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use dataplane::nexthop::{NextHop, NextHops};
use dataplane::program::{Program, RealProgram, VipProgram};
use dataplane::{Dataplane, Settings, Statistics};
use drover_tests::{Host, Lab, Port, link};
use slot_table::flow::{self, Flow, Seed};
use slot_table::maglev::{self, Real, Table, TableSize};
use zk_schema::{Affinity, Capacity, Limits, MacAddress, RealName, Unserved, VipName, XdpMode};

use crate::case::{Limited, Scenario, Version};
use crate::frame::NODE_MAC;

/// Outer sources.
pub(crate) const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub(crate) const GUE_PORT: u16 = 6080;
/// Port of all VIPs: MQTT's.
pub(crate) const SERVICE_PORT: u16 = 1883;
/// Interface of the node, and of the other end of its link.
pub(crate) const INTERFACE: &str = "front";
pub(crate) const PEER: &str = "wire";

/// Reals of each VIP.
const REALS: u8 = 100;
const SEED: Seed = Seed { k0: 0x6472_6f76_6572_2d62, k1: 0x656e_6368_6d61_726b };
/// The highest limit there is: a limiter's work, and nothing refused.
const NO_SUCH_RATE: u32 = 100_000_000;

/// A node with a data plane that holds a number of VIPs.
pub(crate) struct Bed {
    vips: u16,
    node: Host,
    peer: Host,
    dataplane: Dataplane,
    ifindex: u32,
    applied: Option<Scenario>,
    table: Arc<Table>,
    hops: NextHops,
}

impl Bed {
    /// A node on hosts whose names begin with `name`, with room for so many VIPs.
    pub(crate) fn new(lab: &Lab, name: &str, vips: u16) -> Result<Self> {
        let (node, peer) = (lab.host(&format!("{name}-node"))?, lab.host(&format!("{name}-peer"))?);
        for host in [&node, &peer] {
            // No neighbour or router discovery among the packets that are counted.
            host.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
            host.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        }
        link(&Port::new(&node, INTERFACE), &Port::new(&peer, PEER), 1500)?;
        node.ip(&format!("link set dev {INTERFACE} address {}", MacAddress(NODE_MAC)))?;

        let table_size = TableSize::DEFAULT;
        let names: Vec<String> = (0..REALS).map(real_name).collect();
        let reals: Vec<Real<'_>> = names.iter().map(|id| Real { id, weight: 100 }).collect();
        let table = Arc::new(maglev::build(SEED, &reals, table_size)?);

        // The usual room where it is enough. A change of encapsulation needs entries for old and new reals.
        let usual = Capacity::default();
        let capacity = Capacity {
            vips: usual.vips.max(u32::from(vips)),
            reals: usual.reals.max(2 * u32::from(vips) * u32::from(REALS)),
            tables: usual.slot_tables().max(u32::from(vips) + 1),
        };
        let settings = Settings {
            interface: INTERFACE.into(),
            xdp_mode: XdpMode::Native,
            source_v4: Some(SOURCE_V4),
            source_v6: Some(SOURCE_V6),
            gue_port: GUE_PORT,
            unserved: Unserved::Drop,
            accept_macs: vec![],
            capacity,
            table_size: table_size.slots(),
            bpffs: node.bpffs().to_owned(),
        };
        let (dataplane, _) = node.enter(|| Dataplane::open(&settings))??;
        let ifindex: u32 = node
            .ip(&format!("-o link show dev {INTERFACE}"))?
            .split(':')
            .next()
            .and_then(|index| index.trim().parse().ok())
            .context("`ip link` shows no index")?;
        let hops = [Version::V4, Version::V6]
            .into_iter()
            .flat_map(|version| (0..REALS).map(move |number| (real_address(version, number), number)))
            .map(|(address, number)| (address, next_hop(ifindex, number)))
            .collect();
        Ok(Self { vips, node, peer, dataplane, ifindex, applied: None, table, hops })
    }

    pub(crate) fn vips(&self) -> u16 {
        self.vips
    }

    pub(crate) fn node(&self) -> &Host {
        &self.node
    }

    pub(crate) fn peer(&self) -> &Host {
        &self.peer
    }

    pub(crate) fn dataplane(&self) -> &Dataplane {
        &self.dataplane
    }

    /// Index of the front interface.
    pub(crate) fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Makes the data plane do what a case needs.
    pub(crate) fn apply(&mut self, scenario: Scenario) -> Result<()> {
        if self.applied == Some(scenario) {
            return Ok(());
        }
        let program = program(scenario, &self.table)?;
        let Self { node, dataplane, hops, .. } = self;
        node.enter(|| dataplane.apply(&program, hops))??;
        self.applied = Some(scenario);
        Ok(())
    }

    /// The real that a flow belongs to, by its number, and the flow's hash.
    pub(crate) fn owner(&self, flow: &Flow) -> Result<(usize, u32)> {
        let hash = flow.hash(SEED);
        let slot = flow::slot(hash, self.table.size().slots());
        Ok((self.table.owner(slot).context("the slot table has a slot that nobody owns")?, hash))
    }

    /// The next hop of an address.
    pub(crate) fn hop(&self, address: IpAddr) -> Result<&NextHop> {
        self.hops.get(&address).with_context(|| format!("{address} has no next hop"))
    }

    pub(crate) fn statistics(&self) -> Result<Statistics> {
        Ok(self.dataplane.statistics()?)
    }
}

/// Name of a VIP by its number.
pub(crate) fn vip_name(number: u16) -> Result<VipName> {
    Ok(format!("vip-{number}").parse()?)
}

/// Name of a real by its number.
pub(crate) fn real_name(number: u8) -> String {
    format!("broker-{number:03}")
}

/// Address of a real by its number.
pub(crate) fn real_address(version: Version, number: u8) -> IpAddr {
    match version {
        Version::V4 => Ipv4Addr::new(172, 20, 0, 1 + number).into(),
        Version::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 1 + u16::from(number)).into(),
    }
}

/// Destination address by its number: that of a VIP, or of nobody.
pub(crate) fn destination(version: Version, number: u16, pass: bool) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match version {
        Version::V4 => Ipv4Addr::new(198, if pass { 19 } else { 18 }, high, low).into(),
        Version::V6 => Ipv6Addr::new(0x2001, 0xdb8, if pass { 0xf } else { 0xa }, 0, 0, 0, 0, number).into(),
    }
}

fn next_hop(ifindex: u32, number: u8) -> NextHop {
    NextHop {
        ifindex,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 1, number],
        vlan: None,
        mtu: 1500,
        on_link: true,
        takes_redirects: true,
    }
}

fn program(scenario: Scenario, table: &Arc<Table>) -> Result<Program> {
    let rate = |limited| if scenario.limits >= limited { NO_SUCH_RATE } else { 0 };
    let limits = Limits {
        connections_per_second: rate(Limited::Vip),
        connections_per_second_per_prefix: rate(Limited::VipAndPrefix),
        ..Limits::default()
    };
    let mut reals = Vec::new();
    for number in 0..REALS {
        let name: RealName = real_name(number).parse()?;
        reals.push(RealProgram { name, address: real_address(scenario.real_version, number), weight: 100 });
    }
    let mut vips = BTreeMap::new();
    for number in 0..scenario.vips {
        let vip = VipProgram {
            address: destination(scenario.version, number, false),
            port: SERVICE_PORT,
            protocol: scenario.protocol(),
            encapsulation: scenario.encapsulation(),
            affinity: Affinity::Flow,
            limits: limits.resolved(),
            reals: reals.clone(),
            table: Arc::clone(table),
        };
        vips.insert(vip_name(number)?, vip);
    }
    Ok(Program { epoch: 1, seed: SEED, table_size: table.size().slots(), vips })
}
