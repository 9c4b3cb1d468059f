//! Next hops against a real kernel: a balancer, reals and routers.

use crate::lab::{self, Host, follow, mac, until, until_problem, v4_packet, v6_packet};
use dataplane::nexthop::resolve::Problem;
use dataplane::nexthop::sources::{Interface, InterfaceError, Sources, interface};
use dataplane::nexthop::{NextHop, NextHops, Obstacle, pmtu};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use zk_schema::Encapsulation;

const REAL4: &str = "10.77.0.2";
const REAL6: &str = "fd77::2";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Returns `false`: a veth takes redirected frames only while its peer has NAPI, which it has not by default.
fn takes_redirects(_: &Interface) -> bool {
    false
}

/// A balancer and a host on one segment: `front` with .1, `eth` with .2.
fn segment() -> (Host, Host) {
    let (balancer, host) = (Host::new(), Host::new());
    balancer.cable("front", &host, "eth");
    balancer.address("front", &["10.77.0.1/24", "fd77::1/64"]);
    host.address("eth", &["10.77.0.2/24", "fd77::2/64"]);
    (balancer, host)
}

async fn front() -> Interface {
    interface("front").await.expect("the front interface")
}

#[test]
fn the_front_interface_is_found_with_its_addresses() {
    let (balancer, _host) = segment();
    balancer.ip("address add 10.77.0.9/24 dev front");
    balancer.run(async {
        let sources =
            Sources { v4: Some([10, 77, 0, 1].into()), v6: Some("fd77::1".parse().expect("an address")) };
        let found = front().await;
        assert_eq!((found.sources, found.mtu, found.mac), (sources, 1500, mac(&balancer, "front")));
        let error = interface("eth7").await.expect_err("no eth7");
        assert!(
            matches!(&error, InterfaceError::Missing { existing, .. } if existing.contains("front")),
            "{error}"
        );
    });
}

#[test]
fn reals_on_the_link_are_resolved_and_their_announced_mac_change_is_followed() {
    let (balancer, host) = segment();
    host.sysctl("ipv4/conf/eth/arp_notify", "1");
    host.sysctl("ipv6/conf/eth/ndisc_notify", "1");
    balancer.run(async {
        let front = front().await;
        let mut follower = follow(front.index, &[REAL4, REAL6]).await;
        for destination_mac in [mac(&host, "eth"), [2, 0, 0, 0, 0, 0x99]] {
            host.ip(&format!("link set eth address {}", lab::colons(destination_mac)));
            let expected = NextHop {
                ifindex: front.index,
                source_mac: front.mac,
                destination_mac,
                vlan: None,
                mtu: 1500,
                on_link: true,
                takes_redirects: takes_redirects(&front),
            };
            let both = [(ip(REAL4), expected), (ip(REAL6), expected)].into();
            until(&mut follower, |hops| *hops == both).await;
        }
    });
}

#[test]
fn a_mac_change_that_nobody_announces_is_noticed() {
    let (balancer, host) = segment();
    // As it would be half a minute later by default. (An entry whose reachable time is below the delay
    // would never go stale, since Linux counts its own confirmation as use.)
    balancer.sysctl("ipv4/neigh/front/base_reachable_time_ms", "3000");
    balancer.sysctl("ipv4/neigh/front/delay_first_probe_time", "1");
    balancer.run(async {
        let mut follower = follow(front().await.index, &[REAL4]).await;
        until(&mut follower, |hops| hops.contains_key(&ip(REAL4))).await;
        // Once it is stale, the kernel by itself would never look again.
        lab::eventually(|| balancer.output(&["neigh", "show", REAL4]).contains("STALE")).await;
        host.ip("link set eth address 02:00:00:00:00:99");
        until(&mut follower, |hops| hops[&ip(REAL4)].destination_mac == [2, 0, 0, 0, 0, 0x99]).await;
    });
}

