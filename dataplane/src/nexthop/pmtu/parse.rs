//! ICMP errors that tell a path's MTU. Pure, for bytes that anybody may have sent.
//!
//! Anyone who guesses the node's and a real's address can forge such an error, since tunnels carry
//! nothing secret that could be checked (RFC 5927 section 7). What a forger can do is bounded by the
//! floors below, by [`super::Table`]'s pace and lifetime, and by the rule that only an MTU below the
//! length of the quoted packet is believed.

use crate::nexthop::sources::Sources;
use lb_ebpf::wire::icmp::{FRAGMENTATION_NEEDED, UNREACHABLE};
use lb_ebpf::wire::icmpv6::PACKET_TOO_BIG;
use lb_ebpf::wire::{checksum, protocol};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Smallest path MTU that is believed for IPv4, in bytes. RFC 1191's own 68 would let a forged packet
/// shrink payloads to nothing; no link in use today is below the 576 that every host must accept.
pub const FLOOR_V4: u32 = 576;
/// Smallest link MTU of IPv6, in bytes. RFC 8201 section 4 wants reports below it discarded.
pub const FLOOR_V6: u32 = 1280;

/// Common MTUs (RFC 1191 section 7.1), for routers that do not tell theirs.
const PLATEAUS: [u32; 7] = [17914, 8166, 4352, 2002, 1492, 1006, FLOOR_V4];

/// The shape of packets of this node's tunnels.
#[derive(Clone, Copy, Debug)]
pub struct Expect<'a> {
    /// Their source addresses.
    pub sources: Sources,
    /// UDP destination port of GUE.
    pub gue_port: u16,
    /// Their destinations.
    pub reals: &'a BTreeSet<IpAddr>,
}

/// A path's MTU, as a router told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtu {
    /// The path's other end.
    pub real: IpAddr,
    /// Largest packet that reaches it, in bytes; not below [`FLOOR_V4`] or [`FLOOR_V6`].
    pub mtu: u32,
}

/// Reads what a raw ICMP socket received: an IPv4 packet with its header.
///
/// `None` for everything but a well-formed "fragmentation needed" (RFC 1191) about a packet of this
/// node's tunnels. MTUs below [`FLOOR_V4`] are raised to it.
pub fn parse_v4(bytes: &[u8], expect: &Expect<'_>) -> Option<PathMtu> {
    let (outer, message) = Ipv4::parse(bytes)?;
    let message = message.get(..usize::from(outer.total_length).checked_sub(outer.header_length)?)?;
    let [UNREACHABLE, FRAGMENTATION_NEEDED, _, _, _, _, mtu @ ..] = *message.first_chunk::<8>()? else {
        return None;
    };
    // The kernel hands ICMP to raw sockets before it checks the sum.
    if outer.protocol != protocol::ICMP
        || Some(outer.destination) != expect.sources.v4
        || checksum(message) != 0
    {
        return None;
    }
    let (quoted, payload) = Ipv4::parse(&message[8..])?;
    let real = IpAddr::V4(quoted.destination);
    let ours = Some(quoted.source) == expect.sources.v4
        && quoted.fragment_offset == 0
        && expect.reals.contains(&real)
        && is_tunnel(quoted.protocol, payload, expect.gue_port);
    let length = u32::from(quoted.total_length);
    let told = match u32::from(u16::from_be_bytes(mtu)) {
        0 => PLATEAUS.into_iter().find(|plateau| *plateau < length)?,
        told => told,
    };
    (ours && told < length).then_some(PathMtu { real, mtu: told.max(FLOOR_V4) })
}

/// Reads what a raw ICMPv6 socket received: an ICMPv6 message, whose checksum the kernel has
/// verified, without the IPv6 header.
///
/// `None` for everything but a well-formed "packet too big" (RFC 8201) about a packet of this node's
/// tunnels, with an MTU of at least [`FLOOR_V6`].
pub fn parse_v6(bytes: &[u8], expect: &Expect<'_>) -> Option<PathMtu> {
    // The code is to be ignored (RFC 4443).
    let [PACKET_TOO_BIG, _, _, _, mtu @ ..] = *bytes.first_chunk::<8>()? else { return None };
    let (header, payload) = bytes[8..].split_first_chunk::<40>()?;
    let source: [u8; 16] = header[8..24].try_into().ok()?;
    let destination: [u8; 16] = header[24..].try_into().ok()?;
    let real = IpAddr::V6(Ipv6Addr::from(destination));
    let ours = header[0] >> 4 == 6
        && Some(Ipv6Addr::from(source)) == expect.sources.v6
        && expect.reals.contains(&real)
        && is_tunnel(header[6], payload, expect.gue_port);
    let length = 40 + u32::from(u16::from_be_bytes([header[4], header[5]]));
    let mtu = u32::from_be_bytes(mtu);
    (ours && (FLOOR_V6..length).contains(&mtu)).then_some(PathMtu { real, mtu })
}

/// Returns whether a packet of that protocol is IPIP of either kind, or GUE. Routers quote at least 8 bytes.
fn is_tunnel(protocol: u8, payload: &[u8], gue_port: u16) -> bool {
    match protocol {
        protocol::IPV4 | protocol::IPV6 => true,
        protocol::UDP => payload.get(2..4) == Some(&gue_port.to_be_bytes()),
        _ => false,
    }
}

struct Ipv4 {
    header_length: usize,
    total_length: u16,
    fragment_offset: u16,
    protocol: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
}

impl Ipv4 {
    /// The header and what follows it. The total length is not compared with `bytes`: ICMP quotes
    /// only a packet's beginning.
    fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let fixed = bytes.first_chunk::<20>()?;
        let header_length = usize::from(fixed[0] & 0x0f) * 4;
        if fixed[0] >> 4 != 4 || header_length < 20 {
            return None;
        }
        let header = Ipv4 {
            header_length,
            total_length: u16::from_be_bytes([fixed[2], fixed[3]]),
            fragment_offset: u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff,
            protocol: fixed[9],
            source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]),
            destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]),
        };
        Some((header, bytes.get(header_length..)?))
    }
}

#[cfg(test)]
mod tests;
