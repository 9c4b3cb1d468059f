//! The self-test behind `/healthz`: a packet for each VIP goes through the loaded program, and what
//! comes out must be what the [`Program`] says.

use super::state::{Restarted, State};
use super::{SelfTest, Settings};
use crate::nexthop::NextHop;
use crate::program::{Program, VipProgram};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use lb_ebpf::lb::{DROP_REASONS, DropReason, RealCounters};
use lb_ebpf::wire::{ETHERNET_LENGTH, GUE_LENGTH, IPV4_LENGTH, UDP_LENGTH, checksum, protocol};
use slot_table::flow::Flow;
use slot_table::placement::TableParams;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use zk_schema::{Encapsulation, Protocol, VipName};

/// XDP's verdicts (`linux/bpf.h`).
const XDP_DROP: u32 = 1;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;
/// A client that cannot exist (RFC 5737, RFC 3849).
pub(crate) const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// Port that is tried on a VIP of all ports.
const ANY_PORT: u16 = 9;

/// Packets of self-tests, so that the counters can leave them out.
#[derive(Default)]
pub(super) struct Tally {
    /// By real.
    sent: HashMap<u32, RealCounters>,
    /// By index into the drop map.
    dropped: HashMap<u32, u64>,
    runs: u16,
}

impl Tally {
    /// Returns the counters of packets sent to a real.
    pub(super) fn of(&self, real: u32) -> RealCounters {
        self.sent.get(&real).copied().unwrap_or_default()
    }

    /// Returns the number of packets dropped.
    pub(super) fn dropped(&self, index: u32) -> u64 {
        self.dropped.get(&index).copied().unwrap_or_default()
    }

    /// Counters that have begun anew.
    pub(super) fn forget(&mut self, restarted: &Restarted) {
        self.sent.retain(|real, _| !restarted.reals.contains(real));
        self.dropped.retain(|index, _| !restarted.vips.contains(&(index / DROP_REASONS)));
    }
}

/// Tests all VIPs.
pub(super) fn run(
    xdp: &Xdp,
    program: &Program,
    state: &State,
    settings: &Settings,
    tally: &mut Tally,
) -> SelfTest {
    tally.runs = tally.runs.wrapping_add(1);
    let mut result = SelfTest::default();
    for (name, vip) in &program.vips {
        result.tested += 1;
        if let Some(failure) = unreachable(name, vip, state) {
            result.failures.insert(name.clone(), failure);
        } else if let Err(failure) = test(xdp, program, name, vip, state, settings, tally) {
            result.failures.insert(name.clone(), failure);
        }
    }
    result
}

/// Returns the reason if no packet of a VIP can be sent to any real in its table. If this node alone drops packets for
/// one of several reals, probes tell, and the leader acts.
fn unreachable(name: &VipName, vip: &VipProgram, state: &State) -> Option<String> {
    let mut first = None;
    for (real, _) in vip.reals.iter().zip(vip.table.shares()).filter(|(_, slots)| *slots > 0) {
        let obstacle = state.real(name, &real.name)?.obstacle?;
        first.get_or_insert_with(|| {
            format!("no packet can be sent to any real; to {}: {obstacle}", real.name)
        });
    }
    first
}

