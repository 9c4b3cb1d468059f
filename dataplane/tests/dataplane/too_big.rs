//! The node's own ICMP errors: a packet that does not fit the path to its real, and one whose TTL is used up.

use crate::bench::{
    Bench, FAMILIES, Family, PATH_MTU, XDP_DROP, XDP_TX, alone, counted, ip, socket, test_run, vip,
};
use crate::dissect::{self, expect, hex};
use crate::icmp::NOBODY;
use crate::packet::{ACK, Ip, frame, tcp, udp};
use serde_json::{Value, json};
use zk_schema::{Encapsulation, Protocol};

/// VIP's port, encapsulation, family of the reals, and bytes that the encapsulation takes.
const WAYS: [(u16, Encapsulation, Family, u32); 5] = [
    (80, Encapsulation::Gue, Family::V4, 32),
    (81, Encapsulation::Gue, Family::V6, 52),
    (82, Encapsulation::Ipip, Family::V4, 20),
    (83, Encapsulation::Ipip, Family::V6, 40),
    (84, Encapsulation::L2, Family::V4, 0),
];

fn name(family: Family, port: u16) -> String {
    format!("v{}-{port}", family.digit())
}

fn bench() -> Bench {
    let mut bench = Bench::new();
    for family in FAMILIES {
        for (port, encapsulation, real, _) in WAYS {
            let real = if encapsulation == Encapsulation::L2 { family } else { real };
            let network = family.digit() * 10 + u8::try_from(port - 80).unwrap();
            bench.add(
                &name(family, port),
                vip((family.vip(), port, Protocol::Tcp), encapsulation, real, network, 1),
            );
        }
    }
    bench.apply();
    bench
}

/// A TCP segment whose IP packet has `length` bytes.
fn packet(family: Family, port: u16, length: u32) -> Ip {
    let headers = if family == Family::V4 { 40 } else { 60 };
    let data: Vec<u8> = (0..length - headers).map(|n| n.to_le_bytes()[0]).collect();
    Ip { tos: 0x29, ..tcp(socket(family.client(), 5000), socket(family.vip(), port), ACK, &data) }
}

/// Checks the layers of an answer to `packet`, whose frame was tagged with `tags`.
fn check(layers: &[Value], packet: &Ip, tags: &[u16], about: &Value) {
    let mut layers = layers.iter();
    let mut next = || layers.next().expect("one layer more");
    expect(next(), &json!({"layer": "Ether", "dst": "02:00:00:00:00:02", "src": "02:00:00:00:00:01"}));
    for tag in tags {
        expect(next(), &json!({"layer": "VLAN", "id": tag}));
    }
    let bytes = packet.bytes();
    // As much as fits: RFC 1812 allows an IPv4 message 576 bytes, RFC 4443 an IPv6 message 1,280.
    let most = if packet.source.is_ipv4() { 576 - 28 } else { 1280 - 48 };
    let quote = &bytes[..bytes.len().min(most)];
    let length = 8 + quote.len();
    if packet.source.is_ipv4() {
        expect(
            next(),
            &json!({"layer": "IP", "src": packet.destination, "dst": packet.source, "ttl": 64, "tos": 0xc0, "ihl": 5,
                    "flags": "DF", "length": length + 20, "room": length + 20, "protocol": 1, "checksum": true}),
        );
    } else {
        expect(
            next(),
            &json!({"layer": "IPv6", "src": packet.destination, "dst": packet.source, "ttl": 64, "length": length,
                    "room": length, "protocol": 58}),
        );
    }
    let message = next();
    expect(message, about);
    expect(message, &json!({"quote": hex(quote), "checksum": true}));
    assert!(layers.next().is_none());
}

fn too_big(family: Family, mtu: u32) -> Value {
    let rest = hex(&mtu.to_be_bytes());
    match family {
        Family::V4 => json!({"layer": "ICMP", "type": 3, "code": 4, "rest": rest}),
        Family::V6 => json!({"layer": "ICMPv6", "type": 2, "code": 0, "rest": rest}),
    }
}

