//! What an operator sees and does: pings, traces, the admin pages, generic mode, taking a node out of service.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use drover_tests::{
    Cluster, Deployment, Encapsulation, Family, Host, LbNode, Protocol, Topology, Vip, visit, wait_until,
};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10));
const VIPS: [IpAddr; 2] = [VIP4, VIP6];
const PORT: u16 = 7000;
/// So many new flows that neither real is missed by chance.
const FLOWS: usize = 30;
const LIMIT: Duration = Duration::from_secs(5);

fn cluster(net: &Topology) -> Cluster {
    let mut vips = Vec::new();
    for address in VIPS {
        for (protocol, encapsulation) in
            [(Protocol::Tcp, Encapsulation::Gue), (Protocol::Udp, Encapsulation::Ipip)]
        {
            let name = format!("{protocol}-{}", Family::of(address));
            let vip = Vip::new(name, SocketAddr::new(address, PORT)).protocol(protocol);
            vips.push(vip.encapsulation(encapsulation).reals(&net.reals, Family::of(address)));
        }
    }
    Cluster::new(vips)
}

fn deploy() -> Deployment {
    let net = Topology::builder().reals(2).build().unwrap();
    let cluster = cluster(&net);
    Deployment::start(net, cluster).unwrap()
}

fn assert_served(all: &Deployment) {
    for vip in &all.cluster.vips {
        let visits = visit(&all.client().host, vip.protocol, vip.at, FLOWS, b"hello", LIMIT).unwrap();
        assert_eq!(
            (visits.servers(), &visits.failed),
            (vec!["real-1", "real-2"], &Vec::new()),
            "{}",
            vip.name
        );
    }
}

/// Sends a datagram with this TTL and returns who says that it was used up; `None` if the server answers.
fn who_ends(client: &Host, vip: IpAddr, ttl: u32) -> Option<IpAddr> {
    // ICMP messages come with their IP header in IPv4, and without in IPv6.
    let (domain, icmp, header, time_exceeded) = match vip {
        IpAddr::V4(_) => (Domain::IPV4, SocketProtocol::ICMPV4, 20, 11),
        IpAddr::V6(_) => (Domain::IPV6, SocketProtocol::ICMPV6, 0, 3),
    };
    let open = |kind, protocol| -> io::Result<UdpSocket> {
        let socket = Socket::new(domain, kind, Some(protocol))?;
        match vip {
            IpAddr::V4(_) => socket.set_ttl_v4(ttl)?,
            IpAddr::V6(_) => socket.set_unicast_hops_v6(ttl)?,
        }
        socket.set_nonblocking(true)?;
        // The standard library's sockets receive whatever a socket receives.
        Ok(socket.into())
    };
    let errors = client.enter(|| open(Type::RAW, icmp)).unwrap().unwrap();
    let probe = client.enter(|| open(Type::DGRAM, SocketProtocol::UDP)).unwrap().unwrap();
    probe.send_to(b"how far?", (vip, PORT)).unwrap();
    let mut buffer = [0; 1500];
    wait_until(format!("an answer to a packet with TTL {ttl} to {vip}"), LIMIT, || {
        if probe.recv(&mut buffer).is_ok() {
            return Ok(Some(None));
        }
        let expired = errors.recv_from(&mut buffer).ok().filter(|_| buffer[header] == time_exceeded);
        Ok(expired.map(|(_, from)| Some(from.ip())))
    })
    .unwrap()
}

#[test]
fn a_vip_answers_pings() {
    let all = deploy();
    for vip in VIPS {
        for size in ["0", "56", "1400"] {
            let output =
                all.client().host.run(["ping", "-c3", "-i0.05", "-W2", "-s", size, &vip.to_string()]);
            assert!(output.unwrap().contains("3 received"), "{vip} {size}");
        }
    }
    let answered = all.node.metrics().unwrap().sum("drover_packets_total", &[("outcome", "echo_answered")]);
    assert_eq!(answered, Some(18.0));
}

#[test]
fn a_trace_to_the_vip_shows_the_router_then_the_vip_for_the_node_then_the_server() {
    let all = deploy();
    let client = &all.client().host;
    for (vip, router) in [(VIP4, "10.1.1.1"), (VIP6, "2001:db8:1:1::1")] {
        assert_eq!(who_ends(client, vip, 1), Some(router.parse().unwrap()));
        assert_eq!(who_ends(client, vip, 2), Some(vip));
        assert_eq!(who_ends(client, vip, 3), None);
    }
}

