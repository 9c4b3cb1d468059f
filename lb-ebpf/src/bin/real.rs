//! Decapsulation at a real.
//!
//! A node sends a client's packet unchanged inside an outer IP packet to the real. This program takes
//! the outer headers off before the host's stack sees the packet, so no tunnel device is needed.
//! It judges in this order:
//!
//! 1. Is it a tunnel packet (protocol 4, protocol 41, or UDP to the GUE port) to an address of this
//!    host? Everything else passes untouched.
//! 2. Does it come from a known node, whole, with lengths and versions that agree, and is its inner
//!    destination a VIP? Anything else is dropped and counted by reason.
//! 3. Carry the congestion mark inwards (RFC 6040), move the frame's start, pass.
//!
//! The Ethernet header keeps its addresses and VLAN tags and gets the inner packet's type. The inner
//! packet's TTL is left alone: the node has already counted its hop.
//!
//! The checksum of an outer UDP header is not verified: a node leaves it zero, as RFC 768 and
//! RFC 6935 permit for tunnels, and the inner packet has a checksum of its own.
#![no_std]
#![no_main]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "keys by value are copied on a stack of 512 bytes"
)]

use aya_ebpf::{
    Global,
    bindings::xdp_action,
    helpers::{bpf_xdp_adjust_head, generated::bpf_xdp_get_buff_len},
    macros::{map, xdp},
    maps::{HashMap, LpmTrie, PerCpuArray, lpm_trie},
    programs::XdpContext,
};
use lb_ebpf::real::{
    Address, DEFAULT_GUE_PORT, DROP_ENTRIES, DropReason, Encapsulation, Inner, MAX_ADDRESSES,
    TRAFFIC_ENTRIES, Traffic, traffic_index,
};

#[map]
static LOCAL: HashMap<Address, u8> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static VIPS: HashMap<Address, u8> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static SOURCES: LpmTrie<Address, u8> = LpmTrie::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static DECAPSULATED: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(TRAFFIC_ENTRIES, 0);
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DROP_ENTRIES, 0);

#[unsafe(no_mangle)]
static GUE_PORT: Global<u16> = Global::new(DEFAULT_GUE_PORT);

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const PROTOCOL_HOP_BY_HOP: u8 = 0;
const PROTOCOL_IPV4: u8 = 4;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_IPV6: u8 = 41;
const PROTOCOL_FRAGMENT: u8 = 44;
const PROTOCOL_DESTINATION_OPTIONS: u8 = 60;

const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;

/// IPv6 extension headers that are walked before the tunnel header. Nodes send none; Linux tunnels
/// put one in front (destination options, RFC 2473 section 4.1.1).
const MAX_EXTENSION_HEADERS: usize = 4;

/// Bits of the two ECN code points (RFC 3168, section 5).
mod ecn {
    pub const NOT_ECT: u8 = 0b00;
    pub const ECT_1: u8 = 0b01;
    pub const ECT_0: u8 = 0b10;
    pub const CE: u8 = 0b11;
}

// Header fields are at even offsets of a frame that starts at an even address, so 16 bits are the
// widest load that is always aligned. Multi-byte fields are in network byte order.

#[repr(C)]
struct EthernetHeader {
    addresses: [u16; 6],
    ethertype: u16,
}

/// The bytes behind an Ethernet type that announces a tag.
#[repr(C)]
#[derive(Clone, Copy)]
struct VlanTag {
    control: u16,
    ethertype: u16,
}

#[repr(C)]
struct Ipv4Header {
    version_length: u8,
    traffic_class: u8,
    total_length: u16,
    identification: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: [u16; 2],
    destination: [u16; 2],
}

#[repr(C)]
struct Ipv6Header {
    /// Version (4 bits), traffic class (8), flow label (20).
    start: [u8; 4],
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u16; 8],
    destination: [u16; 8],
}

