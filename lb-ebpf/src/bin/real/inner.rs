//! The inner packet: checked, and marked with the congestion that the outer one met.

use crate::Refusal::{self, Drop};
use crate::maps::Lookup;
use crate::tunnel::Tunnel;
use lb_ebpf::packet::{Frame, Ipv4, Ipv6, adjust_checksum};
use lb_ebpf::real::{DropReason, Inner};
use lb_ebpf::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LENGTH, IPV6_LENGTH, protocol};

/// Bits of the two ECN code points (RFC 3168, section 5).
pub mod ecn {
    pub const NOT_ECT: u8 = 0b00;
    pub const ECT_1: u8 = 0b01;
    pub const ECT_0: u8 = 0b10;
    pub const CE: u8 = 0b11;
}

/// An inner packet that may go to the host's stack.
pub struct Accepted {
    pub family: Inner,
    pub ethertype: u16,
    /// Length in bytes, from its IP header on.
    pub length: usize,
}

/// Checks the inner packet, and marks it.
#[inline(always)]
pub fn accept(frame: &Frame, tunnel: &Tunnel, outer_ecn: u8) -> Result<Accepted, Refusal> {
    match tunnel.protocol {
        protocol::IPV4 => {
            let length = ipv4(frame, tunnel, outer_ecn)?;
            Ok(Accepted { family: Inner::V4, ethertype: ETHERTYPE_IPV4, length })
        }
        _ => {
            let length = ipv6(frame, tunnel, outer_ecn)?;
            Ok(Accepted { family: Inner::V6, ethertype: ETHERTYPE_IPV6, length })
        }
    }
}

#[inline(always)]
fn ipv4(frame: &Frame, tunnel: &Tunnel, outer_ecn: u8) -> Result<usize, Refusal> {
    let ip = frame.header::<Ipv4>(tunnel.inner).ok_or(Drop(DropReason::Malformed))?;
    let header = ip.header_length();
    let length = usize::from(u16::from_be(ip.total_length));
    if ip.version_ihl >> 4 != 4
        || header < IPV4_LENGTH
        || length < header
        || tunnel.inner + length > tunnel.end
    {
        return Err(Drop(DropReason::Malformed));
    }
    is_vip(Lookup::v4(ip.destination))?;
    let marked = (ip.tos & !ecn::CE) | decapsulated_ecn(ip.tos & ecn::CE, outer_ecn)?;
    if marked != ip.tos {
        // The header's first word.
        let before = u16::from_ne_bytes([ip.version_ihl, ip.tos]);
        let after = u16::from_ne_bytes([ip.version_ihl, marked]);
        ip.checksum = adjust_checksum(ip.checksum, before, after);
        ip.tos = marked;
    }
    Ok(length)
}

#[inline(always)]
fn ipv6(frame: &Frame, tunnel: &Tunnel, outer_ecn: u8) -> Result<usize, Refusal> {
    let ip = frame.header::<Ipv6>(tunnel.inner).ok_or(Drop(DropReason::Malformed))?;
    let length = IPV6_LENGTH + usize::from(u16::from_be(ip.payload_length));
    if ip.version() != 6 || tunnel.inner + length > tunnel.end {
        return Err(Drop(DropReason::Malformed));
    }
    is_vip(Lookup::v6(ip.destination[0], ip.destination[1]))?;
    let class = ip.traffic_class();
    ip.set_traffic_class((class & !ecn::CE) | decapsulated_ecn(class & ecn::CE, outer_ecn)?);
    Ok(length)
}

#[inline(always)]
fn is_vip(destination: Lookup) -> Result<(), Refusal> {
    if destination.is_vip() { Ok(()) } else { Err(Drop(DropReason::NotAVip)) }
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
