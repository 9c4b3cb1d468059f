//! IPv6 packets.

use crate::forward::{self, Inner, Packet};
use crate::index::{self, Served};
use crate::maps;
use crate::rare::Step;
use aya_ebpf::bindings::xdp_md;
use lb_ebpf::lb::{DropReason, Event, IPV4_KEY};
use lb_ebpf::packet::{self, Extension, Fragment, Frame, Ipv6};
use lb_ebpf::wire::{IPV6_LENGTH, protocol};
use slot_table::flow;

/// Extension headers that are walked before the packet is given up.
const MAX_EXTENSIONS: usize = 6;
/// Bytes from the frame's start within which the transport header must begin.
const MAX_OFFSET: usize = 512;

#[inline(always)]
pub fn handle(frame: Frame, l3: usize) -> u32 {
    let Some(ip) = frame.header::<Ipv6>(l3) else { return maps::pass(Event::Passed) };
    let destination = ip.destination;
    if destination[0] == IPV4_KEY {
        return maps::pass(Event::Passed); // a multicast address that looks like an IPv4 VIP's key
    }
    let Some(served) = Served::find(destination) else { return maps::pass(Event::Passed) };
    if !index::is_ours(&frame, served.config) {
        return maps::pass(Event::PassedOtherHost);
    }
    let rest = u32::from(u16::from_be(ip.payload_length));
    if ip.version_class_label & 0xf0 != 0x60 || (l3 + IPV6_LENGTH) as u32 + rest > frame.length() {
        return maps::discard(0, DropReason::MalformedIp);
    }
    match ip.next_header {
        protocol::TCP | protocol::UDP => {
            payload(frame, served, ip, l3, Transport { protocol: ip.next_header, l4: l3 + IPV6_LENGTH, rest })
        }
        protocol::ICMPV6 => Step::Icmpv6.at(l3, l3 + IPV6_LENGTH),
        next if is_extension(next) => Step::Ipv6Extensions.at(l3, 0),
        _ => maps::unserved(),
    }
}

/// Packets with extension headers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ipv6_with_extensions(ctx: *mut xdp_md, l3: u32) -> u32 {
    let l3 = (l3 & 0x1f) as usize;
    let frame = Frame::new(ctx);
    let Some(ip) = frame.header::<Ipv6>(l3) else { return maps::pass(Event::Passed) };
    let Some(served) = Served::find(ip.destination) else { return maps::pass(Event::Passed) };
    let rest = u32::from(u16::from_be(ip.payload_length));
    let walk = Walk::unpack(walk_extensions(ctx, (l3 + IPV6_LENGTH) as u32, u32::from(ip.next_header)));
    let extensions = (walk.offset - l3 - IPV6_LENGTH) as u32;
    if walk.failed || extensions > rest {
        return maps::discard(0, DropReason::ExtensionHeaders);
    }
    if walk.fragment {
        return Step::Ipv6Fragment.at(l3, 0);
    }
    match walk.protocol {
        protocol::TCP | protocol::UDP => {
            let transport = Transport { protocol: walk.protocol, l4: walk.offset, rest: rest - extensions };
            payload(frame, served, ip, l3, transport)
        }
        protocol::ICMPV6 => Step::Icmpv6.at(l3, walk.offset),
        _ => maps::unserved(),
    }
}

/// Where a packet's transport header begins, its protocol, and the bytes from there to the packet's end.
struct Transport {
    protocol: u8,
    l4: usize,
    rest: u32,
}

#[inline(always)]
fn payload(frame: Frame, served: Served, ip: &Ipv6, l3: usize, transport: Transport) -> u32 {
    let Transport { protocol, l4, rest } = transport;
    let Ok((ports, syn)) = forward::transport(&frame, l4, rest, protocol, true) else {
        return maps::discard(0, DropReason::MalformedTransport);
    };
    let Some(vip) = served.vip(packet::second_port(ports), protocol) else {
        return maps::unserved();
    };
    let source = ip.source;
    let total = u32::from(u16::from_be(ip.payload_length)) + IPV6_LENGTH as u32;
    forward::to_vip::<true>(
        frame,
        served.config,
        vip,
        Packet { ports, syn, inner: Inner { l3, total, tos: ip.traffic_class(), ttl: ip.hop_limit } },
        |entry| source[0] & entry.prefix_mask_v6,
        |seed, ports| flow::hash_v6(seed, source, ports),
    )
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS | protocol::FRAGMENT
    )
}

/// The end of a walk over extension headers.
pub struct Walk {
    /// Offset of the header it stopped at.
    pub offset: usize,
    /// That header's protocol.
    pub protocol: u8,
    /// It stopped behind a fragment header of a packet that really is fragmented.
    pub fragment: bool,
    /// That fragment is its packet's first.
    pub first: bool,
    /// Identification of the packet that it is a fragment of, as on the wire.
    pub identification: u32,
    /// Too many headers, or one cut short.
    pub failed: bool,
}

impl Walk {
    #[inline(always)]
    pub fn unpack(word: u64) -> Self {
        Self {
            offset: word as usize & 0x3ff,
            protocol: (word >> 16) as u8,
            fragment: word & (1 << 24) != 0,
            failed: word & (1 << 25) != 0,
            first: word & (1 << 26) != 0,
            identification: (word >> 32) as u32,
        }
    }
}

/// Walks extension headers from `offset`, whose header is of type `next`; the result is a [`Walk`]
/// in one register.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_extensions(ctx: *mut xdp_md, offset: u32, next: u32) -> u64 {
    let frame = Frame::new(ctx);
    let mut offset = (offset & 0x3ff) as usize;
    let mut next = next as u8;
    let mut fragment = false;
    let mut first = false;
    let mut identification = 0;
    let mut failed = true;
    for _ in 0..=MAX_EXTENSIONS {
        if !is_extension(next) || fragment {
            failed = false;
            break;
        }
        if offset > MAX_OFFSET {
            break;
        }
        if next == protocol::FRAGMENT {
            let Some(header) = frame.header::<Fragment>(offset) else { break };
            next = header.next_header;
            // Offset or "more fragments"; neither: an atomic fragment (RFC 6946), treated as whole.
            fragment = header.offset & 0xfff9_u16.to_be() != 0;
            first = header.offset & 0xfff8_u16.to_be() == 0;
            identification = header.identification;
            offset += size_of::<Fragment>();
        } else {
            let Some(header) = frame.header::<Extension>(offset) else { break };
            next = header.next_header;
            offset += (usize::from(header.length) + 1) * 8;
        }
    }
    failed |= offset > MAX_OFFSET;
    (offset as u64 & 0x3ff)
        | u64::from(next) << 16
        | u64::from(fragment) << 24
        | u64::from(failed) << 25
        | u64::from(first) << 26
        | u64::from(identification) << 32
}