/// The start of the extension headers that are walked. `rest` is the length in units of eight bytes
/// beyond the first eight, or reserved in a fragment header.
#[repr(C)]
struct ExtensionHeader {
    next_header: u8,
    rest: u8,
    fragment: u16,
}

#[repr(C)]
struct UdpHeader {
    source: u16,
    destination: u16,
    length: u16,
    checksum: u16,
}

#[repr(C)]
struct GueHeader {
    /// Variant (2 bits), control (1), length of what follows this header in 32-bit words (5).
    variant_length: u8,
    protocol: u8,
    flags: u16,
}

const ETHERNET: usize = size_of::<EthernetHeader>();
const VLAN: usize = size_of::<VlanTag>();
const IPV4: usize = size_of::<Ipv4Header>();
const IPV6: usize = size_of::<Ipv6Header>();
const UDP: usize = size_of::<UdpHeader>();
const GUE: usize = size_of::<GueHeader>();

/// The reason why a packet is not decapsulated.
enum Refusal {
    /// It is none of this program's business: pass it on as it is.
    NotOurs,
    Drop(DropReason),
}

use Refusal::{Drop, NotOurs};

/// The outer IP header, judged as far as it takes to know whether the packet is for this program.
struct Outer {
    source: Address,
    /// Protocol after all headers that were walked.
    protocol: u8,
    /// The start of that protocol's header, and the end of the IP packet, as offsets in the frame.
    payload: usize,
    end: usize,
    ecn: u8,
    fragment: bool,
    checksum_ok: bool,
}

