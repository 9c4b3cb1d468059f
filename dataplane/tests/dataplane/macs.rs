//! Frames for others: switches flood, and interfaces are promiscuous.

use crate::bench::{
    Bench, FAMILIES, Family, INTERFACE, XDP_TX, alone, front, hop, ip_link, settings, socket, vip,
};
use crate::packet::{ACK, frame, icmp, tcp};
use dataplane::Settings;
use dataplane::nexthop::Mac;
use zk_schema::{Encapsulation, MacAddress, Protocol};

const OTHER_HOST: Mac = [2, 0, 0, 0, 0, 0x0b];
const VIRTUAL: Mac = [0, 0, 0x5e, 0, 1, 7];

fn bench(settings: Settings) -> Bench {
    let mut bench = Bench::with(settings);
    for (network, family) in (1..).zip(FAMILIES) {
        let service = (family.vip(), 80, Protocol::Tcp);
        bench.add(&format!("v{}", family.digit()), vip(service, Encapsulation::Gue, Family::V4, network, 2));
    }
    bench.apply();
    bench
}

/// Frames to `mac` that would be forwarded, answered, or dropped with a counter if they were for this host.
fn frames(mac: Mac) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for family in FAMILIES {
        let (client, service) = (socket(family.client(), 1), socket(family.vip(), 80));
        let echo = if family == Family::V4 { 8 } else { 128 };
        for packet in [
            tcp(client, service, ACK, b"data"),
            tcp(client, socket(family.vip(), 81), ACK, b"data"),
            icmp(client.ip(), service.ip(), echo, 0, [1; 4], b"ping"),
        ] {
            for tags in [&[][..], &[5], &[5, 6]] {
                let mut frame = frame(tags, &packet.bytes());
                frame[..6].copy_from_slice(&mac);
                frames.push(frame);
            }
        }
    }
    frames
}

/// Returns whether a client's packet in a frame to `mac` is forwarded.
fn takes(bench: &Bench, mac: Mac) -> bool {
    bench.run(&frames(mac)[0]).verdict == XDP_TX
}

#[test]
fn frames_for_another_host_or_for_many_are_the_kernel_s() {
    alone(|| {
        let bench = bench(settings());
        for mac in [OTHER_HOST, [0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1], [0; 6]] {
            for input in frames(mac) {
                bench.passes(&input, "passed_other_host");
            }
        }
    });
}

#[test]
fn frames_to_further_addresses_are_taken_where_the_node_is_told_so() {
    alone(|| {
        let accept_macs = (0..8).map(|n| MacAddress([0, 0, 0x5e, 0, 1, n])).collect();
        let bench = bench(Settings { accept_macs, ..settings() });
        assert!(takes(&bench, VIRTUAL) && takes(&bench, [0, 0, 0x5e, 0, 1, 0]));
        assert!(!takes(&bench, OTHER_HOST) && !takes(&bench, [0; 6]));
    });
}

#[test]
fn the_interface_s_address_may_change() {
    alone(|| {
        let mut bench = bench(settings());
        let own = crate::packet::NODE_MAC;
        assert!(takes(&bench, own) && !takes(&bench, OTHER_HOST));
        // Next hops show the change, as they name the address that frames leave from.
        ip_link(&format!("link set dev {INTERFACE} address 02:00:00:00:00:0b"));
        let front = front();
        for (address, next) in &mut bench.hops {
            *next = hop(front, *address);
        }
        bench.apply_next_hops();
        assert!(takes(&bench, OTHER_HOST) && !takes(&bench, own));
        // And so does the next self-test, whose own packet is for the new address.
        ip_link(&format!("link set dev {INTERFACE} address 02:00:00:00:00:01"));
        let tested = bench.dataplane.self_test();
        assert!(tested.tested == 2 && tested.failures.is_empty(), "{tested:?}");
        assert!(takes(&bench, own) && !takes(&bench, OTHER_HOST));
    });
}
