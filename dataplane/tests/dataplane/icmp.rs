//! ICMP to a VIP: echo, and errors about its flows.

use crate::bench::{
    Bench, CLIENT_4, CLIENT_6, FAMILIES, Family, XDP_TX, alone, counted, flood, ip, socket, test_run, vip,
};
use crate::dissect::{self, expect};
use crate::packet::{ACK, Ip, NODE_MAC, ROUTER_MAC, Random, checksum, frame, icmp, tcp, udp};
use serde_json::json;
use std::time::Instant;
use zk_schema::{Affinity, Encapsulation, Protocol};

const ROUTER_4: &str = "192.0.2.33";
const ROUTER_6: &str = "2001:db8:ff::33";

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

fn router(family: Family) -> &'static str {
    if family == Family::V4 { ROUTER_4 } else { ROUTER_6 }
}

fn echo(family: Family, identifier: u16, sequence: u16, data: &[u8]) -> Ip {
    let rest = [identifier.to_be_bytes(), sequence.to_be_bytes()].concat().try_into().unwrap();
    let kind = if family == Family::V4 { 8 } else { 128 };
    icmp(ip(family.client()), ip(family.vip()), kind, 0, rest, data)
}

/// The reply that an echo request must get, byte by byte; the checksum is looked at by the caller.
fn reply(request: &Ip, got: &[u8]) -> Vec<u8> {
    let mut reply =
        Ip { source: request.destination, destination: request.source, ttl: 64, ..request.clone() };
    reply.payload[0] = if request.source.is_ipv4() { 0 } else { 129 };
    let at = got.len() - reply.payload.len();
    reply.payload[2..4].copy_from_slice(&got[at + 2..at + 4]);
    let mut frame = reply.frame();
    frame[..6].copy_from_slice(&ROUTER_MAC);
    frame[6..12].copy_from_slice(&NODE_MAC);
    frame
}

#[test]
fn echo_is_answered_with_a_right_checksum_for_every_identifier_and_sequence_number() {
    alone(|| {
        let bench = bench();
        Bench::answer_all_echoes();
        let program = bench.program_fd();
        for number in 0..=u16::MAX {
            let request = echo(Family::V4, number, number.rotate_left(5), b"");
            let (verdict, frame) = test_run(&program, &request.frame(), None);
            assert_eq!((verdict, checksum(&frame[34..])), (XDP_TX, 0), "identifier {number}");
            if number % 16 == 0 {
                assert_eq!(frame, reply(&request, &frame));
            }
        }
    });
}

#[test]
fn echo_replies_are_right_in_both_families_with_any_payload() {
    let replies = alone(|| {
        let bench = bench();
        Bench::answer_all_echoes();
        let mut random = Random(0xec40);
        let mut replies = Vec::new();
        for family in FAMILIES {
            for round in 0..200 {
                let data = random.bytes(round * 7);
                let mut request = echo(family, random.word(), random.word(), &data);
                request.tos = random.byte();
                request.ttl = random.byte();
                let ran = bench.run(&request.frame());
                assert_eq!((ran.verdict, ran.counted), (XDP_TX, counted(&["events/echo_answered"])));
                assert_eq!(ran.frame, reply(&request, &ran.frame));
                replies.push(ran.frame);
            }
        }
        // A tag stays on.
        let request = echo(Family::V4, 1, 2, b"tagged");
        let ran = bench.run(&frame(&[7], &request.bytes()));
        assert_eq!(&ran.frame[12..18], [0x81, 0, 0, 7, 8, 0]);
        replies.push(ran.frame);
        replies
    });
    for layers in dissect::parse(&replies) {
        let last = &layers[layers.len() - 1];
        let kind = if last["layer"] == "ICMP" { 0 } else { 129 };
        expect(last, &json!({"type": kind, "code": 0, "checksum": true}));
        if kind == 0 {
            expect(&layers[layers.len() - 2], &json!({"checksum": true}));
        }
    }
}

#[test]
fn echo_to_other_addresses_is_the_kernel_s_and_with_options_it_is_no_service() {
    alone(|| {
        let bench = bench();
        for (client, other, kind) in [(CLIENT_4, "198.51.100.77", 8), (CLIENT_6, "2001:db8:5::77", 128)] {
            let packet = icmp(ip(client), ip(other), kind, 0, [1; 4], b"ping");
            bench.passes(&packet.frame(), "passed");
        }
        let mut packet = echo(Family::V4, 1, 1, b"");
        packet.options = vec![7, 7, 4, 0, 0, 0, 0, 0]; // record route
        bench.drops(&packet.frame(), "/no_service");
        let mut packet = echo(Family::V6, 1, 1, b"");
        packet.extensions = vec![(60, vec![0; 7])];
        bench.drops(&packet.frame(), "/no_service");
    });
}

