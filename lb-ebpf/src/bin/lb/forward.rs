//! From a VIP to a real.

use crate::encapsulate::{self, Outcome};
use crate::maps::{self, COUNTERS, NEXT_HOPS, REALS, SLOTS, VIPS};
use crate::packet::{Frame, TCP_ACK, TCP_SYN, Tcp, Udp};
use crate::{admission, capture, icmp};
use aya_ebpf::bindings::xdp_md;
use lb_ebpf::lb::{Config, DropReason, RealEntry, SLOT_REAL_MASK, VipEntry, vip_flags};
use lb_ebpf::wire::{TCP_LENGTH, UDP_LENGTH, protocol};
use slot_table::flow::{self, Seed};

/// What is known of the packet to be wrapped.
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

/// What else a packet can be than a sound TCP segment or UDP datagram.
pub enum Other {
    /// One that contradicts itself.
    Malformed,
    /// Another protocol.
    Protocol,
}

/// Ports of a TCP or UDP header, and whether it opens a connection. `rest` is the length of the IP
/// payload; `whole` says that it is not just the first fragment of a longer one.
#[inline(always)]
pub fn transport(frame: &Frame, l4: usize, rest: u32, protocol: u8, whole: bool) -> Result<(u32, bool), Other> {
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
#[allow(clippy::too_many_arguments, reason = "all of it lives in registers")]
pub fn to_vip<const V6: bool>(
    frame: Frame,
    config: &'static Config,
    vip: u32,
    syn: bool,
    prefix: impl FnOnce(&VipEntry) -> u64,
    hash: impl FnOnce(Seed, u32) -> u32,
    ports: u32,
    inner: Inner,
) -> u32 {
    let Some(entry) = VIPS.get(vip) else { return maps::discard(vip, DropReason::NoReal) };
    if syn && let Err(reason) = admission::admit(config, vip, entry, prefix(entry)) {
        return maps::discard(vip, reason);
    }
    let ports = if entry.flags & vip_flags::SOURCE_AFFINITY != 0 { 0 } else { ports };
    let hash = hash(Seed { k0: config.seed[0], k1: config.seed[1] }, ports);
    let Some(real) = owner(entry, hash) else { return maps::discard(vip, DropReason::NoReal) };
    to_real::<V6>(frame, config, vip, real, hash, syn, false, inner)
}

/// The real that owns a hash's slot.
#[inline(always)]
pub fn owner(vip: &VipEntry, hash: u32) -> Option<u32> {
    // One load: base and size always belong together. Volatile, as user space replaces the word.
    // SAFETY: a reference is valid for reads.
    let table = unsafe { (&raw const vip.table).read_volatile() };
    let slot = flow::slot(hash, table as u32);
    let real = SLOTS.get((table >> 32) as u32 + slot)? & SLOT_REAL_MASK;
    (real != 0 && table as u32 != 0).then_some(real)
}

/// Wraps a packet for a real and sends it there.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "all of it lives in registers")]
pub fn to_real<const V6: bool>(
    frame: Frame,
    config: &'static Config,
    vip: u32,
    index: u32,
    hash: u32,
    syn: bool,
    icmp_error: bool,
    inner: Inner,
) -> u32 {
    let Some(real) = REALS.get(index) else { return maps::discard(vip, DropReason::NoReal) };
    // Volatile: user space replaces the words.
    // SAFETY: references are valid for reads.
    let (hop, mtu) = unsafe { ((&raw const real.next_hop).read_volatile(), (&raw const real.mtu).read_volatile()) };
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
            icmp::too_big(frame.ctx, inner.l3 as u32, u32::from(V6), vip, mtu - overhead)
        };
    }
    if config.capture_until != 0 {
        capture::sample(frame.ctx, vip, index);
    }
    if let Some(counters) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the element is this CPU's own.
        unsafe {
            (*counters).packets += 1;
            (*counters).bytes += u64::from(inner.total);
            (*counters).connections += u64::from(syn);
            (*counters).icmp_errors += u64::from(icmp_error);
        }
    }
    match encapsulate::send::<V6>(frame, real, hop, inner, hash) {
        Outcome::Send(action) => action,
        Outcome::NoHeadroom => maps::discard(vip, DropReason::NoHeadroom),
    }
}

/// [`to_real`] for the rare paths, out of line.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn to_real_rare(ctx: *mut xdp_md, l3: u32, packed: u64, vip_real: u64, hash: u32) -> u32 {
    let Some(config) = maps::CONFIG.get(0) else { return maps::discard(0, DropReason::NoReal) };
    let frame = Frame::new(ctx);
    let rare = Rare::unpack(packed);
    let inner = Inner { l3: (l3 & 0x1f) as usize, total: rare.total, tos: rare.tos, ttl: rare.ttl };
    let (vip, real) = ((vip_real >> 32) as u32, vip_real as u32);
    if rare.v6 {
        to_real::<true>(frame, config, vip, real, hash, rare.syn, rare.icmp_error, inner)
    } else {
        to_real::<false>(frame, config, vip, real, hash, rare.syn, rare.icmp_error, inner)
    }
}

/// Arguments of [`to_real_rare`]: a BPF function takes five registers.
pub struct Rare {
    pub total: u32,
    pub tos: u8,
    pub ttl: u8,
    pub v6: bool,
    pub syn: bool,
    pub icmp_error: bool,
}

impl Rare {
    #[inline(always)]
    pub fn pack(&self) -> u64 {
        u64::from(self.total)
            | u64::from(self.tos) << 32
            | u64::from(self.ttl) << 40
            | u64::from(self.v6) << 48
            | u64::from(self.syn) << 49
            | u64::from(self.icmp_error) << 50
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self {
            total: word as u32 & 0xffff,
            tos: (word >> 32) as u8,
            ttl: (word >> 40) as u8,
            v6: word & (1 << 48) != 0,
            syn: word & (1 << 49) != 0,
            icmp_error: word & (1 << 50) != 0,
        }
    }
}

/// The identity of a real's entry, by which a later fragment knows that it is still the same.
#[inline(always)]
pub fn identity(index: u32) -> Option<u64> {
    REALS.get(index).map(|real: &RealEntry| real.id)
}
