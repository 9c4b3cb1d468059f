//! Paths that take less than the client's link does.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use drover_tests::bulk::{self, Direction};
use drover_tests::{
    Cluster, Deployment, Encapsulation, Family, Host, Protocol, Service, Topology, Vip, unspecified_like,
    visit, wait_until,
};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10));
const VIPS: [IpAddr; 2] = [VIP4, VIP6];
const BULK: u16 = 7000;
const ECHO: u16 = 7001;
const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(5);

/// For both families of VIPs and reals, a VIP for bulk transfers and one for datagrams.
fn cluster(net: &Topology, encapsulation: Encapsulation) -> Cluster {
    let mut vips = Vec::new();
    for address in VIPS {
        for (family, offset) in [(Family::V4, 0), (Family::V6, 10)] {
            for (port, protocol) in [(BULK, Protocol::Tcp), (ECHO, Protocol::Udp)] {
                let name = format!("{protocol}-{}-to-{family}", Family::of(address));
                let vip = Vip::new(name, SocketAddr::new(address, port + offset)).protocol(protocol);
                vips.push(vip.encapsulation(encapsulation).reals(&net.reals, family));
            }
        }
    }
    Cluster::new(vips)
}

fn deploy(net: Topology, encapsulation: Encapsulation) -> Deployment {
    let cluster = cluster(&net, encapsulation);
    let bulk = [Service::Bulk(BULK), Service::Bulk(BULK + 10)];
    Deployment::with_services(net, cluster, &bulk).unwrap()
}

fn transfer_both_ways(all: &Deployment) {
    for vip in all.cluster.vips.iter().filter(|vip| vip.protocol == Protocol::Tcp) {
        // Enough connections to meet every real.
        for _ in 0..4 {
            for direction in [Direction::Up, Direction::Down] {
                bulk::transfer(&all.client().host, vip.at, direction, MIB)
                    .unwrap_or_else(|error| panic!("{}: {error:#}", vip.name));
            }
        }
    }
}

/// Sends a datagram of the full MTU until the client's kernel refuses it, and then some that fit.
fn learn_by_datagrams(client: &Host, at: SocketAddr, full: usize, fits: usize) {
    let socket = client.enter(|| UdpSocket::bind((unspecified_like(at.ip()), 0))).unwrap().unwrap();
    socket.connect(at).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    wait_until("the kernel to tell the sender that its datagrams are too big", LIMIT, || {
        let told = |error: &std::io::Error| error.raw_os_error() == Some(90 /* EMSGSIZE */);
        if let Err(error) = socket.send(&vec![1; full]) {
            assert!(told(&error), "{error}");
            return Ok(Some(()));
        }
        match socket.recv(&mut [0; 2048]) {
            Err(error) if told(&error) => Ok(Some(())),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                Ok(None)
            }
            Ok(_) => panic!("{full} bytes came through"),
        }
    })
    .unwrap();
    let visits = visit(client, Protocol::Udp, at, 4, &vec![2; fits], LIMIT).unwrap();
    assert_eq!(visits.failed, Vec::<String>::new(), "{fits} bytes");
}

#[test]
fn a_packet_that_does_not_fit_the_tunnel_teaches_the_client_the_size_that_does() {
    // Two clients, as each remembers what it has learnt.
    let net = Topology::builder().clients(2).reals(3).build().unwrap();
    let all = deploy(net, Encapsulation::Gue);
    transfer_both_ways(&all);
    let client = &all.net.clients[1].host;
    for vip in all.cluster.vips.iter().filter(|vip| vip.protocol == Protocol::Udp) {
        let header = if vip.at.is_ipv4() { 28 } else { 48 };
        let overhead = if vip.reals[0].1.is_ipv4() { 32 } else { 52 };
        learn_by_datagrams(client, vip.at, 1500 - header, 1500 - header - overhead);
    }
    let sent = all.node.metrics().unwrap().sum("drover_packets_total", &[("outcome", "too_big_sent")]);
    assert!(sent > Some(0.0), "{sent:?}");
}

#[test]
fn a_router_behind_the_node_teaches_it_the_path_mtu_of_its_tunnels() {
    for encapsulation in [Encapsulation::Gue, Encapsulation::Ipip] {
        let net = Topology::builder().reals(2).real_mtu(1400).build().unwrap();
        let all = deploy(net, encapsulation);
        transfer_both_ways(&all);
        for vip in all.cluster.vips.iter().filter(|vip| vip.protocol == Protocol::Udp) {
            let header = if vip.at.is_ipv4() { 28 } else { 48 };
            let tunnel = if encapsulation == Encapsulation::Gue { 12 } else { 0 };
            let overhead = tunnel + if vip.reals[0].1.is_ipv4() { 20 } else { 40 };
            let visits = visit(
                &all.client().host,
                Protocol::Udp,
                vip.at,
                8,
                &vec![3; 1400 - header - overhead],
                LIMIT,
            );
            assert_eq!(visits.unwrap().failed, Vec::<String>::new(), "{}", vip.name);
        }
    }
}

#[test]
fn a_router_before_the_client_is_heard_by_the_real_that_holds_the_connection() {
    let net = Topology::builder().reals(3).build().unwrap();
    // Only what the router forwards to the client is limited, as by a narrow link behind it.
    let client = &net.clients[0];
    net.router.ip(&format!("route add {}/32 dev c1 mtu lock 1300", client.v4)).unwrap();
    net.router.ip(&format!("route add {}/128 dev c1 mtu lock 1300", client.v6)).unwrap();
    let all = deploy(net, Encapsulation::Gue);
    transfer_both_ways(&all);
    let metrics = all.node.metrics().unwrap();
    for vip in ["tcp-v4-to-v4", "tcp-v6-to-v4"] {
        let followed = metrics.sum("drover_real_icmp_errors_total", &[("vip", vip)]);
        assert!(followed > Some(0.0), "{vip}: {followed:?}");
    }
}