/// Addresses that no host beyond this one has.
pub(crate) const NOBODY: [(Family, &[&str]); 2] = [
    (
        Family::V4,
        &["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.5", "239.1.2.3", "240.0.0.1", "255.255.255.255"],
    ),
    (Family::V6, &["::", "::1", "::ffff:203.0.113.9", "ff02::1", "ff0e::5"]),
];

#[test]
fn echo_from_where_no_host_can_be_is_not_answered() {
    alone(|| {
        let bench = bench();
        for (family, sources) in NOBODY {
            for source in sources {
                let request = Ip { source: ip(source), ..echo(family, 1, 2, b"ping") };
                bench.drops(&request.frame(), "/invalid_source");
            }
        }
    });
}

#[test]
fn echo_is_answered_up_to_a_rate_and_that_silences_no_error() {
    const FLOOD: u32 = 5_000;
    alone(|| {
        let bench = bench();
        for family in FAMILIES {
            let before = bench.counters();
            let started = Instant::now();
            flood(&bench.program_fd(), &echo(family, 1, 2, b"ping").frame(), FLOOD);
            let after = bench.counters();
            let rose = |name: &str| after.get(name).unwrap_or(&0) - before.get(name).unwrap_or(&0);
            let answered = rose("events/echo_answered");
            assert_eq!(answered + rose("drops//echo_rate_limited"), u64::from(FLOOD));
            // A burst of 200, 1,000 a second, and what a tick of the clock may add.
            let most = 211 + started.elapsed().as_millis();
            assert!(u128::from(answered) <= most, "{answered} of at most {most}");
            let late = Ip { ttl: 1, ..tcp(socket(family.client(), 1), socket(family.vip(), 80), ACK, b"") };
            assert_eq!(bench.run(&late.frame()).verdict, XDP_TX);
        }
    });
}

/// Types and codes of errors about a flow.
fn errors(family: Family) -> Vec<(u8, u8, [u8; 4])> {
    match family {
        Family::V4 => {
            let unreachable = (0..16).map(|code| (3, code, [0, 0, 0x05, 0x14]));
            unreachable.chain([(11, 0, [0; 4]), (11, 1, [0; 4]), (12, 0, [20, 0, 0, 0])]).collect()
        }
        Family::V6 => vec![
            (1, 0, [0; 4]),
            (1, 4, [0; 4]),
            (2, 0, [0, 0, 0x05, 0x14]),
            (3, 0, [0; 4]),
            (3, 1, [0; 4]),
            (4, 0, [0, 0, 0, 6]),
        ],
    }
}

/// Returns a packet from a real to a client, from the VIP's address.
fn answer(family: Family, protocol: Protocol, client_port: u16) -> Ip {
    let (client, service) = (socket(family.client(), client_port), socket(family.vip(), 80));
    match protocol {
        Protocol::Tcp => tcp(service, client, ACK, &[7; 600]),
        Protocol::Udp => udp(service, client, &[7; 600]),
    }
}

fn error(family: Family, (kind, code, rest): (u8, u8, [u8; 4]), embedded: &[u8]) -> Ip {
    icmp(ip(router(family)), ip(family.vip()), kind, code, rest, embedded)
}

fn follows(bench: &Bench, name: &str, client_port: u16, family: Family, packet: &Ip) {
    let client = socket(family.client(), client_port);
    let rest = bench.forwards(name, client, 80, &packet.frame(), &packet.bytes());
    let real = bench.owner(name, client, 80).name.clone();
    assert_eq!(rest, counted(&[&format!("reals/{name}/{}/icmp_errors", real.as_str())]));
}

#[test]
fn errors_follow_the_flow_of_the_packet_embedded_in_them() {
    alone(|| {
        let bench = bench();
        for family in FAMILIES {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let name = format!("{protocol:?}{}", family.digit()).to_lowercase();
                for (about, port) in errors(family).into_iter().zip(1..) {
                    let embedded = answer(family, protocol, port);
                    let whole = embedded.bytes();
                    let header = whole.len() - embedded.payload.len();
                    // All of it, what RFC 1812 asks for, and what RFC 792 does.
                    for kept in [whole.len(), 548.min(whole.len()), header + 8] {
                        follows(&bench, &name, port, family, &error(family, about, &whole[..kept]));
                    }
                }
            }
        }
    });
}

