//! Fragments to a VIP.
//!
//! The rule: a first fragment carries the ports, so it goes where its flow goes, and leaves a record
//! under (source, VIP's address, protocol, identification). A later fragment follows the record. Without
//! one it follows only where ports do not matter: a VIP of all ports with source affinity. Otherwise it
//! is dropped and counted. Records are for 30 s and in a table of fixed size that forgets the oldest.
//!
//! A record costs twenty times what a packet does otherwise, so each CPU notes no more first fragments than
//! [`FRAGMENT_INTERVAL`](lb_ebpf::lb::FRAGMENT_INTERVAL) allows. Beyond that they are dropped and counted.

use crate::forward;
use crate::index::Served;
use crate::maps::{self, CONFIG, FRAGMENTS, PENDING, VIPS};
use crate::rare::{Pending, Step};
use crate::{admission, ipv6};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use lb_ebpf::lb::{
    DropReason, Event, FRAGMENT_LIFETIME, FragmentKey, FragmentOwner, VipEntry, ipv4_key, vip_flags,
};
use lb_ebpf::packet::{self, Frame, IPV4_FRAGMENT_OFFSET, Ipv4, Ipv6};
use lb_ebpf::wire::{IPV6_LENGTH, protocol};
use slot_table::flow::{self, Seed};

/// A parsed fragment, of either family.
struct Part {
    l3: u32,
    /// Offset of the transport header in a first fragment; 0 in a later one.
    l4: usize,
    rest: u32,
    admitted: bool,
    key: FragmentKey,
    pending: Pending,
}

/// The result of [`admission::admit_fragment`] for a first fragment that may open a connection.
pub const ADMITTED: u32 = 1;

/// An IPv4 fragment. `admitted`: 0, or [`ADMITTED`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fragment_v4(ctx: *mut xdp_md, l3: u32, admitted: u32) -> u32 {
    let l3 = l3 & 0x1f;
    let frame = Frame::new(ctx);
    let Some(ip) = frame.header::<Ipv4>(l3 as usize) else { return maps::pass(Event::Passed) };
    let Some(served) = Served::find(ipv4_key(ip.destination)) else { return maps::pass(Event::Passed) };
    match ip.protocol {
        protocol::TCP | protocol::UDP => {}
        protocol::ICMP => return maps::discard(0, DropReason::IcmpFragment),
        _ => return maps::unserved(),
    }
    let header = ip.header_length() as u32;
    let total = u32::from(u16::from_be(ip.total_length));
    if total < header {
        return maps::discard(0, DropReason::MalformedIp);
    }
    let first = ip.fragment & IPV4_FRAGMENT_OFFSET.to_be() == 0;
    let key = FragmentKey {
        source: [u64::from(ip.source), 0],
        destination: ipv4_key(ip.destination),
        protocol: u32::from(ip.protocol),
        identification: u32::from(ip.identification),
    };
    let pending = Pending { total, tos: ip.tos, ttl: ip.ttl, v6: false, ..Pending::NOTHING };
    let l4 = if first { (l3 + header) as usize } else { 0 };
    let part = Part { l3, l4, rest: total - header, admitted: admitted == ADMITTED, key, pending };
    handle(frame, served, part)
}

/// An IPv6 fragment.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fragment_v6(ctx: *mut xdp_md, l3: u32, admitted: u32) -> u32 {
    let l3 = l3 & 0x1f;
    let frame = Frame::new(ctx);
    let Some(ip) = frame.header::<Ipv6>(l3 as usize) else { return maps::pass(Event::Passed) };
    let Some(served) = Served::find(ip.destination) else { return maps::pass(Event::Passed) };
    let payload = u32::from(u16::from_be(ip.payload_length));
    let start = l3 + IPV6_LENGTH as u32;
    let walk = ipv6::Walk::unpack(ipv6::walk_extensions(ctx, start, u32::from(ip.next_header)));
    let extensions = walk.offset as u32 - start;
    if walk.failed || !walk.fragment || extensions > payload {
        return maps::discard(0, DropReason::ExtensionHeaders);
    }
    match walk.protocol {
        protocol::TCP | protocol::UDP => {}
        protocol::ICMPV6 => return maps::discard(0, DropReason::IcmpFragment),
        _ => return maps::unserved(),
    }
    let key = FragmentKey {
        source: ip.source,
        destination: ip.destination,
        protocol: u32::from(walk.protocol),
        identification: walk.identification,
    };
    let pending = Pending {
        total: payload + IPV6_LENGTH as u32,
        tos: ip.traffic_class(),
        ttl: ip.hop_limit,
        v6: true,
        ..Pending::NOTHING
    };
    let l4 = if walk.first { walk.offset } else { 0 };
    let part = Part { l3, l4, rest: payload - extensions, admitted: admitted == ADMITTED, key, pending };
    handle(frame, served, part)
}

