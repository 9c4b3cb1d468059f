//! Limits on new connections.

use crate::bench::{Bench, FAMILIES, Family, XDP_DROP, XDP_TX, alone, socket, test_run, vip};
use crate::packet::{ACK, SYN, tcp, udp};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use zk_schema::{Encapsulation, Limits, Protocol};

/// A VIP of each family under `limits`.
fn bench(limits: Limits) -> Bench {
    let mut bench = Bench::new();
    for (network, family) in (1..).zip(FAMILIES) {
        let vip = vip((family.vip(), 80, Protocol::Tcp), Encapsulation::Gue, family, network, 3);
        bench.add(name(family), lb_node::program::VipProgram { limits, ..vip });
    }
    bench.apply();
    bench
}

fn name(family: Family) -> &'static str {
    if family == Family::V4 { "v4" } else { "v6" }
}

fn opens(bench: &Bench, family: Family, client: SocketAddr, flags: u8) -> bool {
    let input = tcp(client, socket(family.vip(), 80), flags, b"").frame();
    match test_run(&bench.program_fd(), &input, None).0 {
        XDP_TX => true,
        XDP_DROP => false,
        verdict => panic!("{verdict}"),
    }
}

/// A client of one of many prefixes, none of which is used twice.
fn stranger(family: Family, number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    match family {
        Family::V4 => SocketAddr::new([100, high, low, 1].into(), 5000),
        Family::V6 => socket(&format!("2001:db9:{number:x}::1"), 5000),
    }
}

/// How many of `count` connections from different prefixes get through.
fn admitted(bench: &Bench, family: Family, count: u16) -> usize {
    (0..count).filter(|&number| opens(bench, family, stranger(family, number), SYN)).count()
}

#[test]
fn a_burst_gets_through_and_no_more_until_time_has_passed() {
    alone(|| {
        let limits = Limits { connections_per_second: 10, burst: 50, ..Limits::default() };
        let bench = bench(limits);
        for family in FAMILIES {
            let started = Instant::now();
            let through = admitted(&bench, family, 300);
            // A tenth of a second for each beyond the burst.
            let more = started.elapsed().as_millis().div_ceil(100) + 1;
            assert!((50..=50 + usize::try_from(more).unwrap()).contains(&through), "{through}");
            bench_drops(&bench, family, "rate_limited");
        }
        #[allow(clippy::disallowed_methods, reason = "the limiter's clock cannot be moved")]
        std::thread::sleep(Duration::from_millis(350));
        let through = admitted(&bench, Family::V4, 300);
        assert!((3..50).contains(&through), "{through}");
    });
}

fn bench_drops(bench: &Bench, family: Family, reason: &str) {
    let input = tcp(stranger(family, 7), socket(family.vip(), 80), SYN, b"").frame();
    // The limiter may have let one in meanwhile.
    let dropped = (0..20).any(|_| {
        let ran = bench.run(&input);
        ran.verdict == XDP_DROP
            && ran.counted == crate::bench::counted(&[&format!("drops/{}/{reason}", name(family))])
    });
    assert!(dropped);
}

#[test]
fn a_burst_is_one_second_s_worth_unless_it_is_said_otherwise() {
    alone(|| {
        let bench = bench(Limits { connections_per_second: 40, ..Limits::default() });
        let started = Instant::now();
        let through = admitted(&bench, Family::V4, 200);
        let more = started.elapsed().as_millis().div_ceil(25) + 1;
        assert!((40..=40 + usize::try_from(more).unwrap()).contains(&through), "{through}");
    });
}

#[test]
fn what_opens_no_connection_is_never_limited() {
    alone(|| {
        let limits =
            Limits { connections_per_second: 1, connections_per_second_per_prefix: 1, ..Limits::default() };
        let mut bench = bench(limits);
        let datagrams = vip(("198.51.100.1", 80, Protocol::Udp), Encapsulation::Gue, Family::V4, 9, 1);
        bench.add("udp", lb_node::program::VipProgram { limits, ..datagrams });
        bench.apply();
        for family in FAMILIES {
            let client = socket(family.client(), 5000);
            while opens(&bench, family, client, SYN) {}
            for flags in [ACK, ACK | SYN, 0x04, 0x01 | ACK, 0, 0x3f] {
                for _ in 0..50 {
                    assert!(opens(&bench, family, client, flags), "flags {flags:#x}");
                }
            }
        }
        let datagram = udp(socket("203.0.113.9", 1), socket("198.51.100.1", 80), b"").frame();
        for _ in 0..50 {
            assert_eq!(test_run(&bench.program_fd(), &datagram, None).0, XDP_TX);
        }
    });
}

#[test]
fn a_prefix_over_its_limit_affects_no_other() {
    alone(|| {
        let limits = Limits { connections_per_second_per_prefix: 1, prefix_burst: 20, ..Limits::default() };
        let bench = bench(limits);
        for (family, inside, outside) in [
            (Family::V4, ["203.0.113.1", "203.0.113.254"], ["203.0.112.1", "203.0.114.1"]),
            (
                Family::V6,
                ["2001:db8:1:aa00::1", "2001:db8:1:aaff:1::"],
                ["2001:db8:1:ab00::1", "2001:db8:1:a9ff::"],
            ),
        ] {
            let mut through = 0;
            for round in 0..60 {
                // The whole prefix shares one limit, whatever the address and port.
                through += usize::from(opens(&bench, family, socket(inside[round % 2], 1000), SYN));
            }
            assert!((20..=22).contains(&through), "{through}");
            let ran = bench.run(&tcp(socket(inside[0], 1), socket(family.vip(), 80), SYN, b"").frame());
            let reason = format!("drops/{}/prefix_rate_limited", name(family));
            assert_eq!((ran.verdict, ran.counted.get(&reason)), (XDP_DROP, Some(&1)));
            for other in outside {
                for _ in 0..20 {
                    assert!(opens(&bench, family, socket(other, 1000), SYN), "{other}");
                }
            }
        }
    });
}

#[test]
fn prefixes_are_as_long_as_the_vip_says() {
    alone(|| {
        let limits = Limits {
            connections_per_second_per_prefix: 1,
            prefix_burst: 3,
            prefix_length_v4: 32,
            prefix_length_v6: 64,
            ..Limits::default()
        };
        let bench = bench(limits);
        for number in 1..100_u8 {
            assert!(opens(&bench, Family::V4, socket(&format!("203.0.113.{number}"), 1), SYN));
            assert!(opens(&bench, Family::V6, socket(&format!("2001:db8:1:{number:x}::1"), 1), SYN));
        }
        let one = || opens(&bench, Family::V4, socket("203.0.113.200", 1), SYN);
        assert!((0..20).filter(|_| one()).count() <= 4);
    });
}

#[test]
fn a_limit_that_is_changed_holds_from_the_start() {
    alone(|| {
        // A burst of a minute's worth has been used up; then the operator allows much more.
        let mut bench = bench(Limits {
            connections_per_second: 1,
            burst: 60,
            connections_per_second_per_prefix: 1,
            prefix_burst: 60,
            ..Limits::default()
        });
        let client = socket(Family::V4.client(), 5000);
        while opens(&bench, Family::V4, client, SYN) {}
        bench.vip("v4").limits = Limits {
            connections_per_second: 1000,
            connections_per_second_per_prefix: 1000,
            ..Limits::default()
        };
        bench.apply();
        for _ in 0..500 {
            assert!(opens(&bench, Family::V4, client, SYN));
        }
    });
}
