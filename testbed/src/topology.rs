//! The network that most tests want.
//!
//! ```text
//!  client-1 ──┐            ┌── node-1 …
//!  client-2 ──┤── router ──┤
//!       …     │            ├── real-1
//!                          ├── real-2 …
//! ```
//!
//! The router sends what is for a VIP to the nodes, by static routes or by those that the nodes announce. Nodes reach the reals, and reals the clients, through the
//! router: requests pass a node, replies do not (direct server return).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::bird::Front;
use crate::host::Host;
use crate::lab::Lab;
use crate::link::{Bridge, DEFAULT_MTU, Port, link};
use crate::station::Station;

/// The interface by which each host but the router is linked.
const INTERFACE: &str = "eth0";

/// How nodes and reals are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Each by its own link to the router: a node reaches the reals by tunnels only.
    Routed,
    /// All on one Ethernet segment, with the router on it too, as L2 direct server return needs it.
    Shared,
}

/// A standing network.
#[derive(Debug)]
pub struct Topology {
    /// BIRD on the router and the nodes, if it was asked for.
    pub front: Option<Front>,
    /// Where the clients' links and the nodes' and reals' links meet.
    pub router: Host,
    /// `client-1` and so on.
    pub clients: Vec<Station>,
    /// `node-1` and so on, the load balancers.
    pub nodes: Vec<Station>,
    /// `real-1` and so on.
    pub reals: Vec<Station>,
    /// `zk-1` and so on, where servers of ZooKeeper are to run.
    pub zookeepers: Vec<Station>,
    /// The lab that all of it belongs to.
    pub lab: Lab,
}

/// What a [`Topology`] is to be like; begin with [`Topology::builder`].
#[derive(Clone, Debug)]
pub struct TopologyBuilder {
    clients: u8,
    nodes: u8,
    reals: u8,
    zookeepers: u8,
    segment: Segment,
    client_mtu: u32,
    real_mtu: u32,
    bird_front: bool,
}

impl Topology {
    /// One client, one node, one real, linked by a router with MTU 1500, unless told otherwise.
    #[must_use]
    pub fn builder() -> TopologyBuilder {
        TopologyBuilder {
            clients: 1,
            nodes: 1,
            reals: 1,
            zookeepers: 0,
            segment: Segment::Routed,
            client_mtu: DEFAULT_MTU,
            real_mtu: DEFAULT_MTU,
            bird_front: false,
        }
    }

    /// Routes a VIP to all nodes, by equal-cost paths when there are several.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the route.
    pub fn route_vip(&self, vip: IpAddr) -> Result<()> {
        self.route_vip_to(vip, &self.nodes)
    }

    /// Routes a VIP to these hosts, by equal-cost paths when there are several, instead of where it went before.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the route.
    pub fn route_vip_to(&self, vip: IpAddr, to: &[Station]) -> Result<()> {
        let length = if vip.is_ipv4() { 32 } else { 128 };
        let mut words = format!("route replace {vip}/{length}");
        for station in to {
            let hop = station.address_like(vip);
            words += &if to.len() == 1 { format!(" via {hop}") } else { format!(" nexthop via {hop}") };
        }
        self.router.ip(&words)?;
        Ok(())
    }

