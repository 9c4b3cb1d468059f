//! The probes' own route, on a real kernel: a node and what stands at the other end of its cable.

use crate::lab::Host;
use dataplane::nexthop::sources::Sources;
use dataplane::probe_route::{self, ProbeRoute, RouteProblem};
use lb_ebpf::lb::PROBE_MARK;
use socket2::{Domain, SockAddr, Socket, Type};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use zk_schema::{CheckKind, Desired, HealthCheck, Protocol, Vip, VipState};

const VIP4: &str = "198.51.100.10";
const VIP6: &str = "2001:db8:51::10";
const PORT: u16 = 1883;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The VIPs, probed through the tunnel.
fn desired() -> Desired {
    let mut desired = Desired::default();
    for (name, address) in [("v4", VIP4), ("v6", VIP6)] {
        let mut vip = Vip::new(ip(address), PORT, Protocol::Tcp);
        vip.health = Some(HealthCheck::new(CheckKind::Tcp));
        let name = name.parse().expect("a name");
        desired.vips.insert(name, VipState { vip, reals: [].into() });
    }
    desired
}

/// A node without any route to the VIPs, and a host that has them and takes frames for the gateway that is
/// none. It stands for the egress program, which would see the same frames.
fn cable() -> (Host, Host) {
    let (node, other) = (Host::new(), Host::new());
    node.cable("front", &other, "eth");
    node.address("front", &["10.77.0.1/24", "fd77::1/64"]);
    other.ip("link set eth address 02:00:00:00:55:80");
    other.address("eth", &["10.77.0.2/24", "fd77::2/64"]);
    other.ip(&format!("address add {VIP4}/32 dev lo"));
    other.ip(&format!("address add {VIP6}/128 dev lo nodad"));
    (node, other)
}

fn listen(host: &Host) -> Vec<std::net::TcpListener> {
    let (sender, receiver) = std::sync::mpsc::channel();
    host.run(async move {
        for vip in [VIP4, VIP6] {
            let listener = std::net::TcpListener::bind(SocketAddr::new(ip(vip), PORT)).expect("a listener");
            sender.send(listener).expect("the test listens");
        }
    });
    receiver.into_iter().collect()
}

/// Connects as a probe does, and tells the own address of the connection. A fresh link may lose the first
/// packets, so silence (unlike a refusal) is asked again.
fn probe(vip: &str, mark: Option<u32>) -> std::io::Result<IpAddr> {
    let mut last = connect(vip, mark);
    for _ in 0..4 {
        match &last {
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => last = connect(vip, mark),
            _ => break,
        }
    }
    last
}

fn connect(vip: &str, mark: Option<u32>) -> std::io::Result<IpAddr> {
    let address = SocketAddr::new(ip(vip), PORT);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.connect_timeout(&SockAddr::from(address), Duration::from_secs(3))?;
    Ok(socket.local_addr()?.as_socket().expect("an IP socket").ip())
}

#[test]
fn marked_connections_leave_by_the_front_whatever_the_routing_table_says() {
    let (node, other) = cable();
    let _listeners = listen(&other);
    // Neither on the link nor by a router, and for IPv6 by a way that leads nowhere.
    node.ip(&format!("route add blackhole {VIP6}/128"));
    node.run(async {
        let route = ProbeRoute::new("front", Sources::default()).expect("a route");
        // A second time, as the daemon does it again and again.
        for _ in 0..2 {
            assert_eq!(route.ensure(&desired()).await.expect("the kernel agrees"), [].into());
        }
        for (vip, source) in [(VIP4, "10.77.0.1"), (VIP6, "fd77::1")] {
            assert!(probe(vip, None).is_err(), "{vip} is not to be reached without the mark");
            assert_eq!(probe(vip, Some(PROBE_MARK | 7)).expect(vip), ip(source));
            assert!(probe(vip, Some(0x0100_0007)).is_err(), "other marks are other people's");
        }
    });
    for family in ["-4", "-6"] {
        let rules = node.output(&[family, "rule", "list"]);
        assert_eq!(rules.matches("lookup 5580").count(), 1, "{rules}");
    }

    // The kernel forgets routes and neighbours of a link that was down.
    node.batch("link set front down\nlink set front up\n");
    node.address("front", &["fd77::1/64"]);
    node.run(async {
        let route = ProbeRoute::new("front", Sources::default()).expect("a route");
        route.ensure(&desired()).await.expect("the kernel agrees");
        assert_eq!(probe(VIP4, Some(PROBE_MARK | 7)).expect(VIP4), ip("10.77.0.1"));

        assert!(probe_route::remove().await.expect("the kernel agrees"));
        assert!(!probe_route::remove().await.expect("the kernel agrees"), "nothing is left to remove");
        assert!(probe(VIP4, Some(PROBE_MARK | 7)).is_err());
    });
    for family in ["-4", "-6"] {
        assert!(!node.output(&[family, "rule", "list"]).contains("5580"));
        assert!(!node.output(&[family, "route", "show", "table", "all"]).contains("5580"));
        // By address: the other host's own entry, which the kernel may have learnt, has the same MAC here.
        let neighbours = node.output(&[family, "neighbour", "show", "nud", "all"]);
        assert!(
            !neighbours.contains("169.254.58.80") && !neighbours.contains("fe80::64:5580"),
            "{neighbours}"
        );
    }
}

#[test]
fn a_source_that_operators_chose_is_kept_and_a_vip_on_the_node_itself_is_told_of() {
    let (node, other) = cable();
    let _listeners = listen(&other);
    node.ip("address add 192.0.2.7/32 dev lo");
    other.ip("route add 192.0.2.7/32 via 10.77.0.1");
    node.ip(&format!("address add {VIP6}/128 dev lo nodad"));
    node.run(async {
        let chosen = Sources { v4: Some([192, 0, 2, 7].into()), v6: None };
        let route = ProbeRoute::new("front", chosen).expect("a route");
        let obstacles = route.ensure(&desired()).await.expect("the kernel agrees");
        let vip = "v6".parse().expect("a name");
        assert_eq!(obstacles, [RouteProblem::Local { vip, address: ip(VIP6) }].into());
        assert_eq!(probe(VIP4, Some(PROBE_MARK | 1)).expect(VIP4), ip("192.0.2.7"));
    });
}

#[test]
fn nothing_is_changed_for_vips_that_are_not_probed_through_the_tunnel() {
    let (node, _other) = cable();
    node.run(async {
        let route = ProbeRoute::new("front", Sources::default()).expect("a route");
        let mut desired = desired();
        for state in desired.vips.values_mut() {
            state.vip.health = None;
        }
        assert_eq!(route.ensure(&desired).await.expect("the kernel agrees"), [].into());
        assert!(!probe_route::remove().await.expect("the kernel agrees"));
    });
}
