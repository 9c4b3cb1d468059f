//! ICMP errors from anybody: a path's MTU is believed only of a real that is known, and never below the floor.

use dataplane::nexthop::pmtu::{Expect, FLOOR_V4, FLOOR_V6, parse_v4, parse_v6};
use dataplane::nexthop::sources::Sources;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The node's address.
pub const NODE_4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
/// The node's address.
pub const NODE_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7);
/// A real's address.
pub const REAL_4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
/// A real's address.
pub const REAL_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, 0);

/// Reads a message as each socket would.
pub fn run(input: &[u8]) {
    let reals: BTreeSet<IpAddr> = [REAL_4.into(), REAL_6.into()].into();
    let sources = Sources { v4: Some(NODE_4), v6: Some(NODE_6) };
    let expect = Expect { sources, gue_port: 6080, reals: &reals };
    for (found, floor, real) in [
        (parse_v4(input, &expect), FLOOR_V4, IpAddr::V4(REAL_4)),
        (parse_v6(input, &expect), FLOOR_V6, IpAddr::V6(REAL_6)),
    ] {
        let Some(found) = found else { continue };
        assert_eq!(found.real, real);
        assert!((floor..=65_575).contains(&found.mtu), "{found:?}");
    }
    // With nothing to expect, nothing is believed.
    let nothing = Expect { sources: Sources { v4: None, v6: None }, gue_port: 6080, reals: &BTreeSet::new() };
    assert_eq!(parse_v4(input, &nothing), None);
    assert_eq!(parse_v6(input, &nothing), None);
}

/// Errors as routers send them, about packets of both kinds of tunnel.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    use crate::packet::{Ip, icmp};
    let router_4 = Ipv4Addr::new(10, 0, 0, 1);
    let router_6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    let gue = vec![0xc0, 1, 0x17, 0xc0, 5, 0xc8, 0, 0, 0, 4, 0, 0];
    let mut seeds = Vec::new();
    for (protocol, mut payload) in [(4, vec![0x45]), (17, gue), (6, vec![0; 20])] {
        payload.resize(1480, 0);
        let quoted = Ip::new(NODE_4.into(), REAL_4.into(), protocol, payload.clone()).bytes();
        seeds.push(icmp(router_4.into(), NODE_4.into(), 3, 4, [0, 0, 5, 0], &quoted[..60]).bytes());
        seeds.push(icmp(router_4.into(), NODE_4.into(), 3, 4, [0; 4], &quoted[..28]).bytes());
        let quoted = Ip::new(NODE_6.into(), REAL_6.into(), protocol, payload).bytes();
        seeds.push(icmp(router_6.into(), NODE_6.into(), 2, 0, [0, 0, 5, 0], &quoted[..100]).payload);
    }
    seeds
}
