//! Daemons that die, stop and start again under traffic. What they leave in the kernel goes on forwarding.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use drover_tests::{Cluster, Deployment, Encapsulation, Family, Held, Protocol, Steady, Topology, Vip};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10));
const PORT: u16 = 7000;
const RATE: u32 = 2_000;
const FLOWS: u16 = 64;
const HELD: usize = 30;
/// Requests before and after each event: half a second's worth.
const SOME: usize = 1_000;
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// UDP over IPv4 and TCP over IPv6, with health checks, so that a restart has verdicts to find anew.
fn deploy() -> Deployment {
    let net = Topology::builder().reals(3).build().unwrap();
    let udp = Vip::new("udp", SocketAddr::new(VIP4, PORT))
        .protocol(Protocol::Udp)
        .health("type = \"tcp\"\nport = 7000\ninterval_ms = 200\npath = \"direct\"")
        .reals(&net.reals, Family::V4);
    let tcp = Vip::new("tcp", SocketAddr::new(VIP6, PORT))
        .encapsulation(Encapsulation::Ipip)
        .health("type = \"tcp\"\ninterval_ms = 200")
        .reals(&net.reals, Family::V4);
    Deployment::start(net, Cluster::new([udp, tcp])).unwrap()
}

/// Runs `event` under traffic, and panics if a packet was lost, moved, or a connection broke.
fn unnoticed(all: &mut Deployment, event: impl FnOnce(&mut Deployment, &Steady)) {
    let client = &all.client().host;
    let held = Held::open(client, SocketAddr::new(VIP6, PORT), HELD).unwrap();
    assert_eq!(held.whole().len(), 3, "{:?}", held.whole());
    let steady = Steady::start(client, SocketAddr::new(VIP4, PORT), FLOWS, RATE).unwrap();
    steady.pass(SOME).unwrap();

    event(all, &steady);

    steady.pass(SOME).unwrap();
    held.assert_all_live();
    let record = steady.stop().unwrap();
    record.assert_nothing_lost();
    assert!(record.owners().iter().all(|owners| owners.len() == 1), "flows moved: {:?}", record.owners());
    assert!(record.sent >= 3 * SOME, "{}", record.sent);
}

#[test]
fn a_node_that_is_killed_and_started_again_loses_no_packet_and_breaks_no_connection() {
    let mut all = deploy();
    unnoticed(&mut all, |all, steady| {
        for _ in 0..2 {
            all.node.process().kill().unwrap();
            steady.pass(SOME).unwrap();
            all.restart_node().unwrap();
            steady.pass(SOME).unwrap();
        }
    });
}

#[test]
fn a_node_that_is_stopped_and_started_again_loses_no_packet_and_breaks_no_connection() {
    let mut all = deploy();
    unnoticed(&mut all, |all, steady| {
        let status = all.node.process().terminate(STOP_LIMIT).unwrap();
        assert!(status.success(), "{status}");
        steady.pass(SOME).unwrap();
        all.restart_node().unwrap();
    });
}

#[test]
fn a_real_whose_daemon_is_killed_or_stopped_and_started_again_loses_no_packet() {
    let mut all = deploy();
    unnoticed(&mut all, |all, steady| {
        all.reals[0].process().kill().unwrap();
        steady.pass(SOME).unwrap();
        all.restart_real(0).unwrap();
        steady.pass(SOME).unwrap();
        let status = all.reals[1].process().terminate(STOP_LIMIT).unwrap();
        assert!(status.success(), "{status}");
        steady.pass(SOME).unwrap();
        all.restart_real(1).unwrap();
    });
}