fn test(
    xdp: &Xdp,
    program: &Program,
    name: &VipName,
    vip: &VipProgram,
    state: &State,
    settings: &Settings,
    tally: &mut Tally,
) -> Result<(), String> {
    let port = if vip.port == 0 { ANY_PORT } else { vip.port };
    let client_ip = if vip.address.is_ipv4() { IpAddr::V4(CLIENT_V4) } else { IpAddr::V6(CLIENT_V6) };
    // Another client port each time: over the day the whole table is walked.
    let client = SocketAddr::new(client_ip, 1024 | tally.runs.wrapping_mul(7919));
    let packet = ip_packet(client, vip.address, port, vip.protocol);
    let mut frame = vec![0; ETHERNET_LENGTH];
    frame[..6].copy_from_slice(&state.mac().unwrap_or_default());
    frame[12..14].copy_from_slice(if client.is_ipv4() { &[0x08, 0x00] } else { &[0x86, 0xdd] });
    frame.extend_from_slice(&packet);
    let mut out = vec![0; 512];
    let before = refusals(state, name, vip);
    let run = xdp
        .test_run(TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })
        .map_err(|error| format!("the program could not be run: {error}"))?;
    out.truncate(run.data_size_out as usize);

    let flow = Flow { client, service_port: port };
    let params = TableParams { seed: program.seed, size: vip.table.size() };
    let owner = vip.table.owner(params.slot(&flow, vip.affinity));
    let expected = owner.and_then(|owner| vip.reals.get(owner));
    let handle = expected.and_then(|real| state.real(name, &real.name));
    // Beyond its limit a VIP is not broken: withdrawn, it would be at the mercy of whoever floods it.
    if run.return_value == XDP_DROP
        && let (Some(before), Some(after)) = (before, refusals(state, name, vip))
        && after > before
    {
        return Ok(());
    }
    let mut expect_drop = |reason: DropReason| {
        let vip = state.vips().find(|(vip_name, _)| *vip_name == name).map(|(_, handle)| handle.index);
        if let Some(vip) = vip.filter(|_| run.return_value == XDP_DROP) {
            *tally.dropped.entry(vip * DROP_REASONS + reason as u32).or_default() += 1;
        }
        run.return_value == XDP_DROP
    };
    let (Some(real), Some(handle)) = (expected, handle) else {
        return if expect_drop(DropReason::NoReal) {
            Ok(())
        } else {
            Err(format!(
                "no real takes packets, but the program answered {} instead of drop",
                run.return_value
            ))
        };
    };
    if state.entry(handle).next_hop == 0 {
        return if expect_drop(DropReason::NoNextHop) {
            Ok(())
        } else {
            Err("an unresolved real got a packet".into())
        };
    }
    let way = state.way(handle);
    let verdict = if way.ifindex == state.front() { XDP_TX } else { XDP_REDIRECT };
    if run.return_value != verdict {
        let found = run.return_value;
        return Err(format!(
            "the packet for {} was not sent: verdict {found} instead of {verdict}",
            real.name
        ));
    }
    let length = packet.len() as u64;
    let mut inner = packet;
    lower_ttl(&mut inner);
    check(&out, &inner, vip.encapsulation, real.address, &way, settings)
        .map_err(|what| format!("towards {}: {what}", real.name))?;
    let counters = tally.sent.entry(handle.index).or_default();
    counters.packets += 1;
    counters.bytes += length;
    Ok(())
}

/// Packets that the VIP's limits on packets have refused, if it has any.
fn refusals(state: &State, name: &VipName, vip: &VipProgram) -> Option<u64> {
    if vip.limits.packets_per_second == 0 && vip.limits.packets_per_second_per_prefix == 0 {
        return None;
    }
    let index = state.vips().find(|(vip_name, _)| *vip_name == name).map(|(_, handle)| handle.index)?;
    let drops = state.maps.drops.sums((index + 1) * DROP_REASONS, |a, b| a + b).ok()?;
    let of = |reason: DropReason| {
        drops.get((index * DROP_REASONS + reason as u32) as usize).copied().unwrap_or_default()
    };
    Some(of(DropReason::PacketRateLimited) + of(DropReason::PrefixPacketRateLimited))
}

/// TTL and hop limit of outer headers.
const OUTER_TTL: u8 = 64;
/// DSCP and ECN of the packets that are sent: none.
const TRAFFIC_CLASS: u8 = 0;
/// The UDP source ports that carry entropy: the dynamic ones.
const ENTROPY_PORTS: [u8; 2] = [0xc0, 0x00];

/// A part of the frame that is expected: what it is, its bytes, and which bits of them count (all, where it is empty).
type Part = (&'static str, Vec<u8>, &'static [u8]);

/// Checks that a frame carries `inner` to `real` as it should: every bit of it but those that spread flows over paths.
fn check(
    frame: &[u8],
    inner: &[u8],
    encapsulation: Encapsulation,
    real: IpAddr,
    way: &NextHop,
    settings: &Settings,
) -> Result<(), String> {
    let mut rest = frame;
    for (what, expected, mask) in parts(inner, encapsulation, real, way, settings)? {
        let (found, behind) = rest
            .split_at_checked(expected.len())
            .ok_or_else(|| format!("the frame of {} bytes ends in its {what}", frame.len()))?;
        let counts = |at: usize| mask.get(at).copied().unwrap_or(0xff);
        let differs = found.iter().zip(&expected).enumerate().any(|(at, (a, b))| (a ^ b) & counts(at) != 0);
        if differs {
            return Err(format!("wrong {what}: {found:02x?} instead of {expected:02x?}"));
        }
        rest = behind;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(format!("{} bytes too many behind the inner packet", rest.len()))
    }
}

