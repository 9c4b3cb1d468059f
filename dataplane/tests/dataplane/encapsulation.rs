//! Tests of frames on the wire, for every combination of families, encapsulations and protocols.

use crate::bench::{
    Bench, CLIENT_4, FAMILIES, Family, GUE_PORT, NODE_4, NODE_6, VIP_4, XDP_DROP, XDP_REDIRECT, XDP_TX,
    alone, counted, front, hop, ip, mac_of, rise, socket, test_run, unwrap, vip,
};
use crate::dissect::{self, expect};
use crate::packet::{ACK, Ip, NODE_MAC, checksum, frame, routed, tcp, udp};

use serde_json::{Value, json};
use std::collections::BTreeSet;
use zk_schema::{Encapsulation, Protocol};

struct Case {
    name: String,
    client: Family,
    real: Family,
    encapsulation: Encapsulation,
    protocol: Protocol,
    port: u16,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for client in FAMILIES {
        for real in FAMILIES {
            for encapsulation in [Encapsulation::Gue, Encapsulation::Ipip, Encapsulation::L2] {
                // Without encapsulation the real's address is only what its MAC was found by.
                if encapsulation == Encapsulation::L2 && client != real {
                    continue;
                }
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let port = 1000 + u16::try_from(cases.len()).unwrap();
                    cases.push(Case {
                        name: format!("vip-{port}"),
                        client,
                        real,
                        encapsulation,
                        protocol,
                        port,
                    });
                }
            }
        }
    }
    cases
}

/// A bench with a VIP of three reals for each case.
fn bench(cases: &[Case]) -> Bench {
    let mut bench = Bench::new();
    for (case, network) in cases.iter().zip(1..) {
        let service = (case.client.vip(), case.port, case.protocol);
        bench.add(&case.name, vip(service, case.encapsulation, case.real, network, 3));
    }
    bench.apply();
    bench
}

fn packet(case: &Case, client_port: u16, length: usize, tos: u8) -> Ip {
    let (client, service) = (socket(case.client.client(), client_port), socket(case.client.vip(), case.port));
    let data: Vec<u8> = (0..length).map(|n| n.to_le_bytes()[0]).collect();
    let packet = match case.protocol {
        Protocol::Tcp => tcp(client, service, ACK, &data),
        Protocol::Udp => udp(client, service, &data),
    };
    Ip { tos, ..packet }
}

/// Checks the layers that scapy found in a frame that carries `packet` to `real`.
fn check(case: &Case, layers: &[Value], packet: &Ip, real: std::net::IpAddr) {
    let inner_length = packet.bytes().len();
    let mut layers = layers.iter();
    let mut next = || layers.next().unwrap_or_else(|| panic!("{}: a layer is missing", case.name));
    let mac = mac_of(real).map(|byte| format!("{byte:02x}")).join(":");
    expect(next(), &json!({"layer": "Ether", "dst": mac, "src": "02:00:00:00:00:01"}));
    let gue = case.encapsulation == Encapsulation::Gue;
    let inner_protocol = if case.client == Family::V4 { 4 } else { 41 };
    if case.encapsulation != Encapsulation::L2 {
        let payload = inner_length + if gue { 12 } else { 0 };
        let protocol = if gue { 17 } else { inner_protocol };
        match case.real {
            Family::V4 => expect(
                next(),
                &json!({"layer": "IP", "src": NODE_4, "dst": real, "tos": packet.tos, "ttl": 64, "id": 0,
                        "flags": "DF", "offset": 0, "ihl": 5, "length": payload + 20, "room": payload + 20,
                        "protocol": protocol, "checksum": true}),
            ),
            Family::V6 => expect(
                next(),
                &json!({"layer": "IPv6", "src": NODE_6, "dst": real, "tos": packet.tos, "ttl": 64,
                        "length": payload, "room": payload, "protocol": protocol}),
            ),
        }
        if gue {
            let udp = next();
            // Zero: "no checksum", in IPv4 (RFC 768) as in IPv6 tunnels (RFC 6935).
            expect(
                udp,
                &json!({"layer": "UDP", "dport": GUE_PORT, "length": payload, "room": payload, "sum": 0}),
            );
            assert!(udp["sport"].as_u64().unwrap() >= 49_152, "an ephemeral port: {udp}");
            expect(
                next(),
                &json!({"layer": "GUE", "variant": 0, "control": 0, "words": 0, "flags": 0,
                        "protocol": inner_protocol}),
            );
        }
    }
    match case.client {
        Family::V4 => expect(
            next(),
            &json!({"layer": "IP", "src": packet.source, "dst": packet.destination, "ttl": packet.ttl - 1,
                    "tos": packet.tos, "length": inner_length, "room": inner_length, "checksum": true}),
        ),
        Family::V6 => expect(
            next(),
            &json!({"layer": "IPv6", "src": packet.source, "dst": packet.destination, "ttl": packet.ttl - 1,
                    "tos": packet.tos, "length": inner_length - 40, "room": inner_length - 40}),
        ),
    }
    let transport = if case.protocol == Protocol::Tcp { "TCP" } else { "UDP" };
    expect(next(), &json!({"layer": transport, "dport": case.port, "checksum": true}));
    assert!(layers.next().is_none());
}

