//! ICMP and ICMPv6 to a VIP, and the node's own ICMP errors.
//!
//! Echo requests are answered. Errors about a flow of a VIP go to the real that holds the flow, found
//! from the packet embedded in them, of which eight bytes behind the IP header are enough. Neighbour
//! discovery is left to the kernel. Everything else is no service of the VIP.

use crate::admission::{self, Answers};
use crate::forward;
use crate::index::Served;
use crate::ipv6::{self, Walk};
use crate::maps::{self, CONFIG, SCRATCH, VIPS};
use crate::rare::Pending;
use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use lb_ebpf::lb::{DropReason, Event, ipv4_key, vip_flags};
use lb_ebpf::packet::{
    Ethernet, Frame, IPV4_DONT_FRAGMENT, IPV4_FRAGMENT_OFFSET, Icmp, Ipv4, Ipv6, Ports, adjust_checksum,
    bounded, second_port,
};
use lb_ebpf::wire::{IPV4_LENGTH, IPV6_LENGTH, fold, icmp, icmpv6, protocol};
use slot_table::flow::{self, Seed};

const ICMP_LENGTH: usize = 8;
/// Longest ICMP error over IPv4, in bytes (RFC 1812, section 4.3.2.3).
const LONGEST_V4: usize = 576;
/// Longest ICMP error over IPv6: what every path carries (RFC 4443, section 2.4 (c); RFC 8200, section 5).
const LONGEST_V6: usize = 1280;
/// The smallest MTU that an IPv4 path has (RFC 791, section 3.2), and an IPv6 path: less is never told.
const SMALLEST_MTU_V4: u32 = 68;
const SMALLEST_MTU_V6: u32 = 1280;
/// At least an Ethernet header with two VLAN tags, and less than that and an IPv4 header.
const LINK_ROOM: u32 = 24;
/// Room for the longest message.
pub const MESSAGE_ROOM: usize = LONGEST_V6;
/// TTL and hop limit of what the node says itself.
const TTL: u8 = 64;

/// ICMP to an IPv4 VIP; `l4` is where the message starts.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn icmp_v4(ctx: *mut xdp_md, l3: u32, l4: u32) -> u32 {
    let l3 = (l3 & 0x1f) as usize;
    let l4 = (l4 & 0x7f) as usize;
    let header = l4 as u32 - l3 as u32;
    let frame = Frame::new(ctx);
    // First of all: behind a check at a larger, unknown offset the compiler leaves this one out, and the
    // verifier does not follow.
    let Some(ethernet) = frame.header::<Ethernet>(0) else { return maps::pass(Event::Passed) };
    let Some(ip) = frame.header::<Ipv4>(l3) else { return maps::pass(Event::Passed) };
    let total = u32::from(u16::from_be(ip.total_length));
    let Some(message) = frame.header::<Icmp>(l4).filter(|_| total >= header + ICMP_LENGTH as u32) else {
        return maps::discard(0, DropReason::MalformedIcmp);
    };
    match message.kind {
        icmp::ECHO => {
            // Options of a request (routes, time stamps) are nothing to reflect.
            if header != IPV4_LENGTH as u32 {
                return maps::unserved();
            }
            if let Err(reason) = may_echo(is_host_v4(ip.source)) {
                return maps::discard(0, reason);
            }
            let checksum = adjust_checksum(message.checksum, u16::from_ne_bytes([icmp::ECHO, 0]), 0);
            // The adjusted checksum of nothing but zeros comes out as 0, which does not verify. Everywhere
            // else the two mean the same.
            message.checksum = if checksum == 0 { u16::MAX } else { checksum };
            message.kind = icmp::ECHO_REPLY;
            let (source, destination) = (ip.source, ip.destination);
            ip.source = destination;
            ip.destination = source;
            let old = u16::from_ne_bytes([ip.ttl, ip.protocol]);
            ip.ttl = TTL;
            ip.checksum = adjust_checksum(ip.checksum, old, u16::from_ne_bytes([TTL, ip.protocol]));
            turn_round(ethernet);
            maps::count(Event::EchoAnswered);
            xdp_action::XDP_TX
        }
        icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM => {
            icmp_error_v4(ctx, l3 as u32, l4 as u32)
        }
        _ => maps::unserved(),
    }
}

