//! The demo's hosts, and what runs on them.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use drover_tests::crowd::broker_name;
use drover_tests::{Broker, LbNode, MQTT_PORT, RealDaemon, Topology};

use crate::report::Report;

pub(crate) const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
pub(crate) const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10));

const CLIENTS: u8 = 2;
const REALS: u8 = 3;

/// The hosts, with everything running.
#[derive(Debug)]
pub(crate) struct Stage {
    /// `brokers[n]` runs on `net.reals[n]`.
    pub(crate) brokers: Vec<Broker>,
    node: LbNode,
    reals: Vec<RealDaemon>,
    pub(crate) net: Topology,
}

impl Stage {
    pub(crate) fn set(report: &mut Report) -> Result<Stage> {
        report.step("Hosts: two clients, a router, one load balancer node, three reals");
        let net = Topology::builder().clients(CLIENTS).nodes(1).reals(REALS).build()?;
        for vip in [VIP4, VIP6] {
            net.route_vip(vip)?;
            report.note(format_args!("the router sends {vip} to {}", net.nodes[0].host.name()));
        }

        report.step("On each real: mosquitto, and the program that takes packets out of the tunnel");
        let mut brokers = Vec::new();
        let mut reals = Vec::new();
        for (number, station) in net.reals.iter().enumerate() {
            brokers.push(Broker::start(&station.host)?);
            reals.push(RealDaemon::start(station, &[VIP4, VIP6], &net.nodes)?);
            let (name, host) = (broker_name(number), station.host.name());
            report.note(format_args!("{name} runs on {host} ({}, {})", station.v4, station.v6));
        }

        report.step("On the node: lb-node, with its XDP program");
        let cluster = net.lab.dir().join("cluster.toml");
        fs::write(&cluster, cluster_file(&net))
            .with_context(|| format!("cannot write {}", cluster.display()))?;
        let node = LbNode::start(&net.nodes[0], &cluster)?;
        report.note(format_args!("balances {VIP4} and {VIP6}, port {MQTT_PORT}, over three brokers by GUE"));
        Ok(Stage { brokers, node, reals, net })
    }

    /// Leaves everything standing and says how to look at it.
    pub(crate) fn keep(self, report: &mut Report) -> Result<()> {
        let client = self.net.clients[0].host.namespace();
        let hints = [
            "try:      a subscriber and a publisher see each other when both meet the same broker".to_owned(),
            format!("          ip netns exec {client} mosquitto_sub -h {VIP4} -t hello -v"),
        ];
        report.left_standing(&self.net, &hints);
        // The processes stay because the lab is kept before their handles are dropped.
        let Stage { net, brokers, node, reals } = self;
        net.lab.keep()?;
        drop((brokers, node, reals));
        Ok(())
    }
}

fn cluster_file(net: &Topology) -> String {
    let node = &net.nodes[0];
    let mut file = format!("[node]\nname = \"{}\"\ninterface = \"{}\"\n", node.host.name(), node.interface);
    for (name, vip) in [("mqtt4", VIP4), ("mqtt6", VIP6)] {
        let _ = write!(
            file,
            "\n[vips.{name}]\n\
             address = \"{vip}\"\n\
             port = {MQTT_PORT}\n\
             protocol = \"tcp\"\n\
             encapsulation = \"gue\"\n\
             \n[vips.{name}.health]\n\
             type = \"mqtt\"\n\
             interval_ms = 500\n\
             timeout_ms = 400\n\
             unhealthy_threshold = 2\n"
        );
        for (number, real) in net.reals.iter().enumerate() {
            let _ = write!(
                file,
                "\n[vips.{name}.reals.{}]\naddress = \"{}\"\nweight = 100\n",
                broker_name(number),
                real.address_like(vip)
            );
        }
    }
    file
}
