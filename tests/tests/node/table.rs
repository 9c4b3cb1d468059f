//! Edits of the cluster file under traffic, and limits on new connections.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use drover_tests::{Cluster, Deployment, Family, Held, Protocol, Steady, Topology, Vip, visit, wait_until};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10));
const PORT: u16 = 7000;
const RATE: u32 = 2_000;
const FLOWS: u16 = 200;
const HELD: usize = 60;
/// Requests between two edits: half a second's worth, several for each flow.
const SOME: usize = 1_000;
const SOON: Duration = Duration::from_secs(10);

fn udp() -> SocketAddr {
    SocketAddr::new(VIP4, PORT)
}

fn tcp() -> SocketAddr {
    SocketAddr::new(VIP6, PORT)
}

fn deploy() -> Deployment {
    let net = Topology::builder().reals(4).build().unwrap();
    let vips = [
        Vip::new("udp", udp()).protocol(Protocol::Udp).reals(&net.reals[..3], Family::V4),
        Vip::new("tcp", tcp()).reals(&net.reals[..3], Family::V6),
    ];
    Deployment::start(net, Cluster::new(vips)).unwrap()
}

/// Edits both VIPs under traffic. No packet may be lost, and each flow may move once at most: from its old owner to
/// its new one. Returns the names between which flows moved.
fn swap(all: &mut Deployment, edit: impl Fn(&mut Vip)) -> BTreeSet<(String, String)> {
    let steady = Steady::start(&all.client().host, udp(), FLOWS, RATE).unwrap();
    steady.pass(SOME).unwrap();
    for name in ["udp", "tcp"] {
        edit(all.cluster.vip(name));
    }
    all.apply().unwrap();
    steady.pass(SOME).unwrap();
    let record = steady.stop().unwrap();
    record.assert_nothing_lost();
    let mut moves = BTreeSet::new();
    for owners in record.owners() {
        match owners[..] {
            [_] => {}
            [old, new] => drop(moves.insert((old.to_owned(), new.to_owned()))),
            _ => panic!("a flow went to and fro: {owners:?}"),
        }
    }
    moves
}

#[test]
fn edits_of_weights_and_reals_lose_no_packet_and_keep_connections_whose_slots_stay() {
    let mut all = deploy();
    let held = Held::open(&all.client().host, tcp(), HELD).unwrap();
    let before = held.whole();
    assert_eq!(before.len(), 3, "{before:?}");

    // A lower weight: flows leave this real, and none comes.
    let moves = swap(&mut all, |vip| vip.set_weight("real-1", 50));
    assert!(moves.iter().any(|(from, _)| from == "real-1"), "{moves:?}");
    assert!(moves.iter().all(|(_, to)| to != "real-1"), "{moves:?}");
    // One more real: flows go to it, and (rarely, as Maglev's way is) between the others.
    let fourth = (all.net.reals[3].v4, all.net.reals[3].v6);
    let moves = swap(&mut all, |vip| {
        let address = if vip.name == "udp" { fourth.0.into() } else { fourth.1.into() };
        vip.reals.push(("real-4".into(), address, 100));
    });
    assert!(moves.iter().any(|(_, to)| to == "real-4"), "{moves:?}");
    assert!(moves.iter().all(|(from, _)| from != "real-4"), "{moves:?}");

    // What moved has lost its connections; what did not move has kept them.
    held.settle().unwrap();
    let after = held.whole();
    let kept: usize = after.values().sum();
    assert!((HELD / 3..HELD).contains(&kept), "{before:?} became {after:?}");
    let survivors = Held::open(&all.client().host, tcp(), HELD).unwrap();
    let with_fourth = survivors.whole().get("real-4").copied().unwrap_or_default();
    assert!(with_fourth > 0);

    // The real is removed: its flows leave, and it had nothing to lose but its own. Where a table of Maglev's kind
    // moves some slots of others too, these are few.
    let others: usize = survivors.whole().iter().filter(|(name, _)| *name != "real-4").map(|(_, n)| n).sum();
    let moves = swap(&mut all, |vip| vip.reals.retain(|(name, ..)| name != "real-4"));
    assert!(moves.iter().all(|(_, to)| to != "real-4"), "{moves:?}");
    survivors.settle().unwrap();
    let after = survivors.whole();
    assert_eq!(after.get("real-4"), None, "their slots have gone to others, who know nothing of them");
    let kept: usize = after.values().sum();
    assert!(kept * 4 >= others * 3, "{kept} of {others} that were not the removed real's: {after:?}");
}