/// ICMPv6 to an IPv6 VIP; `l4` is where the message starts.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn icmp_v6(ctx: *mut xdp_md, l3: u32, l4: u32) -> u32 {
    let l3 = (l3 & 0x1f) as usize;
    let l4 = (l4 & 0x3ff) as usize;
    let frame = Frame::new(ctx);
    // First of all: behind a check at a larger, unknown offset the compiler leaves this one out, and the
    // verifier does not follow.
    let Some(ethernet) = frame.header::<Ethernet>(0) else { return maps::pass(Event::Passed) };
    let Some(ip) = frame.header::<Ipv6>(l3) else { return maps::pass(Event::Passed) };
    let total = u32::from(u16::from_be(ip.payload_length)) + IPV6_LENGTH as u32;
    let Some(message) = frame.header::<Icmp>(l4).filter(|_| l3 as u32 + total >= (l4 + ICMP_LENGTH) as u32)
    else {
        return maps::discard(0, DropReason::MalformedIcmp);
    };
    match message.kind {
        icmpv6::ECHO_REQUEST => {
            if l4 != l3 + IPV6_LENGTH {
                return maps::unserved();
            }
            if let Err(reason) = may_echo(is_host_v6(ip.source)) {
                return maps::discard(0, reason);
            }
            let old = u16::from_ne_bytes([icmpv6::ECHO_REQUEST, message.code]);
            let new = u16::from_ne_bytes([icmpv6::ECHO_REPLY, message.code]);
            message.checksum = adjust_checksum(message.checksum, old, new);
            message.kind = icmpv6::ECHO_REPLY;
            let (source, destination) = (ip.source, ip.destination);
            ip.source = destination;
            ip.destination = source;
            ip.hop_limit = TTL;
            turn_round(ethernet);
            maps::count(Event::EchoAnswered);
            xdp_action::XDP_TX
        }
        icmpv6::UNREACHABLE | icmpv6::PACKET_TOO_BIG | icmpv6::TIME_EXCEEDED | icmpv6::PARAMETER_PROBLEM => {
            icmp_error_v6(ctx, l3 as u32, l4 as u32)
        }
        // The kernel may have the address. From beyond the segment it cannot come (RFC 4861, section 6.1).
        icmpv6::ROUTER_SOLICITATION..=icmpv6::REDIRECT if ip.hop_limit == 255 => {
            maps::pass(Event::PassedNoService)
        }
        _ => maps::unserved(),
    }
}

/// An IPv4 error message: on to the real whose flow the embedded packet belongs to.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn icmp_error_v4(ctx: *mut xdp_md, l3: u32, l4: u32) -> u32 {
    let (l3, l4) = ((l3 & 0x1f) as usize, (l4 & 0x7f) as usize);
    let frame = Frame::new(ctx);
    let inner = l4 + ICMP_LENGTH;
    let (Some(ip), Some(embedded)) = (frame.header::<Ipv4>(l3), frame.header::<Ipv4>(inner)) else {
        return maps::discard(0, DropReason::MalformedIcmp);
    };
    let header = embedded.header_length();
    if embedded.version_ihl >> 4 != 4 || header < IPV4_LENGTH {
        return maps::discard(0, DropReason::MalformedIcmp);
    }
    // The real answered from the VIP's address; only the first fragment of a packet has its ports.
    if embedded.source != ip.destination || embedded.fragment & IPV4_FRAGMENT_OFFSET.to_be() != 0 {
        return maps::discard(0, DropReason::IcmpUnmatched);
    }
    let Some(ports) = frame.header::<Ports>(inner + header) else {
        return maps::discard(0, DropReason::MalformedIcmp);
    };
    let (client, destination) = (embedded.destination, ip.destination);
    let (word, protocol) = (ports.word, embedded.protocol);
    let total = u32::from(u16::from_be(ip.total_length));
    // What lies behind the packet's end is padding.
    if (inner + header + size_of::<Ports>()) as u32 > l3 as u32 + total {
        return maps::discard(0, DropReason::MalformedIcmp);
    }
    let error =
        Pending { l3: l3 as u32, total, tos: ip.tos, ttl: ip.ttl, icmp_error: true, ..Pending::NOTHING };
    to_holder(error, ipv4_key(destination), word, protocol, |seed, ports| flow::hash_v4(seed, client, ports))
}

