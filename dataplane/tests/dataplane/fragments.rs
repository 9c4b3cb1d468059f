//! Fragments: the first goes where its flow goes, later ones follow it.

use crate::bench::{
    Bench, Counted, FAMILIES, Family, XDP_DROP, XDP_TX, alone, counted, flood, pin, socket, vip,
};
use crate::packet::{ACK, FRAGMENT, ICMP, ICMPV6, Ip, MORE, SYN, tcp, udp};
use dataplane::program::VipProgram;
use std::time::Instant;
use zk_schema::{Affinity, Encapsulation, Protocol};

/// VIPs on port 80 of both families and protocols, and one of all TCP ports with source affinity.
fn bench() -> Bench {
    let mut bench = Bench::new();
    for (network, family) in (1..).zip(FAMILIES) {
        for (offset, protocol) in [(0, Protocol::Tcp), (10, Protocol::Udp)] {
            let service = (family.vip(), 80, protocol);
            let name = format!("{protocol:?}{}", family.digit()).to_lowercase();
            bench.add(&name, vip(service, Encapsulation::Gue, family, network + offset, 5));
        }
    }
    bench.apply();
    bench
}

/// A packet cut in two after `at` bytes of payload.
fn cut(whole: &Ip, at: usize, identification: u16) -> [Ip; 2] {
    let words = u16::try_from(at / 8).unwrap();
    let (head, tail) = whole.payload.split_at(at);
    let piece = |payload: &[u8], offset: u16, more: bool| {
        let mut piece = Ip { payload: payload.to_vec(), identification, ..whole.clone() };
        if whole.source.is_ipv4() {
            piece.fragment = offset | if more { MORE } else { 0 };
        } else {
            let mut header = vec![0];
            header.extend((offset << 3 | u16::from(more)).to_be_bytes());
            header.extend([0, 0]);
            header.extend(identification.to_be_bytes());
            piece.extensions.push((FRAGMENT, header));
        }
        piece
    };
    [piece(head, 0, true), piece(tail, words, false)]
}

fn whole(family: Family, protocol: Protocol, client_port: u16) -> (Ip, String) {
    let (client, service) = (socket(family.client(), client_port), socket(family.vip(), 80));
    let data = [0x5a; 1000];
    let packet = match protocol {
        Protocol::Tcp => tcp(client, service, ACK, &data),
        Protocol::Udp => udp(client, service, &data),
    };
    (packet, format!("{protocol:?}{}", family.digit()).to_lowercase())
}

#[test]
fn later_fragments_follow_the_first_to_the_flow_s_real() {
    alone(|| {
        let bench = bench();
        for family in FAMILIES {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for client_port in 1..60 {
                    let (whole, name) = whole(family, protocol, client_port);
                    let client = socket(family.client(), client_port);
                    let [first, later] = cut(&whole, 504, client_port);
                    let rest = bench.forwards(&name, client, 80, &first.frame(), &first.bytes());
                    assert_eq!(rest, counted(&["events/fragment_first"]));
                    for _ in 0..2 {
                        let rest = bench.forwards(&name, client, 80, &later.frame(), &later.bytes());
                        assert_eq!(rest, counted(&["events/fragment_followed"]));
                    }
                }
            }
        }
    });
}

#[test]
fn a_later_fragment_whose_first_was_not_seen_is_dropped_and_counted() {
    alone(|| {
        let bench = bench();
        for family in FAMILIES {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let (whole, _) = whole(family, protocol, 4000);
                let [first, later] = cut(&whole, 504, 77);
                bench.drops(&later.frame(), "/fragment_unknown");
                assert_eq!(bench.run(&first.frame()).verdict, XDP_TX);
                // Another identification, source or protocol is another packet.
                let [_, other] = cut(&whole, 504, 78);
                bench.drops(&other.frame(), "/fragment_unknown");
                let elsewhere = if family == Family::V4 { "203.0.113.10" } else { "2001:db8:c::a" };
                let other = Ip { source: elsewhere.parse().unwrap(), ..later.clone() };
                bench.drops(&other.frame(), "/fragment_unknown");
                let number = if protocol == Protocol::Tcp { 17 } else { 6 };
                let other = Ip { protocol: number, identification: 79, ..later };
                if family == Family::V4 {
                    bench.drops(&other.frame(), "/fragment_unknown");
                }
            }
        }
    });
}