#[test]
fn a_route_is_followed_from_gateway_to_gateway_and_its_last_next_hop_outlives_it() {
    let (balancer, first) = segment();
    let second = Host::new();
    balancer.cable("back", &second, "eth");
    balancer.address("back", &["10.78.0.1/24"]);
    second.address("eth", &["10.78.0.2/24"]);
    balancer.ip("route add 10.99.0.0/24 via 10.77.0.2");
    balancer.ip("route add 10.98.0.0/24 via inet6 fd77::2 mtu 1300");
    let (far, crossed) = (ip("10.99.0.5"), ip("10.98.0.5"));
    balancer.run(async {
        let front = front().await;
        let back = interface("back").await.expect("the second interface");
        let mut follower = follow(front.index, &["10.99.0.5", "10.98.0.5"]).await;
        let by = |interface: &Interface, router: &Host, mtu| NextHop {
            ifindex: interface.index,
            source_mac: interface.mac,
            destination_mac: mac(router, "eth"),
            vlan: None,
            mtu,
            on_link: false,
            takes_redirects: takes_redirects(interface),
        };
        until(&mut follower, |hops| hops.get(&far) == Some(&by(&front, &first, 1500))).await;
        until(&mut follower, |hops| hops.get(&crossed) == Some(&by(&front, &first, 1300))).await;

        balancer.ip("route replace 10.99.0.0/24 via 10.78.0.2");
        until(&mut follower, |hops| hops.get(&far) == Some(&by(&back, &second, 1500))).await;

        balancer.ip("rule add to 10.99.0.5 lookup 77");
        balancer.ip("route add default via 10.77.0.2 mtu 1400 table 77");
        until(&mut follower, |hops| hops.get(&far) == Some(&by(&front, &first, 1400))).await;

        balancer.ip("route replace blackhole default table 77");
        until_problem(&mut follower, far, |problem| *problem == Problem::Blackhole).await;
        balancer.ip("rule del to 10.99.0.5 lookup 77");
        balancer.ip("route del 10.99.0.0/24");
        until_problem(&mut follower, far, |problem| *problem == Problem::NoRoute).await;
        let kept = follower.next_hops.borrow().get(&far).copied();
        assert!(kept.is_some(), "the last next hop stays");
    });
}

#[test]
fn an_interface_takes_redirected_frames_as_soon_as_its_driver_can() {
    let (balancer, host) = segment();
    balancer.run(async {
        let mut follower = follow(front().await.index, &[REAL4]).await;
        let takes = |expected| {
            move |hops: &NextHops| hops.get(&ip(REAL4)).is_some_and(|hop| hop.takes_redirects == expected)
        };
        until(&mut follower, takes(false)).await;
        // The peer of a veth with NAPI has somewhere to put such frames.
        host.ethtool(&["-K", "eth", "gro", "on"]);
        balancer.ip("link set front txqueuelen 999");
        until(&mut follower, takes(true)).await;
    });
}

#[test]
fn a_real_behind_a_gateway_is_not_on_the_link_and_becomes_so_when_its_connected_route_goes() {
    let (balancer, host) = segment();
    balancer.ip("route add default via 10.77.0.2");
    host.address("eth", &["10.80.0.9/24"]);
    balancer.address("front", &["10.80.0.1/24"]);
    balancer.run(async {
        let front = front().await;
        let mut follower = follow(front.index, &["10.80.0.9"]).await;
        let real = ip("10.80.0.9");
        until(&mut follower, |hops| hops.get(&real).is_some_and(|hop| hop.on_link)).await;
        balancer.ip("address del 10.80.0.1/24 dev front");
        until(&mut follower, |hops| hops.get(&real).is_some_and(|hop| !hop.on_link)).await;
        let hop = follower.next_hops.borrow()[&real];
        assert_eq!(hop.obstacle(Encapsulation::L2, front.index, true), Some(Obstacle::NotOnLink));
        assert_eq!(hop.obstacle(Encapsulation::Gue, front.index, true), None);
    });
}