#[test]
fn every_combination_of_families_encapsulations_and_protocols_is_right_on_the_wire() {
    let (cases, sent) = alone(|| {
        let cases = cases();
        let bench = bench(&cases);
        let mut sent = Vec::new();
        for (at, case) in cases.iter().enumerate() {
            for (client_port, length, tos) in
                [(1, 0, 0), (40_001, 1, 0x02), (40_002, 333, 0xb9), (65_535, 1100, 0xff), (7, 64, 0x03)]
            {
                let packet = packet(case, client_port, length, tos);
                let client = socket(case.client.client(), client_port);
                bench.forwards(&case.name, client, case.port, &packet.frame(), &packet.bytes());
                let ran = bench.run(&packet.frame());
                let real = bench.owner(&case.name, client, case.port).address;
                sent.push((at, packet, real, ran.frame));
            }
        }
        (cases, sent)
    });
    let frames: Vec<_> = sent.iter().map(|(_, _, _, frame)| frame.clone()).collect();
    for ((at, packet, real, _), layers) in sent.iter().zip(dissect::parse(&frames)) {
        check(&cases[*at], &layers, packet, *real);
    }
}

#[test]
fn nothing_but_the_ttl_and_its_checksum_changes_whatever_the_ttl_is() {
    alone(|| {
        let cases = cases();
        let bench = bench(&cases);
        let program = bench.program_fd();
        for case in &cases {
            // Around every carry of the incremental checksum: identifications move the sum.
            for ttl in 2..=255 {
                let mut packet = packet(case, 40_000, 9, 0);
                packet.ttl = ttl;
                packet.identification = u16::from(ttl) * 257;
                let (verdict, frame) = test_run(&program, &packet.frame(), None);
                assert_eq!(verdict, XDP_TX);
                assert_eq!(unwrap(&frame, case.encapsulation).1, routed(&packet.bytes()), "TTL {ttl}");
            }
        }
    });
}

#[test]
fn the_ipv4_checksum_survives_the_lower_ttl_for_every_sum() {
    alone(|| {
        let cases = cases();
        let bench = bench(&cases);
        let case = &cases[0];
        let program = bench.program_fd();
        for identification in 0..=u16::MAX {
            let mut packet = packet(case, 40_000, 0, 0);
            packet.identification = identification;
            let (verdict, frame) = test_run(&program, &packet.frame(), None);
            assert_eq!(verdict, XDP_TX);
            let inner = unwrap(&frame, case.encapsulation).1;
            // 0 and 0xffff mean the same sum (RFC 1624); both verify.
            assert_eq!(checksum(&inner[..20]), 0, "identification {identification}");
        }
    });
}

#[test]
fn flows_spread_over_source_ports_and_flow_labels_and_a_flow_keeps_its_own() {
    alone(|| {
        let cases = cases();
        let bench = bench(&cases);
        let program = bench.program_fd();
        for case in cases.iter().filter(|case| case.encapsulation != Encapsulation::L2) {
            let entropy = |client_port| {
                let input = packet(case, client_port, 5, 0).frame();
                let (_, frame) = test_run(&program, &input, None);
                match (case.encapsulation, case.real) {
                    (Encapsulation::Gue, Family::V4) => frame[34..36].to_vec(),
                    (Encapsulation::Gue, Family::V6) => [&frame[15..18], &frame[54..56]].concat(),
                    (_, Family::V4) => vec![], // an IPIP header over IPv4 has no room for it
                    (_, Family::V6) => frame[15..18].to_vec(),
                }
            };
            let different: BTreeSet<_> = (1000..1200).map(entropy).collect();
            let expected = if entropy(1).is_empty() { 1 } else { 150 };
            assert!(different.len() >= expected, "{}: {}", case.name, different.len());
            assert_eq!(entropy(1000), entropy(1000));
        }
    });
}

