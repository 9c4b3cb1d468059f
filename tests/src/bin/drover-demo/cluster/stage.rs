//! The cluster's hosts, and what runs on them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use drover_tests::crowd::{Way, broker_name};
use drover_tests::{Broker, Cluster, MQTT_PORT, Process, Settings, Site, Station, Topology, Vip};

use crate::report::Report;

const CLIENTS: u8 = 2;
const NODES: u8 = 3;
const REALS: u8 = 3;

/// An MQTT site separates those who publish from those who subscribe. Some brokers serve both.
pub(crate) const SERVICES: [Service; 2] = [
    Service { name: "publish", address: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10)), brokers: &[0, 1] },
    Service {
        name: "subscribe",
        address: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x20)),
        brokers: &[1, 2],
    },
];

const HEALTH: &str = "type = \"mqtt\"\ninterval_ms = 500\ntimeout_ms = 400\nunhealthy_threshold = 2";
/// Where Debian's package has it; it is not on the path.
const ZK_CLI: &str = "/usr/share/zookeeper/bin/zkCli.sh";

/// A VIP.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) address: IpAddr,
    /// The brokers behind it, counted from 0.
    pub(crate) brokers: &'static [usize],
}

/// The hosts, with everything running.
#[derive(Debug)]
pub(crate) struct Stage {
    /// `ip monitor` on the router: a line for each change of a route.
    routes: Process,
    pub(crate) site: Site<Broker>,
}

impl Stage {
    pub(crate) fn set(report: &mut Report) -> Result<Stage> {
        report.step(
            "A site: two clients, a router with ECMP, three nodes, three servers of ZooKeeper, three brokers",
        );
        report.note("all of it starts, which takes some seconds");
        let topology = Topology::builder().clients(CLIENTS).nodes(NODES).reals(REALS);
        let site =
            Site::serving(topology, cluster, Settings::default(), |_, station| Broker::start(&station.host))?;
        for (number, station) in site.net.reals.iter().enumerate() {
            let (name, host) = (broker_name(number), station.host.name());
            report.note(format_args!("{name} runs on {host} ({}, {})", station.v4, station.v6));
        }
        for Service { name, address, brokers } in &SERVICES {
            let brokers: Vec<String> = brokers.iter().map(|broker| broker_name(*broker)).collect();
            report.note(format_args!("the VIP {name}, {address}, goes to {}", brokers.join(" and ")));
        }
        let routes = site.net.router.command("ip").args(["-o", "monitor", "route"]).spawn()?;
        let stage = Stage { routes, site };
        for Service { name, address, .. } in &SERVICES {
            let carriers = stage.carriers(*address)?;
            let carriers: Vec<&str> = carriers.iter().map(String::as_str).collect();
            report.note(format_args!("the router has {name} by BGP from {}", carriers.join(", ")));
        }
        Ok(stage)
    }

    /// The names of the nodes to which the router sends a VIP's packets.
    pub(crate) fn carriers(&self, vip: IpAddr) -> Result<BTreeSet<String>> {
        self.site.net.front.as_ref().context("a site has a front")?.carriers(vip)
    }

    /// How often the router's routes to VIPs have changed so far.
    pub(crate) fn route_changes(&self) -> Result<usize> {
        let is_of_a_vip =
            |line: &&str| SERVICES.iter().any(|service| line.contains(&service.address.to_string()));
        Ok(self.routes.log()?.lines().filter(is_of_a_vip).count())
    }

    /// The ways from each client to each VIP.
    pub(crate) fn all_ways(&self) -> Vec<Way> {
        let clients = &self.site.net.clients;
        clients.iter().flat_map(|client| SERVICES.each_ref().map(|service| way(client, service))).collect()
    }

    /// A way to each VIP, each from another client.
    pub(crate) fn some_ways(&self) -> Vec<Way> {
        self.site.net.clients.iter().zip(&SERVICES).map(|(client, service)| way(client, service)).collect()
    }

    /// Waits until every node that runs has the tree's head in force and no two tables differ, each without the broker
    /// `without`. Returns the epoch and the tables' digests, by VIP.
    pub(crate) fn agreed(&self, without: Option<usize>) -> Result<(u64, Vec<String>)> {
        let expected: Vec<(&str, Vec<String>)> = SERVICES
            .iter()
            .map(|Service { name, brokers, .. }| {
                let left = brokers.iter().filter(|broker| Some(**broker) != without);
                (*name, left.map(|broker| broker_name(*broker)).collect())
            })
            .collect();
        let expected: Vec<(&str, Vec<&str>)> = expected
            .iter()
            .map(|(name, brokers)| (*name, brokers.iter().map(String::as_str).collect()))
            .collect();
        let expected: Vec<(&str, &[&str])> =
            expected.iter().map(|(name, brokers)| (*name, brokers.as_slice())).collect();
        self.site.wait_agreed(&expected)?;
        Ok((self.site.head()?.epoch, self.digests()?))
    }

    /// The digests of the tables that the running nodes have in their maps, by VIP.
    pub(crate) fn digests(&self) -> Result<Vec<String>> {
        let mut digests = Vec::new();
        for (vip, tables) in self.site.tables()? {
            let (_, first) = tables.first().with_context(|| format!("no node has a table for {vip}"))?;
            if tables.iter().any(|(_, digest)| digest != first) {
                bail!("the nodes' tables for {vip} differ: {tables:?}");
            }
            digests.push(format!("{vip} {first}"));
        }
        Ok(digests)
    }

    /// Leaves everything standing and says how to look at it.
    pub(crate) fn keep(self, report: &mut Report) -> Result<()> {
        let node = self.site.running().into_iter().map(|node| &self.site.net.nodes[node].host).next();
        let node = node.context("some node runs")?;
        let Topology { clients, router, .. } = &self.site.net;
        let hints = [
            "look:     at the tree, in ZooKeeper's own shell; and at a node".to_owned(),
            format!(
                "          ip netns exec {} {ZK_CLI} -server {}",
                router.namespace(),
                self.site.ensemble.connect_string()
            ),
            "            ls -R /drover".to_owned(),
            "            get /drover/leader".to_owned(),
            format!("          ip netns exec {} curl -s localhost:9940/status", node.namespace()),
            "try:      a subscriber and a publisher see each other when both meet the same broker".to_owned(),
            format!(
                "          ip netns exec {} mosquitto_sub -h {} -t hello -v",
                clients[0].host.namespace(),
                SERVICES[0].address
            ),
        ];
        report.left_standing(&self.site.net, &hints);
        let Stage { routes, site } = self;
        let Site { nodes, reals, servers, operator, ensemble, net, .. } = site;
        // The processes stay because the lab is kept before their handles are dropped.
        net.lab.keep()?;
        drop((routes, nodes, reals, servers, operator, ensemble));
        Ok(())
    }
}

fn way(client: &Station, service: &Service) -> Way {
    let to = SocketAddr::new(service.address, MQTT_PORT);
    Way { from: client.host.clone(), to, name: service.name.to_owned() }
}

fn cluster(net: &Topology) -> Cluster {
    Cluster::new(SERVICES.iter().map(|service| {
        let mut vip = Vip::new(service.name, SocketAddr::new(service.address, MQTT_PORT)).health(HEALTH);
        vip.reals = service
            .brokers
            .iter()
            .map(|&broker| (broker_name(broker), net.reals[broker].address_like(service.address), 100))
            .collect();
        vip
    }))
}
