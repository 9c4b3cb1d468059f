//! The program by itself, and what may become of a packet in it, whatever it is: for tests and the fuzzer.

use super::packet::{Ip, checksum, gue, inner_protocol, udp};
use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use lb_ebpf::real::{Address, DropReason, Encapsulation, PROGRAM, Traffic, maps};
use std::net::IpAddr;

pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;

const NODE_4: &str = "10.0.0.7";
const NODE_6: &str = "fd00::7";
const REAL_4: &str = "10.0.0.100";
const REAL_6: &str = "fd00::100";
const VIP_4: &str = "198.51.100.1";
const VIP_6: &str = "2001:db8:5::1";
const CLIENT_4: &str = "203.0.113.9";
const CLIENT_6: &str = "2001:db8:c::9";

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// From a node to the real, around `payload`.
pub(crate) fn outer(family: Family, protocol: u8, payload: Vec<u8>) -> Ip {
    match family {
        Family::V4 => Ip::new(ip(NODE_4), ip(REAL_4), protocol, payload),
        Family::V6 => Ip::new(ip(NODE_6), ip(REAL_6), protocol, payload),
    }
}

/// From a client to the VIP.
pub(crate) fn inner(family: Family) -> Ip {
    let payload = udp(40_000, 1883, b"a client's bytes");
    match family {
        Family::V4 => Ip::new(ip(CLIENT_4), ip(VIP_4), 17, payload),
        Family::V6 => Ip::new(ip(CLIENT_6), ip(VIP_6), 17, payload),
    }
}

pub(crate) fn encapsulate(family: Family, encapsulation: Encapsulation, inner: &[u8]) -> Ip {
    match encapsulation {
        Encapsulation::Ipip => outer(family, inner_protocol(inner), inner.to_vec()),
        Encapsulation::Gue => outer(family, 17, gue(0, inner)),
    }
}

/// What the counters counted during one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) decapsulated: Vec<(u32, Traffic)>,
    pub(crate) drops: Vec<DropReason>,
}

impl Counted {
    pub(crate) fn drop(reason: DropReason) -> Self {
        Self { drops: vec![reason], ..Self::default() }
    }
}

pub(crate) struct Program {
    ebpf: Ebpf,
}

impl Program {
    pub(crate) fn load() -> Self {
        let mut ebpf = Ebpf::load(agent::DECAPSULATION).unwrap();
        let program: &mut Xdp = ebpf.program_mut(PROGRAM).unwrap().try_into().unwrap();
        program.load().unwrap();
        let mut local = HashMap::<_, Address, u8>::try_from(ebpf.map_mut(maps::LOCAL).unwrap()).unwrap();
        for address in [REAL_4, REAL_6] {
            local.insert(Address::from(ip(address)), 0, 0).unwrap();
        }
        let mut vips = HashMap::<_, Address, u8>::try_from(ebpf.map_mut(maps::VIPS).unwrap()).unwrap();
        for address in [VIP_4, VIP_6] {
            vips.insert(Address::from(ip(address)), 0, 0).unwrap();
        }
        let mut sources = LpmTrie::<_, Address, u8>::try_from(ebpf.map_mut(maps::SOURCES).unwrap()).unwrap();
        for (address, length) in [("10.0.0.0", 28), ("fd00::", 124)] {
            let key = Key::new(Address::prefix_bits(length), Address::from(ip(address)));
            sources.insert(&key, 0, 0).unwrap();
        }
        Self { ebpf }
    }

    fn counters(&self) -> (Vec<Traffic>, Vec<u64>) {
        let map = self.ebpf.map(maps::DECAPSULATED).unwrap();
        let decapsulated = PerCpuArray::<_, Traffic>::try_from(map).unwrap();
        let decapsulated = decapsulated.iter().map(|cpus| {
            cpus.unwrap().iter().fold(Traffic::default(), |sum, cpu| Traffic {
                packets: sum.packets + cpu.packets,
                bytes: sum.bytes + cpu.bytes,
            })
        });
        let map = self.ebpf.map(maps::DROPS).unwrap();
        let drops = PerCpuArray::<_, u64>::try_from(map).unwrap();
        let drops = drops.iter().map(|cpus| cpus.unwrap().iter().sum());
        (decapsulated.collect(), drops.collect())
    }

