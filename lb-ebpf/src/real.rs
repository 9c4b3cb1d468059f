//! Map layouts of `drover_real`, the program that decapsulates at a real.
//!
//! Everything here is `#[repr(C)]` and free of padding, so both sides see the same bytes. Whoever
//! changes the size, order or meaning of anything in a map raises [`LAYOUT`]: user space then builds
//! new maps beside the pinned ones instead of misreading them.

use core::net::IpAddr;

/// Version of everything below. Part of the pin directory's name.
pub const LAYOUT: u32 = 1;

/// Entries that [`maps::LOCAL`], [`maps::VIPS`] and [`maps::SOURCES`] hold at most, each.
pub const MAX_ADDRESSES: u32 = 4096;

/// UDP port of GUE unless configured otherwise, the one that IANA registered for it.
pub const DEFAULT_GUE_PORT: u16 = 6080;

/// The program's name in the object file.
pub const PROGRAM: &str = "drover_real";

/// Names of maps and globals in the object file; a map's pin has its name.
pub mod maps {
    /// Hash, [`Address`](super::Address) to `u8` (unused): outer destinations that are this host's.
    pub const LOCAL: &str = "LOCAL";
    /// Hash, [`Address`](super::Address) to `u8` (unused): inner destinations that are served here.
    pub const VIPS: &str = "VIPS";
    /// LPM trie, [`Address`](super::Address) to `u8` (unused): outer sources that may send tunnel
    /// packets. Prefix lengths count the family's 32 bits: see [`Address::prefix_bits`](super::Address::prefix_bits).
    pub const SOURCES: &str = "SOURCES";
    /// Per-CPU array of [`Traffic`](super::Traffic), indexed by [`traffic_index`](super::traffic_index).
    pub const DECAPSULATED: &str = "DECAPSULATED";
    /// Per-CPU array of packet counts (`u64`), indexed by [`DropReason`](super::DropReason).
    pub const DROPS: &str = "DROPS";
    /// All maps that are pinned.
    pub const ALL: [&str; 5] = [LOCAL, VIPS, SOURCES, DECAPSULATED, DROPS];
    /// Global `u16`: the UDP port of GUE, in host byte order.
    pub const GUE_PORT: &str = "GUE_PORT";
}

/// An IPv4 or IPv6 address as a map key.
///
/// The family is part of the key: were IPv4 addresses written as `::ffff:a.b.c.d`, an IPv6 packet
/// that carries such an address could pass for an IPv4 one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// 4 or 6.
    pub family: u32,
    /// The address in network byte order; an IPv4 address fills the first four, the rest is zero.
    pub pieces: [u16; 8],
}

impl Address {
    /// The trie's prefix length in bits for a prefix of `length` bits of the address.
    pub const fn prefix_bits(length: u8) -> u32 {
        u32::BITS + length as u32
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let mut octets = [0u8; 16];
        let family = match address {
            IpAddr::V4(v4) => {
                octets[..4].copy_from_slice(&v4.octets());
                4
            }
            IpAddr::V6(v6) => {
                octets = v6.octets();
                6
            }
        };
        let mut pieces = [0; 8];
        for (piece, bytes) in pieces.iter_mut().zip(octets.chunks_exact(2)) {
            *piece = u16::from_ne_bytes([bytes[0], bytes[1]]);
        }
        Self { family, pieces }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut octets = [0u8; 16];
        for (bytes, piece) in octets.chunks_exact_mut(2).zip(address.pieces) {
            bytes.copy_from_slice(&piece.to_ne_bytes());
        }
        match address.family {
            4 => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
            _ => IpAddr::from(octets),
        }
    }
}

/// Packets and bytes that were decapsulated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes of the inner packets, from the inner IP header on.
    pub bytes: u64,
}

/// Encapsulations of packets.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// IP directly in IP: protocol 4 or 41 (RFC 2003, RFC 2473, RFC 4213).
    Ipip = 0,
    /// Generic UDP Encapsulation, variant 0 (draft-ietf-intarea-gue).
    Gue = 1,
}

impl Encapsulation {
    /// Every encapsulation, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Ipip, Self::Gue];

    /// The name that metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        }
    }
}

/// Family of the inner packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

impl Inner {
    /// Every family, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The name that metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// Entries of [`maps::DECAPSULATED`].
pub const TRAFFIC_ENTRIES: u32 = (Encapsulation::ALL.len() * Inner::ALL.len()) as u32;

/// The entry of [`maps::DECAPSULATED`] that counts packets of this kind.
#[inline(always)]
pub const fn traffic_index(encapsulation: Encapsulation, inner: Inner) -> u32 {
    encapsulation as u32 * Inner::ALL.len() as u32 + inner as u32
}

/// Reasons for which tunnel packets to this host are dropped.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The outer source is not a known node.
    UnknownSource = 0,
    /// The outer packet is a fragment. Nodes never send any: they answer a packet that would not
    /// fit with an ICMP error instead.
    Fragment = 1,
    /// A length or version, outer or inner, contradicts the packet, or the packet is cut short.
    Malformed = 2,
    /// The outer IPv4 header's checksum is wrong.
    Checksum = 3,
    /// A GUE packet of another variant, a control message, one with flags, or one that carries
    /// neither IPv4 nor IPv6.
    Unsupported = 4,
    /// The inner destination is not served here.
    NotAVip = 5,
    /// Congestion was signalled on a packet whose sender does not understand the signal
    /// (RFC 6040, section 4.2).
    Ecn = 6,
    /// The kernel refused to move the packet's start.
    Internal = 7,
}

impl DropReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::UnknownSource,
        Self::Fragment,
        Self::Malformed,
        Self::Checksum,
        Self::Unsupported,
        Self::NotAVip,
        Self::Ecn,
        Self::Internal,
    ];

    /// The name that metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownSource => "unknown_source",
            Self::Fragment => "fragment",
            Self::Malformed => "malformed",
            Self::Checksum => "checksum",
            Self::Unsupported => "unsupported",
            Self::NotAVip => "not_a_vip",
            Self::Ecn => "ecn",
            Self::Internal => "internal",
        }
    }
}

/// Entries of [`maps::DROPS`].
pub const DROP_ENTRIES: u32 = DropReason::ALL.len() as u32;

const _: () = {
    // No padding: the sizes are the sums of the fields'.
    assert!(size_of::<Address>() == 4 + 16);
    assert!(size_of::<Traffic>() == 8 + 8);
};

// SAFETY: `#[repr(C)]` without padding, and valid for every bit pattern.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Address {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Traffic {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_way_into_a_key_and_back() {
        for text in ["192.0.2.1", "255.255.255.255", "2001:db8::1", "::ffff:192.0.2.1", "::"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
    }

    #[test]
    fn a_mapped_ipv6_address_is_not_the_ipv4_address() {
        let v4: IpAddr = "192.0.2.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_ne!(Address::from(v4), Address::from(mapped));
    }

    #[test]
    fn reasons_and_traffic_entries_are_numbered_in_order() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let indexes = Encapsulation::ALL
            .iter()
            .flat_map(|&encapsulation| Inner::ALL.map(|inner| traffic_index(encapsulation, inner)));
        assert!(indexes.eq(0..TRAFFIC_ENTRIES));
    }
}