#[xdp(frags)]
pub fn drover_real(ctx: XdpContext) -> u32 {
    match decapsulate(&ctx) {
        Ok(()) | Err(NotOurs) => xdp_action::XDP_PASS,
        Err(Drop(reason)) => {
            if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
                // SAFETY: the map's own entry of this CPU; no other program context writes it.
                unsafe { *count += 1 };
            }
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn decapsulate(ctx: &XdpContext) -> Result<(), Refusal> {
    let ethernet = at::<EthernetHeader>(ctx, 0).ok_or(NotOurs)?;
    let mut tags = [VlanTag { control: 0, ethertype: 0 }; 2];
    let mut tag_count = 0;
    let mut network = ETHERNET;
    let mut ethertype = ethernet.ethertype;
    if is_vlan(ethertype) {
        tags[0] = *at::<VlanTag>(ctx, ETHERNET).ok_or(NotOurs)?;
        tag_count = 1;
        network = ETHERNET + VLAN;
        ethertype = tags[0].ethertype;
        if is_vlan(ethertype) {
            tags[1] = *at::<VlanTag>(ctx, ETHERNET + VLAN).ok_or(NotOurs)?;
            tag_count = 2;
            network = ETHERNET + 2 * VLAN;
            ethertype = tags[1].ethertype;
        }
    }
    let outer = match u16::from_be(ethertype) {
        ETHERTYPE_IPV4 => outer_ipv4(ctx, network)?,
        ETHERTYPE_IPV6 => outer_ipv6(ctx, network)?,
        _ => return Err(NotOurs),
    };

    // From here on the packet is ours to refuse.
    // The trie is asked for the longest prefix of the whole key.
    if SOURCES.get(lpm_trie::Key::new(Address::prefix_bits(128), outer.source)).is_none() {
        return Err(Drop(DropReason::UnknownSource));
    }
    if outer.fragment {
        return Err(Drop(DropReason::Fragment));
    }
    if !outer.checksum_ok {
        return Err(Drop(DropReason::Checksum));
    }
    // SAFETY: the context is this program's own.
    let frame = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as usize;
    if outer.end > frame || outer.payload > outer.end {
        return Err(Drop(DropReason::Malformed));
    }
    let tunnel = match outer.protocol {
        PROTOCOL_UDP => gue(ctx, &outer)?,
        protocol => {
            Tunnel { encapsulation: Encapsulation::Ipip, protocol, inner: outer.payload, end: outer.end }
        }
    };
    let (family, inner_ethertype, length) = match tunnel.protocol {
        PROTOCOL_IPV4 => (Inner::V4, ETHERTYPE_IPV4, inner_ipv4(ctx, &tunnel, outer.ecn)?),
        _ => (Inner::V6, ETHERTYPE_IPV6, inner_ipv6(ctx, &tunnel, outer.ecn)?),
    };

    // The frame's start moves, which invalidates every reference into it: copy first.
    let addresses = ethernet.addresses;
    let first_ethertype = ethernet.ethertype;
    let shift = (tunnel.inner - network) as i32;
    // SAFETY: the context is this program's own; no reference into the frame is used afterwards.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, shift) } != 0 {
        return Err(Drop(DropReason::Internal));
    }
    let ethernet = at_mut::<EthernetHeader>(ctx, 0).ok_or(Drop(DropReason::Internal))?;
    ethernet.addresses = addresses;
    ethernet.ethertype = if tag_count == 0 { inner_ethertype.to_be() } else { first_ethertype };
    if tag_count >= 1 {
        if tag_count == 1 {
            tags[0].ethertype = inner_ethertype.to_be();
        }
        *at_mut::<VlanTag>(ctx, ETHERNET).ok_or(Drop(DropReason::Internal))? = tags[0];
    }
    if tag_count == 2 {
        tags[1].ethertype = inner_ethertype.to_be();
        *at_mut::<VlanTag>(ctx, ETHERNET + VLAN).ok_or(Drop(DropReason::Internal))? = tags[1];
    }
    if let Some(traffic) = DECAPSULATED.get_ptr_mut(traffic_index(tunnel.encapsulation, family)) {
        // SAFETY: the map's own entry of this CPU; no other program context writes it.
        unsafe {
            (*traffic).packets += 1;
            (*traffic).bytes += length as u64;
        }
    }
    Ok(())
}

#[inline(always)]
fn outer_ipv4(ctx: &XdpContext, network: usize) -> Result<Outer, Refusal> {
    let ip = at::<Ipv4Header>(ctx, network).ok_or(NotOurs)?;
    let header = usize::from(ip.version_length & 0x0f) * 4;
    if ip.version_length >> 4 != 4 || header < IPV4 {
        return Err(NotOurs);
    }
    let fragment = u16::from_be(ip.fragment);
    let later_fragment = fragment & IPV4_FRAGMENT_OFFSET != 0;
    let payload = network + header;
    is_ours(ctx, ip.protocol, payload, later_fragment, || Address::v4(ip.destination))?;
    Ok(Outer {
        source: Address::v4(ip.source),
        protocol: ip.protocol,
        payload,
        end: network + usize::from(u16::from_be(ip.total_length)),
        ecn: ip.traffic_class & ecn::CE,
        fragment: fragment & (IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET) != 0,
        checksum_ok: ipv4_checksum_ok(ctx, network, header),
    })
}

/// Returns whether the header's one's complement sum is what RFC 791 wants. A header that is cut short is left for the
/// length check to refuse.
#[inline(always)]
fn ipv4_checksum_ok(ctx: &XdpContext, network: usize, header: usize) -> bool {
    let Some(words) = at::<[u16; IPV4 / 2]>(ctx, network) else { return true };
    let mut sum: u32 = 0;
    for word in words {
        sum += u32::from(*word);
    }
    if header > IPV4 {
        for option in 0..(60 - IPV4) / 2 {
            let offset = IPV4 + 2 * option;
            if offset >= header {
                break;
            }
            let Some(word) = at::<u16>(ctx, network + offset) else { return true };
            sum += u32::from(*word);
        }
    }
    fold(sum) == 0xffff
}

#[inline(always)]
fn outer_ipv6(ctx: &XdpContext, network: usize) -> Result<Outer, Refusal> {
    let ip = at::<Ipv6Header>(ctx, network).ok_or(NotOurs)?;
    if ip.start[0] >> 4 != 6 {
        return Err(NotOurs);
    }
    let mut protocol = ip.next_header;
    let mut payload = network + IPV6;
    let mut fragment = false;
    let mut later_fragment = false;
    for _ in 0..MAX_EXTENSION_HEADERS {
        match protocol {
            PROTOCOL_HOP_BY_HOP | PROTOCOL_DESTINATION_OPTIONS => {
                let header = at::<ExtensionHeader>(ctx, payload).ok_or(NotOurs)?;
                protocol = header.next_header;
                payload += (usize::from(header.rest) + 1) * 8;
            }
            PROTOCOL_FRAGMENT => {
                let header = at::<ExtensionHeader>(ctx, payload).ok_or(NotOurs)?;
                let position = u16::from_be(header.fragment);
                // An atomic fragment (RFC 6946) is no fragment.
                fragment = position & 0xfff9 != 0;
                later_fragment = position & 0xfff8 != 0;
                protocol = header.next_header;
                payload += 8;
                if later_fragment {
                    break;
                }
            }
            _ => break,
        }
    }
    is_ours(ctx, protocol, payload, later_fragment, || Address::v6(ip.destination))?;
    Ok(Outer {
        source: Address::v6(ip.source),
        protocol,
        payload,
        end: network + IPV6 + usize::from(u16::from_be(ip.payload_length)),
        ecn: (ip.start[1] >> 4) & ecn::CE,
        fragment,
        checksum_ok: true,
    })
}

/// Refuses what is not a tunnel packet to this host. A later fragment of a UDP packet shows no port;
/// it passes, and is of no use without the first fragment, which is dropped.
#[inline(always)]
fn is_ours(
    ctx: &XdpContext,
    protocol: u8,
    payload: usize,
    later_fragment: bool,
    destination: impl FnOnce() -> Address,
) -> Result<(), Refusal> {
    match protocol {
        PROTOCOL_IPV4 | PROTOCOL_IPV6 => {}
        PROTOCOL_UDP if !later_fragment => {
            let udp = at::<UdpHeader>(ctx, payload).ok_or(NotOurs)?;
            if u16::from_be(udp.destination) != GUE_PORT.load() {
                return Err(NotOurs);
            }
        }
        _ => return Err(NotOurs),
    }
    // SAFETY: only the presence of the entry is used.
    if unsafe { LOCAL.get(&destination()) }.is_some() { Ok(()) } else { Err(NotOurs) }
}

/// An inner packet as the tunnel header describes it: its protocol number (4 or 41), where it
/// starts, and where the tunnel's payload ends, as offsets in the frame.
struct Tunnel {
    encapsulation: Encapsulation,
    protocol: u8,
    inner: usize,
    end: usize,
}

#[inline(always)]
fn gue(ctx: &XdpContext, outer: &Outer) -> Result<Tunnel, Refusal> {
    let udp = at::<UdpHeader>(ctx, outer.payload).ok_or(Drop(DropReason::Malformed))?;
    let end = outer.payload + usize::from(u16::from_be(udp.length));
    let header = at::<GueHeader>(ctx, outer.payload + UDP).ok_or(Drop(DropReason::Malformed))?;
    // Variant 0, no control message. A receiver must drop what has flags that it does not know, and
    // none is defined here; what the length covers beyond flagged fields is private data, skipped.
    if header.variant_length >> 5 != 0 || header.flags != 0 {
        return Err(Drop(DropReason::Unsupported));
    }
    if header.protocol != PROTOCOL_IPV4 && header.protocol != PROTOCOL_IPV6 {
        return Err(Drop(DropReason::Unsupported));
    }
    let inner = outer.payload + UDP + GUE + usize::from(header.variant_length & 0x1f) * 4;
    if end > outer.end || inner > end {
        return Err(Drop(DropReason::Malformed));
    }
    Ok(Tunnel { encapsulation: Encapsulation::Gue, protocol: header.protocol, inner, end })
}

/// Checks the inner packet, marks it, and returns its length in bytes.
#[inline(always)]
fn inner_ipv4(ctx: &XdpContext, tunnel: &Tunnel, outer_ecn: u8) -> Result<usize, Refusal> {
    let ip = at_mut::<Ipv4Header>(ctx, tunnel.inner).ok_or(Drop(DropReason::Malformed))?;
    let header = usize::from(ip.version_length & 0x0f) * 4;
    let length = usize::from(u16::from_be(ip.total_length));
    if ip.version_length >> 4 != 4 || header < IPV4 || length < header || tunnel.inner + length > tunnel.end {
        return Err(Drop(DropReason::Malformed));
    }
    is_vip(&Address::v4(ip.destination))?;
    let marked = (ip.traffic_class & !ecn::CE) | decapsulated_ecn(ip.traffic_class & ecn::CE, outer_ecn)?;
    if marked != ip.traffic_class {
        // RFC 1624, equation 3, on the header's first word.
        let before = u16::from_be_bytes([ip.version_length, ip.traffic_class]);
        let after = u16::from_be_bytes([ip.version_length, marked]);
        let sum = u32::from(!u16::from_be(ip.checksum)) + u32::from(!before) + u32::from(after);
        ip.checksum = (!fold(sum)).to_be();
        ip.traffic_class = marked;
    }
    Ok(length)
}

/// Checks the inner packet, marks it, and returns its length in bytes.
#[inline(always)]
fn inner_ipv6(ctx: &XdpContext, tunnel: &Tunnel, outer_ecn: u8) -> Result<usize, Refusal> {
    let ip = at_mut::<Ipv6Header>(ctx, tunnel.inner).ok_or(Drop(DropReason::Malformed))?;
    let length = IPV6 + usize::from(u16::from_be(ip.payload_length));
    if ip.start[0] >> 4 != 6 || tunnel.inner + length > tunnel.end {
        return Err(Drop(DropReason::Malformed));
    }
    is_vip(&Address::v6(ip.destination))?;
    let mark = decapsulated_ecn((ip.start[1] >> 4) & ecn::CE, outer_ecn)?;
    ip.start[1] = (ip.start[1] & !(ecn::CE << 4)) | (mark << 4);
    Ok(length)
}

#[inline(always)]
fn is_vip(destination: &Address) -> Result<(), Refusal> {
    // SAFETY: only the presence of the entry is used.
    if unsafe { VIPS.get(destination) }.is_some() { Ok(()) } else { Err(Drop(DropReason::NotAVip)) }
}

/// The table of RFC 6040, section 4.2 (figure 4): the mark that the inner packet leaves with.
#[inline(always)]
fn decapsulated_ecn(inner: u8, outer: u8) -> Result<u8, Refusal> {
    match (inner, outer) {
        (ecn::NOT_ECT, ecn::CE) => Err(Drop(DropReason::Ecn)),
        (ecn::NOT_ECT, _) => Ok(ecn::NOT_ECT),
        (_, ecn::CE) => Ok(ecn::CE),
        (ecn::ECT_0, ecn::ECT_1) => Ok(ecn::ECT_1),
        (inner, _) => Ok(inner),
    }
}

/// Folds a sum of up to 65,536 words into 16 bits, one's complement.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[inline(always)]
fn is_vlan(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN.to_be() || ethertype == ETHERTYPE_QINQ.to_be()
}

/// The header at this offset of the frame, if it is there whole. In a frame of several buffers only
/// the first is looked at; drivers keep headers there.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<&T> {
    at_mut(ctx, offset).map(|header| &*header)
}

/// As [`at`], to change it.
#[inline(always)]
#[allow(clippy::mut_from_ref)] // the context is a handle; one header is borrowed at a time
fn at_mut<T>(ctx: &XdpContext, offset: usize) -> Option<&mut T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the frame, as just checked; every `T` here is made of integers and needs at
    // most an alignment of two.
    Some(unsafe { &mut *(start as *mut T) })
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