#[test]
fn a_record_of_a_real_that_was_replaced_is_not_followed() {
    alone(|| {
        let mut bench = bench();
        let (whole, _) = whole(Family::V4, Protocol::Udp, 4000);
        let [first, later] = cut(&whole, 504, 1);
        assert_eq!(bench.run(&first.frame()).verdict, XDP_TX);
        assert_eq!(bench.run(&later.frame()).verdict, XDP_TX);
        // All reals move to other addresses: their entries are others'.
        let service = (Family::V4.vip(), 80, Protocol::Udp);
        bench.add("udp4", vip(service, Encapsulation::Gue, Family::V4, 99, 5));
        bench.apply();
        bench.drops(&later.frame(), "/fragment_unknown");
    });
}

#[test]
fn a_later_fragment_follows_its_first_whatever_happens_to_other_vips_meanwhile() {
    alone(|| {
        let mut bench = bench();
        for (family, before) in [(Family::V4, "198.51.100.0"), (Family::V6, "2001:db8:5::")] {
            let (whole, name) = whole(family, Protocol::Udp, 4000);
            let [first, later] = cut(&whole, 504, 9);
            assert_eq!(bench.run(&first.frame()).verdict, XDP_TX);
            // The index is built anew, and with it the addresses' numbers.
            let added = vip((before, 80, Protocol::Udp), Encapsulation::Gue, Family::V4, 50, 1);
            bench.add(&format!("added{}", family.digit()), added);
            assert!(bench.apply().index);
            let client = socket(family.client(), 4000);
            let rest = bench.forwards(&name, client, 80, &later.frame(), &later.bytes());
            assert_eq!(rest, counted(&["events/fragment_followed"]));
        }
    });
}

#[test]
fn a_flood_of_first_fragments_is_noted_no_faster_than_a_cpu_may() {
    const FLOOD: u32 = 20_000;
    alone(|| {
        let bench = bench();
        for family in FAMILIES {
            pin(0);
            let [first, _] = cut(&whole(family, Protocol::Udp, 4000).0, 504, 9);
            let before = bench.counters();
            let started = Instant::now();
            flood(&bench.program_fd(), &first.frame(), FLOOD);
            let after = bench.counters();
            let rose = |name: &str| after.get(name).unwrap_or(&0) - before.get(name).unwrap_or(&0);
            let noted = rose("events/fragment_first");
            assert_eq!(
                noted + rose(&format!("drops/udp{}/fragment_rate_limited", family.digit())),
                u64::from(FLOOD)
            );
            // A burst of 1,000, 10,000 a second, and what a tick of the clock may add.
            let most = 1_100 + started.elapsed().as_micros() / 100;
            assert!(noted >= 1 && u128::from(noted) <= most, "{noted} of at most {most}");
        }
    });
}

#[test]
fn fragments_that_need_no_record_are_not_limited() {
    alone(|| {
        let mut bench = Bench::new();
        let service = vip((Family::V4.vip(), 0, Protocol::Udp), Encapsulation::Gue, Family::V4, 1, 5);
        bench.add("udp4", VipProgram { affinity: Affinity::Source, ..service });
        bench.apply();
        let [first, _] = cut(&whole(Family::V4, Protocol::Udp, 4000).0, 504, 9);
        flood(&bench.program_fd(), &first.frame(), 5_000);
        assert!(!bench.counters().keys().any(|name| name.starts_with("drops/")), "{:?}", bench.counters());
    });
}

