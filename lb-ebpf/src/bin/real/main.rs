//! Decapsulation at a real.
//!
//! A node sends a client's packet unchanged inside an outer IP packet to the real. This program takes
//! the outer headers off before the host's stack sees the packet, so no tunnel device is needed.
//! It judges in this order:
//!
//! 1. Is it a tunnel packet (protocol 4, protocol 41, or UDP to the GUE port) to an address of this
//!    host? Everything else passes untouched. (`outer`)
//! 2. Does it come from a known node, whole, with lengths and versions that agree, and is its inner
//!    destination a VIP? Anything else is dropped and counted by reason. (`outer`, `tunnel`, `inner`)
//! 3. Carry the congestion mark inwards (RFC 6040), move the frame's start, pass. (`inner`, [`strip`])
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

mod inner;
mod maps;
mod outer;
mod tunnel;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_ebpf::packet::{self, Ethernet, Frame, Macs, Vlan};
use lb_ebpf::real::DropReason;
use lb_ebpf::wire::{ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, VLAN_LENGTH};

/// The reason why a packet is not decapsulated.
enum Refusal {
    /// It is none of this program's business: pass it on as it is.
    NotOurs,
    Drop(DropReason),
}

use Refusal::{Drop, NotOurs};

#[xdp(frags)]
pub fn drover_real(ctx: XdpContext) -> u32 {
    match decapsulate(Frame::new(ctx.as_ptr().cast())) {
        Ok(()) | Err(NotOurs) => xdp_action::XDP_PASS,
        Err(Drop(reason)) => {
            maps::count_drop(reason);
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn decapsulate(frame: Frame) -> Result<(), Refusal> {
    let (network, ethertype) = packet::network(&frame).ok_or(NotOurs)?;
    let outer = match ethertype {
        ETHERTYPE_IPV4 => outer::ipv4(&frame, network)?,
        ETHERTYPE_IPV6 => outer::ipv6(&frame, network)?,
        _ => return Err(NotOurs),
    };
    // From here on the packet is ours to refuse.
    outer.check(&frame)?;
    let tunnel = tunnel::open(&frame, &outer)?;
    let inner = inner::accept(&frame, &tunnel, outer.ecn)?;
    strip(frame, network, tunnel.inner, inner.ethertype)?;
    maps::count_decapsulated(tunnel.encapsulation, inner.family, inner.length);
    Ok(())
}

/// Has the frame start so that its Ethernet header and tags stand right before the inner packet, whose type they get.
/// `network` and `inner` are where the outer and the inner IP header are.
#[inline(always)]
fn strip(frame: Frame, network: usize, inner: usize, ethertype: u16) -> Result<(), Refusal> {
    const LOST: Refusal = Drop(DropReason::Internal);
    const FIRST: usize = ETHERNET_LENGTH;
    const SECOND: usize = ETHERNET_LENGTH + VLAN_LENGTH;
    let (one, two) = (network > FIRST, network > SECOND);
    // The frame's start moves, which invalidates every reference into it: copy first.
    let macs = frame.header::<Macs>(0).ok_or(LOST)?;
    let macs = [macs.words[0], macs.words[1], macs.words[2]];
    let mut outermost = frame.header::<Ethernet>(0).ok_or(LOST)?.ethertype;
    let mut first = Vlan { control: 0, ethertype: 0 };
    let mut second = Vlan { control: 0, ethertype: 0 };
    if one {
        first = *frame.header::<Vlan>(FIRST).ok_or(LOST)?;
    }
    if two {
        second = *frame.header::<Vlan>(SECOND).ok_or(LOST)?;
    }
    match (one, two) {
        (_, true) => second.ethertype = ethertype.to_be(),
        (true, _) => first.ethertype = ethertype.to_be(),
        _ => outermost = ethertype.to_be(),
    }
    // SAFETY: the context is this program's own; no reference into the frame is used afterwards.
    if unsafe { bpf_xdp_adjust_head(frame.ctx, (inner - network) as i32) } != 0 {
        return Err(LOST);
    }
    let frame = Frame::new(frame.ctx);
    frame.header::<Macs>(0).ok_or(LOST)?.words = macs;
    frame.header::<Ethernet>(0).ok_or(LOST)?.ethertype = outermost;
    if one {
        *frame.header::<Vlan>(FIRST).ok_or(LOST)? = first;
    }
    if two {
        *frame.header::<Vlan>(SECOND).ok_or(LOST)? = second;
    }
    Ok(())
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