#[test]
fn a_vlan_device_is_resolved_to_the_interface_below_and_its_tag() {
    let (balancer, host) = segment();
    if !balancer.knows_vlans() {
        println!("this kernel is built without 802.1Q VLAN devices: nothing to resolve");
        return;
    }
    for (end, device, address) in [(&balancer, "front", "10.79.0.1/24"), (&host, "eth", "10.79.0.2/24")] {
        end.ip(&format!("link add link {device} name tagged type vlan id 7"));
        end.address("tagged", &[address]);
    }
    balancer.ip("link set tagged address 02:00:00:00:00:07 mtu 1480");
    balancer.run(async {
        let front = front().await;
        let mut follower = follow(front.index, &["10.79.0.2"]).await;
        let expected = NextHop {
            ifindex: front.index,
            source_mac: [2, 0, 0, 0, 0, 7],
            destination_mac: mac(&host, "tagged"),
            vlan: Some(7),
            mtu: 1480,
            on_link: true,
            takes_redirects: takes_redirects(&front),
        };
        until(&mut follower, |hops| hops.get(&ip("10.79.0.2")) == Some(&expected)).await;
    });
}

#[test]
fn a_neighbour_that_falls_silent_keeps_its_mac_until_it_has_another() {
    let (balancer, host) = segment();
    balancer.run(async {
        let mut follower = follow(front().await.index, &[REAL4]).await;
        until(&mut follower, |hops| hops.contains_key(&ip(REAL4))).await;
        let before = follower.next_hops.borrow()[&ip(REAL4)];

        host.ip("address del 10.77.0.2/24 dev eth");
        balancer.ip("neigh flush dev front");
        until_problem(&mut follower, ip(REAL4), |problem| matches!(problem, Problem::NeighbourFailed { .. }))
            .await;
        assert_eq!(follower.next_hops.borrow().get(&ip(REAL4)), Some(&before));

        host.ip("link set eth address 02:00:00:00:00:98");
        host.ip("address add 10.77.0.2/24 dev eth");
        until(&mut follower, |hops| hops[&ip(REAL4)].destination_mac == [2, 0, 0, 0, 0, 0x98]).await;
        follower.problems.wait_for(|problems| problems.is_empty()).await.expect("published");
    });
}

#[test]
fn addresses_that_no_wire_leads_to_are_reported() {
    let (balancer, _host) = segment();
    balancer.ip("route add blackhole 10.96.0.0/24");
    balancer.ip("route add unreachable fd96::/64");
    balancer.ip("route add prohibit 10.95.0.0/24");
    balancer.run(async {
        let cases = [
            ("10.77.0.1", Problem::Local),
            ("fd77::1", Problem::Local),
            ("127.0.0.1", Problem::Local),
            ("10.77.0.255", Problem::NotUnicast),
            ("10.96.0.1", Problem::Blackhole),
            ("fd96::1", Problem::NoRoute),
            ("10.95.0.1", Problem::Prohibited),
            ("192.0.2.1", Problem::NoRoute),
            ("2001:db8::1", Problem::NoRoute),
        ];
        let follower = follow(front().await.index, &cases.clone().map(|(address, _)| address)).await;
        let expected = cases.map(|(address, problem)| (ip(address), problem)).into();
        assert_eq!(**follower.problems.borrow(), expected);
        assert!(follower.next_hops.borrow().is_empty());
    });
}

#[test]
fn a_flood_of_route_changes_that_overruns_the_socket_hides_no_change() {
    let (balancer, _host) = segment();
    let real = ip(REAL4);
    balancer.run(async {
        let mut follower = follow(front().await.index, &[REAL4]).await;
        until(&mut follower, |hops| hops.contains_key(&real)).await;
        // This thread is the runtime's only one: nothing reads the socket while `ip` runs.
        let (mut flood, mac) = (String::new(), [2, 0, 0, 0, 0, 0x97]);
        for index in 0..5000 {
            flood += &format!("route add 10.100.{}.{}/32 dev front\n", index / 250, index % 250);
        }
        flood += "route add 10.77.0.2/32 dev front mtu 1350\n";
        flood += &format!("neigh replace {REAL4} lladdr {} dev front\n", lab::colons(mac));
        balancer.batch(&flood);
        until(&mut follower, |hops| (hops[&real].mtu, hops[&real].destination_mac) == (1350, mac)).await;
    });
}

