use super::super::Obstacle;
use super::*;
use host::netlink::Vlan;

const FRONT: u32 = 2;
const OTHER: u32 = 3;
const VLAN: u32 = 4;
const REAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));
const GATEWAY: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
const MAC: Mac = [2, 0, 0, 0, 0, 9];
const ROUTER_MAC: Mac = [2, 0, 0, 0, 0, 1];

fn link(name: &str, last: u8) -> Link {
    Link {
        name: name.into(),
        mac: Some([2, 0, 0, 0, 1, last]),
        mtu: 1500,
        up: true,
        carrier: true,
        ..Link::default()
    }
}

fn neighbour(state: Reachability, mac: Mac) -> Neighbour {
    Neighbour { state, mac: Some(mac) }
}

/// A real on the front interface's own segment, resolved.
fn on_link() -> Picture {
    Picture {
        links: [(FRONT, link("eth0", 2)), (OTHER, link("eth1", 3))].into(),
        routes: [(REAL, Ok(Path { ifindex: FRONT, gateway: None, mtu: None }))].into(),
        neighbours: [((FRONT, REAL), neighbour(Reachability::Tracked, MAC))].into(),
        takes_redirects: BTreeMap::new(),
    }
}

fn resolver(picture: &Picture) -> Resolver {
    let mut resolver = Resolver::new(FRONT);
    resolver.update(picture);
    resolver
}

fn hop(resolver: &Resolver) -> Option<NextHop> {
    resolver.next_hops(&BTreeMap::new()).get(&REAL).copied()
}

fn problem(picture: &Picture) -> Problem {
    resolver(picture).problems().get(&REAL).cloned().expect("a problem")
}

#[test]
fn a_real_on_the_link_is_reached_by_its_own_mac() {
    let resolver = resolver(&on_link());
    let expected = NextHop {
        ifindex: FRONT,
        source_mac: [2, 0, 0, 0, 1, 2],
        destination_mac: MAC,
        vlan: None,
        mtu: 1500,
        on_link: true,
        takes_redirects: true,
    };
    assert_eq!(hop(&resolver), Some(expected));
    assert!(resolver.problems().is_empty());
}

#[test]
fn a_real_behind_a_gateway_of_the_other_family_is_reached_by_the_gateways_mac() {
    let mut picture = on_link();
    picture.routes.insert(REAL, Ok(Path { ifindex: OTHER, gateway: Some(GATEWAY), mtu: Some(1400) }));
    picture.neighbours.insert((OTHER, GATEWAY), neighbour(Reachability::Stale, ROUTER_MAC));
    let found = hop(&resolver(&picture)).expect("resolved");
    assert_eq!((found.ifindex, found.destination_mac, found.mtu), (OTHER, ROUTER_MAC, 1400));
}

#[test]
fn without_encapsulation_a_real_whose_connected_route_is_gone_has_no_way_instead_of_the_gateway() {
    use zk_schema::Encapsulation::{Gue, Ipip, L2};
    let obstacles = |picture: &Picture| {
        let found = hop(&resolver(picture)).expect("resolved");
        [L2, Gue, Ipip].map(|encapsulation| found.obstacle(encapsulation, FRONT, true))
    };
    let mut picture = on_link();
    assert_eq!(obstacles(&picture), [None; 3]);
    picture.routes.insert(REAL, Ok(Path { ifindex: FRONT, gateway: Some(GATEWAY), mtu: None }));
    picture.neighbours.insert((FRONT, GATEWAY), neighbour(Reachability::Tracked, ROUTER_MAC));
    assert_eq!(obstacles(&picture), [Some(Obstacle::NotOnLink), None, None]);
}