/// An IPv6 error message.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn icmp_error_v6(ctx: *mut xdp_md, l3: u32, l4: u32) -> u32 {
    let (l3, l4) = ((l3 & 0x1f) as usize, (l4 & 0x3ff) as usize);
    let frame = Frame::new(ctx);
    let inner = l4 + ICMP_LENGTH;
    let (Some(ip), Some(embedded)) = (frame.header::<Ipv6>(l3), frame.header::<Ipv6>(inner)) else {
        return maps::discard(0, DropReason::MalformedIcmp);
    };
    if embedded.version_class_label & 0xf0 != 0x60 {
        return maps::discard(0, DropReason::MalformedIcmp);
    }
    let (source, destination) = (embedded.source, ip.destination);
    if source[0] != destination[0] || source[1] != destination[1] {
        return maps::discard(0, DropReason::IcmpUnmatched);
    }
    let walk = Walk::unpack(ipv6::walk_extensions(
        ctx,
        (inner + IPV6_LENGTH) as u32,
        u32::from(embedded.next_header),
    ));
    // Only the first fragment of a packet has its ports.
    if walk.failed || (walk.fragment && !walk.first) {
        return maps::discard(0, DropReason::IcmpUnmatched);
    }
    let Some(ports) = frame.header::<Ports>(walk.offset) else {
        return maps::discard(0, DropReason::MalformedIcmp);
    };
    let client = embedded.destination;
    let word = ports.word;
    let total = u32::from(u16::from_be(ip.payload_length)) + IPV6_LENGTH as u32;
    if (walk.offset + size_of::<Ports>()) as u32 > l3 as u32 + total {
        return maps::discard(0, DropReason::MalformedIcmp);
    }
    let (tos, ttl) = (ip.traffic_class(), ip.hop_limit);
    let error = Pending { l3: l3 as u32, total, tos, ttl, v6: true, icmp_error: true, ..Pending::NOTHING };
    to_holder(error, destination, word, walk.protocol, |seed, ports| flow::hash_v6(seed, client, ports))
}

/// Sends an error to the owner of the embedded packet's slot. `ports` are those of the real's packet:
/// the VIP's first.
#[inline(always)]
fn to_holder(
    error: Pending,
    key: [u64; 2],
    ports: u32,
    protocol: u8,
    hash: impl FnOnce(Seed, u32) -> u32,
) -> u32 {
    if protocol != protocol::TCP && protocol != protocol::UDP {
        return maps::discard(0, DropReason::IcmpUnmatched);
    }
    let Some(served) = Served::find(key) else { return maps::pass(Event::Passed) };
    let client_first = ports.rotate_left(16);
    let Some(vip) = served.vip(second_port(client_first), protocol) else {
        return maps::discard(0, DropReason::IcmpUnmatched);
    };
    let Some(entry) = VIPS.get(vip) else { return maps::discard(vip, DropReason::NoReal) };
    let word = if entry.flags & vip_flags::SOURCE_AFFINITY != 0 { 0 } else { client_first };
    let hash = hash(Seed { k0: served.config.seed[0], k1: served.config.seed[1] }, word);
    let Some(real) = forward::owner(entry, hash) else { return maps::discard(vip, DropReason::NoReal) };
    Pending { vip, real, hash, ..error }.forward()
}

/// Returns whether an IPv4 source can be a single host beyond this one (RFC 1122, section 3.2.2): not "this network",
/// loopback, multicast, reserved or broadcast.
#[inline(always)]
fn is_host_v4(source: u32) -> bool {
    let first = source as u8;
    first != 0 && first != 127 && first < 224
}