    /// Cuts a host off from all others, or links it again. Its routes stay as they are.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn cut(&self, station: &Station, cut: bool) -> Result<()> {
        // Both directions vanish, and neither end is told: as when a switch between them fails.
        for (verb, address) in [("from", station.v4), ("to", station.v4)] {
            let action = if cut { "add" } else { "del" };
            self.router.ip(&format!("rule {action} priority 90 {verb} {address}/32 blackhole"))?;
        }
        for (verb, address) in [("from", station.v6), ("to", station.v6)] {
            let action = if cut { "add" } else { "del" };
            self.router.ip(&format!("-6 rule {action} priority 90 {verb} {address}/128 blackhole"))?;
        }
        Ok(())
    }

    /// Takes a host's link down, as when it loses power, or up again with what the kernel had dropped: its IPv6 address and
    /// its routes.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn set_link(&self, station: &Station, up: bool) -> Result<()> {
        let Station { host, interface, v6, gateway_v4, gateway_v6, .. } = station;
        if !up {
            host.ip(&format!("link set {interface} down"))?;
            return Ok(());
        }
        host.ip(&format!("link set {interface} up"))?;
        host.ip(&format!("address replace {v6}/64 dev {interface} nodad"))?;
        host.ip(&format!("route replace default via {gateway_v4}"))?;
        host.ip(&format!("-6 route replace default via {gateway_v6}"))?;
        Ok(())
    }

    /// Keeps two hosts from reaching each other, with no word to either, or lets them again. All others reach both.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn part(&self, one: &Station, other: &Station, parted: bool) -> Result<()> {
        let action = if parted { "add" } else { "del" };
        let families = [
            ("-4", format!("{}/32", one.v4), format!("{}/32", other.v4)),
            ("-6", format!("{}/128", one.v6), format!("{}/128", other.v6)),
        ];
        for (family, one, other) in families {
            for (from, to) in [(&one, &other), (&other, &one)] {
                self.router
                    .ip(&format!("{family} rule {action} priority 91 from {from} to {to} blackhole"))?;
            }
        }
        Ok(())
    }

    /// All hosts, the router first.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        let stations = self.clients.iter().chain(&self.nodes).chain(&self.reals).chain(&self.zookeepers);
        std::iter::once(&self.router).chain(stations.map(|station| &station.host))
    }
}

impl TopologyBuilder {
    /// How many clients.
    #[must_use]
    pub fn clients(mut self, number: u8) -> Self {
        self.clients = number;
        self
    }

    /// How many load balancer nodes.
    #[must_use]
    pub fn nodes(mut self, number: u8) -> Self {
        self.nodes = number;
        self
    }

    /// How many reals.
    #[must_use]
    pub fn reals(mut self, number: u8) -> Self {
        self.reals = number;
        self
    }

    /// How many hosts for servers of ZooKeeper.
    #[must_use]
    pub fn zookeepers(mut self, number: u8) -> Self {
        self.zookeepers = number;
        self
    }

    /// How nodes and reals are connected.
    #[must_use]
    pub fn segment(mut self, segment: Segment) -> Self {
        self.segment = segment;
        self
    }

    /// The MTU of the clients' links, in bytes.
    #[must_use]
    pub fn client_mtu(mut self, mtu: u32) -> Self {
        self.client_mtu = mtu;
        self
    }

    /// The MTU of the reals' links, in bytes.
    #[must_use]
    pub fn real_mtu(mut self, mtu: u32) -> Self {
        self.real_mtu = mtu;
        self
    }

    /// Runs BIRD on the router and the nodes, so that the nodes can announce their VIPs. Without it, routes to VIPs
    /// are static: [`Topology::route_vip`].
    #[must_use]
    pub fn bird_front(mut self) -> Self {
        self.bird_front = true;
        self
    }

    /// Creates hosts, links and routes in a lab of their own.
    ///
    /// # Errors
    ///
    /// As [`Lab::new`], when the kernel refuses something, and when BIRD does not come up. What had been created is removed then.
    pub fn build(&self) -> Result<Topology> {
        let lab = Lab::new()?;
        let router = lab.host("router")?;
        router.sysctls(&[
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv6.conf.default.forwarding", "1"),
            // Ports count when one of several nodes is chosen, as in a front of real routers.
            ("net.ipv4.fib_multipath_hash_policy", "1"),
            ("net.ipv6.fib_multipath_hash_policy", "1"),
        ])?;
        let shared = match self.segment {
            Segment::Routed => None,
            Segment::Shared => Some(Bridge::create(&router, "br0", &["10.4.0.1/24", "2001:db8:4::1/64"])?),
        };
        let backbone = Attach { lab: &lab, router: &router, shared };
        let outside = Attach { lab: &lab, router: &router, shared: None };
        let clients = outside.all(&CLIENT, self.clients, self.client_mtu)?;
        let nodes = backbone.all(&NODE, self.nodes, DEFAULT_MTU)?;
        let reals = backbone.all(&REAL, self.reals, self.real_mtu)?;
        let zookeepers = outside.all(&ZOOKEEPER, self.zookeepers, DEFAULT_MTU)?;
        let front = self.bird_front.then(|| Front::start(&router, &nodes)).transpose()?;
        Ok(Topology { front, router, clients, nodes, reals, zookeepers, lab })
    }
}

