//! Packets from anybody, through a real's program in the kernel: only tunnel packets of known nodes to a VIP are
//! unwrapped, and what is inside is delivered as it was sent.

#[path = "../../agent/tests/real/bench.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod bench;
#[path = "../../agent/tests/real/packet.rs"]
mod packet;

use crate::frames::{join, reached, split};
use bench::{FAMILIES, Fate, Program, encapsulate, inner, ip, judge, outer};
use lb_ebpf::real::Encapsulation;
use std::cell::RefCell;
use std::net::IpAddr;

thread_local! {
    static PROGRAM: RefCell<Program> = RefCell::new(Program::load());
}

/// Runs the frames through the program.
///
/// # Panics
/// If it does not run with the rights of root, or a frame fares as it must not.
pub fn run(input: &[u8]) {
    PROGRAM.with_borrow_mut(|program| {
        for frame in split(input) {
            let (fate, counted) = judge(program, &frame, "a frame");
            reached(&format!("{fate:?} {:?}", counted.drops));
            for (kind, _) in &counted.decapsulated {
                reached(&format!("decapsulated {kind}"));
            }
            if fate == Fate::Decapsulated {
                assert!(is_from_a_node(&frame), "a stranger's packet was unwrapped: {frame:02x?}");
            }
        }
    });
}

/// Returns whether the outer source is of `10.0.0.0/28` or `fd00::/124`, which the program has been told.
fn is_from_a_node(frame: &[u8]) -> bool {
    let packet = &frame[crate::judge::l3(frame)..];
    match packet[0] >> 4 {
        4 => packet[12..15] == [10, 0, 0] && packet[15] < 16,
        _ => {
            let mut node = [0; 16];
            node[0] = 0xfd;
            packet[8..23] == node[..15] && packet[23] < 16
        }
    }
}

/// Byte strings that are worth having in a packet.
#[must_use]
pub fn words() -> Vec<Vec<u8>> {
    let addresses = [
        "10.0.0.7",
        "10.0.0.16",
        "10.0.0.100",
        "198.51.100.1",
        "203.0.113.9",
        "fd00::7",
        "fd00::17",
        "fd00::100",
        "2001:db8:5::1",
    ];
    let octets = |address: &str| match ip(address) {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    addresses.map(octets).into_iter().chain([packet::GUE_PORT.to_be_bytes().to_vec()]).collect()
}

/// Tunnel packets of all kinds, and some that are none.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for family in FAMILIES {
        for encapsulation in Encapsulation::ALL {
            for inner_family in FAMILIES {
                let mut packet = encapsulate(family, encapsulation, &inner(inner_family).bytes());
                frames.push(packet::frame(&[], &packet.bytes()));
                packet.traffic_class = 3;
                packet.options = if family == bench::Family::V4 { vec![1; 8] } else { vec![] };
                frames.push(packet::frame(&[7], &packet.bytes()));
            }
        }
        let inside = inner(family).bytes();
        frames.push(packet::frame(&[], &inside));
        frames.push(packet::frame(&[1, 2], &outer(family, 17, packet::gue(3, &inside)).bytes()));
        let mut stranger = encapsulate(bench::Family::V4, Encapsulation::Gue, &inside);
        stranger.source = ip("10.0.0.16");
        frames.push(packet::frame(&[], &stranger.bytes()));
    }
    let mut options = vec![4, 0, 4, 1, 4, 1, 0, 0];
    options.extend(inner(bench::Family::V4).bytes());
    frames.push(packet::frame(&[], &outer(bench::Family::V6, 60, options).bytes()));
    frames.iter().map(|frame| join([frame])).collect()
}