/// The same for IPv6 (RFC 4443, section 2.4 (e)): not multicast, unspecified or loopback, and none of the addresses
/// made of IPv4's, which are all below `::/64`.
#[inline(always)]
fn is_host_v6(source: [u64; 2]) -> bool {
    source[0] as u8 != 0xff && source[0] != 0
}

/// Returns whether an echo request is to be answered.
#[inline(always)]
fn may_echo(is_host: bool) -> Result<(), DropReason> {
    if !is_host {
        return Err(DropReason::InvalidSource);
    }
    let config = CONFIG.get(0).ok_or(DropReason::EchoRateLimited)?;
    if admission::may_answer(config, Answers::Echoes) { Ok(()) } else { Err(DropReason::EchoRateLimited) }
}

/// Addresses the frame to where it came from.
#[inline(always)]
fn turn_round(ethernet: &mut Ethernet) {
    let a = ethernet.addresses;
    ethernet.addresses = [a[6], a[7], a[8], a[9], a[10], a[11], a[0], a[1], a[2], a[3], a[4], a[5]];
}

/// Answers a packet that does not fit the path with the size that does (RFC 1191, RFC 8201).
///
/// IPv4 packets without DF are answered as well: XDP cannot fragment, and a sender that learns the
/// size is better off than one that learns nothing. Where the path takes less than the smallest size that senders
/// may be told, they are told that one; a packet that is no longer is lost without an answer, which could only ask
/// for what the sender does already.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn too_big(ctx: *mut xdp_md, l3: u32, v6: u32, vip: u32, mtu: u32) -> u32 {
    let smallest = if v6 != 0 { SMALLEST_MTU_V6 } else { SMALLEST_MTU_V4 };
    let mtu = if mtu < smallest { smallest } else { mtu };
    let sent = if length_of(&Frame::new(ctx), (l3 & 0x1f) as usize, v6 != 0).is_none_or(|all| all <= mtu) {
        Answer::Impossible
    } else if v6 != 0 {
        answer::<true>(ctx, l3, icmpv6::PACKET_TOO_BIG, 0, mtu.to_be())
    } else {
        let mtu = u32::from((mtu as u16).to_be()) << 16;
        answer::<false>(ctx, l3, icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED, mtu)
    };
    finish(sent, vip, DropReason::TooBig, Event::TooBigSent)
}

/// Answers a packet whose TTL or hop limit is used up.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn time_exceeded(ctx: *mut xdp_md, l3: u32, v6: u32, vip: u32) -> u32 {
    let sent = if v6 != 0 {
        answer::<true>(ctx, l3, icmpv6::TIME_EXCEEDED, 0, 0)
    } else {
        answer::<false>(ctx, l3, icmp::TIME_EXCEEDED, 0, 0)
    };
    finish(sent, vip, DropReason::TtlExpired, Event::TimeExceededSent)
}

/// Length of the IP packet at `l3`, by its header.
#[inline(always)]
fn length_of(frame: &Frame, l3: usize, v6: bool) -> Option<u32> {
    if v6 {
        Some(u32::from(u16::from_be(frame.header::<Ipv6>(l3)?.payload_length)) + IPV6_LENGTH as u32)
    } else {
        Some(u32::from(u16::from_be(frame.header::<Ipv4>(l3)?.total_length)))
    }
}

/// The outcome of an attempt to answer.
enum Answer {
    Sent,
    Limited,
    Impossible,
}

#[inline(always)]
fn finish(answer: Answer, vip: u32, reason: DropReason, event: Event) -> u32 {
    maps::discard(vip, reason);
    match answer {
        Answer::Sent => {
            maps::count(event);
            xdp_action::XDP_TX
        }
        Answer::Limited => maps::discard(vip, DropReason::IcmpRateLimited),
        Answer::Impossible => xdp_action::XDP_DROP,
    }
}