/// Returns the parts of the frame that is expected, from its first byte to its last.
fn parts(
    inner: &[u8],
    encapsulation: Encapsulation,
    real: IpAddr,
    way: &NextHop,
    settings: &Settings,
) -> Result<Vec<Part>, String> {
    let all: &[u8] = &[];
    let mut parts: Vec<Part> = vec![
        ("destination MAC address", way.destination_mac.to_vec(), all),
        ("source MAC address", way.source_mac.to_vec(), all),
    ];
    if let Some(vlan) = way.vlan {
        parts.push(("VLAN tag", [[0x81, 0x00], vlan.to_be_bytes()].concat(), all));
    }
    let inner_v6 = inner.first().is_some_and(|first| first >> 4 == 6);
    let outer_v6 = if encapsulation == Encapsulation::L2 { inner_v6 } else { real.is_ipv6() };
    parts.push(("EtherType", if outer_v6 { vec![0x86, 0xdd] } else { vec![0x08, 0x00] }, all));
    let inner_protocol = if inner_v6 { protocol::IPV6 } else { protocol::IPV4 };
    let (next, tunnel) = match encapsulation {
        Encapsulation::L2 => {
            parts.push(("packet", inner.to_vec(), all));
            return Ok(parts);
        }
        Encapsulation::Ipip => (inner_protocol, 0),
        Encapsulation::Gue => (protocol::UDP, UDP_LENGTH + GUE_LENGTH),
    };
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    let none = || format!("this node has no address to send to {real} from");
    match real {
        IpAddr::V4(real) => {
            let source = settings.source_v4.ok_or_else(none)?;
            let [high, low] = length(IPV4_LENGTH + tunnel + inner.len());
            // Not to be fragmented, hence without an identification (RFC 6864).
            let mut header = vec![0x45, TRAFFIC_CLASS, high, low, 0, 0, 0x40, 0, OUTER_TTL, next, 0, 0];
            header.extend_from_slice(&source.octets());
            header.extend_from_slice(&real.octets());
            let sum = checksum(&header).to_be_bytes();
            parts.extend([
                ("outer version and traffic class", header[..2].to_vec(), all),
                ("outer length", header[2..4].to_vec(), all),
                ("outer fragment fields", header[4..8].to_vec(), all),
                ("outer TTL and protocol", header[8..10].to_vec(), all),
                ("outer checksum", sum.to_vec(), all),
                ("outer addresses", header[12..].to_vec(), all),
            ]);
        }
        IpAddr::V6(real) => {
            let source = settings.source_v6.ok_or_else(none)?;
            parts.extend([
                ("outer version and traffic class", vec![0x60, 0, 0, 0], &[0xff, 0xf0, 0, 0][..]),
                ("outer length", length(tunnel + inner.len()).to_vec(), all),
                ("outer next header and hop limit", vec![next, OUTER_TTL], all),
                ("outer addresses", [source.octets(), real.octets()].concat(), all),
            ]);
        }
    }
    if encapsulation == Encapsulation::Gue {
        parts.extend([
            ("UDP source port", ENTROPY_PORTS.to_vec(), &ENTROPY_PORTS[..]),
            ("UDP destination port", settings.gue_port.to_be_bytes().to_vec(), all),
            ("UDP length", length(tunnel + inner.len()).to_vec(), all),
            ("UDP checksum", vec![0, 0], all),
            ("GUE header", vec![0, inner_protocol, 0, 0], all),
        ]);
    }
    parts.push(("inner packet", inner.to_vec(), all));
    Ok(parts)
}

/// A TCP segment (ACK) or UDP datagram without payload.
fn ip_packet(client: SocketAddr, vip: IpAddr, port: u16, kind: Protocol) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend_from_slice(&client.port().to_be_bytes());
    payload.extend_from_slice(&port.to_be_bytes());
    let next = match kind {
        Protocol::Tcp => {
            payload.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
            protocol::TCP
        }
        Protocol::Udp => {
            payload.extend_from_slice(&[0, 8, 0, 0]);
            protocol::UDP
        }
    };
    let length = u16::try_from(payload.len()).unwrap_or(0);
    let mut packet = match (client.ip(), vip) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend_from_slice(&length.to_be_bytes());
            header.extend_from_slice(&[next, 64]);
            header.extend_from_slice(&source.octets());
            header.extend_from_slice(&destination.octets());
            header
        }
        (source, destination) => {
            let total = length + 20;
            let mut header = vec![0x45, 0];
            header.extend_from_slice(&total.to_be_bytes());
            header.extend_from_slice(&[0, 0, 0x40, 0, 64, next, 0, 0]);
            for address in [source, destination] {
                if let IpAddr::V4(address) = address {
                    header.extend_from_slice(&address.octets());
                }
            }
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
    };
    packet.extend_from_slice(&payload);
    packet
}

