//! The self-test behind `/healthz`: a packet for each VIP goes through the loaded program, and what
//! comes out must be what the [`Program`] says.

use super::state::{Restarted, State};
use super::{SelfTest, Settings};
use crate::program::{Program, VipProgram};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use lb_ebpf::lb::{DROP_REASONS, DropReason, RealCounters};
use lb_ebpf::wire::{
    ETHERNET_LENGTH, GUE_LENGTH, IPV4_LENGTH, IPV6_LENGTH, UDP_LENGTH, VLAN_LENGTH, protocol,
};
use slot_table::flow::Flow;
use slot_table::placement::Ground;
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
    /// What went to a real.
    pub(super) fn of(&self, real: u32) -> RealCounters {
        self.sent.get(&real).copied().unwrap_or_default()
    }

    /// What was dropped.
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
        if let Err(failure) = test(xdp, program, name, vip, state, settings, tally) {
            result.failures.insert(name.clone(), failure);
        }
    }
    result
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
    let ground = Ground { seed: program.seed, size: vip.table.size() };
    let owner = vip.table.owner(ground.slot(&flow, vip.affinity));
    let expected = owner.and_then(|owner| vip.reals.get(owner));
    let handle = expected.and_then(|real| {
        state
            .reals()
            .find(|(vip_name, real_name, _)| *vip_name == name && **real_name == real.name)
            .map(|found| found.2)
    });
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
    if run.return_value != XDP_TX && run.return_value != XDP_REDIRECT {
        return Err(format!("the packet for {} was not sent: verdict {}", real.name, run.return_value));
    }
    let length = packet.len() as u64;
    let mut inner = packet;
    lower_ttl(&mut inner);
    check(&out, &inner, vip.encapsulation, real.address, settings)
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

/// Whether a frame carries `inner` to `real` as it should.
fn check(
    frame: &[u8],
    inner: &[u8],
    encapsulation: Encapsulation,
    real: IpAddr,
    settings: &Settings,
) -> Result<(), String> {
    let l2 = if frame.get(12..14) == Some(&[0x81, 0x00]) {
        ETHERNET_LENGTH + VLAN_LENGTH
    } else {
        ETHERNET_LENGTH
    };
    let packet = frame.get(l2..).unwrap_or_default();
    let outer = match (encapsulation, real) {
        (Encapsulation::L2, _) => 0,
        (_, IpAddr::V4(real)) => {
            let source = settings.source_v4.map(|ip| ip.octets());
            if packet.get(16..20) != Some(&real.octets())
                || packet.get(12..16) != source.as_ref().map(|ip| &ip[..])
            {
                return Err("wrong outer addresses".into());
            }
            IPV4_LENGTH
        }
        (_, IpAddr::V6(real)) => {
            let source = settings.source_v6.map(|ip| ip.octets());
            if packet.get(24..40) != Some(&real.octets())
                || packet.get(8..24) != source.as_ref().map(|ip| &ip[..])
            {
                return Err("wrong outer addresses".into());
            }
            IPV6_LENGTH
        }
    };
    let wrapped = outer + if encapsulation == Encapsulation::Gue { UDP_LENGTH + GUE_LENGTH } else { 0 };
    if packet.get(wrapped..) == Some(inner) {
        Ok(())
    } else {
        Err("the inner packet came out changed".into())
    }
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
            let checksum = ipv4_checksum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        }
    };
    packet.extend_from_slice(&payload);
    packet
}

/// What a router does to TTL or hop limit.
fn lower_ttl(packet: &mut [u8]) {
    if packet[0] >> 4 == 6 {
        packet[7] -= 1;
        return;
    }
    packet[8] -= 1;
    packet[10..12].fill(0);
    let checksum = ipv4_checksum(&packet[..IPV4_LENGTH]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// RFC 1071.
fn ipv4_checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}
