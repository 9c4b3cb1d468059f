//! The headers between the outer and the inner IP header: none, or UDP and GUE.

use crate::Refusal::{self, Drop};
use crate::outer::Outer;
use lb_ebpf::packet::{Frame, Gue, Udp};
use lb_ebpf::real::{DropReason, Encapsulation};
use lb_ebpf::wire::{GUE_LENGTH, UDP_LENGTH, protocol};

/// A tunnel as its headers describe it. Positions are offsets in the frame.
pub struct Tunnel {
    pub encapsulation: Encapsulation,
    /// Protocol of the inner packet, 4 or 41.
    pub protocol: u8,
    /// Start of the inner packet.
    pub inner: usize,
    /// End of the tunnel's payload.
    pub end: usize,
}

/// The tunnel of an outer packet.
#[inline(always)]
pub fn open(frame: &Frame, outer: &Outer) -> Result<Tunnel, Refusal> {
    match outer.protocol {
        protocol::UDP => gue(frame, outer),
        protocol => {
            Ok(Tunnel { encapsulation: Encapsulation::Ipip, protocol, inner: outer.payload, end: outer.end })
        }
    }
}

#[inline(always)]
fn gue(frame: &Frame, outer: &Outer) -> Result<Tunnel, Refusal> {
    let udp = frame.header::<Udp>(outer.payload).ok_or(Drop(DropReason::Malformed))?;
    let end = outer.payload + usize::from(u16::from_be(udp.length));
    let header = frame.header::<Gue>(outer.payload + UDP_LENGTH).ok_or(Drop(DropReason::Malformed))?;
    // Variant 0, no control message. A receiver must drop what has flags that it does not know, and
    // none is defined here; what the length covers beyond flagged fields is private data, skipped.
    if header.variant_length >> 5 != 0 || header.flags != 0 {
        return Err(Drop(DropReason::Unsupported));
    }
    if header.protocol != protocol::IPV4 && header.protocol != protocol::IPV6 {
        return Err(Drop(DropReason::Unsupported));
    }
    let inner = outer.payload + UDP_LENGTH + GUE_LENGTH + usize::from(header.variant_length & 0x1f) * 4;
    if end > outer.end || inner > end {
        return Err(Drop(DropReason::Malformed));
    }
    Ok(Tunnel { encapsulation: Encapsulation::Gue, protocol: header.protocol, inner, end })
}