/// Lowers TTL or hop limit as a router does.
fn lower_ttl(packet: &mut [u8]) {
    if packet[0] >> 4 == 6 {
        packet[7] -= 1;
        return;
    }
    packet[8] -= 1;
    packet[10..12].fill(0);
    let sum = checksum(&packet[..IPV4_LENGTH]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use zk_schema::{Capacity, Unserved, XdpMode};

    fn settings() -> Settings {
        Settings {
            interface: "eth0".into(),
            xdp_mode: XdpMode::Auto,
            source_v4: Some([10, 0, 0, 7].into()),
            source_v6: Some("fd00::7".parse().unwrap()),
            gue_port: 6080,
            unserved: Unserved::default(),
            accept_macs: Vec::new(),
            capacity: Capacity::default(),
            table_size: 251,
            bpffs: PathBuf::new(),
        }
    }

    fn way(vlan: Option<u16>) -> NextHop {
        NextHop {
            ifindex: 2,
            source_mac: [2, 0, 0, 0, 0, 7],
            destination_mac: [2, 0, 0, 0, 0, 9],
            vlan,
            mtu: 1500,
            on_link: true,
            takes_redirects: true,
        }
    }

    /// Every kind of frame, by what makes it: inner packet, encapsulation, real, next hop.
    fn kinds() -> Vec<(Vec<u8>, Encapsulation, IpAddr, NextHop)> {
        let reals: [IpAddr; 2] = ["10.1.0.1".parse().unwrap(), "fd00:1::1".parse().unwrap()];
        let clients = [
            (IpAddr::V4(CLIENT_V4), "198.51.100.1".parse().unwrap()),
            (IpAddr::V6(CLIENT_V6), "2001:db8:5::1".parse().unwrap()),
        ];
        let mut kinds = Vec::new();
        for (client, vip) in clients {
            let inner = ip_packet(SocketAddr::new(client, 1024), vip, 80, Protocol::Tcp);
            for real in reals {
                for encapsulation in [Encapsulation::L2, Encapsulation::Ipip, Encapsulation::Gue] {
                    for vlan in [None, Some(7)] {
                        kinds.push((inner.clone(), encapsulation, real, way(vlan)));
                    }
                }
            }
        }
        kinds
    }

    #[test]
    fn every_bit_of_the_frame_counts_but_those_that_spread_flows() {
        let settings = settings();
        for (inner, encapsulation, real, way) in kinds() {
            let parts = parts(&inner, encapsulation, real, &way, &settings).unwrap();
            let frame: Vec<u8> = parts.iter().flat_map(|(_, bytes, _)| bytes.clone()).collect();
            let judge = |frame: &[u8]| check(frame, &inner, encapsulation, real, &way, &settings);
            assert_eq!(judge(&frame), Ok(()));
            let mut free = 0;
            for bit in 0..frame.len() * 8 {
                let mut other = frame.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                free += usize::from(judge(&other).is_ok());
            }
            let label = if encapsulation != Encapsulation::L2 && real.is_ipv6() { 20 } else { 0 };
            let port = if encapsulation == Encapsulation::Gue { 14 } else { 0 };
            assert_eq!(free, label + port, "{encapsulation:?} to {real}");
            assert!(judge(&frame[..frame.len() - 1]).is_err());
            assert!(judge(&[frame, vec![0]].concat()).is_err());
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let settings = settings();
        let (inner, encapsulation, real, way) = kinds().remove(4);
        let parts = parts(&inner, encapsulation, real, &way, &settings).unwrap();
        let mut frame: Vec<u8> = parts.into_iter().flat_map(|(_, bytes, _)| bytes).collect();
        frame[24] ^= 1;
        let problem = check(&frame, &inner, encapsulation, real, &way, &settings).unwrap_err();
        assert!(problem.starts_with("wrong outer checksum"), "{problem}");
    }
}
