//! Packets of real sockets reach real servers through the VIP, whatever the family, protocol and encapsulation.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use drover_tests::bulk::{self, Direction};
use drover_tests::{
    Cluster, Deployment, Encapsulation, Family, Protocol, Segment, Service, Topology, Vip, visit,
};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10));
const VIPS: [IpAddr; 2] = [VIP4, VIP6];
const REALS: [&str; 3] = ["real-1", "real-2", "real-3"];
/// So many new flows that none of three reals is missed by chance.
const MANY: usize = 40;
const GIB: u64 = 1 << 30;
const LIMIT: Duration = Duration::from_secs(5);

/// A VIP for each combination of family, real's family, protocol and encapsulation that there is.
fn every_combination(net: &Topology) -> Vec<Vip> {
    let mut vips = Vec::new();
    for address in VIPS {
        let mut port = 7000;
        for family in [Family::V4, Family::V6] {
            for encapsulation in [Encapsulation::Gue, Encapsulation::Ipip, Encapsulation::L2] {
                if encapsulation == Encapsulation::L2 && family != Family::of(address) {
                    continue;
                }
                port += 1;
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let vip_family = Family::of(address);
                    let name = format!("{protocol}-{vip_family}-by-{encapsulation}-to-{family}");
                    let vip = Vip::new(name, SocketAddr::new(address, port));
                    vips.push(vip.protocol(protocol).encapsulation(encapsulation).reals(&net.reals, family));
                }
            }
        }
    }
    vips
}

#[test]
fn tcp_and_udp_reach_every_real_over_every_combination_of_families_and_encapsulation() {
    let net = Topology::builder().reals(3).segment(Segment::Shared).build().unwrap();
    let vips = every_combination(&net);
    assert_eq!(vips.len(), 2 * 2 * 5);
    let all = Deployment::start(net, Cluster::new(vips)).unwrap();
    for vip in &all.cluster.vips {
        let client = &all.client().host;
        let visits = visit(client, vip.protocol, vip.at, MANY, b"a message through the VIP", LIMIT).unwrap();
        assert_eq!((visits.servers(), &visits.failed), (REALS.to_vec(), &Vec::new()), "{}", vip.name);
    }
    let decapsulated: f64 = all
        .reals
        .iter()
        .map(|real| real.metrics().unwrap().sum("drover_decap_drops_total", &[]).unwrap())
        .sum();
    assert_eq!(decapsulated, 0.0, "a real has refused packets of the node");
}

#[test]
fn a_gibibyte_passes_unchanged_each_way_over_both_families() {
    const PORT: u16 = 7000;
    let net = Topology::builder().reals(2).build().unwrap();
    let vips = VIPS.map(|address| {
        let (name, family) = (format!("bulk-{}", Family::of(address)), Family::of(address));
        Vip::new(name, SocketAddr::new(address, PORT)).reals(&net.reals, family)
    });
    let all = Deployment::with_services(net, Cluster::new(vips), &[Service::Bulk(PORT)]).unwrap();
    for address in VIPS {
        for direction in [Direction::Up, Direction::Down] {
            bulk::transfer(&all.client().host, SocketAddr::new(address, PORT), direction, GIB).unwrap();
        }
    }
}

#[test]
fn datagrams_larger_than_the_mtu_arrive_whole_in_fragments() {
    let net = Topology::builder().reals(3).build().unwrap();
    let mut vips = Vec::new();
    for address in VIPS {
        for encapsulation in [Encapsulation::Gue, Encapsulation::Ipip] {
            let family = Family::of(address);
            let port = if encapsulation == Encapsulation::Gue { 7001 } else { 7002 };
            let vip = Vip::new(format!("{family}-{encapsulation}"), SocketAddr::new(address, port));
            vips.push(vip.protocol(Protocol::Udp).encapsulation(encapsulation).reals(&net.reals, Family::V4));
        }
    }
    let all = Deployment::start(net, Cluster::new(vips)).unwrap();
    let client = &all.client().host;
    for vip in &all.cluster.vips {
        // Before anything else, the client makes fragments that fit its link, and learns by them what fits the
        // tunnel.
        visit(client, vip.protocol, vip.at, 1, &[0x55; 1472], Duration::from_millis(300)).unwrap();
        for size in [1_472, 4_000, 20_000, 60_000] {
            let message: Vec<u8> =
                (0..size).map(|n: usize| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
            let mut servers = BTreeSet::new();
            // One after the other: together their fragments would overflow the queues of the lab's links.
            for _ in 0..12 {
                let visits = visit(client, vip.protocol, vip.at, 1, &message, LIMIT).unwrap();
                assert_eq!(visits.failed, Vec::<String>::new(), "{size} bytes to {}", vip.name);
                servers.extend(visits.served.into_keys());
            }
            assert!(servers.len() > 1, "{size} bytes to {}: {servers:?}", vip.name);
        }
    }
    let metrics = all.node.metrics().unwrap();
    for event in ["fragment_first", "fragment_followed"] {
        assert!(metrics.sum("drover_packets_total", &[("outcome", event)]) > Some(0.0), "{event}");
    }
    let unknown = metrics.sum("drover_drops_total", &[("reason", "fragment_unknown")]);
    assert_eq!(unknown, Some(0.0));
}