#[test]
fn a_next_hop_behind_a_vlan_or_another_interface_gets_tagged_and_redirected_frames() {
    let (sent, real) = alone(|| {
        let mut bench = Bench::new();
        let service = (Family::V4.vip(), 80, Protocol::Tcp);
        bench.add("v", vip(service, Encapsulation::Gue, Family::V6, 1, 1));
        let service = (Family::V4.vip(), 81, Protocol::Tcp);
        bench.add("w", vip(service, Encapsulation::L2, Family::V4, 2, 1));
        let hops: Vec<_> = bench.hops.keys().copied().collect();
        for address in &hops {
            bench.hops.get_mut(address).unwrap().vlan = Some(4001);
        }
        bench.apply();
        let mut sent = Vec::new();
        for tags in [&[][..], &[17], &[17, 18]] {
            for port in [80, 81] {
                let packet =
                    tcp(socket(Family::V4.client(), 999), socket(Family::V4.vip(), port), ACK, b"tagged");
                let ran = bench.run(&frame(tags, &packet.bytes()));
                assert_eq!(ran.verdict, XDP_TX);
                let encapsulation = if port == 80 { Encapsulation::Gue } else { Encapsulation::L2 };
                assert_eq!(unwrap(&ran.frame, encapsulation).1, routed(&packet.bytes()));
                sent.push(ran.frame);
            }
        }
        let elsewhere = front() + 1000;
        for address in &hops {
            bench.hops.insert(*address, hop(elsewhere, *address));
        }
        bench.apply_next_hops();
        let packet = tcp(socket(Family::V4.client(), 999), socket(Family::V4.vip(), 80), ACK, b"");
        assert_eq!(bench.run(&packet.frame()).verdict, XDP_REDIRECT);
        (sent, hops)
    });
    assert_eq!(real, [ip("10.1.2.1"), ip("fd00:1:1::1")]);
    for (number, layers) in dissect::parse(&sent).iter().enumerate() {
        expect(&layers[1], &json!({"layer": "VLAN", "id": 4001}));
        let third = if number % 2 == 0 { "IPv6" } else { "IP" };
        expect(&layers[2], &json!({"layer": third}));
    }
    assert!(sent.iter().all(|frame| frame[6..12] == NODE_MAC));
}

#[test]
fn padding_behind_a_short_packet_is_no_part_of_the_lengths() {
    let sent = alone(|| {
        let cases = cases();
        let bench = bench(&cases);
        let mut sent = Vec::new();
        for case in &cases {
            let packet = packet(case, 40_000, 1, 0);
            let mut input = packet.frame();
            input.resize(input.len() + 25, 0xee);
            let client = socket(case.client.client(), 40_000);
            bench.forwards(&case.name, client, case.port, &input, &packet.bytes());
            sent.push((packet.bytes().len(), bench.run(&input).frame));
        }
        sent
    });
    let frames: Vec<_> = sent.iter().map(|(_, frame)| frame.clone()).collect();
    for ((length, frame), layers) in sent.iter().zip(dissect::parse(&frames)) {
        assert_eq!(&frame[frame.len() - 25..], [0xee; 25]);
        // scapy cuts layers at their own lengths: the innermost fits exactly.
        let ip = &layers[layers.len() - 2];
        let own = if ip["layer"] == "IP" { *length } else { length - 40 };
        expect(ip, &json!({"length": own}));
        expect(&layers[layers.len() - 1], &json!({"checksum": true}));
    }
}

#[test]
fn a_frame_without_room_before_it_is_dropped_and_counts_as_dropped_alone() {
    alone(|| {
        let mut bench = Bench::new();
        bench.add("v4", vip((VIP_4, 80, Protocol::Tcp), Encapsulation::Gue, Family::V4, 1, 1));
        bench.apply();
        // Metadata of another program take up what the driver left.
        const TAKEN: u32 = 200;
        let packet = tcp(socket(CLIENT_4, 5000), socket(VIP_4, 80), ACK, b"data").frame();
        let input = [vec![0; TAKEN as usize], packet].concat();
        // `struct xdp_md`: where the packet begins and ends behind the metadata.
        let length = u32::try_from(input.len()).unwrap();
        let context: Vec<u8> =
            [TAKEN, length, 0, 0, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let before = bench.statistics();
        let (verdict, _) = test_run(&bench.program_fd(), &input, Some(&context));
        assert_eq!(
            (verdict, rise(&before, &bench.statistics())),
            (XDP_DROP, counted(&["drops/v4/no_headroom"]))
        );
    });
}