    /// Runs one frame through: the verdict, the frame that comes out, and what was counted.
    pub(crate) fn run(&mut self, input: &[u8]) -> (u32, Vec<u8>, Counted) {
        let (traffic_before, drops_before) = self.counters();
        let program: &mut Xdp = self.ebpf.program_mut(PROGRAM).unwrap().try_into().unwrap();
        let mut output = vec![0; input.len() + 256];
        let result = program.test_run(TestRunOptions {
            data_in: Some(input),
            data_out: Some(&mut output),
            ..TestRunOptions::new()
        });
        let result = result.unwrap();
        output.truncate(usize::try_from(result.data_size_out).unwrap());
        let (traffic_after, drops_after) = self.counters();
        let mut counted = Counted::default();
        for (index, (before, after)) in traffic_before.iter().zip(&traffic_after).enumerate() {
            let delta =
                Traffic { packets: after.packets - before.packets, bytes: after.bytes - before.bytes };
            if delta != Traffic::default() {
                counted.decapsulated.push((u32::try_from(index).unwrap(), delta));
            }
        }
        for (reason, (before, after)) in
            DropReason::ALL.into_iter().zip(drops_before.iter().zip(&drops_after))
        {
            counted.drops.extend(std::iter::repeat_n(reason, usize::try_from(after - before).unwrap()));
        }
        (result.return_value, output, counted)
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Untouched,
    Decapsulated,
    Dropped,
}

/// Runs one packet and judges its fate: it is passed on as it was, or dropped and counted once, or rightly
/// decapsulated and counted once.
pub(crate) fn judge(program: &mut Program, input: &[u8], context: &str) -> (Fate, Counted) {
    let (verdict, output, counted) = program.run(input);
    let context = format!("{context}: {input:02x?} -> {output:02x?}, {counted:?}");
    let fate = match (verdict, counted.decapsulated.as_slice(), counted.drops.as_slice()) {
        (XDP_PASS, [], []) => {
            assert_eq!(output, input, "{context}");
            Fate::Untouched
        }
        (XDP_DROP, [], [_reason]) => Fate::Dropped,
        (XDP_PASS, [(_, traffic)], []) => {
            assert_eq!(traffic.packets, 1, "{context}");
            is_a_right_decapsulation(input, &output, traffic.bytes, &context);
            Fate::Decapsulated
        }
        _ => panic!("verdict {verdict}, {context}"),
    };
    (fate, counted)
}

/// The output is the input's Ethernet addresses and tags, the right type, and the input's tail, which
/// is an IP packet to a VIP of the counted length; only the ECN bits and their checksum may differ.
fn is_a_right_decapsulation(input: &[u8], output: &[u8], bytes: u64, context: &str) {
    let mut network = 12;
    while [[0x81, 0x00], [0x88, 0xa8]].iter().any(|tag| output[network..].starts_with(tag)) {
        network += 4;
    }
    assert_eq!(output[..network], input[..network], "{context}");
    let (ethertype, packet) = (&output[network..network + 2], &output[network + 2..]);
    let mut tail = input[input.len() - packet.len()..].to_vec();
    let length = match packet[0] >> 4 {
        4 => {
            assert_eq!(ethertype, [0x08, 0x00], "{context}");
            assert_eq!(packet[16..20], [198, 51, 100, 1], "{context}");
            let header = |bytes: &[u8]| checksum(&bytes[..20]);
            let (before, after) = (header(&tail), header(packet));
            // Right stays right, wrong stays wrong. (0 and 0xffff are the same number.)
            assert_eq!(before % 0xffff, after % 0xffff, "{context}");
            assert_eq!(packet[1] & !3, tail[1] & !3, "{context}");
            tail[1] = packet[1];
            tail[10..12].copy_from_slice(&packet[10..12]);
            usize::from(packet[2]) << 8 | usize::from(packet[3])
        }
        6 => {
            assert_eq!(ethertype, [0x86, 0xdd], "{context}");
            assert_eq!(IpAddr::from(*packet[24..].first_chunk::<16>().unwrap()), ip(VIP_6), "{context}");
            assert_eq!(packet[1] & !0x30, tail[1] & !0x30, "{context}");
            tail[1] = packet[1];
            40 + (usize::from(packet[4]) << 8 | usize::from(packet[5]))
        }
        _ => panic!("no IP packet: {context}"),
    };
    assert_eq!(packet, tail, "{context}");
    assert!(length <= packet.len(), "{context}");
    assert_eq!(u64::try_from(length).unwrap(), bytes, "{context}");
}