/// What the hosts of a kind have in common.
struct Role {
    name: &'static str,
    /// The router's ports towards them are called by this and a number.
    port: &'static str,
    /// The part of the routed addresses that tells the roles apart.
    area: u8,
    /// On a shared segment, addresses are counted from here.
    first: u8,
    sends_by_xdp: bool,
}

const CLIENT: Role = Role { name: "client", port: "c", area: 1, first: 200, sends_by_xdp: false };
const NODE: Role = Role { name: "node", port: "n", area: 2, first: 10, sends_by_xdp: true };
const REAL: Role = Role { name: "real", port: "r", area: 3, first: 100, sends_by_xdp: false };
const ZOOKEEPER: Role = Role { name: "zk", port: "z", area: 5, first: 250, sends_by_xdp: false };

struct Attach<'a> {
    lab: &'a Lab,
    router: &'a Host,
    shared: Option<Bridge>,
}

impl Attach<'_> {
    fn all(&self, role: &Role, count: u8, mtu: u32) -> Result<Vec<Station>> {
        (1..=count)
            .map(|number| match &self.shared {
                Some(bridge) => self.bridged(role, bridge, number, mtu),
                None => self.routed(role, number, mtu),
            })
            .collect()
    }

    /// A host behind a link of its own: 10.`area`.`number`.2/24 and 2001:db8:`area`:`number`::2/64.
    fn routed(&self, role: &Role, number: u8, mtu: u32) -> Result<Station> {
        let v4 = |last| Ipv4Addr::new(10, role.area, number, last);
        let v6 = |last| Ipv6Addr::new(0x2001, 0xdb8, role.area.into(), number.into(), 0, 0, 0, last);
        let far = self.router_port(role, number);
        let far = far.address(format!("{}/24", v4(1))).address(format!("{}/64", v6(1)));
        self.connect(role, number, (v4(2), v6(2)), (v4(1), v6(1)), far, mtu)
    }

    /// A host on the shared segment: 10.4.0.x/24 and 2001:db8:4::x/64.
    fn bridged(&self, role: &Role, bridge: &Bridge, number: u8, mtu: u32) -> Result<Station> {
        let own = role.first + number;
        let v4 = |last| Ipv4Addr::new(10, 4, 0, last);
        let v6 = |last: u8| Ipv6Addr::new(0x2001, 0xdb8, 4, 0, 0, 0, 0, last.into());
        let far = self.router_port(role, number).on_bridge(bridge);
        self.connect(role, number, (v4(own), v6(own)), (v4(1), v6(1)), far, mtu)
    }

    fn router_port(&self, role: &Role, number: u8) -> Port {
        let port = Port::new(self.router, &format!("{}{number}", role.port));
        if role.sends_by_xdp { port.receives_xdp_tx() } else { port }
    }

    fn connect(
        &self,
        role: &Role,
        number: u8,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
        (gateway_v4, gateway_v6): (Ipv4Addr, Ipv6Addr),
        far: Port,
        mtu: u32,
    ) -> Result<Station> {
        let host = self.lab.host(&format!("{}-{number}", role.name))?;
        let near = Port::new(&host, INTERFACE).address(format!("{v4}/24")).address(format!("{v6}/64"));
        link(&near, &far, mtu)?;
        host.ip(&format!("route add default via {gateway_v4}"))?;
        host.ip(&format!("route add default via {gateway_v6}"))?;
        Ok(Station { host, interface: INTERFACE, v4, v6, gateway_v4, gateway_v6 })
    }
}