/// Turns the frame into an ICMP error about itself. `rest` is the ICMP header's second word as on the
/// wire.
#[inline(always)]
fn answer<const V6: bool>(ctx: *mut xdp_md, l3: u32, kind: u8, code: u8, rest: u32) -> Answer {
    let (header, longest) = if V6 { (IPV6_LENGTH, LONGEST_V6) } else { (IPV4_LENGTH, LONGEST_V4) };
    let most = longest - header - ICMP_LENGTH;
    let l3 = (l3 & 0x1f) as usize;
    let (Some(config), Some(scratch)) = (CONFIG.get(0), SCRATCH.get_ptr_mut(0)) else {
        return Answer::Impossible;
    };
    let frame = Frame::new(ctx);
    if !may_be_told::<V6>(&frame, l3) {
        return Answer::Impossible;
    }
    if !admission::may_answer(config, Answers::Errors) {
        return Answer::Limited;
    }
    let scratch = scratch.cast::<u8>();
    let Some(quoted) = length_of(&frame, l3, V6) else { return Answer::Impossible };
    let quoted = if quoted > most as u32 { most as u32 } else { quoted };
    let Some(quoted) = bounded(quoted, most).filter(|quoted| *quoted >= header as u32) else {
        return Answer::Impossible;
    };
    let length = ICMP_LENGTH as u32 + quoted;
    // SAFETY: `scratch` has MESSAGE_ROOM bytes of this CPU alone; all offsets are constants below that,
    // and `quoted` is at most `most`.
    let checksum = unsafe {
        core::ptr::write_bytes(scratch, 0, MESSAGE_ROOM);
        if bpf_xdp_load_bytes(ctx, l3 as u32, scratch.add(header + ICMP_LENGTH).cast(), quoted) != 0 {
            return Answer::Impossible;
        }
        let message = &mut *scratch.add(header).cast::<Icmp>();
        message.kind = kind;
        message.code = code;
        message.rest = rest;
        // The quotation is followed by zeros, which do not change the sum.
        if V6 {
            sum::<{ LONGEST_V6 - IPV6_LENGTH }>(scratch.add(header))
        } else {
            sum::<{ LONGEST_V4 - IPV4_LENGTH }>(scratch.add(header))
        }
    };
    if checksum < 0 {
        return Answer::Impossible;
    }
    let sum = checksum as u32;
    // SAFETY: as above.
    let written = unsafe {
        if V6 {
            ipv6_error(&frame, scratch, l3, length, sum)
        } else {
            ipv4_error(&frame, scratch, l3, length, sum)
        }
    };
    let size = header as u32 + length;
    let grow = (l3 as u32 + size) as i32 - frame.length() as i32;
    // SAFETY: the context is the program's own; `size` is at most MESSAGE_ROOM.
    unsafe {
        if !written || !resize(ctx, grow) {
            return Answer::Impossible;
        }
        let Some(size) = bounded(size, MESSAGE_ROOM) else { return Answer::Impossible };
        if bpf_xdp_store_bytes(ctx, l3 as u32, scratch.cast(), size) != 0 {
            return Answer::Impossible;
        }
    }
    let frame = Frame::new(ctx);
    let Some(ethernet) = frame.header::<Ethernet>(0) else { return Answer::Impossible };
    turn_round(ethernet);
    Answer::Sent
}

/// Sum of `LENGTH` bytes, a multiple of four, for a checksum; negative if the kernel refuses. Kernels before 6.13 take
/// no more than 512 bytes at a time.
///
/// # Safety
/// So many bytes must lie at `at`.
#[inline(always)]
unsafe fn sum<const LENGTH: usize>(at: *mut u8) -> i64 {
    const PART: usize = 256;
    let mut sum = 0;
    let mut done = 0;
    while done < LENGTH && sum >= 0 {
        let part = if LENGTH - done < PART { LENGTH - done } else { PART };
        // SAFETY: as the caller promises.
        let at = unsafe { at.add(done) }.cast();
        // SAFETY: likewise.
        sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, at, part as u32, sum as u32) };
        done += part;
    }
    sum
}

