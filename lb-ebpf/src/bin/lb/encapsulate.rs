//! The outer header.
//!
//! DSCP and ECN are copied outwards (RFC 6040, section 4.1, normal mode), the inner TTL is lowered as
//! by any router (RFC 2003, section 3.1), and the outer packet is never fragmented: IPv4 has DF set and
//! therefore needs no identification (RFC 6864). GUE's UDP checksum is zero, which IPv6 allows for
//! tunnels (RFC 6935): the inner packet carries its own.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_xdp_adjust_head};
use lb_ebpf::lb::{NextHop, RealEntry, encapsulation};
use lb_ebpf::packet::{Ethernet, Frame, Header, Ipv4, Ipv6, Macs};
use lb_ebpf::wire::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, GUE_LENGTH, IPV4_LENGTH, IPV6_LENGTH,
    UDP_LENGTH, VLAN_LENGTH, fold, protocol,
};

use crate::forward::Inner;

/// TTL and hop limit of outer headers (the IANA's recommended default).
const OUTER_TTL: u8 = 64;
const GUE_V4_LENGTH: usize = IPV4_LENGTH + UDP_LENGTH + GUE_LENGTH;
const GUE_V6_LENGTH: usize = IPV6_LENGTH + UDP_LENGTH + GUE_LENGTH;

/// The outcome of wrapping a packet.
pub enum Outcome {
    /// The frame is ready for this XDP action.
    Send(u32),
    /// There is no room in front of the frame.
    NoHeadroom,
}

/// Bytes that an encapsulation puts in front of the IP packet.
#[inline(always)]
pub fn overhead(kind: u8) -> u32 {
    let length = match kind {
        encapsulation::IPIP_V4 => IPV4_LENGTH,
        encapsulation::IPIP_V6 => IPV6_LENGTH,
        encapsulation::GUE_V4 => GUE_V4_LENGTH,
        encapsulation::GUE_V6 => GUE_V6_LENGTH,
        _ => 0,
    };
    length as u32
}

/// Wraps the packet and says how it leaves.
#[inline(always)]
pub fn send<const V6: bool>(
    frame: Frame,
    real: &RealEntry,
    hop: &NextHop,
    inner: Inner,
    hash: u32,
) -> Outcome {
    if !lower_ttl::<V6>(&frame, inner.l3) {
        return Outcome::NoHeadroom;
    }
    let written = match real.encapsulation {
        encapsulation::IPIP_V4 => push::<IPV4_LENGTH>(frame, hop, inner, ETHERTYPE_IPV4, |at| {
            outer_ipv4::<V6, false>(at, real, inner, hash);
        }),
        encapsulation::GUE_V4 => push::<GUE_V4_LENGTH>(frame, hop, inner, ETHERTYPE_IPV4, |at| {
            outer_ipv4::<V6, true>(at, real, inner, hash);
        }),
        encapsulation::IPIP_V6 => push::<IPV6_LENGTH>(frame, hop, inner, ETHERTYPE_IPV6, |at| {
            outer_ipv6::<V6, false>(at, real, inner, hash);
        }),
        encapsulation::GUE_V6 => push::<GUE_V6_LENGTH>(frame, hop, inner, ETHERTYPE_IPV6, |at| {
            outer_ipv6::<V6, true>(at, real, inner, hash);
        }),
        _ => push::<0>(frame, hop, inner, if V6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 }, |_| ()),
    };
    if !written {
        return Outcome::NoHeadroom;
    }
    if hop.ifindex == 0 {
        return Outcome::Send(xdp_action::XDP_TX);
    }
    // SAFETY: a helper without pointers.
    Outcome::Send(unsafe { bpf_redirect(hop.ifindex, 0) } as u32)
}

/// Lowers TTL or hop limit by one; the IPv4 checksum follows (RFC 1141).
#[inline(always)]
fn lower_ttl<const V6: bool>(frame: &Frame, l3: usize) -> bool {
    if V6 {
        let Some(ip) = frame.header::<Ipv6>(l3) else { return false };
        ip.hop_limit -= 1;
    } else {
        let Some(ip) = frame.header::<Ipv4>(l3) else { return false };
        ip.ttl -= 1;
        let checksum = u32::from(ip.checksum) + u32::from(0x0100_u16.to_be());
        ip.checksum = (checksum + u32::from(checksum >= 0xffff)) as u16;
    }
    true
}