#[test]
fn a_packet_at_the_limit_goes_and_one_byte_more_is_answered_with_the_size_that_fits() {
    let answers = alone(|| {
        let bench = bench();
        let mut answers = Vec::new();
        for family in FAMILIES {
            for (port, _, _, overhead) in WAYS {
                let fits = PATH_MTU - overhead;
                let client = socket(family.client(), 5000);
                let exact = packet(family, port, fits);
                bench.forwards(&name(family, port), client, port, &exact.frame(), &exact.bytes());
                for (longer, tags) in [(1, &[][..]), (1, &[9]), (1, &[9, 10]), (700, &[])] {
                    let packet = packet(family, port, fits + longer);
                    let ran = bench.run(&frame(tags, &packet.bytes()));
                    let vip = name(family, port);
                    // Both rise: the packet is lost, and an answer was sent.
                    let both = counted(&[&format!("drops/{vip}/too_big"), "events/too_big_sent"]);
                    assert_eq!((ran.verdict, ran.counted), (XDP_TX, both));
                    answers.push((family, fits, packet, tags, ran.frame));
                }
            }
        }
        answers
    });
    let frames: Vec<_> = answers.iter().map(|(.., frame)| frame.clone()).collect();
    for ((family, fits, packet, tags, _), layers) in answers.iter().zip(dissect::parse(&frames)) {
        check(&layers, packet, tags, &too_big(*family, *fits));
    }
}

#[test]
fn a_path_that_shrinks_is_answered_for_at_once() {
    alone(|| {
        let mut bench = bench();
        let packet = packet(Family::V6, 80, 1400);
        assert_eq!(bench.run(&packet.frame()).counted.get("events/too_big_sent"), None);
        for hop in bench.hops.values_mut() {
            hop.mtu = 1400;
        }
        bench.apply_next_hops();
        let ran = bench.run(&packet.frame());
        assert_eq!(ran.counted.get("events/too_big_sent"), Some(&1));
        assert_eq!(ran.frame[14 + 40 + 4..][..4], (1400_u32 - 32).to_be_bytes());
    });
}

#[test]
fn no_sender_is_told_less_than_the_smallest_mtu_there_is() {
    alone(|| {
        let mut bench = bench();
        // Narrower than the encapsulation itself; and such that IPv6's smallest packet fits but for that.
        for mtu in [0, 1280] {
            for hop in bench.hops.values_mut() {
                hop.mtu = mtu;
            }
            bench.apply_next_hops();
            for family in FAMILIES {
                let (header, smallest) = if family == Family::V4 { (20, 68) } else { (40, 1280_u32) };
                for (port, _, _, overhead) in WAYS {
                    let told = smallest.max(mtu.saturating_sub(overhead));
                    let ran = bench.run(&packet(family, port, told + 1).frame());
                    assert_eq!(ran.verdict, XDP_TX, "{ran:?}");
                    assert_eq!(ran.frame[14 + header + 4..][..4], told.to_be_bytes());
                    // Who sends no more than that already cannot be helped.
                    if mtu < told + overhead {
                        let input = packet(family, port, told).frame();
                        bench.drops(&input, &format!("{}/too_big", name(family, port)));
                    }
                }
            }
        }
    });
}

#[test]
fn a_used_up_ttl_is_answered_with_time_exceeded() {
    let answers = alone(|| {
        let bench = bench();
        let mut answers = Vec::new();
        for family in FAMILIES {
            for ttl in [0, 1] {
                for length in [60, 61, 547, 548, 549, 1000, 1231, 1232, 1233, 1280, 1400] {
                    for tags in [&[][..], &[9]] {
                        let packet = Ip { ttl, ..packet(family, 80, length) };
                        let ran = bench.run(&frame(tags, &packet.bytes()));
                        let vip = name(family, 80);
                        let both =
                            counted(&[&format!("drops/{vip}/ttl_expired"), "events/time_exceeded_sent"]);
                        assert_eq!((ran.verdict, ran.counted), (XDP_TX, both));
                        answers.push((family, packet, tags, ran.frame));
                    }
                }
            }
        }
        answers
    });
    let frames: Vec<_> = answers.iter().map(|(.., frame)| frame.clone()).collect();
    for ((family, packet, tags, _), layers) in answers.iter().zip(dissect::parse(&frames)) {
        let about = match family {
            Family::V4 => json!({"layer": "ICMP", "type": 11, "code": 0, "rest": "00000000"}),
            Family::V6 => json!({"layer": "ICMPv6", "type": 3, "code": 0, "rest": "00000000"}),
        };
        check(&layers, packet, tags, &about);
    }
}