/// Returns whether an error about the packet may be sent to its source: a single host, and about nothing but the first
/// fragment of a packet (RFC 1122, section 3.2.2; RFC 4443, section 2.4 (e)).
#[inline(always)]
fn may_be_told<const V6: bool>(frame: &Frame, l3: usize) -> bool {
    if V6 {
        frame.header::<Ipv6>(l3).is_some_and(|ip| is_host_v6(ip.source))
    } else {
        frame
            .header::<Ipv4>(l3)
            .is_some_and(|ip| is_host_v4(ip.source) && ip.fragment & IPV4_FRAGMENT_OFFSET.to_be() == 0)
    }
}

/// Makes the frame so much longer or shorter, and keeps its Ethernet header at the start.
///
/// It grows at the head, where room for an outer header is to be had anyway; at the tail of a short frame there
/// may be none. It shrinks at the tail, since the head of a frame of several buffers may be shorter than that.
#[inline(always)]
fn resize(ctx: *mut xdp_md, grow: i32) -> bool {
    // SAFETY: the context is the program's own; `start` has LINK_ROOM bytes.
    unsafe {
        if grow <= 0 {
            return bpf_xdp_adjust_tail(ctx, grow) == 0;
        }
        let mut start = [0_u32; LINK_ROOM as usize / 4];
        let bytes = start.as_mut_ptr().cast();
        bpf_xdp_load_bytes(ctx, 0, bytes, LINK_ROOM) == 0
            && bpf_xdp_adjust_head(ctx, -grow) == 0
            && bpf_xdp_store_bytes(ctx, 0, bytes, LINK_ROOM) == 0
    }
}

/// Writes the IPv4 header and the ICMP checksum. The message comes from the VIP's address: it speaks for the VIP, the
/// answers of the reals come from there too, and the node's own address may be one that routers on the way drop.
///
/// # Safety
/// `scratch` must have [`MESSAGE_ROOM`] bytes.
#[inline(always)]
unsafe fn ipv4_error(frame: &Frame, scratch: *mut u8, l3: usize, length: u32, sum: u32) -> bool {
    let Some(ip) = frame.header::<Ipv4>(l3) else { return false };
    // SAFETY: as the caller promises.
    unsafe {
        let out = &mut *scratch.cast::<Ipv4>();
        out.version_ihl = 0x45;
        out.tos = 0xc0; // internetwork control (RFC 1812, section 4.3.2.5)
        out.total_length = ((length + IPV4_LENGTH as u32) as u16).to_be();
        out.fragment = IPV4_DONT_FRAGMENT.to_be(); // so that it needs no identification (RFC 6864)
        out.ttl = TTL;
        out.protocol = protocol::ICMP;
        out.source = ip.destination;
        out.destination = ip.source;
        let sum4 = bpf_csum_diff(core::ptr::null_mut(), 0, scratch.cast(), IPV4_LENGTH as u32, 0);
        out.checksum = !fold(sum4 as u32);
        (*scratch.add(IPV4_LENGTH).cast::<Icmp>()).checksum = !fold(sum);
    }
    true
}

/// The same for IPv6, with the pseudo-header in the checksum (RFC 8200, section 8.1).
///
/// # Safety
/// `scratch` must have [`MESSAGE_ROOM`] bytes.
#[inline(always)]
unsafe fn ipv6_error(frame: &Frame, scratch: *mut u8, l3: usize, length: u32, sum: u32) -> bool {
    let Some(ip) = frame.header::<Ipv6>(l3) else { return false };
    // SAFETY: as the caller promises.
    unsafe {
        let out = &mut *scratch.cast::<Ipv6>();
        out.version_class_label = 0x60_u32;
        out.payload_length = (length as u16).to_be();
        out.next_header = protocol::ICMPV6;
        out.hop_limit = TTL;
        out.source = ip.destination;
        out.destination = ip.source;
        let addresses = bpf_csum_diff(core::ptr::null_mut(), 0, scratch.add(8).cast(), 32, sum);
        if addresses < 0 {
            return false;
        }
        let rest = u32::from((length as u16).to_be()) + u32::from(u16::from(protocol::ICMPV6).to_be());
        let sum = u32::from(fold(addresses as u32)) + rest;
        (*scratch.add(IPV6_LENGTH).cast::<Icmp>()).checksum = !fold(sum);
    }
    true
}