#[test]
fn the_admin_pages_tell_what_goes_on() {
    let all = deploy();
    assert_served(&all);
    for page in ["/healthz", "/readyz"] {
        wait_until(page, LIMIT, || Ok((all.node.get(page)?.0 == 200).then_some(()))).unwrap();
    }
    let (code, status) = all.node.get("/status").unwrap();
    assert_eq!(code, 200);
    for word in ["\"udp-v6\"", "\"real-1\"", "\"healthy\":true", "\"ready\":true"] {
        assert!(status.contains(word), "{word} is not in {status}");
    }
    assert_eq!(all.node.get("/nothing").unwrap().0, 404);

    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let flows = FLOWS as f64;
    let metrics = all.node.metrics().unwrap();
    for vip in &all.cluster.vips {
        let of_vip = [("vip", vip.name.as_str())];
        let packets = metrics.sum("drover_real_packets_total", &of_vip).unwrap();
        let connections = metrics.sum("drover_real_new_connections_total", &of_vip).unwrap();
        match vip.protocol {
            Protocol::Udp => assert_eq!((packets, connections), (flows, 0.0), "{}", vip.name),
            // SYN, ACK, data and what closes: at least four.
            Protocol::Tcp => {
                assert!(packets >= 4.0 * flows && connections >= flows, "{}: {packets}", vip.name);
            }
        }
    }
    let decapsulated = |labels: &[(&str, &str)]| -> f64 {
        let reals = all.reals.iter();
        reals.filter_map(|real| real.metrics().unwrap().sum("drover_decap_packets_total", labels)).sum()
    };
    assert_eq!(decapsulated(&[("encapsulation", "ipip"), ("inner", "ipv4")]), flows);
    assert_eq!(decapsulated(&[("encapsulation", "ipip"), ("inner", "ipv6")]), flows);
    // The last packets of closing connections may still be under way.
    wait_until("the reals to have got what the node has sent", LIMIT, || {
        let sent = all.node.metrics()?.sum("drover_real_packets_total", &[]);
        Ok((Some(decapsulated(&[])) == sent).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_detached_node_leaves_nothing_behind_and_can_return() {
    let mut all = deploy();
    let node = all.net.nodes[0].clone();
    let program = |host: &Host| host.ip("-d link show dev eth0").unwrap().contains("prog/xdp");
    let filters = |host: &Host| host.run(["tc", "filter", "show", "dev", "eth0", "egress"]).unwrap();
    assert!(program(&node.host));

    all.node.process().terminate(LIMIT).unwrap();
    assert!(program(&node.host), "forwarding goes on without the daemon");
    assert_served(&all);

    LbNode::detach(&node).unwrap();
    assert!(!program(&node.host));
    assert_eq!(filters(&node.host).trim(), "");
    let left: Vec<_> = match fs::read_dir(node.host.bpffs()) {
        Ok(listing) => listing.map(|entry| entry.unwrap().path()).collect(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotFound);
            Vec::new()
        }
    };
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    // Once more does no harm.
    LbNode::detach(&node).unwrap();

    for (number, real) in all.net.reals.iter().enumerate() {
        all.reals[number].process().kill().unwrap();
        LbNode::detach(real).unwrap();
        assert!(!program(&real.host));
        let loopback = real.host.ip("address show dev lo").unwrap();
        assert!(!loopback.contains("198.51.100.10") && !loopback.contains("2001:db8:100::10"), "{loopback}");
    }
    fs::create_dir_all(node.host.bpffs()).unwrap();
    for number in 0..all.net.reals.len() {
        all.restart_real(number).unwrap();
    }
    all.restart_node().unwrap();
    assert_served(&all);
}

#[test]
fn generic_mode_forwards_all_the_same() {
    let net = Topology::builder().reals(2).build().unwrap();
    let mut cluster = cluster(&net);
    cluster.node_settings = "xdp_mode = \"generic\"".into();
    let all = Deployment::start(net, cluster).unwrap();
    assert!(all.station().host.ip("-d link show dev eth0").unwrap().contains("xdpgeneric"));
    assert_served(&all);
    assert_eq!(all.node.metrics().unwrap().sum("drover_xdp_native", &[]), Some(0.0));
}

#[test]
fn an_interface_without_native_xdp_is_served_in_generic_mode_with_a_warning() {
    let mut net = Topology::builder().reals(2).build().unwrap();
    // A bridge has no native XDP. The node's own interface becomes its only port.
    let node = &mut net.nodes[0];
    let (host, v4, v6) = (node.host.clone(), node.v4, node.v6);
    for words in [
        "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        "address flush dev eth0",
        "link set eth0 master br0",
        &format!("address add {v4}/24 dev br0"),
        &format!("address add {v6}/64 dev br0 nodad"),
        "link set br0 up",
        "route add default via 10.2.1.1",
        "-6 route replace default via 2001:db8:2:1::1",
    ] {
        host.ip(words).unwrap();
    }
    node.interface = "br0";
    let cluster = cluster(&net);
    let mut all = Deployment::start(net, cluster).unwrap();
    assert!(host.ip("-d link show dev br0").unwrap().contains("xdpgeneric"));
    assert_served(&all);
    let log = all.node.process().log().unwrap();
    let warned = |line: &str| line.contains("WARN") && line.contains("br0") && line.contains("generic");
    assert!(log.lines().any(warned), "{log}");
    assert_eq!(all.node.metrics().unwrap().sum("drover_xdp_native", &[]), Some(0.0));
}

#[test]
fn a_node_whose_interface_is_gone_says_so_and_ends_so_that_it_is_started_anew() {
    let mut all = deploy();
    assert_served(&all);
    let interface = all.station().interface;
    assert_eq!(all.node.metrics().unwrap().sum("drover_attached", &[]), Some(1.0));
    all.station().host.ip(&format!("link del {interface}")).unwrap();
    let ended = all.node.process().wait(LIMIT).unwrap();
    let log = all.node.process().log().unwrap();
    assert!(!ended.success(), "{log}");
    assert!(log.contains(&format!("interface {interface} is gone")), "{log}");
}
