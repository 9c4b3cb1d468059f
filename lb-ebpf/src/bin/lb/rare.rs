//! The rare paths, which the common case leaves to others.
//!
//! A function that cannot finish a packet returns a [`Step`] instead of an XDP action, and [`resume`]
//! takes it from there. So calls stay flat: BPF gives a chain of calls 512 bytes of stack in all.

use crate::forward::{self, Chosen, Inner, Kind};
use crate::maps::{self, CONFIG, PENDING, VIPS};
use crate::{admission, fragment, icmp, ipv4, ipv6};
use aya_ebpf::bindings::{xdp_action, xdp_md};
use lb_ebpf::lb::DropReason;
use lb_ebpf::packet::Frame;

/// The next thing to do; all values are larger than any XDP action.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// Send to the real that [`PENDING`] names.
    Forward = 1 << 24,
    /// An IPv4 header with options.
    Ipv4Options = 2 << 24,
    /// An IPv4 fragment.
    Ipv4Fragment = 3 << 24,
    /// ICMP over IPv4.
    Icmp = 4 << 24,
    /// IPv6 extension headers.
    Ipv6Extensions = 5 << 24,
    /// An IPv6 fragment.
    Ipv6Fragment = 6 << 24,
    /// ICMP over IPv6.
    Icmpv6 = 7 << 24,
    /// A first fragment that opens a connection to the VIP that [`PENDING`] names.
    FragmentAdmission = 8 << 24,
}

impl Step {
    /// The step for a packet whose IP header is at `l3` and whose next header is at `l4`.
    #[inline(always)]
    pub const fn at(self, l3: usize, l4: usize) -> u32 {
        self as u32 | (l4 as u32 & 0x3ff) << 8 | (l3 as u32 & 0x1f)
    }
}

/// A packet on its way to a known real.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Pending {
    pub l3: u32,
    pub hash: u32,
    pub vip: u32,
    pub real: u32,
    pub total: u32,
    pub tos: u8,
    pub ttl: u8,
    pub v6: bool,
    pub syn: bool,
    pub icmp_error: bool,
    pub reserved: [u8; 3],
}

impl Pending {
    /// Nothing known yet.
    pub const NOTHING: Self = Self {
        l3: 0,
        hash: 0,
        vip: 0,
        real: 0,
        total: 0,
        tos: 0,
        ttl: 0,
        v6: false,
        syn: false,
        icmp_error: false,
        reserved: [0; 3],
    };

    /// Leaves the packet to [`resume`].
    #[inline(always)]
    pub fn forward(self) -> u32 {
        let Some(pending) = PENDING.get_ptr_mut(0) else { return xdp_action::XDP_DROP };
        // SAFETY: the element is this CPU's own.
        unsafe { *pending = self };
        Step::Forward.at(0, 0)
    }
}

/// Does steps until there is an action.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn resume(ctx: *mut xdp_md, step: u32) -> u32 {
    let mut code = step;
    // Extensions, fragment, its admission, fragment, forward: no packet needs more.
    for _ in 0..5 {
        let (l3, l4) = (code & 0x1f, code >> 8 & 0x3ff);
        code = match code & 0xff00_0000 {
            kind if kind == Step::Forward as u32 => forward_pending(ctx),
            kind if kind == Step::Ipv4Options as u32 => ipv4::ipv4_with_options(ctx, l3),
            kind if kind == Step::Ipv4Fragment as u32 => fragment::fragment_v4(ctx, l3, l4),
            kind if kind == Step::Icmp as u32 => icmp::icmp_v4(ctx, l3, l4),
            kind if kind == Step::Ipv6Extensions as u32 => ipv6::ipv6_with_extensions(ctx, l3),
            kind if kind == Step::Ipv6Fragment as u32 => fragment::fragment_v6(ctx, l3, l4),
            kind if kind == Step::Icmpv6 as u32 => icmp::icmp_v6(ctx, l3, l4),
            kind if kind == Step::FragmentAdmission as u32 => admission::admit_fragment(ctx, l3, l4),
            _ => return code,
        };
    }
    code
}

/// Sends the packet that [`PENDING`] describes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forward_pending(ctx: *mut xdp_md) -> u32 {
    let (Some(config), Some(pending)) = (CONFIG.get(0), PENDING.get(0)) else {
        return maps::discard(0, DropReason::NoReal);
    };
    let Pending { l3, hash, vip, real, total, tos, ttl, v6, syn, icmp_error, .. } = *pending;
    let inner = Inner { l3: (l3 & 0x1f) as usize, total, tos, ttl };
    if VIPS.get(vip).is_some_and(admission::limits_packets) {
        let refusal = admission::admit_packet(ctx, vip, l3, u32::from(v6));
        if refusal != 0 {
            return maps::discard_for(vip, refusal);
        }
    }
    let frame = Frame::new(ctx);
    let (chosen, kind) = (Chosen { vip, real, hash }, Kind { syn, icmp_error });
    if v6 {
        forward::to_real::<true>(frame, config, chosen, inner, kind)
    } else {
        forward::to_real::<false>(frame, config, chosen, inner, kind)
    }
}
