//! Tests of the choice of the real.

use crate::bench::{
    Bench, CLIENT_4, FAMILIES, Family, SEED, VIP_4, XDP_TX, alone, mac_of, socket, test_run, unwrap, vip,
    with_table, with_table_of,
};
use crate::packet::{ACK, Random, SYN, tcp, udp};
use dataplane::program::VipProgram;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use zk_schema::{Affinity, Capacity, Encapsulation, Protocol};

fn client(random: &mut Random, family: Family) -> SocketAddr {
    let address = match family {
        Family::V4 => loop {
            let bytes = random.bytes(4);
            if (1..224).contains(&bytes[0]) {
                break crate::bench::v4(&bytes);
            }
        },
        Family::V6 => {
            let mut bytes = random.bytes(16);
            bytes[0] = 0x20;
            crate::bench::v6(&bytes)
        }
    };
    SocketAddr::new(address, random.word().max(1))
}

/// The real's address of the frame that came out.
fn reached(bench: &Bench, input: &[u8]) -> IpAddr {
    let (verdict, frame) = test_run(&bench.program_fd(), input, None);
    assert_eq!(verdict, XDP_TX);
    unwrap(&frame, Encapsulation::Ipip).0
}

#[test]
fn the_loaded_program_hashes_thousands_of_random_flows_as_slot_table_does() {
    const M: u32 = 65_537;
    alone(|| {
        let mut settings = crate::bench::settings();
        settings.table_size = M;
        settings.capacity = Capacity { tables: 8, ..settings.capacity };
        let mut bench = Bench::with(settings);
        for (network, family) in (1..).zip(FAMILIES) {
            for (port, protocol) in [(0, Protocol::Tcp), (1883, Protocol::Udp)] {
                let vip = vip((family.vip(), port, protocol), Encapsulation::Ipip, family, network, 30);
                bench.add(&format!("v{}-{port}", family.digit()), with_table_of(vip, M));
            }
        }
        bench.apply();
        let mut random = Random(0xd20e);
        for family in FAMILIES {
            for round in 0..4000 {
                let client = client(&mut random, family);
                let udp_too = round % 4 == 0;
                let port = if udp_too { 1883 } else { random.word() };
                let service = socket(family.vip(), port);
                let input = if udp_too {
                    udp(client, service, b"").frame()
                } else {
                    tcp(client, service, ACK, b"").frame()
                };
                let name = format!("v{}-{}", family.digit(), if udp_too { 1883 } else { 0 });
                assert_eq!(
                    reached(&bench, &input),
                    bench.owner(&name, client, port).address,
                    "{client} to {service}"
                );
            }
        }
        assert_eq!(bench.program.seed, SEED);
    });
}

#[test]
fn source_affinity_keeps_a_client_at_one_real_whatever_its_ports() {
    alone(|| {
        let mut bench = Bench::new();
        for (network, family) in (1..).zip(FAMILIES) {
            let service = (family.vip(), 0, Protocol::Tcp);
            let vip = vip(service, Encapsulation::Ipip, family, network, 7);
            bench.add(
                family.vip().replace([':', '.'], "-").trim_matches('-'),
                VipProgram { affinity: Affinity::Source, ..vip },
            );
        }
        bench.apply();
        let mut random = Random(1);
        let mut all = BTreeSet::new();
        for family in FAMILIES {
            let name = family.vip().replace([':', '.'], "-");
            for _ in 0..60 {
                let mut client = client(&mut random, family);
                let mut reals = BTreeSet::new();
                for _ in 0..10 {
                    client.set_port(random.word().max(1));
                    let port = random.word();
                    let input = tcp(client, socket(family.vip(), port), SYN, b"").frame();
                    reals.insert(reached(&bench, &input));
                    assert!(reals.contains(&bench.owner(&name, client, port).address));
                }
                assert_eq!(reals.len(), 1);
                all.extend(reals);
            }
        }
        assert_eq!(all.len(), 14, "clients spread over all reals of both");
    });
}

#[test]
fn a_named_port_beats_all_ports_and_tcp_and_udp_are_apart() {
    alone(|| {
        let mut bench = Bench::new();
        for (name, port, protocol, network) in [
            ("tcp-any", 0, Protocol::Tcp, 1),
            ("tcp-80", 80, Protocol::Tcp, 2),
            ("udp-80", 80, Protocol::Udp, 3),
            ("udp-any", 0, Protocol::Udp, 4),
            ("tcp-81", 81, Protocol::Tcp, 5),
        ] {
            bench.add(name, vip((VIP_4, port, protocol), Encapsulation::Ipip, Family::V4, network, 1));
        }
        bench.apply();
        let to = |port, protocol| {
            let (client, service) = (socket(CLIENT_4, 5000), socket(VIP_4, port));
            let input = match protocol {
                Protocol::Tcp => tcp(client, service, ACK, b""),
                Protocol::Udp => udp(client, service, b""),
            };
            match reached(&bench, &input.frame()) {
                IpAddr::V4(address) => address.octets()[2],
                IpAddr::V6(address) => panic!("{address}"),
            }
        };
        assert_eq!(to(80, Protocol::Tcp), 2);
        assert_eq!(to(81, Protocol::Tcp), 5);
        assert_eq!(to(82, Protocol::Tcp), 1);
        assert_eq!(to(80, Protocol::Udp), 3);
        assert_eq!(to(81, Protocol::Udp), 4);
        assert_eq!(to(0, Protocol::Udp), 4);
    });
}

#[test]
fn without_encapsulation_the_frame_goes_to_the_real_s_mac() {
    alone(|| {
        let mut bench = Bench::new();
        bench.add("l2", vip((VIP_4, 80, Protocol::Tcp), Encapsulation::L2, Family::V4, 1, 5));
        bench.apply();
        let mut macs = BTreeSet::new();
        for port in 1..200 {
            let client = socket(CLIENT_4, port);
            let ran = bench.run(&tcp(client, socket(VIP_4, 80), ACK, b"").frame());
            assert_eq!(ran.frame[..6], mac_of(bench.owner("l2", client, 80).address));
            macs.insert(ran.frame[..6].to_vec());
        }
        assert_eq!(macs.len(), 5);
    });
}

#[test]
fn packets_are_dropped_and_counted_where_no_real_takes_them_or_its_next_hop_is_unknown() {
    alone(|| {
        let mut bench = Bench::new();
        bench.add("v", vip((VIP_4, 80, Protocol::Tcp), Encapsulation::Gue, Family::V4, 1, 2));
        let hops = std::mem::take(&mut bench.hops);
        bench.apply();
        let input = tcp(socket(CLIENT_4, 5000), socket(VIP_4, 80), SYN, b"").frame();
        bench.drops(&input, "v/no_next_hop");
        assert_eq!(bench.dataplane.unresolved().len(), 2);
        bench.hops = hops;
        bench.apply_next_hops();
        assert!(bench.dataplane.unresolved().is_empty());
        assert_eq!(bench.run(&input).verdict, XDP_TX);
        for real in &mut bench.vip("v").reals {
            real.weight = 0;
        }
        *bench.vip("v") = with_table(bench.vip("v").clone());
        bench.apply();
        bench.drops(&input, "v/no_real");
    });
}
