//! Ways that packets must not go, although there is a next hop.

use crate::bench::{Bench, CLIENT_4, Family, VIP_4, XDP_REDIRECT, XDP_TX, alone, settings, socket, vip};
use crate::packet::{ACK, tcp};
use dataplane::Settings;
use dataplane::nexthop::Obstacle;
use zk_schema::{Encapsulation, Protocol, XdpMode};

/// A packet to one of the VIPs.
fn to_port(port: u16) -> Vec<u8> {
    tcp(socket(CLIENT_4, 5), socket(VIP_4, port), ACK, b"").frame()
}

/// A data plane with a VIP without encapsulation on port 80 and one with on port 81, of one real each.
fn two(settings: Settings) -> Bench {
    let mut bench = Bench::with(settings);
    for (name, port, encapsulation) in [("l2", 80, Encapsulation::L2), ("gue", 81, Encapsulation::Gue)] {
        bench.add(name, vip((VIP_4, port, Protocol::Tcp), encapsulation, Family::V4, 1, 1));
    }
    bench.apply();
    bench
}

/// Returns the obstacles, by VIP and real.
fn obstacles(bench: &Bench) -> Vec<(String, Obstacle)> {
    let obstacles = bench.dataplane.obstacles();
    obstacles.into_iter().map(|((vip, _), obstacle)| (vip.to_string(), obstacle)).collect()
}

/// The number of the other end of the front interface, which is an interface like any other here.
fn other() -> u32 {
    // SAFETY: a C string that lives.
    unsafe { libc::if_nametoindex(c"back".as_ptr()) }
}

#[test]
fn without_encapsulation_nothing_goes_to_a_gateway() {
    alone(|| {
        let mut bench = two(settings());
        assert_eq!(bench.run(&to_port(80)).verdict, XDP_TX);
        for on_link in [false, true] {
            bench.hops.values_mut().for_each(|hop| hop.on_link = on_link);
            bench.apply_next_hops();
            assert_eq!(bench.run(&to_port(81)).verdict, XDP_TX, "what is wrapped may go by a gateway");
            if on_link {
                assert_eq!(bench.run(&to_port(80)).verdict, XDP_TX);
                assert_eq!(obstacles(&bench), []);
            } else {
                bench.drops(&to_port(80), "l2/no_next_hop");
                assert_eq!(obstacles(&bench), [("l2".to_owned(), Obstacle::NotOnLink)]);
            }
            let failures = bench.dataplane.self_test().failures;
            let failing: Vec<_> = failures.keys().map(|vip| vip.as_str()).collect();
            assert_eq!(failing, if on_link { vec![] } else { vec!["l2"] }, "{failures:?}");
        }
        // The same when a program is applied.
        bench.hops.values_mut().for_each(|hop| hop.on_link = false);
        bench.apply();
        bench.drops(&to_port(80), "l2/no_next_hop");
    });
}

#[test]
fn xdp_in_the_driver_redirects_only_to_interfaces_that_take_it() {
    alone(|| {
        let other = other();
        let mut bench = two(settings());
        assert!(bench.dataplane.is_native());
        for takes_redirects in [false, true] {
            for hop in bench.hops.values_mut() {
                (hop.ifindex, hop.takes_redirects) = (other, takes_redirects);
            }
            bench.apply_next_hops();
            let test = bench.dataplane.self_test();
            if takes_redirects {
                assert_eq!(bench.run(&to_port(81)).verdict, XDP_REDIRECT);
                assert_eq!((obstacles(&bench), test.failures.len()), (vec![], 0), "{:?}", test.failures);
            } else {
                bench.drops(&to_port(81), "gue/no_next_hop");
                let expected = ["gue", "l2"].map(|vip| (vip.to_owned(), Obstacle::NoRedirect(other)));
                assert_eq!(obstacles(&bench), expected);
                assert_eq!(test.failures.len(), 2, "a VIP that reaches no real is not to be announced");
            }
        }
    });
}

#[test]
fn xdp_in_the_network_stack_redirects_to_any_interface() {
    alone(|| {
        let mut bench = two(Settings { xdp_mode: XdpMode::Generic, ..settings() });
        for hop in bench.hops.values_mut() {
            (hop.ifindex, hop.takes_redirects) = (other(), false);
        }
        bench.apply_next_hops();
        assert_eq!(bench.run(&to_port(81)).verdict, XDP_REDIRECT);
        assert_eq!((obstacles(&bench), bench.dataplane.self_test().failures.len()), (vec![], 0));
    });
}

#[test]
fn what_redirects_cannot_reach_is_known_from_the_first_program_on() {
    alone(|| {
        let mut bench = Bench::new();
        bench.add("gue", vip((VIP_4, 81, Protocol::Tcp), Encapsulation::Gue, Family::V4, 1, 1));
        for hop in bench.hops.values_mut() {
            (hop.ifindex, hop.takes_redirects) = (other(), false);
        }
        bench.apply();
        assert_eq!(
            obstacles(&bench).len(),
            1,
            "whether XDP runs in the driver is known only once it is attached"
        );
        bench.drops(&to_port(81), "gue/no_next_hop");
    });
}