/// Makes room for `OUTER` bytes and a new Ethernet header, and has `outer` write the former.
#[inline(always)]
fn push<const OUTER: usize>(
    frame: Frame,
    hop: &NextHop,
    inner: Inner,
    ethertype: u16,
    outer: impl FnOnce(*mut u8),
) -> bool {
    let l2 = if hop.vlan == 0 { ETHERNET_LENGTH } else { ETHERNET_LENGTH + VLAN_LENGTH };
    let grow = (l2 + OUTER) as i32 - inner.l3 as i32;
    // SAFETY: the context is the program's own.
    if grow != 0 && unsafe { bpf_xdp_adjust_head(frame.ctx, -grow) } != 0 {
        return false;
    }
    let frame = Frame::new(frame.ctx);
    let start = frame.data + l2;
    // At least the smallest IP header follows even where nothing is pushed.
    if frame.data + ETHERNET_LENGTH + VLAN_LENGTH > frame.end || start + OUTER > frame.end {
        return false;
    }
    let Some(ethernet) = frame.header::<Macs>(0) else { return false };
    ethernet.words = hop.ethernet;
    if hop.vlan == 0 {
        let Some(ethernet) = frame.header::<Ethernet>(0) else { return false };
        ethernet.ethertype = ethertype.to_be();
    } else {
        let Some(tag) = frame.header::<Tagged>(0) else { return false };
        tag.tpid = ETHERTYPE_VLAN.to_be();
        tag.control = (hop.vlan as u16).to_be();
        tag.ethertype = ethertype.to_be();
    }
    outer(start as *mut u8);
    true
}

/// An Ethernet header with one tag.
#[repr(C, packed)]
struct Tagged {
    addresses: [u8; 12],
    tpid: u16,
    control: u16,
    ethertype: u16,
}
// SAFETY: packed, integers only.
unsafe impl Header for Tagged {}

/// Stores a word at an offset; the caller has checked that it lies within the frame.
macro_rules! put {
    ($at:expr, $offset:expr, [u64; 2], $value:expr) => {
        // Word by word: as an array it becomes a call of memcpy, byte by byte.
        put!($at, $offset, u64, $value[0]);
        put!($at, $offset + 8, u64, $value[1]);
    };
    ($at:expr, $offset:expr, $type:ty, $value:expr) => {
        $at.add($offset).cast::<$type>().write_unaligned($value)
    };
}

#[inline(always)]
pub fn outer_ipv4<const V6: bool, const GUE: bool>(at: *mut u8, real: &RealEntry, inner: Inner, hash: u32) {
    let inner_protocol = if V6 { protocol::IPV6 } else { protocol::IPV4 };
    let (outer_protocol, payload) = if GUE {
        (protocol::UDP, inner.total + (UDP_LENGTH + GUE_LENGTH) as u32)
    } else {
        (inner_protocol, inner.total)
    };
    let total = u32::from(((payload + IPV4_LENGTH as u32) as u16).to_be());
    let tos = u32::from(inner.tos) << 8;
    let ttl_protocol = u32::from(OUTER_TTL) | u32::from(outer_protocol) << 8;
    let checksum = !fold(real.checksum + tos + total + ttl_protocol);
    // SAFETY: `push` made and checked room for this header.
    unsafe {
        put!(at, 0, u32, 0x45 | tos | total << 16);
        put!(at, 4, u32, u32::from(0x4000_u16.to_be()) << 16);
        put!(at, 8, u32, ttl_protocol | u32::from(checksum) << 16);
        put!(at, 12, u32, real.source[0] as u32);
        put!(at, 16, u32, real.destination[0] as u32);
        if GUE {
            udp_gue(at.add(IPV4_LENGTH), real, inner_protocol, payload, hash);
        }
    }
}

#[inline(always)]
pub fn outer_ipv6<const V6: bool, const GUE: bool>(at: *mut u8, real: &RealEntry, inner: Inner, hash: u32) {
    let inner_protocol = if V6 { protocol::IPV6 } else { protocol::IPV4 };
    let (next_header, payload) = if GUE {
        (protocol::UDP, inner.total + (UDP_LENGTH + GUE_LENGTH) as u32)
    } else {
        (inner_protocol, inner.total)
    };
    // The flow label spreads flows over paths (RFC 6438).
    let first = 6 << 28 | u32::from(inner.tos) << 20 | (hash & 0x000f_ffff);
    let length = u32::from((payload as u16).to_be());
    // SAFETY: `push` made and checked room for this header.
    unsafe {
        put!(at, 0, u32, first.to_be());
        put!(at, 4, u32, length | u32::from(next_header) << 16 | u32::from(OUTER_TTL) << 24);
        put!(at, 8, [u64; 2], real.source);
        put!(at, 24, [u64; 2], real.destination);
        if GUE {
            udp_gue(at.add(IPV6_LENGTH), real, inner_protocol, payload, hash);
        }
    }
}

/// UDP and GUE headers; the source port carries the flow's entropy (RFC 8085, section 3.1.11).
///
/// # Safety
/// Twelve bytes at `at` must lie within the frame.
#[inline(always)]
unsafe fn udp_gue(at: *mut u8, real: &RealEntry, inner_protocol: u8, length: u32, hash: u32) {
    let source = (0xc000 | (hash as u16 & 0x3fff)).to_be();
    // SAFETY: as the caller promises.
    unsafe {
        put!(at, 0, u32, u32::from(source) | u32::from(real.gue_port) << 16);
        put!(at, 4, u32, u32::from((length as u16).to_be()));
        put!(at, 8, u32, u32::from(inner_protocol) << 8);
    }
}
