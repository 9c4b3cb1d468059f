//! Inputs that are Ethernet frames: one after the other, each behind its length in two bytes. And changes to them that
//! leave more of a packet standing than chance would: fields of headers, tags, lengths and checksums put right again.

use crate::packet::{Random, checksum};
use std::sync::atomic::{AtomicU8, Ordering};
use zk_schema::fnv1a;

/// Frames in an input, at most: more than it takes for a fragment to follow another.
pub const MOST: usize = 4;

/// Longest frame, in bytes. The kernel's test runs take little more.
pub const LONGEST: usize = 2048;

/// An Ethernet header, without which there is no frame.
const SHORTEST: usize = 14;

/// Counters of the programs in the kernel tell the fuzzer how far a packet came, as coverage does of code.
#[unsafe(link_section = "__libfuzzer_extra_counters")]
static REACHED: [AtomicU8; 4096] = [const { AtomicU8::new(0) }; 4096];

/// Tells the fuzzer that something happened in the kernel.
pub fn reached(what: &str) {
    let index = usize::try_from(fnv1a(what.bytes()) % REACHED.len() as u64).unwrap();
    REACHED[index].fetch_max(1, Ordering::Relaxed);
}

/// The frames of an input. What is too short or too long is none.
#[must_use]
pub fn split(mut input: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<2>()
        && frames.len() < MOST
    {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (frame, rest) = rest.split_at(length);
        if (SHORTEST..=LONGEST).contains(&length) {
            frames.push(frame.to_vec());
        }
        input = rest;
    }
    frames
}

/// The input of these frames.
#[must_use]
pub fn join<'a>(frames: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    let mut input = Vec::new();
    for frame in frames {
        input.extend(u16::try_from(frame.len()).unwrap().to_be_bytes());
        input.extend(frame);
    }
    input
}

/// Changes an input of `size` bytes in place; returns its new size, `most` at most. `words` are byte strings that
/// are worth having in a packet, such as addresses.
pub fn mutate(data: &mut [u8], size: usize, most: usize, seed: u32, words: &[Vec<u8>]) -> usize {
    let mut random = Random(seed.into());
    let mut frames = split(&data[..size]);
    if frames.is_empty() || random.below(8) == 0 {
        return libfuzzer_sys::fuzzer_mutate(data, size, most);
    }
    for _ in 0..=random.below(3) {
        let chosen = random.below(frames.len());
        if random.below(12) == 0 && frames.len() < MOST {
            let copy = frames[chosen].clone();
            frames.push(copy);
        } else {
            change(&mut frames[chosen], &mut random, words);
        }
    }
    if random.below(4) != 0 {
        for frame in &mut frames {
            put_right(frame, &mut random);
        }
    }
    let joined = join(&frames);
    let size = joined.len().min(most).min(data.len());
    data[..size].copy_from_slice(&joined[..size]);
    size
}

/// Offset of what is behind the Ethernet header and its tags, within the frame.
fn network(frame: &[u8]) -> usize {
    let mut at = 12;
    while matches!(frame.get(at..), Some([0x81, 0x00, ..] | [0x88, 0xa8, ..])) {
        at += 4;
    }
    (at + 2).min(frame.len())
}

fn change(frame: &mut Vec<u8>, random: &mut Random, words: &[Vec<u8>]) {
    let at = network(frame);
    // Headers more often than what is behind them.
    let end = if random.below(4) == 0 { frame.len() } else { frame.len().min(at + 100) };
    let place = at + random.below((end - at).max(1));
    match random.below(11) {
        0 => {
            for _ in 0..=random.below(8) {
                let bit = random.below(frame.len() * 8);
                frame[bit / 8] ^= 1 << (bit % 8);
            }
        }
        1 => put(frame, place, &[random.byte()]),
        2 => put(
            frame,
            place,
            &[[0, 1, 4, 5, 6, 17, 41, 43, 44, 58, 60, 0x45, 0x60, 0x7f, 0x80, 0xff][random.below(16)]],
        ),
        3 => {
            let word = [0, 1, 7, 8, 19, 20, 39, 40, 80, 81, 82, 6080, 1500, 0x2000, 0xffff, random.word()];
            put(frame, place & !1, &word[random.below(16)].to_be_bytes());
        }
        4 | 5 if !words.is_empty() => {
            let word = &words[random.below(words.len())];
            put(frame, place & !1, word);
        }
        6 => frame.truncate((SHORTEST + random.below(frame.len() - SHORTEST + 1)).min(LONGEST)),
        7 => {
            let more = random.below(200);
            frame.extend(random.bytes(more));
        }
        8 => {
            let tag = [[0x81, 0, 0, 7], [0x88, 0xa8, 0, 9]][random.below(2)];
            frame.splice(12..12, tag);
        }
        9 if at > SHORTEST && frame.len() >= 16 => {
            frame.drain(12..16);
        }
        // Something in between goes or comes: a header, an option.
        _ => {
            let count = 4 * (1 + random.below(10));
            if random.below(2) == 0 && place + count <= frame.len() {
                frame.drain(place..place + count);
            } else {
                let bytes = if random.below(2) == 0 { vec![1; count] } else { random.bytes(count) };
                frame.splice(place.min(frame.len())..place.min(frame.len()), bytes);
            }
        }
    }
    frame.truncate(LONGEST);
    if frame.len() < SHORTEST {
        frame.resize(SHORTEST, 0);
    }
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = frame.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Gives the packet lengths and a header checksum that are right, each of them mostly; and so of the packets within.
fn put_right(frame: &mut [u8], random: &mut Random) {
    let mut at = network(frame);
    for _ in 0..3 {
        let Some(packet) = frame.get_mut(at..) else { return };
        let length = u16::try_from(packet.len()).unwrap();
        let header = match packet.first().map(|first| first >> 4) {
            Some(4) if packet.len() >= 20 => {
                let header = (usize::from(packet[0] & 0xf) * 4).clamp(20, packet.len());
                if random.below(2) == 0 {
                    packet[2..4].copy_from_slice(&length.to_be_bytes());
                }
                if random.below(8) != 0 {
                    packet[10..12].fill(0);
                    let sum = checksum(&packet[..header]);
                    packet[10..12].copy_from_slice(&sum.to_be_bytes());
                }
                header
            }
            Some(6) if packet.len() >= 40 => {
                if random.below(2) == 0 {
                    packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
                }
                40
            }
            _ => return,
        };
        let protocol = if packet[0] >> 4 == 4 { packet[9] } else { packet[6] };
        at += header;
        at += match (protocol, frame.get(at..)) {
            (4 | 41, Some(_)) => 0,
            // GUE, behind UDP.
            (17, Some(datagram)) if datagram.len() > 12 && datagram[2..4] == 6080_u16.to_be_bytes() => {
                let words = usize::from(datagram[8] & 0x1f);
                let length = u16::try_from(datagram.len()).unwrap();
                frame[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
                12 + words * 4
            }
            // An ICMP error quotes a packet.
            (1 | 58, Some(_)) => 8,
            _ => return,
        };
    }
}
