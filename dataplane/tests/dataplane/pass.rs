//! Tests that packets which are not for a VIP are left to the kernel.

use crate::bench::{
    Bench, CLIENT_4, CLIENT_6, FAMILIES, Family, VIP_4, VIP_6, alone, ip, settings, socket, vip,
};
use crate::packet::{ACK, Ip, NODE_MAC, ROUTER_MAC, SYN, frame, icmp, tcp, udp};
use dataplane::Settings;
use zk_schema::{Encapsulation, Protocol, Unserved};

fn bench() -> Bench {
    bench_with(settings())
}

fn bench_with(settings: Settings) -> Bench {
    let mut bench = Bench::with(settings);
    for (network, family) in (1..).zip(FAMILIES) {
        let service = (family.vip(), 80, Protocol::Tcp);
        bench.add(&format!("v{}", family.digit()), vip(service, Encapsulation::Gue, Family::V4, network, 2));
    }
    bench.apply();
    bench
}

#[test]
fn other_addresses_and_other_ethertypes_pass_untouched() {
    alone(|| {
        let bench = bench();
        for (client, other) in [
            (CLIENT_4, "198.51.100.2"),
            (CLIENT_4, "0.0.0.0"),
            (CLIENT_4, "255.255.255.255"),
            (CLIENT_6, "2001:db8:5::2"),
            (CLIENT_6, "::"),
            (CLIENT_6, "::1"),
            (CLIENT_6, "ff02::1"),
            (CLIENT_6, "::ffff:198.51.100.1"),
            // What an IPv4 VIP's key would look like, read as IPv6.
            (CLIENT_6, "ffff:ffff:ffff:ffff:c633:6401::"),
        ] {
            let packets = [
                tcp(socket(client, 1), socket(other, 80), SYN, b""),
                udp(socket(client, 1), socket(other, 80), b""),
                icmp(ip(client), ip(other), if client == CLIENT_4 { 8 } else { 128 }, 0, [0; 4], b"ping"),
                Ip::new(ip(client), ip(other), 132, vec![0; 40]),
            ];
            for packet in packets {
                for tags in [&[][..], &[5], &[5, 6]] {
                    bench.passes(&frame(tags, &packet.bytes()), "passed");
                }
                // Nonsense in a packet that is not ours is none of our business.
                let mut nonsense = packet.frame();
                nonsense[16] = 0xff;
                bench.passes(&nonsense, "passed");
            }
        }
        for ethertype in [0x0806_u16, 0x88cc, 0x8847, 0x0000, 0x0026, 0xffff] {
            let mut input = [NODE_MAC, ROUTER_MAC].concat();
            input.extend(ethertype.to_be_bytes());
            input.extend([0x45; 46]);
            bench.passes(&input, "passed");
            for length in 14..input.len() {
                bench.passes(&input[..length], "passed");
            }
        }
    });
}

/// Frames to the VIPs' addresses that no VIP serves.
fn unserved() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (client, vip) in [(CLIENT_4, VIP_4), (CLIENT_6, VIP_6)] {
        packets.push(tcp(socket(client, 1), socket(vip, 81), SYN, b""));
        packets.push(tcp(socket(client, 80), socket(vip, 0), ACK, b""));
        packets.push(udp(socket(client, 1), socket(vip, 80), b"dns"));
        for protocol in [2, 47, 50, 89, 132, 253] {
            packets.push(Ip::new(ip(client), ip(vip), protocol, vec![0; 40]));
        }
    }
    // IPv6's "no next header", ICMP of the other family, and ICMP that is neither echo nor an error.
    packets.push(Ip::new(ip(CLIENT_6), ip(VIP_6), 59, vec![]));
    packets.push(Ip::new(ip(CLIENT_6), ip(VIP_6), 1, vec![8; 16]));
    packets.push(Ip::new(ip(CLIENT_4), ip(VIP_4), 58, vec![128; 16]));
    for kind in [0, 4, 5, 9, 10, 13, 17] {
        packets.push(icmp(ip(CLIENT_4), ip(VIP_4), kind, 0, [0; 4], &[0; 24]));
    }
    for kind in [129, 130, 132, 138, 143] {
        packets.push(icmp(ip(CLIENT_6), ip(VIP_6), kind, 0, [0; 4], &[0; 24]));
    }
    // Neighbour discovery that has been through a router.
    for kind in 133..=137 {
        packets.push(Ip { ttl: 254, ..icmp(ip(CLIENT_6), ip(VIP_6), kind, 0, [0; 4], &[0; 24]) });
    }
    packets.iter().map(Ip::frame).collect()
}

#[test]
fn what_no_vip_of_the_address_serves_is_dropped_and_counted() {
    alone(|| {
        let bench = bench();
        for input in unserved() {
            bench.drops(&input, "/no_service");
        }
    });
}

#[test]
fn what_no_vip_of_the_address_serves_passes_untouched_where_the_node_is_told_so() {
    alone(|| {
        let bench = bench_with(Settings { unserved: Unserved::Pass, ..settings() });
        for input in unserved() {
            bench.passes(&input, "passed_no_service");
        }
    });
}

#[test]
fn frames_cut_short_before_the_address_pass_untouched() {
    alone(|| {
        let bench = bench();
        for (client, vip, header) in [(CLIENT_4, VIP_4, 20), (CLIENT_6, VIP_6, 40)] {
            for tags in [&[][..], &[5], &[5, 6]] {
                let input = frame(tags, &tcp(socket(client, 1), socket(vip, 80), SYN, b"").bytes());
                for length in 14..14 + tags.len() * 4 + header {
                    bench.passes(&input[..length], "passed");
                }
            }
        }
    });
}

#[test]
fn a_third_vlan_tag_is_beyond_what_is_looked_at() {
    alone(|| {
        let packet = tcp(socket(CLIENT_4, 1), socket(VIP_4, 80), SYN, b"").bytes();
        bench().passes(&frame(&[1, 2, 3], &packet), "passed");
    });
}

#[test]
fn neighbour_discovery_for_a_vip_is_left_to_the_kernel() {
    alone(|| {
        let bench = bench();
        for kind in 133..=137 {
            let packet = icmp(ip(CLIENT_6), ip(VIP_6), kind, 0, [0; 4], &[0; 24]);
            bench.passes(&Ip { ttl: 255, ..packet }.frame(), "passed_no_service");
        }
    });
}

#[test]
fn without_any_vip_everything_passes_untouched() {
    alone(|| {
        let mut bench = Bench::new();
        let probe = |bench: &Bench| {
            for (client, other) in
                [(CLIENT_4, VIP_4), (CLIENT_4, "0.0.0.0"), (CLIENT_6, VIP_6), (CLIENT_6, "::")]
            {
                bench.passes(&tcp(socket(client, 1), socket(other, 80), SYN, b"").frame(), "passed");
            }
        };
        bench.apply();
        probe(&bench);
        bench.add("v", vip((VIP_4, 80, Protocol::Tcp), Encapsulation::Gue, Family::V4, 1, 2));
        bench.apply();
        bench.program.vips.clear();
        bench.apply();
        probe(&bench);
    });
}