#[test]
fn an_interface_that_takes_no_redirected_frames_is_no_way_for_xdp_in_the_driver_of_another() {
    let mut picture = on_link();
    picture.routes.insert(REAL, Ok(Path { ifindex: OTHER, gateway: None, mtu: None }));
    picture.neighbours.insert((OTHER, REAL), neighbour(Reachability::Tracked, MAC));
    let obstacle = |picture: &Picture, native| {
        hop(&resolver(picture)).expect("resolved").obstacle(zk_schema::Encapsulation::Gue, FRONT, native)
    };
    assert_eq!(obstacle(&picture, true), None, "what the kernel does not tell is taken for good");
    picture.takes_redirects = [(FRONT, false), (OTHER, false)].into();
    assert_eq!(obstacle(&picture, true), Some(Obstacle::NoRedirect(OTHER)));
    assert_eq!(obstacle(&picture, false), None, "in the network stack every interface takes them");
    picture.takes_redirects = [(FRONT, false), (OTHER, true)].into();
    assert_eq!(obstacle(&picture, true), None);
    picture.takes_redirects = [(FRONT, false)].into();
    picture.routes.insert(REAL, Ok(Path { ifindex: FRONT, gateway: None, mtu: None }));
    picture.neighbours.insert((FRONT, REAL), neighbour(Reachability::Tracked, MAC));
    assert_eq!(obstacle(&picture, true), None, "sending back by the same interface is no redirect");
}

#[test]
fn a_routes_mtu_never_exceeds_the_links() {
    let mut picture = on_link();
    picture.routes.insert(REAL, Ok(Path { ifindex: FRONT, gateway: None, mtu: Some(9000) }));
    assert_eq!(hop(&resolver(&picture)).map(|hop| hop.mtu), Some(1500));
}

#[test]
fn a_learnt_path_mtu_lowers_and_never_raises() {
    let resolver = resolver(&on_link());
    let mtu = |learnt| resolver.next_hops(&[(REAL, learnt)].into())[&REAL].mtu;
    assert_eq!((mtu(1280), mtu(9000)), (1280, 1500));
}

fn over_vlan(vlan: Vlan) -> Picture {
    let mut picture = on_link();
    picture.links.insert(VLAN, Link { vlan: Some(vlan), mtu: 1496, ..link("eth0.7", 4) });
    picture.routes.insert(REAL, Ok(Path { ifindex: VLAN, gateway: None, mtu: None }));
    picture.neighbours.insert((VLAN, REAL), neighbour(Reachability::Tracked, MAC));
    picture
}

#[test]
fn a_vlan_device_becomes_its_lower_interface_and_a_tag() {
    let picture = over_vlan(Vlan { id: 7, dot1q: true, lower: Some(FRONT) });
    let expected = NextHop {
        ifindex: FRONT,
        source_mac: [2, 0, 0, 0, 1, 4],
        destination_mac: MAC,
        vlan: Some(7),
        mtu: 1496,
        on_link: true,
        takes_redirects: true,
    };
    assert_eq!(hop(&resolver(&picture)), Some(expected));
}

#[test]
fn a_front_interface_that_is_itself_a_vlan_device_needs_no_tag() {
    let mut resolver = Resolver::new(VLAN);
    resolver.update(&over_vlan(Vlan { id: 7, dot1q: true, lower: Some(FRONT) }));
    assert_eq!(hop(&resolver).map(|hop| (hop.ifindex, hop.vlan)), Some((VLAN, None)));
}

#[test]
fn tags_that_a_next_hop_cannot_express_are_refused() {
    let unsupported = Problem::UnsupportedVlan("eth0.7".into());
    assert_eq!(problem(&over_vlan(Vlan { id: 7, dot1q: false, lower: Some(FRONT) })), unsupported);
    assert_eq!(problem(&over_vlan(Vlan { id: 7, dot1q: true, lower: None })), unsupported);
    let mut stacked = over_vlan(Vlan { id: 7, dot1q: true, lower: Some(OTHER) });
    let tag = Vlan { id: 8, dot1q: true, lower: Some(FRONT) };
    stacked.links.insert(OTHER, Link { vlan: Some(tag), ..link("eth0.8", 3) });
    assert_eq!(problem(&stacked), unsupported);
}

