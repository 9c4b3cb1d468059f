//! Packets that contradict themselves: each leaves with a verdict and a counter, and none leaves mangled.

use crate::bench::{Bench, FAMILIES, alone, ip};
use crate::judge::{bench, corpus, judge, l3};
use crate::packet::{Ip, Random};

fn judge_all(bench: &Bench, inputs: impl Iterator<Item = Vec<u8>>, seed: u64) -> usize {
    let mut judged = 0;
    let mut counters = bench.statistics();
    for input in inputs.filter(|input| input.len() >= 14) {
        if let Err(what) = judge(bench, &mut counters, &input) {
            panic!("seed {seed}, packet {judged}: {what}\nfrom {input:02x?}");
        }
        judged += 1;
    }
    judged
}

#[test]
fn sound_packets_of_all_kinds_have_one_fate_each() {
    alone(|| {
        assert!(judge_all(&bench(), corpus().into_iter(), 0) > 100);
    });
}

#[test]
fn packets_cut_off_anywhere_have_one_fate_each() {
    alone(|| {
        let inputs = corpus().into_iter().step_by(4);
        let cut = inputs.flat_map(|input| (14..input.len()).map(move |length| input[..length].to_vec()));
        assert!(judge_all(&bench(), cut, 0) > 2000);
    });
}

/// A random change: flipped bits, a field with a random or an extreme value, another length.
fn mangle(random: &mut Random, input: &mut Vec<u8>) {
    let at = l3(input);
    let length = input.len();
    match random.below(6) {
        0 => {
            for _ in 0..=random.below(8) {
                let bit = random.below(length * 8);
                input[bit / 8] ^= 1 << (bit % 8);
            }
        }
        // A header field: lengths, offsets, flags, protocols.
        1 => {
            let field = at + random.below(24);
            input[field.min(length - 1)] = random.byte();
        }
        2 => {
            let field = at + random.below(length - at);
            input[field] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
        }
        3 => {
            let field = (at + random.below(60)).min(length - 2);
            let word = [0, 1, 7, 8, 19, 20, 0xffff, random.word()][random.below(8)].to_be_bytes();
            input[field..field + 2].copy_from_slice(&word);
        }
        4 => input.truncate(14 + random.below(length - 13)),
        _ => {
            let more = random.below(200);
            input.extend(random.bytes(more));
        }
    }
}

/// The seed of the mangled packets: the same one makes the same packets.
const SEED: u64 = 0x5eed_0002;

#[test]
fn thousands_of_mangled_packets_have_one_fate_each() {
    alone(|| {
        let corpus = corpus();
        let mut random = Random(SEED);
        let bench = bench();
        let inputs = (0..6000).map(|_| {
            let mut input = corpus[random.below(corpus.len())].clone();
            for _ in 0..=random.below(3) {
                if input.len() > 40 {
                    mangle(&mut random, &mut input);
                }
            }
            input
        });
        assert!(judge_all(&bench, inputs, SEED) > 5000);
    });
}

#[test]
fn random_bytes_behind_a_vip_s_address_have_one_fate_each() {
    alone(|| {
        let mut random = Random(SEED ^ 1);
        let bench = bench();
        let inputs = (0..2000).map(|_| {
            let family = FAMILIES[random.below(2)];
            let length = random.below(300);
            let payload = random.bytes(length);
            let next = [0, 1, 6, 17, 43, 44, 58, 60][random.below(8)];
            let mut packet = Ip::new(ip(family.client()), ip(family.vip()), next, payload);
            packet.fragment = if random.below(2) == 0 { 0 } else { random.word() };
            packet.ttl = random.byte();
            packet.frame()
        });
        assert_eq!(judge_all(&bench, inputs, SEED ^ 1), 2000);
    });
}
