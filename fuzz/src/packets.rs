//! Packets from anybody, through the balancer's program in the kernel: what is not for a VIP passes untouched, and what
//! is leaves in one piece, to the real that the flow belongs to, or not at all.

use crate::bench::{Bench, CLIENT_4, CLIENT_6, VIP_4, VIP_6, XDP_TX, ip, isolate};
use crate::frames::{reached, split};
use crate::judge::{bench, judge, l3};
use dataplane::Statistics;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

struct State {
    bench: Bench,
    counters: Statistics,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new({
        isolate();
        let bench = bench();
        State { counters: bench.statistics(), bench }
    });
}

/// Runs the frames through the program, one after the other.
///
/// # Panics
/// If it does not run with the rights of root, or a frame fares as it must not.
pub fn run(input: &[u8]) {
    STATE.with_borrow_mut(|State { bench, counters }| {
        let mut reals = BTreeMap::new();
        for frame in split(input) {
            let ran =
                judge(bench, counters, &frame).unwrap_or_else(|wrong| panic!("{wrong}\nfrom {frame:02x?}"));
            for name in ran.counted.keys() {
                reached(name);
            }
            let Some(real) = ran.counted.into_keys().find(|name| name.ends_with("/packets")) else {
                continue;
            };
            assert_eq!(ran.verdict, XDP_TX);
            goes_where_its_flow_belongs(bench, &frame, &real);
            if may_be_a_fragment(&frame) {
                continue;
            }
            if let Some(other) = reals.insert(frame.clone(), real.clone()) {
                assert_eq!(real, other, "the same packet went to two reals: {frame:02x?}");
            }
        }
    });
}

/// A later fragment goes where the newest first fragment of its datagram went, so it may go elsewhere the next time.
fn may_be_a_fragment(frame: &[u8]) -> bool {
    let packet = &frame[l3(frame)..];
    match packet[0] >> 4 {
        4 => packet[6] & 0x1f != 0 || packet[7] != 0,
        // Behind other extension headers there may be one of fragments.
        _ => !matches!(packet.get(6), Some(6 | 17 | 58)),
    }
}

/// A packet whose ports are plain to see, as this reads it, went to the real that the table gives its flow.
fn goes_where_its_flow_belongs(bench: &Bench, frame: &[u8], counter: &str) {
    let packet = &frame[l3(frame)..];
    let (client, ports): (IpAddr, _) = match (packet[0] >> 4, packet.get(6)) {
        (4, _) if packet[6] & 0x3f == 0 && packet[7] == 0 && matches!(packet[9], 6 | 17) => {
            let source: [u8; 4] = packet[12..16].try_into().unwrap();
            (source.into(), usize::from(packet[0] & 0xf) * 4)
        }
        (6, Some(6 | 17)) => {
            let source: [u8; 16] = packet[8..24].try_into().unwrap();
            (source.into(), 40)
        }
        _ => return,
    };
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let parts: Vec<&str> = counter.split('/').collect();
    let owner = bench.owner(parts[1], SocketAddr::new(client, port(ports)), port(ports + 2));
    assert_eq!(owner.name.as_str(), parts[2], "another real than the flow's: {frame:02x?}");
}

/// Byte strings that are worth having in a packet.
#[must_use]
pub fn words() -> Vec<Vec<u8>> {
    let octets = |address: &str| match ip(address) {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut words: Vec<Vec<u8>> = [VIP_4, VIP_6, CLIENT_4, CLIENT_6].map(octets).into();
    words.extend([80_u16, 81, 82, 83].map(|port| port.to_be_bytes().to_vec()));
    words
}

/// Packets of all kinds, and fragments that go together.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let frames = crate::judge::corpus();
    let alone = frames.iter().map(|frame| crate::frames::join([frame]));
    let together = frames.chunks(3).map(crate::frames::join);
    alone.step_by(2).chain(together.step_by(2)).collect()
}