#[inline(always)]
fn handle(frame: Frame, served: Served, part: Part) -> u32 {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let protocol = part.key.protocol as u8;
    if part.l4 != 0 {
        return first(frame, served, part, protocol, now);
    }
    // SAFETY: the element is copied at once; a concurrent rewrite could at worst mix two records of
    // one key, and `id` guards against a real that is not what it was.
    if let Some(owner) = unsafe { FRAGMENTS.get(&part.key) }.copied()
        // Another CPU may have noted it since this one looked at the clock.
        && now.saturating_sub(owner.seen) < FRAGMENT_LIFETIME
        && let Some((id, vip)) = forward::identity(owner.real)
        && id == owner.id
    {
        maps::count(Event::FragmentFollowed);
        return Pending { l3: part.l3, vip, real: owner.real, hash: owner.hash, ..part.pending }.forward();
    }
    if let Some(vip) = served.any_port(protocol)
        && let Some(entry) = VIPS.get(vip)
        && entry.flags & vip_flags::SOURCE_AFFINITY != 0
    {
        return by_table(vip, entry, part, 0, None);
    }
    maps::discard(0, DropReason::FragmentUnknown)
}

#[inline(always)]
fn first(frame: Frame, served: Served, mut part: Part, protocol: u8, now: u64) -> u32 {
    let Ok((ports, syn)) = forward::transport(&frame, part.l4, part.rest, protocol, false) else {
        return maps::discard(0, DropReason::MalformedTransport);
    };
    let Some(vip) = served.vip(packet::second_port(ports), protocol) else {
        return maps::unserved();
    };
    let Some(entry) = VIPS.get(vip) else { return maps::discard(vip, DropReason::NoReal) };
    part.pending.syn = syn;
    if syn && !part.admitted {
        let Some(pending) = PENDING.get_ptr_mut(0) else { return maps::discard(vip, DropReason::NoReal) };
        // SAFETY: the element is this CPU's own.
        unsafe { (*pending).vip = vip };
        return Step::FragmentAdmission.at(part.l3 as usize, usize::from(part.pending.v6));
    }
    // Where later ones find the same real without a record, none is left.
    let needs_none = entry.flags & vip_flags::SOURCE_AFFINITY != 0 && served.any_port(protocol) == Some(vip);
    by_table(vip, entry, part, ports, if needs_none { None } else { Some(now) })
}

/// Sends a fragment to its slot's owner; `note` is the time to leave a record with.
#[inline(always)]
fn by_table(vip: u32, entry: &VipEntry, part: Part, ports: u32, note: Option<u64>) -> u32 {
    let Some(config) = CONFIG.get(0) else { return maps::discard(vip, DropReason::NoReal) };
    let seed = Seed { k0: config.seed[0], k1: config.seed[1] };
    let ports = if entry.flags & vip_flags::SOURCE_AFFINITY != 0 { 0 } else { ports };
    let hash = if part.pending.v6 {
        flow::hash_v6(seed, part.key.source, ports)
    } else {
        flow::hash_v4(seed, part.key.source[0] as u32, ports)
    };
    let Some(real) = forward::owner(entry, hash) else { return maps::discard(vip, DropReason::NoReal) };
    if let Some(seen) = note
        && let Some((id, _)) = forward::identity(real)
    {
        if !admission::may_note_fragment(config) {
            // Those behind it could not follow.
            return maps::discard(vip, DropReason::FragmentRateLimited);
        }
        let owner = FragmentOwner { id, seen, real, hash };
        // Without a record later fragments are counted as unknown; nothing else is lost.
        if FRAGMENTS.insert(&part.key, &owner, 0).is_ok() {
            maps::count(Event::FragmentFirst);
        }
    }
    Pending { l3: part.l3, vip, real, hash, ..part.pending }.forward()
}
