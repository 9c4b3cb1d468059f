//! Makes the maps' entries from records, with the identities by which a later daemon knows them.

use super::index::words;
use crate::program::{RealProgram, VipProgram};
use lb_ebpf::lb::{
    PACKET_TICK_SHIFT, PREFIX_TICK_SHIFT, Rate, RealEntry, VipEntry, encapsulation, vip_flags,
};
use std::net::IpAddr;
use zk_schema::{Affinity, Encapsulation, RealName, VipName, fnv1a};

/// A second in ns.
pub(super) const SECOND: u64 = 1_000_000_000;

/// A VIP's entry, without its table. `tick` is the resolution of the limiters' clock in ns.
pub(super) fn vip_entry(id: u64, vip: &VipProgram, tick: u32) -> VipEntry {
    let limits = vip.limits.resolved();
    let mut flags = 0;
    if vip.affinity == Affinity::Source {
        flags |= vip_flags::SOURCE_AFFINITY;
    }
    let mut limiter = |flag: u32, per_second: u32, burst: u32, shift: u32| {
        if per_second == 0 {
            return Rate::default();
        }
        flags |= flag;
        let interval = ((SECOND >> shift) / u64::from(per_second)).max(1);
        // A burst of n lets n through at once: the first is due, n - 1 are ahead of their time. The clock stands
        // still for a tick, in which the rate allows as many as fit: with less than that, fewer would get in.
        let tolerance = interval * u64::from(burst).saturating_sub(1);
        Rate { interval, tolerance: tolerance.max(u64::from(tick) >> shift) }
    };
    let connections = limiter(vip_flags::RATE_LIMIT, limits.connections_per_second, limits.burst, 0);
    let packets = limiter(vip_flags::PACKET_LIMIT, limits.packets_per_second, limits.packet_burst, 0);
    let per_prefix = limits.connections_per_second_per_prefix;
    let prefix_connections =
        limiter(vip_flags::PREFIX_LIMIT, per_prefix, limits.prefix_burst, PREFIX_TICK_SHIFT);
    let per_prefix = limits.packets_per_second_per_prefix;
    let prefix_packets =
        limiter(vip_flags::PREFIX_PACKET_LIMIT, per_prefix, limits.prefix_packet_burst, PACKET_TICK_SHIFT);
    VipEntry {
        table: 0,
        id,
        flags,
        prefix_mask_v4: (u32::MAX << (32 - u32::from(limits.prefix_length_v4).clamp(1, 32))).to_be(),
        prefix_mask_v6: (u64::MAX << (64 - u32::from(limits.prefix_length_v6).clamp(1, 64))).to_be(),
        connections,
        prefix_connections,
        packets,
        prefix_packets,
        reserved: [0; 4],
    }
}

/// A real's entry, without its next hop.
pub(super) fn real_entry(
    vip_index: u32,
    vip: &VipProgram,
    real: &RealProgram,
    source: [u64; 2],
    gue_port: u16,
    id: u64,
) -> RealEntry {
    let (destination, v6) = match real.address {
        IpAddr::V4(ip) => ([u64::from(u32::from_le_bytes(ip.octets())), 0], false),
        IpAddr::V6(ip) => (words(ip.octets()), true),
    };
    RealEntry {
        destination,
        source,
        next_hop: 0,
        mtu: 1500,
        checksum: header_sum(source[0], destination[0]),
        vip: vip_index,
        id,
        encapsulation: match (vip.encapsulation, v6) {
            (Encapsulation::L2, _) => encapsulation::L2,
            (Encapsulation::Ipip, false) => encapsulation::IPIP_V4,
            (Encapsulation::Ipip, true) => encapsulation::IPIP_V6,
            (Encapsulation::Gue, false) => encapsulation::GUE_V4,
            (Encapsulation::Gue, true) => encapsulation::GUE_V6,
        },
        reserved: [0; 3],
        gue_port: gue_port.to_be(),
        reserved2: 0,
    }
}

/// Sum of the 16-bit words of an outer IPv4 header that never change: version and length, the DF flag,
/// both addresses.
fn header_sum(source: u64, destination: u64) -> u32 {
    let word = |bits: u64, shift: u32| u32::try_from(bits >> shift & 0xffff).unwrap_or(0);
    let constant = u32::from(u16::from_ne_bytes([0x45, 0])) + u32::from(u16::from_ne_bytes([0x40, 0]));
    constant + word(source, 0) + word(source, 16) + word(destination, 0) + word(destination, 16)
}

pub(crate) fn vip_id(name: &VipName) -> u64 {
    fnv(&[b"vip", name.as_str().as_bytes()])
}

/// Identity of a real and of the way to it: whatever an entry that is in use may not change.
pub(super) fn identity(
    vip: &VipName,
    (encapsulation, gue_port): (Encapsulation, u16),
    real: &RealName,
    address: IpAddr,
    source: [u64; 2],
) -> u64 {
    // Part of the identity, so these stay as they are whatever the variants are called.
    let (code, port) = match encapsulation {
        Encapsulation::Gue => ("Gue", gue_port),
        Encapsulation::Ipip => ("Ipip", 0),
        Encapsulation::L2 => ("L2", 0),
    };
    let (address, source) = (address.to_string(), format!("{code} {port} {:x} {:x}", source[0], source[1]));
    fnv(&[b"real", vip.as_str().as_bytes(), real.as_str().as_bytes(), address.as_bytes(), source.as_bytes()])
}

/// FNV-1a over the parts, each ended by a zero byte; never 0. Stable over releases, as it stays in maps.
fn fnv(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter().copied().chain([0]));
    fnv1a(bytes).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zk_schema::testing::name;

    /// A daemon that replaces another one knows the entries in the maps by these numbers: another number means another
    /// real, whose connections move.
    #[test]
    fn identities_are_the_same_in_every_release() {
        let id = |encapsulation, address: &str, source| {
            let (vip, real) = (name("mqtt"), name("broker-1"));
            identity(&vip, (encapsulation, 6080), &real, address.parse().unwrap(), source)
        };
        assert_eq!(vip_id(&name("mqtt")), 0x1af9_146e_6e20_b3c6);
        assert_eq!(id(Encapsulation::Gue, "10.0.0.1", [0x0100_000a, 0]), 0x8adc_6753_8cc2_d2a9);
        assert_eq!(id(Encapsulation::Ipip, "10.0.0.1", [0x0100_000a, 0]), 0x16a9_1c94_fb1f_c580);
        assert_eq!(id(Encapsulation::L2, "2001:db8::1", [1, 2]), 0x2269_0fb0_8d2c_4441);
    }
}
