//! The promises of the flow hash: the same bits everywhere, an even spread over slots for the dull address patterns of
//! real networks, and no two flows that share a slot whatever the seed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;
use slot_table::flow::{Flow, Seed, hash_v4, hash_v6, ports_word, slot};

const SEED: Seed = Seed { k0: 0x6472_6f76_6572_2d74, k1: 0x6573_7473_2d73_6565 };
/// Seeds that an operator might really set, the careless ones included.
const SEEDS: [Seed; 4] =
    [SEED, Seed { k0: 0, k1: 0 }, Seed { k0: 1, k1: 0 }, Seed { k0: u64::MAX, k1: u64::MAX }];
const M: u32 = 65_537;

fn v4(address: u32, port: u16) -> Flow {
    Flow { client: SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(address)), port), service_port: 1883 }
}

fn v6(address: u128, port: u16) -> Flow {
    Flow { client: SocketAddr::new(IpAddr::V6(Ipv6Addr::from_bits(address)), port), service_port: 1883 }
}

/// The distance of the slots' loads from a random spread, in standard deviations of chi-square.
///
/// The slots are folded into 1,024 bins of neighbours, so that the expected load per bin is ample.
fn excess(flows: impl Iterator<Item = Flow>, seed: Seed) -> f64 {
    const BINS: usize = 1024;
    let mut loads = vec![0u32; BINS];
    let mut flows_seen = 0.0;
    for flow in flows {
        let slot = slot(flow.hash(seed), M) as usize;
        loads[slot * BINS / M as usize] += 1;
        flows_seen += 1.0;
    }
    let expected = flows_seen / BINS as f64;
    let chi_square: f64 = loads.iter().map(|&load| (f64::from(load) - expected).powi(2) / expected).sum();
    let freedom = (BINS - 1) as f64;
    (chi_square - freedom) / (2.0 * freedom).sqrt()
}

/// A bad hash is off by hundreds of standard deviations; a good one passes five once in millions.
/// Too even a spread is no fault, so only the upper side is bounded.
fn assert_even(name: &str, flows: impl Iterator<Item = Flow> + Clone) {
    for seed in SEEDS {
        let excess = excess(flows.clone(), seed);
        assert!(excess < 6.0, "{name} under {seed:x?}: {excess:.1} standard deviations from even");
    }
}

#[test]
fn hashes_match_the_recorded_vectors() {
    let flow = |client: &str| Flow { client: client.parse().unwrap(), service_port: 1883 };
    let vectors: [(&str, u32, u32); 6] = [
        ("192.0.2.1:40000", 0x26f174d3, 0xc021c9dd),
        ("192.0.2.1:40001", 0x9be20420, 0xc021c9dd),
        ("203.0.113.255:65535", 0x01e4c279, 0x2944a7a8),
        ("[2001:db8::1]:40000", 0xd31a45e5, 0xf62c7c78),
        ("[2001:db8::2]:40000", 0x85f6adfd, 0x41248685),
        ("[fe80::ffff:ffff:ffff:ffff]:1", 0xa987fcc5, 0xa298f5c4),
    ];
    let found = vectors.map(|(client, ..)| (client, flow(client).hash(SEED), flow(client).hash_source(SEED)));
    assert_eq!(
        found, vectors,
        "the hash has changed: every node and program of a cluster must change with it"
    );
}

#[test]
fn words_are_the_bytes_on_the_wire() {
    assert_eq!(ports_word(0x1234, 0x5678).to_le_bytes(), [0x12, 0x34, 0x56, 0x78]);
    let flow = v4(u32::from_be_bytes([192, 0, 2, 1]), 40_000);
    let source = u32::from_le_bytes([192, 0, 2, 1]);
    assert_eq!(flow.hash(SEED), hash_v4(SEED, source, ports_word(40_000, 1883)));
    let flow = v6(0x2001_0db8_0000_0000_0000_0000_0000_0001, 40_000);
    let source = [u64::from_le_bytes([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0]), 1 << 56];
    assert_eq!(flow.hash(SEED), hash_v6(SEED, source, ports_word(40_000, 1883)));
}

#[test]
fn sequential_ports_of_one_client_spread_evenly() {
    assert_even("IPv4 ports", (1024..=u16::MAX).map(|port| v4(0xc000_0201, port)));
    assert_even("IPv6 ports", (1024..=u16::MAX).map(|port| v6(0x2001_0db8 << 96 | 1, port)));
}

#[test]
fn sequential_addresses_with_one_port_spread_evenly() {
    assert_even("IPv4 hosts", (0..200_000).map(|host| v4(0x0a00_0000 + host, 40_000)));
    assert_even("IPv4 networks", (0..65_536).map(|network| v4(network << 16 | 1, 40_000)));
    assert_even("IPv6 hosts", (0..200_000).map(|host| v6(0x2001_0db8 << 96 | host, 40_000)));
    assert_even("IPv6 /64s", (0..200_000).map(|network| v6(0x2001_0db8 << 96 | network << 64 | 1, 40_000)));
    assert_even("IPv6 /48s", (0..65_536).map(|network| v6(0x2001_0db8 << 96 | network << 80 | 1, 40_000)));
}