#[test]
fn options_and_extension_headers_do_not_hide_the_embedded_flow() {
    alone(|| {
        let bench = bench();
        for words in 1..=10 {
            let embedded = Ip { options: vec![1; words * 4], ..answer(Family::V4, Protocol::Tcp, 9) };
            let kept = &embedded.bytes()[..20 + words * 4 + 8];
            let packet = error(Family::V4, (3, 4, [0, 0, 5, 0]), kept);
            follows(&bench, "tcp4", 9, Family::V4, &packet);
            // Options of the error itself.
            let packet = Ip { options: vec![1; words * 4], ..packet };
            follows(&bench, "tcp4", 9, Family::V4, &packet);
        }
        let extensions = vec![(0, vec![0, 1, 4, 0, 0, 0, 0]), (60, vec![0, 1, 4, 0, 0, 0, 0])];
        let embedded = Ip { extensions: extensions.clone(), ..answer(Family::V6, Protocol::Udp, 9) };
        let packet = error(Family::V6, (2, 0, [0, 0, 5, 0]), &embedded.bytes()[..40 + 16 + 8]);
        follows(&bench, "udp6", 9, Family::V6, &packet);
        let packet = Ip { extensions, ..packet };
        follows(&bench, "udp6", 9, Family::V6, &packet);
    });
}

#[test]
fn errors_find_clients_kept_together_by_address() {
    alone(|| {
        let mut bench = bench();
        for name in ["tcp4", "udp6"] {
            bench.vip(name).affinity = Affinity::Source;
        }
        bench.apply();
        for (family, protocol, name) in
            [(Family::V4, Protocol::Tcp, "tcp4"), (Family::V6, Protocol::Udp, "udp6")]
        {
            let embedded = answer(family, protocol, 321).bytes();
            follows(&bench, name, 321, family, &error(family, errors(family)[0], &embedded));
        }
    });
}

#[test]
fn errors_about_what_is_no_flow_of_a_vip_are_dropped_and_counted() {
    alone(|| {
        let bench = bench();
        for family in FAMILIES {
            let about = errors(family)[0];
            let sound = answer(family, Protocol::Tcp, 5);
            // The other direction, another address, port or protocol.
            let mut turned = sound.clone();
            std::mem::swap(&mut turned.source, &mut turned.destination);
            let mut port = sound.clone();
            port.payload[1] = 81;
            let sctp = Ip { protocol: 132, ..sound.clone() };
            let ping = Ip { protocol: if family == Family::V4 { 1 } else { 58 }, ..sound.clone() };
            for embedded in [turned, port, sctp, ping] {
                bench.drops(&error(family, about, &embedded.bytes()).frame(), "/icmp_unmatched");
            }
        }
        // A later fragment has no ports.
        let later = Ip { fragment: 100, ..answer(Family::V4, Protocol::Tcp, 5) };
        bench.drops(&error(Family::V4, (11, 1, [0; 4]), &later.bytes()).frame(), "/icmp_unmatched");
        let header = (44, vec![0, 0x0f, 0xf8, 0, 0, 0, 1]);
        let later = Ip { extensions: vec![header], ..answer(Family::V6, Protocol::Tcp, 5) };
        bench.drops(&error(Family::V6, (3, 1, [0; 4]), &later.bytes()).frame(), "/icmp_unmatched");
    });
}

#[test]
fn errors_cut_short_are_dropped_and_counted_even_when_padding_would_complete_them() {
    alone(|| {
        let bench = bench();
        for family in FAMILIES {
            let embedded = answer(family, Protocol::Tcp, 5).bytes();
            let header = if family == Family::V4 { 20 } else { 40 };
            for kept in 0..header + 4 {
                let packet = error(family, errors(family)[0], &embedded[..kept]);
                bench.drops(&packet.frame(), "/malformed_icmp");
                let mut padded = packet.frame();
                padded.extend(&embedded[kept..]);
                bench.drops(&padded, "/malformed_icmp");
            }
            for length in 0..8 {
                let mut packet = echo(family, 1, 1, b"");
                packet.payload.truncate(length);
                bench.drops(&packet.frame(), "/malformed_icmp");
            }
            let mut version = error(family, errors(family)[0], &embedded);
            version.payload[8] ^= 0x10;
            bench.drops(&version.frame(), "/malformed_icmp");
        }
    });
}

#[test]
fn an_error_that_cannot_be_sent_on_is_dropped_and_never_answered() {
    alone(|| {
        let bench = bench();
        for family in FAMILIES {
            let mut packet = error(family, errors(family)[0], &answer(family, Protocol::Tcp, 5).bytes());
            let name = format!("tcp{}", family.digit());
            packet.ttl = 1;
            bench.drops(&packet.frame(), &format!("{name}/ttl_expired"));
            packet.ttl = 63;
            packet.payload.resize(1480, 0);
            bench.drops(&packet.frame(), &format!("{name}/too_big"));
        }
    });
}