#[test]
fn options_and_extension_headers_are_quoted_too() {
    let (answers, packets) = alone(|| {
        let bench = bench();
        let v4 = Ip { options: vec![1; 40], ttl: 1, ..packet(Family::V4, 80, 100) };
        let extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])];
        let v6 = Ip { extensions, ttl: 1, ..packet(Family::V6, 80, 100) };
        let answers: Vec<Vec<u8>> =
            [&v4, &v6].iter().map(|packet| bench.run(&packet.frame()).frame).collect();
        (answers, [v4, v6])
    });
    let layers = dissect::parse(&answers);
    check(&layers[0], &packets[0], &[], &json!({"layer": "ICMP", "type": 11}));
    check(&layers[1], &packets[1], &[], &json!({"layer": "ICMPv6", "type": 3}));
}

#[test]
fn sources_that_are_no_single_host_are_not_answered() {
    alone(|| {
        let bench = bench();
        for (family, sources) in NOBODY {
            for source in sources {
                let mut packet = packet(family, 80, 100);
                packet.source = ip(source);
                packet.ttl = 1;
                bench.drops(&packet.frame(), &format!("{}/ttl_expired", name(family, 80)));
                packet.ttl = 64;
                packet.payload.resize(1490, 0);
                bench.drops(&packet.frame(), &format!("{}/too_big", name(family, 80)));
            }
        }
    });
}

#[test]
fn a_node_without_an_address_of_a_family_answers_as_well() {
    let answers = alone(|| {
        let mut settings = crate::bench::settings();
        (settings.source_v4, settings.source_v6) = (None, None);
        let mut bench = Bench::with(settings);
        let mut answers = Vec::new();
        for (network, family) in (1..).zip(FAMILIES) {
            let service = (family.vip(), 80, Protocol::Udp);
            bench.add(&name(family, 80), vip(service, Encapsulation::L2, family, network, 1));
        }
        bench.apply();
        for family in FAMILIES {
            let packet = udp(socket(family.client(), 1), socket(family.vip(), 80), &[1; 33]);
            answers.push(bench.run(&Ip { ttl: 1, ..packet }.frame()).frame);
        }
        answers
    });
    for (family, layers) in FAMILIES.iter().zip(dissect::parse(&answers)) {
        expect(&layers[1], &json!({"src": family.vip(), "dst": family.client()}));
        expect(&layers[2], &json!({"checksum": true}));
    }
}

#[test]
fn answers_are_limited_and_what_is_left_unanswered_is_counted() {
    alone(|| {
        let bench = bench();
        let packet = Ip { ttl: 1, ..packet(Family::V4, 80, 60) };
        let input = packet.frame();
        let program = bench.program_fd();
        let before = bench.counters();
        let verdicts: Vec<u32> = (0..5000).map(|_| test_run(&program, &input, None).0).collect();
        let after = bench.counters();
        let answered = verdicts.iter().filter(|verdict| **verdict == XDP_TX).count() as u64;
        let dropped = verdicts.iter().filter(|verdict| **verdict == XDP_DROP).count() as u64;
        assert_eq!(answered + dropped, 5000);
        let rose = |name: &str| after.get(name).unwrap_or(&0) - before.get(name).unwrap_or(&0);
        // 200 at once; how many more depends on the time that it took, at 1,000 a second.
        assert!(answered >= 200 && dropped > 0, "{answered} answered");
        assert_eq!(rose("events/time_exceeded_sent"), answered);
        assert_eq!(rose("drops/v4-80/ttl_expired"), 5000);
        assert_eq!(rose("drops/v4-80/icmp_rate_limited"), dropped);
    });
}