#[test]
fn devices_with_manufacturer_addresses_spread_evenly() {
    // RFC 4291, appendix A: a MAC address split around ff:fe.
    let devices =
        (0..100_000u128).map(|serial| v6(0x2001_0db8 << 96 | 0x0221_86ff_fe00_0000 | serial, 50_000));
    assert_even("EUI-64", devices);
}

#[test]
fn addresses_and_ports_that_rise_together_spread_evenly() {
    assert_even("IPv4", (0..50_000u16).map(|i| v4(0x0a00_0000 + u32::from(i), 10_000 + i)));
    assert_even("IPv4, opposite", (0..50_000u16).map(|i| v4(0x0a00_0000 + u32::from(i), 60_000 - i)));
    assert_even("IPv6", (0..50_000u16).map(|i| v6(0x2001_0db8 << 96 | u128::from(i), 10_000 + i)));
}

#[test]
fn affinity_by_source_spreads_addresses_evenly_and_ignores_ports() {
    let slots: std::collections::HashSet<u32> =
        (0..65_536).map(|host| slot(v4(0x0a00_0000 + host, 0).hash_source(SEED), M)).collect();
    let random = f64::from(M) * (1.0 - (-1.0f64).exp());
    assert!((slots.len() as f64 - random).abs() < random * 0.02, "{} slots hit", slots.len());
    assert_eq!(v4(7, 1).hash_source(SEED), v4(7, 2).hash_source(SEED));
}

/// Share of samples in which flipping input bit `bit` flips each output bit.
fn flips(samples: u32, mut hash: impl FnMut(u32, bool) -> u32) -> [f64; 32] {
    let mut counts = [0u32; 32];
    for sample in 0..samples {
        let changed = hash(sample, false) ^ hash(sample, true);
        for (bit, count) in counts.iter_mut().enumerate() {
            *count += changed >> bit & 1;
        }
    }
    counts.map(|count| f64::from(count) / f64::from(samples))
}

/// Any 64-bit value that differs from its neighbours in about half the bits.
fn scattered(n: u64) -> u64 {
    let x = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 31).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ x >> 32
}

#[test]
fn each_input_bit_flips_each_output_bit_half_the_time() {
    const SAMPLES: u32 = 20_000;
    let check = |what: &str, bit: usize, rates: [f64; 32]| {
        for (output, rate) in rates.into_iter().enumerate() {
            // Six standard deviations of 20,000 fair coins.
            assert!((rate - 0.5).abs() < 0.021, "{what} bit {bit} flips output bit {output} in {rate:.3}");
        }
    };
    for bit in 0..64 {
        let rates = flips(SAMPLES, |sample, flip| {
            let word = scattered(u64::from(sample)) ^ u64::from(flip) << bit;
            hash_v4(SEED, (word >> 32) as u32, (word & 0xffff_ffff) as u32)
        });
        check("IPv4", bit, rates);
    }
    for bit in 0..160 {
        let rates = flips(SAMPLES, |sample, flip| {
            let mut words = [0, 1, 2].map(|n| scattered(u64::from(sample) * 3 + n));
            words[bit / 64] ^= u64::from(flip) << (bit % 64);
            hash_v6(SEED, [words[0], words[1]], (words[2] & 0xffff_ffff) as u32)
        });
        check("IPv6", bit, rates);
    }
}

#[test]
fn no_simple_change_of_an_ipv6_address_keeps_the_slot_under_every_seed() {
    // Differences in the top bits of one word, balanced by a difference in another, are how a
    // chain of xor and multiply collides for every key.
    let base = [0x0000_0000_b80d_0120, 0x0100_0000_0000_0000];
    let high = |n: u64| (n & 0xf) << 60 | (n >> 4 & 0xf) << 28;
    for first in 0..256 {
        for second in 0..256 {
            if (first, second) == (0, 0) {
                continue;
            }
            let other = [base[0] ^ high(first), base[1] ^ high(second)];
            let collides = (0..4).all(|n| {
                let seed = Seed { k0: scattered(2 * n), k1: scattered(2 * n + 1) };
                hash_v6(seed, base, 7) == hash_v6(seed, other, 7)
            });
            assert!(!collides, "{base:x?} and {other:x?} collide under every seed");
        }
    }
}

proptest! {
    #[test]
    fn a_slot_is_always_inside_the_table(hash: u32, m in 1u32..=u32::MAX) {
        prop_assert!(slot(hash, m) < m);
    }

    #[test]
    fn both_halves_of_the_seed_move_flows(k0: u64, k1: u64, address: u32, port: u16) {
        // One of 64 flows may keep its hash by chance; all of them cannot.
        for changed in [Seed { k0: k0 ^ 1, k1 }, Seed { k0, k1: k1 ^ 1 }] {
            let moves = |flow: Flow| flow.hash(Seed { k0, k1 }) != flow.hash(changed);
            let (moved_v4, moved_v6) = (
                (0..64).any(|n| moves(v4(address ^ n, port))),
                (0..64).any(|n| moves(v6(u128::from(address ^ n), port))),
            );
            prop_assert!(moved_v4);
            prop_assert!(moved_v6);
        }
    }
}
