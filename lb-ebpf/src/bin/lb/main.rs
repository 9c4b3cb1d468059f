//! The load balancer's data plane: `drover_lb` (XDP on the front interface) sends each packet for a
//! VIP to its real; `drover_probe` (tc egress) does the same for the node's own health probes.
//!
//! Order of work: Ethernet and VLAN tags, address, VIP, admission, slot, real, encapsulation. What is
//! not for a VIP is passed on untouched. The common case (TCP or UDP, no options, no fragment) stays
//! in one function; everything rare is a call away, so that it costs the common case nothing. Those
//! calls are *global* functions (`no_mangle`, scalars and the context as arguments), which the verifier
//! checks once each instead of once per path that leads to them.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "atomic operations on map values: see `atomic`")]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "keys by value are copied on a stack of 512 bytes"
)]

mod admission;
mod atomic;
mod capture;
mod encapsulate;
mod forward;
mod fragment;
mod icmp;
mod index;
mod ipv4;
mod ipv6;
mod maps;
mod probe;
mod rare;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{xdp_action, xdp_md},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_ebpf::lb::Event;
use lb_ebpf::packet::{self, Ethernet, Frame};
use lb_ebpf::wire::{ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// XDP on the interface that clients' packets arrive on.
#[xdp]
pub fn drover_lb(ctx: XdpContext) -> u32 {
    let ctx = ctx.as_ptr().cast();
    let frame = Frame::new(ctx);
    let Some(ethernet) = frame.header::<Ethernet>(0) else { return maps::pass(Event::Passed) };
    let action = match u16::from_be(ethernet.ethertype) {
        ETHERTYPE_IPV4 => ipv4::handle(frame, ETHERNET_LENGTH),
        ETHERTYPE_IPV6 => ipv6::handle(frame, ETHERNET_LENGTH),
        ethertype if packet::is_vlan(ethertype) => tagged(ctx),
        _ => maps::pass(Event::Passed),
    };
    if action <= xdp_action::XDP_REDIRECT { action } else { rare::resume(ctx, action) }
}

/// Frames with one or two VLAN tags (IEEE 802.1Q, 802.1ad).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tagged(ctx: *mut xdp_md) -> u32 {
    let frame = Frame::new(ctx);
    let Some((l3, ethertype)) = packet::behind_tags(&frame) else { return maps::pass(Event::Passed) };
    match ethertype {
        ETHERTYPE_IPV4 => ipv4::handle(frame, l3),
        ETHERTYPE_IPV6 => ipv6::handle(frame, l3),
        _ => maps::pass(Event::Passed),
    }
}

/// tc on the same interface's egress: encapsulates the node's own probes by their mark.
#[classifier]
pub fn drover_probe(ctx: TcContext) -> i32 {
    probe::handle(ctx.skb.skb)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
