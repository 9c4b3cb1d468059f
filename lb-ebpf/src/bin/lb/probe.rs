//! The node's own health probes: connections to the VIP whose socket's mark names the real. They leave
//! through the front interface and are wrapped here as clients' packets are in XDP, so that a broken
//! decapsulation at the real is seen.
//!
//! The program decides about nothing but probes that it cannot wrap. All else goes on to the next program on the
//! interface (`TC_ACT_UNSPEC`, which tcx calls `TCX_NEXT`); any other verdict would end the chain.

use crate::encapsulate;
use crate::forward::Inner;
use crate::maps::{self, NEXT_HOPS, REALS};
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_SHOT, TC_ACT_UNSPEC,
};
use aya_ebpf::helpers::generated::{
    bpf_redirect, bpf_skb_adjust_room, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skb_vlan_push,
};
use lb_ebpf::lb::{Event, NextHop, PROBE_MARK, PROBE_MARK_MASK, RealEntry, SLOT_REAL_MASK, encapsulation};
use lb_ebpf::wire::{ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, protocol};

/// Room for the largest outer header.
const OUTER_ROOM: usize = 52;
/// `BPF_ADJ_ROOM_MAC`: make room between the Ethernet and the IP header.
const ADJ_ROOM_MAC: u32 = 1;

pub fn handle(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the kernel hands the program a valid context; the verifier checks the loads.
    let (mark, ethertype) = unsafe { ((*skb).mark, (*skb).protocol as u16) };
    if mark & PROBE_MARK_MASK != PROBE_MARK {
        return TC_ACT_UNSPEC;
    }
    let index = mark & SLOT_REAL_MASK;
    match u16::from_be(ethertype) {
        ETHERTYPE_IPV4 => wrap::<false>(skb, index),
        ETHERTYPE_IPV6 => wrap::<true>(skb, index),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn wrap<const V6: bool>(skb: *mut __sk_buff, index: u32) -> i32 {
    let Some(real) = REALS.get(index).filter(|real| index != 0 && real.id != 0) else { return refuse() };
    // SAFETY: a reference is valid for reads; user space replaces the word.
    let hop = unsafe { (&raw const real.next_hop).read_volatile() };
    let Some(hop) = NEXT_HOPS.get(hop).filter(|_| hop != 0) else { return refuse() };
    let Some(inner) = inner::<V6>(skb) else { return refuse() };
    // Neighbour discovery and ICMP of the kernel that inherit a socket's mark stay as they are.
    if inner.l4 != protocol::TCP {
        return TC_ACT_UNSPEC;
    }
    if !push::<V6>(skb, real, inner.inner, inner.hash) || !address(skb, hop) {
        return refuse();
    }
    maps::count(Event::ProbeSent);
    if hop.ifindex == 0 {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(hop.ifindex, 0) as i32 }
}

#[inline(always)]
fn refuse() -> i32 {
    maps::count(Event::ProbeFailed);
    TC_ACT_SHOT
}

struct Probe {
    inner: Inner,
    l4: u8,
    hash: u32,
}

/// Reads what the outer header needs of the probe's packet.
#[inline(always)]
fn inner<const V6: bool>(skb: *mut __sk_buff) -> Option<Probe> {
    let mut head = [0_u8; 40];
    let length = if V6 { 40 } else { 20 };
    // SAFETY: `head` has room for `length` bytes.
    if unsafe { bpf_skb_load_bytes(skb.cast(), ETHERNET_LENGTH as u32, head.as_mut_ptr().cast(), length) }
        != 0
    {
        return None;
    }
    let (total, tos, ttl, l4) = if V6 {
        let class = (head[0] & 0x0f) << 4 | head[1] >> 4;
        (u32::from(u16::from_be_bytes([head[4], head[5]])) + 40, class, head[7], head[6])
    } else {
        (u32::from(u16::from_be_bytes([head[2], head[3]])), head[1], head[8], head[9])
    };
    let mut ports = [0_u8; 4];
    // SAFETY: `ports` has room for four bytes. The header has no options: the socket set none.
    unsafe { bpf_skb_load_bytes(skb.cast(), ETHERNET_LENGTH as u32 + length, ports.as_mut_ptr().cast(), 4) };
    let hash = u32::from_le_bytes(ports).wrapping_mul(0x9e37_79b1);
    Some(Probe { inner: Inner { l3: ETHERNET_LENGTH, total, tos, ttl }, l4, hash: hash >> 8 })
}

#[inline(always)]
fn push<const V6: bool>(skb: *mut __sk_buff, real: &RealEntry, inner: Inner, hash: u32) -> bool {
    let mut outer = [0_u8; OUTER_ROOM];
    let at = outer.as_mut_ptr();
    let length = encapsulate::overhead(real.encapsulation);
    let (ethertype, flags) = match real.encapsulation {
        encapsulation::IPIP_V4 => {
            encapsulate::outer_ipv4::<V6, false>(at, real, inner, hash);
            (ETHERTYPE_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4)
        }
        encapsulation::GUE_V4 => {
            encapsulate::outer_ipv4::<V6, true>(at, real, inner, hash);
            (ETHERTYPE_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP)
        }
        encapsulation::IPIP_V6 => {
            encapsulate::outer_ipv6::<V6, false>(at, real, inner, hash);
            (ETHERTYPE_IPV6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6)
        }
        encapsulation::GUE_V6 => {
            encapsulate::outer_ipv6::<V6, true>(at, real, inner, hash);
            (ETHERTYPE_IPV6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP)
        }
        _ => return true,
    };
    let flags = flags | BPF_F_ADJ_ROOM_FIXED_GSO;
    let ethertype = ethertype.to_be_bytes();
    // SAFETY: `outer` has OUTER_ROOM bytes, at least `length` of them written.
    unsafe {
        bpf_skb_adjust_room(skb, length as i32, ADJ_ROOM_MAC, u64::from(flags)) == 0
            && store(skb, ETHERNET_LENGTH, at, length)
            && store(skb, ETHERNET_LENGTH - 2, ethertype.as_ptr(), 2)
    }
}

/// Stores an outer header of one of the five lengths that there are (the verifier wants constants).
#[inline(always)]
unsafe fn store(skb: *mut __sk_buff, offset: usize, from: *const u8, length: u32) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        let put = |length: u32| bpf_skb_store_bytes(skb, offset as u32, from.cast(), length, 0) == 0;
        match length {
            2 => put(2),
            20 => put(20),
            32 => put(32),
            40 => put(40),
            52 => put(52),
            _ => false,
        }
    }
}

/// Writes the MAC addresses and, where the next hop asks for it, the VLAN tag.
#[inline(always)]
fn address(skb: *mut __sk_buff, hop: &NextHop) -> bool {
    let words = hop.ethernet;
    // SAFETY: twelve bytes are read from `words`.
    unsafe {
        if bpf_skb_store_bytes(skb, 0, words.as_ptr().cast(), 12, 0) != 0 {
            return false;
        }
        hop.vlan == 0 || bpf_skb_vlan_push(skb, ETHERTYPE_VLAN.to_be(), hop.vlan as u16) == 0
    }
}