#[test]
fn an_edit_that_changes_nothing_about_a_vip_leaves_its_flows_where_they_are() {
    let mut all = deploy();
    let held = Held::open(&all.client().host, tcp(), HELD).unwrap();
    let steady = Steady::start(&all.client().host, udp(), FLOWS, RATE).unwrap();
    steady.pass(SOME).unwrap();
    let third = Vip::new("third", SocketAddr::new(VIP4, 7001)).reals(&all.net.reals[..2], Family::V4);
    all.cluster.vips.insert(0, third);
    all.apply().unwrap();
    steady.pass(SOME).unwrap();
    all.cluster.vips.remove(0);
    all.apply().unwrap();
    steady.pass(SOME).unwrap();
    let record = steady.stop().unwrap();
    record.assert_nothing_lost();
    assert!(record.owners().iter().all(|owners| owners.len() == 1), "{:?}", record.owners());
    held.assert_all_live();
}

#[test]
fn an_invalid_edit_is_refused_by_line_and_field_and_changes_nothing() {
    let mut all = deploy();
    let held = Held::open(&all.client().host, tcp(), HELD).unwrap();
    let steady = Steady::start(&all.client().host, udp(), FLOWS, RATE).unwrap();
    let file = all.net.nodes[0].host.dir().join("cluster.toml");
    // A sound change and an unsound one: neither is to take effect.
    all.cluster.vip("udp").set_weight("real-1", 1);
    all.cluster.vip("tcp").set_weight("real-2", 70_000);
    let text = all.cluster.text(&all.net.nodes[0]);
    let line = 1 + text.lines().position(|line| line.contains("70000")).unwrap();
    fs::write(&file, text).unwrap();

    let expected = format!("cluster.toml:{line}:10: vips.tcp.reals.real-2.weight: 70000 is not in 0..=65535");
    all.node.process().wait_for_line(&expected, SOON).unwrap();
    wait_until("the metrics to tell", SOON, || {
        Ok((all.node.metrics()?.sum("drover_config_valid", &[]) == Some(0.0)).then_some(()))
    })
    .unwrap();
    steady.pass(SOME).unwrap();
    let record = steady.stop().unwrap();
    record.assert_nothing_lost();
    assert!(record.owners().iter().all(|owners| owners.len() == 1), "{:?}", record.owners());
    held.assert_all_live();
    assert_eq!(all.node.get("/readyz").unwrap().0, 200);

    all.cluster.vip("tcp").set_weight("real-2", 100);
    all.apply().unwrap();
    let metrics = all.node.metrics().unwrap();
    assert_eq!(metrics.sum("drover_config_valid", &[]), Some(1.0));
    assert_eq!(metrics.sum("drover_real_weight", &[("vip", "udp"), ("real", "real-1")]), Some(1.0));
}

#[test]
fn connections_beyond_the_limit_are_refused_and_those_within_it_go_on() {
    const BURST: usize = 20;
    const PREFIX_BURST: usize = 10;
    let at = |port| SocketAddr::new(VIP4, port);
    let net = Topology::builder().clients(2).reals(2).build().unwrap();
    let vips = [
        Vip::new("whole", at(7000))
            .limits(&format!("connections_per_second = 5\nburst = {BURST}"))
            .reals(&net.reals, Family::V4),
        Vip::new("prefix", at(7001))
            .limits(&format!("connections_per_second_per_prefix = 5\nprefix_burst = {PREFIX_BURST}"))
            .reals(&net.reals, Family::V4),
    ];
    let all = Deployment::start(net, Cluster::new(vips)).unwrap();
    // For those who are let in. The kernels of the others try again meanwhile, and some get in by the rate.
    let patience = Duration::from_secs(2);
    let storm = |client: usize, port, burst: usize| {
        let started = Instant::now();
        let visits =
            visit(&all.net.clients[client].host, Protocol::Tcp, at(port), 64, b"let me in", patience)
                .unwrap();
        let served: usize = visits.served.values().sum();
        // What the rate allows while the storm lasts, and one for the moment of its beginning.
        let allowed = burst + 1 + usize::try_from(started.elapsed().as_millis() * 5 / 1000).unwrap();
        assert!((burst..=allowed).contains(&served), "{served} of {burst}..={allowed}: {:?}", visits.failed);
        assert!(visits.failed.iter().all(|why| why.starts_with("connecting")), "{:?}", visits.failed);
    };

    let held = Held::open(&all.client().host, at(7000), 5).unwrap();
    storm(0, 7000, BURST - 5);
    held.assert_all_live();
    let refused = |metrics: &drover_tests::Metrics, vip, reason| {
        metrics.sum("drover_drops_total", &[("vip", vip), ("reason", reason)]).unwrap_or_default()
    };
    let metrics = all.node.metrics().unwrap();
    assert!(refused(&metrics, "whole", "rate_limited") >= 20.0);
    assert_eq!(refused(&metrics, "prefix", "prefix_rate_limited"), 0.0);

    // The clients' prefixes differ: each has its own allowance.
    storm(0, 7001, PREFIX_BURST);
    storm(1, 7001, PREFIX_BURST);
    assert!(refused(&all.node.metrics().unwrap(), "prefix", "prefix_rate_limited") >= 40.0);
}