#[test]
fn addresses_that_need_no_wire_or_have_none_are_unresolved_with_a_reason() {
    for refused in [Problem::NoRoute, Problem::Local, Problem::Blackhole, Problem::NotUnicast] {
        let mut picture = on_link();
        picture.routes.insert(REAL, Err(refused.clone()));
        assert_eq!(hop(&resolver(&picture)), None);
        assert_eq!(problem(&picture), refused);
    }
    let mut picture = on_link();
    picture.links.insert(FRONT, Link { loopback: true, ..link("lo", 0) });
    assert_eq!(problem(&picture), Problem::Local);
    picture.links.insert(FRONT, Link { mac: None, ..link("tun0", 0) });
    assert_eq!(problem(&picture), Problem::NotEthernet("tun0".into()));
    picture.links.remove(&FRONT);
    assert_eq!(problem(&picture), Problem::NoInterface(FRONT));
}

#[test]
fn unfinished_neighbours_are_not_used_even_if_they_carry_a_mac() {
    for state in [Reachability::Idle, Reachability::Incomplete, Reachability::Failed] {
        let mut picture = on_link();
        picture.neighbours.insert((FRONT, REAL), neighbour(state, MAC));
        assert_eq!(hop(&resolver(&picture)), None, "{state:?}");
    }
    let mut picture = on_link();
    picture.neighbours.insert((FRONT, REAL), neighbour(Reachability::Fixed, [0; 6]));
    assert_eq!(hop(&resolver(&picture)), None, "an all-zero MAC is nobody's");
}

#[test]
fn what_was_resolved_survives_every_failure_and_takes_the_next_good_answer() {
    let good = on_link();
    let mut failed = on_link();
    failed.neighbours.insert((FRONT, REAL), Neighbour { state: Reachability::Failed, mac: None });
    let mut gone = on_link();
    gone.neighbours.clear();
    let mut unrouted = on_link();
    unrouted.routes.insert(REAL, Err(Problem::NoRoute));
    let mut down = on_link();
    down.links.insert(FRONT, Link { up: false, ..link("eth0", 2) });
    let mut moving = on_link();
    moving.routes.insert(REAL, Ok(Path { ifindex: OTHER, gateway: None, mtu: None }));

    for worse in [failed, gone, unrouted, down, moving.clone()] {
        let mut resolver = resolver(&good);
        let before = hop(&resolver);
        resolver.update(&worse);
        assert_eq!(hop(&resolver), before);
        assert!(resolver.problems().contains_key(&REAL), "kept, but reported: {worse:?}");
        resolver.update(&good);
        assert!(resolver.problems().is_empty());
    }

    let mut resolver = resolver(&good);
    moving.neighbours.insert((OTHER, REAL), neighbour(Reachability::Tracked, ROUTER_MAC));
    resolver.update(&moving);
    assert_eq!(hop(&resolver).map(|hop| (hop.ifindex, hop.destination_mac)), Some((OTHER, ROUTER_MAC)));
}

#[test]
fn asking_a_silent_neighbour_again_is_no_news_until_it_answers() {
    let mut picture = on_link();
    picture.neighbours.insert((FRONT, REAL), Neighbour { state: Reachability::Failed, mac: None });
    let mut resolver = resolver(&picture);
    let silent = resolver.problems().clone();
    assert!(matches!(silent[&REAL], Problem::NeighbourFailed { .. }));
    picture.neighbours.insert((FRONT, REAL), Neighbour { state: Reachability::Incomplete, mac: None });
    resolver.update(&picture);
    assert_eq!(*resolver.problems(), silent);
    resolver.update(&on_link());
    resolver.update(&picture);
    assert!(matches!(resolver.problems()[&REAL], Problem::Resolving { .. }));
}

#[test]
fn what_is_no_longer_wanted_is_forgotten() {
    let mut resolver = resolver(&on_link());
    let mut unwanted = on_link();
    unwanted.routes.clear();
    resolver.update(&unwanted);
    assert_eq!(hop(&resolver), None);
    let mut back = on_link();
    back.neighbours.clear();
    resolver.update(&back);
    assert_eq!(hop(&resolver), None, "an old next hop must not come back from the dead");
}