#[test]
fn source_affinity_on_all_ports_needs_no_record() {
    alone(|| {
        let mut bench = Bench::new();
        for (network, family) in (1..).zip(FAMILIES) {
            let vip = vip((family.vip(), 0, Protocol::Udp), Encapsulation::Ipip, family, network, 5);
            bench.add(&format!("udp{}", family.digit()), VipProgram { affinity: Affinity::Source, ..vip });
        }
        bench.apply();
        for family in FAMILIES {
            let (whole, name) = whole(family, Protocol::Udp, 4000);
            let client = socket(family.client(), 4000);
            let [first, later] = cut(&whole, 504, 5);
            let rest = bench.forwards(&name, client, 80, &later.frame(), &later.bytes());
            assert_eq!(rest, Counted::new());
            bench.forwards(&name, client, 80, &first.frame(), &first.bytes());
        }
    });
}

#[test]
fn a_first_fragment_may_hold_no_more_than_the_transport_header() {
    alone(|| {
        let bench = bench();
        for family in FAMILIES {
            let (whole, name) = whole(family, Protocol::Udp, 4000);
            let [first, _] = cut(&whole, 8, 6);
            bench.forwards(&name, socket(family.client(), 4000), 80, &first.frame(), &first.bytes());
            // Ports alone are not enough: a filter on the way would have been evaded (RFC 1858).
            let (whole, _) = self::whole(family, Protocol::Tcp, 4000);
            let [first, _] = cut(&whole, 16, 7);
            bench.drops(&first.frame(), "/malformed_transport");
        }
    });
}

#[test]
fn a_fragmented_syn_is_a_connection_and_subject_to_limits() {
    alone(|| {
        let mut bench = bench();
        bench.vip("tcp4").limits.connections_per_second = 1;
        bench.apply();
        let (client, service) = (socket(Family::V4.client(), 9), socket(Family::V4.vip(), 80));
        let [first, later] = cut(&tcp(client, service, SYN, &[0; 100]), 48, 1);
        let rest = bench.forwards("tcp4", client, 80, &first.frame(), &first.bytes());
        let real = bench.owner("tcp4", client, 80).name.clone();
        let connections = format!("reals/tcp4/{}/connections", real.as_str());
        assert_eq!(rest, counted(&["events/fragment_first", &connections]));
        bench.drops(&first.frame(), "tcp4/rate_limited");
        bench.forwards("tcp4", client, 80, &later.frame(), &later.bytes());
    });
}

#[test]
fn a_later_fragment_that_cannot_go_on_is_counted_against_its_vip_and_not_answered() {
    alone(|| {
        let bench = bench();
        let (whole, _) = whole(Family::V4, Protocol::Udp, 4000);
        let [first, mut later] = cut(&whole, 504, 1);
        assert_eq!(bench.run(&first.frame()).verdict, XDP_TX);
        later.payload.resize(1480, 0);
        let ran = bench.run(&later.frame());
        assert_eq!(ran.verdict, XDP_DROP);
        assert_eq!(ran.counted, counted(&["drops/udp4/too_big", "events/fragment_followed"]));
    });
}

#[test]
fn fragments_for_no_service_and_icmp_fragments_are_dropped_and_counted() {
    alone(|| {
        let bench = bench();
        for family in FAMILIES {
            let (mut other, _) = whole(family, Protocol::Udp, 4000);
            other.payload[3] = 81;
            let [first, _] = cut(&other, 504, 6);
            bench.drops(&first.frame(), "/no_service");
            other.protocol = 132;
            for piece in cut(&other, 504, 6) {
                bench.drops(&piece.frame(), "/no_service");
            }
            other.protocol = if family == Family::V4 { ICMP } else { ICMPV6 };
            for piece in cut(&other, 504, 6) {
                bench.drops(&piece.frame(), "/icmp_fragment");
            }
        }
    });
}

#[test]
fn fragments_with_options_and_extension_headers_are_followed_too() {
    alone(|| {
        let bench = bench();
        for family in FAMILIES {
            let (mut whole, name) = whole(family, Protocol::Tcp, 4321);
            if family == Family::V4 {
                whole.options = vec![1; 12];
            } else {
                whole.extensions = vec![(0, vec![0, 1, 4, 0, 0, 0, 0])];
            }
            for piece in cut(&whole, 504, 8) {
                bench.forwards(&name, socket(family.client(), 4321), 80, &piece.frame(), &piece.bytes());
            }
        }
    });
}
