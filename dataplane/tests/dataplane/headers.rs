//! IPv4 options and IPv6 extension headers.

use crate::bench::{Bench, CLIENT_4, CLIENT_6, Counted, FAMILIES, VIP_4, VIP_6, alone, counted, socket, vip};
use crate::packet::{ACK, FRAGMENT, Ip, SYN, frame, tcp, udp};
use zk_schema::{Encapsulation, Protocol};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;
/// The program walks this many extension headers.
const MOST: usize = 6;

fn bench() -> Bench {
    let mut bench = Bench::new();
    for (network, family) in (1..).zip(FAMILIES) {
        for (offset, protocol) in [(0, Protocol::Tcp), (10, Protocol::Udp)] {
            let service = (family.vip(), 80, protocol);
            let name = format!("{protocol:?}{}", family.digit()).to_lowercase();
            bench.add(&name, vip(service, Encapsulation::Gue, family, network + offset, 3));
        }
    }
    bench.apply();
    bench
}

/// An extension header of `length` bytes, a multiple of eight, filled with padding options.
fn extension(kind: u8, length: usize) -> (u8, Vec<u8>) {
    let mut bytes = vec![u8::try_from(length / 8 - 1).unwrap()];
    bytes.resize(length - 1, 0);
    (kind, bytes)
}

/// An atomic fragment's header (RFC 6946).
fn atomic() -> (u8, Vec<u8>) {
    (FRAGMENT, vec![0, 0, 0, 0, 0, 9, 9])
}

fn packets6(extensions: &[(u8, Vec<u8>)]) -> [Ip; 2] {
    let (client, service) = (socket(CLIENT_6, 5000), socket(VIP_6, 80));
    [tcp(client, service, ACK, b"data"), udp(client, service, b"data")]
        .map(|packet| Ip { extensions: extensions.to_vec(), ..packet })
}

fn forwarded(bench: &Bench, extensions: &[(u8, Vec<u8>)]) {
    for (packet, name) in packets6(extensions).iter().zip(["tcp6", "udp6"]) {
        for tags in [&[][..], &[3], &[3, 4]] {
            let bytes = packet.bytes();
            let client = socket(CLIENT_6, 5000);
            let rest = bench.forwards(name, client, 80, &frame(tags, &bytes), &bytes);
            assert_eq!(rest, Counted::new(), "{extensions:?}");
        }
    }
}

#[test]
fn ipv4_options_of_every_length_are_stepped_over_and_kept() {
    alone(|| {
        let bench = bench();
        let (client, service) = (socket(CLIENT_4, 5000), socket(VIP_4, 80));
        for words in 1..=10 {
            for (packet, name) in
                [(tcp(client, service, ACK, b"data"), "tcp4"), (udp(client, service, b"data"), "udp4")]
            {
                let packet = Ip { options: vec![1; words * 4], tos: 0x2a, ..packet };
                for tags in [&[][..], &[3], &[3, 4]] {
                    let bytes = packet.bytes();
                    let rest = bench.forwards(name, client, 80, &frame(tags, &bytes), &bytes);
                    assert_eq!(rest, Counted::new());
                }
            }
        }
        let syn = Ip { options: vec![1; 8], ..tcp(client, service, SYN, b"") };
        let rest = bench.forwards("tcp4", client, 80, &syn.frame(), &syn.bytes());
        let real = bench.owner("tcp4", client, 80).name.clone();
        assert_eq!(rest, counted(&[&format!("reals/tcp4/{}/connections", real.as_str())]));
    });
}

#[test]
fn ipv6_extension_headers_are_walked_and_kept() {
    alone(|| {
        let bench = bench();
        for kind in [HOP_BY_HOP, ROUTING, DESTINATION] {
            for length in [8, 16, 64, 256, 424] {
                forwarded(&bench, &[extension(kind, length)]);
            }
        }
        forwarded(
            &bench,
            &[
                extension(HOP_BY_HOP, 8),
                extension(DESTINATION, 24),
                extension(ROUTING, 16),
                extension(DESTINATION, 8),
            ],
        );
        for count in 1..=MOST {
            forwarded(&bench, &vec![extension(DESTINATION, 8); count]);
        }
    });
}

#[test]
fn an_atomic_fragment_is_treated_as_the_whole_that_it_is() {
    alone(|| {
        let bench = bench();
        forwarded(&bench, &[atomic()]);
        forwarded(&bench, &[extension(HOP_BY_HOP, 8), atomic(), extension(DESTINATION, 8)]);
    });
}

#[test]
fn what_is_past_the_bound_of_the_walk_is_dropped_and_counted() {
    alone(|| {
        let bench = bench();
        for packet in packets6(&vec![extension(DESTINATION, 8); MOST + 1]) {
            bench.drops(&packet.frame(), "/extension_headers");
        }
        for packet in packets6(&[extension(DESTINATION, 256), extension(DESTINATION, 256)]) {
            bench.drops(&packet.frame(), "/extension_headers");
        }
        for packet in packets6(&[extension(HOP_BY_HOP, 2048)]) {
            bench.drops(&packet.frame(), "/extension_headers");
        }
        // A header that claims more than the packet has.
        let mut lying = packets6(&[extension(ROUTING, 16)])[0].clone();
        lying.extensions[0].1[0] = 20;
        bench.drops(&lying.frame(), "/extension_headers");
        // Nothing behind the last one.
        let [mut packet, _] = packets6(&[extension(ROUTING, 16)]);
        packet.payload.clear();
        bench.drops(&packet.frame(), "/malformed_transport");
    });
}

#[test]
fn protocols_behind_extension_headers_that_are_no_service_are_dropped_and_counted() {
    alone(|| {
        let bench = bench();
        for protocol in [50, 59, 132] {
            for mut packet in packets6(&[extension(DESTINATION, 8)]) {
                packet.protocol = protocol;
                bench.drops(&packet.frame(), "/no_service");
            }
        }
        let mut other = tcp(socket(CLIENT_6, 5000), socket(VIP_6, 81), ACK, b"");
        other.extensions = vec![extension(DESTINATION, 8)];
        bench.drops(&other.frame(), "/no_service");
    });
}
