//! Numbers of the protocols on the wire, as the IANA registries and the RFCs give them, and their checksum.

/// Ethernet header without tags, in bytes.
pub const ETHERNET_LENGTH: usize = 14;
/// IEEE 802.1Q tag, in bytes.
pub const VLAN_LENGTH: usize = 4;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of a customer VLAN tag (802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of a service VLAN tag (802.1ad).
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// IPv4 header without options, in bytes.
pub const IPV4_LENGTH: usize = 20;
/// IPv6 header without extensions, in bytes.
pub const IPV6_LENGTH: usize = 40;
/// UDP header, in bytes.
pub const UDP_LENGTH: usize = 8;
/// TCP header without options, in bytes.
pub const TCP_LENGTH: usize = 20;
/// GUE variant 0 header without optional fields (draft-ietf-intarea-gue-09, section 3), in bytes.
pub const GUE_LENGTH: usize = 4;

/// Protocol numbers.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 encapsulation.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 encapsulation.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// ICMP types and codes (RFC 792, RFC 1191).
pub mod icmp {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Code of [`UNREACHABLE`]: fragmentation needed and DF set.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Echo.
    pub const ECHO: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// ICMPv6 types (RFC 4443).
pub mod icmpv6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Router solicitation: the first type of neighbour discovery (RFC 4861).
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Redirect: the last one.
    pub const REDIRECT: u8 = 137;
}

/// Folds a sum of 16-bit words into 16 bits with end-around carry (RFC 1071).
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The Internet checksum (RFC 1071) of at most 64 KiB; zero over data that contains its own right checksum.
///
/// An odd byte at the end counts as the high one of a word.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
    !fold(bytes.chunks(2).map(word).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 1071, section 3.
    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&bytes), !0xddf2);
    }

    #[test]
    fn data_with_its_checksum_in_place_sums_to_zero_also_when_its_length_is_odd() {
        let mut bytes = [8, 0, 0, 0, 0x12, 0x34, 0, 7, 9];
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&bytes), 0);
        assert_eq!(checksum(&[0xff; 65_536]), 0);
    }
}