#[test]
fn nothing_is_published_when_nothing_changed() {
    let (balancer, host) = segment();
    balancer.run(async {
        let mut follower = follow(front().await.index, &[REAL4]).await;
        until(&mut follower, |hops| hops.contains_key(&ip(REAL4))).await;
        follower.next_hops.mark_unchanged();
        balancer.ip("route add 10.90.0.0/24 via 10.77.0.2");
        balancer.ip("neigh replace 10.77.0.77 lladdr 02:00:00:00:00:77 dev front");
        host.ip("route add 10.90.0.0/24 via 10.77.0.1");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!follower.next_hops.has_changed().expect("the task lives"));
    });
}

#[test]
fn a_narrow_link_behind_a_router_teaches_its_mtu() {
    const FAR4: &str = "10.88.0.2";
    const FAR6: &str = "fd88::2";
    const GUE: u16 = 6080;
    let (balancer, router) = segment();
    let far = Host::new();
    router.cable("narrow", &far, "eth");
    router.address("narrow", &["10.88.0.1/24", "fd88::1/64"]);
    far.address("eth", &["10.88.0.2/24", "fd88::2/64"]);
    router.ip("link set narrow mtu 1400");
    router.sysctl("ipv4/ip_forward", "1");
    router.sysctl("ipv6/conf/all/forwarding", "1");
    balancer.ip("route add 10.88.0.0/24 via 10.77.0.2");
    balancer.ip("route add fd88::/64 via fd77::2");
    balancer.run(async {
        let front = front().await;
        let wanted = lab::wanted(&[FAR4, FAR6]);
        let (_wanting, wanted) = watch::channel(wanted);
        let path_mtus = pmtu::spawn(front.sources, GUE, wanted.clone()).expect("raw sockets");
        let mut follower = dataplane::nexthop::spawn(front.index, wanted, path_mtus).await.expect("netlink");
        until(&mut follower, |hops| hops.len() == 2 && hops.values().all(|hop| hop.mtu == 1500)).await;

        // The first says "too big" about a packet that is none of the tunnels', and teaches nothing.
        lab::send(ip(FAR4), &v4_packet("10.77.0.1", FAR4, 6, &[0; 1480]));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(follower.next_hops.borrow().values().all(|hop| hop.mtu == 1500));

        lab::send(ip(FAR4), &v4_packet("10.77.0.1", FAR4, 4, &[0; 1480]));
        until(&mut follower, |hops| hops[&ip(FAR4)].mtu == 1400 && hops[&ip(FAR6)].mtu == 1500).await;
        let mut gue = [0; 1460];
        gue[2..4].copy_from_slice(&GUE.to_be_bytes());
        lab::send(ip(FAR6), &v6_packet("fd77::1", FAR6, 17, &gue));
        until(&mut follower, |hops| hops.values().all(|hop| hop.mtu == 1400)).await;
    });
}

#[test]
fn what_is_wanted_can_change() {
    let (balancer, _host) = segment();
    balancer.run(async {
        let (wanting, wanted) = watch::channel(lab::wanted(&[]));
        let (_teaching, path_mtus) = watch::channel(Arc::default());
        let index = front().await.index;
        let mut follower = dataplane::nexthop::spawn(index, wanted, path_mtus).await.expect("netlink");
        assert!(follower.next_hops.borrow().is_empty());
        wanting.send(lab::wanted(&[REAL4])).expect("the task lives");
        until(&mut follower, |hops| hops.keys().eq(&[ip(REAL4)])).await;
        wanting.send(lab::wanted(&[REAL6])).expect("the task lives");
        until(&mut follower, |hops| hops.keys().eq(&[ip(REAL6)])).await;
        drop(wanting);
        follower.next_hops.changed().await.expect_err("the task ends when nothing can be wanted any more");
    });
}
