//! From a VIP to a real.

use crate::encapsulate::{self, Outcome};
use crate::maps::{self, COUNTERS, NEXT_HOPS, REALS, SLOTS, VIPS};
use crate::{admission, capture, icmp};
use lb_ebpf::lb::{Config, DropReason, RealEntry, SLOT_REAL_MASK, VipEntry, vip_flags};
use lb_ebpf::packet::{Frame, TCP_ACK, TCP_SYN, Tcp, Udp};
use lb_ebpf::wire::{TCP_LENGTH, UDP_LENGTH, protocol};
use slot_table::flow::{self, Seed};

/// The packet to be wrapped, as far as it is known.
#[derive(Clone, Copy)]
pub struct Inner {
    /// Offset of its IP header in the frame.
    pub l3: usize,
    /// Length of the IP packet in bytes.
    pub total: u32,
    /// DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// A TCP segment or UDP datagram for a VIP.
#[derive(Clone, Copy)]
pub struct Packet {
    /// Both ports, as on the wire.
    pub ports: u32,
    /// It opens a connection.
    pub syn: bool,
    pub inner: Inner,
}

/// The real that a packet goes to.
#[derive(Clone, Copy)]
pub struct Chosen {
    pub vip: u32,
    /// Index of the real's entry.
    pub real: u32,
    /// The flow's hash.
    pub hash: u32,
}

/// The counters that a packet adds to, besides its own.
#[derive(Clone, Copy)]
pub struct Kind {
    /// It opens a connection.
    pub syn: bool,
    /// It is an ICMP error about one of the VIP's packets, and gets no ICMP error in return.
    pub icmp_error: bool,
}

/// A packet that is no sound TCP segment or UDP datagram.
pub enum Other {
    /// One that contradicts itself.
    Malformed,
    /// Another protocol.
    Protocol,
}

/// Ports of a TCP or UDP header, and whether it opens a connection. `rest` is the length of the IP
/// payload; `whole` says that it is not just the first fragment of a longer one.
#[inline(always)]
pub fn transport(
    frame: &Frame,
    l4: usize,
    rest: u32,
    protocol: u8,
    whole: bool,
) -> Result<(u32, bool), Other> {
    if protocol == protocol::TCP {
        let Some(tcp) = frame.header::<Tcp>(l4) else { return Err(Other::Malformed) };
        let header = u32::from(tcp.offset >> 4) * 4;
        if header < TCP_LENGTH as u32 || header > rest {
            return Err(Other::Malformed);
        }
        Ok((tcp.ports, tcp.flags & (TCP_SYN | TCP_ACK) == TCP_SYN))
    } else if protocol == protocol::UDP {
        let Some(udp) = frame.header::<Udp>(l4) else { return Err(Other::Malformed) };
        let length = u32::from(u16::from_be(udp.length));
        if rest < UDP_LENGTH as u32 || (whole && (length < UDP_LENGTH as u32 || length > rest)) {
            return Err(Other::Malformed);
        }
        Ok((udp.ports, false))
    } else {
        Err(Other::Protocol)
    }
}

/// Sends a packet to the real that the VIP's table names.
#[inline(always)]
pub fn to_vip<const V6: bool>(
    frame: Frame,
    config: &'static Config,
    vip: u32,
    packet: Packet,
    prefix: impl FnOnce(&VipEntry) -> u64,
    hash: impl FnOnce(Seed, u32) -> u32,
) -> u32 {
    let Packet { ports, syn, inner } = packet;
    let Some(entry) = VIPS.get(vip) else { return maps::discard(vip, DropReason::NoReal) };
    if syn && admission::limits_connections(entry) {
        let refusal = admission::admit_connection(vip, prefix(entry));
        if refusal != 0 {
            return maps::discard_for(vip, refusal);
        }
    }
    if admission::limits_packets(entry) {
        let refusal = admission::admit_packet(frame.ctx, vip, inner.l3 as u32, u32::from(V6));
        if refusal != 0 {
            return maps::discard_for(vip, refusal);
        }
    }
    let ports = if entry.flags & vip_flags::SOURCE_AFFINITY != 0 { 0 } else { ports };
    let hash = hash(Seed { k0: config.seed[0], k1: config.seed[1] }, ports);
    let Some(real) = owner(entry, hash) else { return maps::discard(vip, DropReason::NoReal) };
    to_real::<V6>(frame, config, Chosen { vip, real, hash }, inner, Kind { syn, icmp_error: false })
}

/// The real that owns a hash's slot.
#[inline(always)]
pub fn owner(vip: &VipEntry, hash: u32) -> Option<u32> {
    // One load: base and size always belong together. Volatile, as user space replaces the word.
    // SAFETY: a reference is valid for reads.
    let table = unsafe { (&raw const vip.table).read_volatile() };
    let slot = flow::slot(hash, table as u32);
    let cell = (table >> 32) as u32 + slot;
    let pair = SLOTS.get_ptr(cell >> 1)?.cast::<u32>();
    // SAFETY: one of the pair's two words.
    let real = unsafe { pair.add(cell as usize & 1).read_volatile() } & SLOT_REAL_MASK;
    (real != 0 && table as u32 != 0).then_some(real)
}

/// Wraps a packet for a real and sends it there.
#[inline(always)]
pub fn to_real<const V6: bool>(
    frame: Frame,
    config: &'static Config,
    chosen: Chosen,
    inner: Inner,
    kind: Kind,
) -> u32 {
    let Chosen { vip, real: index, hash } = chosen;
    let Kind { syn, icmp_error } = kind;
    let Some(real) = REALS.get(index) else { return maps::discard(vip, DropReason::NoReal) };
    // Volatile: user space replaces the words.
    // SAFETY: references are valid for reads.
    let (hop, mtu) =
        unsafe { ((&raw const real.next_hop).read_volatile(), (&raw const real.mtu).read_volatile()) };
    let Some(hop) = NEXT_HOPS.get(hop).filter(|_| hop != 0) else {
        return maps::discard(vip, DropReason::NoNextHop);
    };
    if inner.ttl <= 1 {
        return if icmp_error {
            maps::discard(vip, DropReason::TtlExpired)
        } else {
            icmp::time_exceeded(frame.ctx, inner.l3 as u32, u32::from(V6), vip)
        };
    }
    let overhead = encapsulate::overhead(real.encapsulation);
    if inner.total + overhead > mtu {
        return if icmp_error {
            maps::discard(vip, DropReason::TooBig)
        } else {
            icmp::too_big(frame.ctx, inner.l3 as u32, u32::from(V6), vip, mtu.saturating_sub(overhead))
        };
    }
    if config.capture_until != 0 {
        capture::sample(frame.ctx, vip, index);
    }
    let Outcome::Send(action) = encapsulate::send::<V6>(frame, real, hop, inner, hash) else {
        return maps::discard(vip, DropReason::NoHeadroom);
    };
    if let Some(counters) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the element is this CPU's own.
        unsafe {
            (*counters).packets += 1;
            (*counters).bytes += u64::from(inner.total);
            (*counters).connections += u64::from(syn);
            (*counters).icmp_errors += u64::from(icmp_error);
        }
    }
    action
}

/// The identity of a real's entry, by which a later fragment knows that it is still the same, and its VIP.
#[inline(always)]
pub fn identity(index: u32) -> Option<(u64, u32)> {
    REALS.get(index).map(|real: &RealEntry| (real.id, real.vip))
}
