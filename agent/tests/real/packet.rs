//! Packets written byte by byte, independently of the program under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const GUE_PORT: u16 = 6080;
pub(crate) const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

/// One's complement sum of 16-bit words, complemented (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// An IP packet to be.
#[derive(Clone)]
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// The whole byte: DSCP and ECN.
    pub(crate) traffic_class: u8,
    /// IPv4: flags and offset as they are in the header.
    pub(crate) fragment: u16,
    /// IPv4 options; a multiple of four.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Ip {
    pub(crate) fn new(source: IpAddr, destination: IpAddr, protocol: u8, payload: Vec<u8>) -> Self {
        Self { source, destination, protocol, traffic_class: 0, fragment: 0, options: vec![], payload }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.v4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.v6(source, destination),
            _ => panic!("one packet has one family"),
        }
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = u16::try_from(header + self.payload.len()).unwrap();
        let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), self.traffic_class];
        packet.extend(total.to_be_bytes());
        packet.extend([0x12, 0x34]);
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([63, self.protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(&self.options);
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(&self.payload);
        packet
    }

    fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut packet = vec![0x60 | self.traffic_class >> 4, self.traffic_class << 4 | 0x5, 0x43, 0x21];
        packet.extend(u16::try_from(self.payload.len()).unwrap().to_be_bytes());
        packet.extend([self.protocol, 63]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(&self.payload);
        packet
    }
}

/// The protocol number of an IP packet inside another.
pub(crate) fn inner_protocol(inner: &[u8]) -> u8 {
    if inner[0] >> 4 == 4 { 4 } else { 41 }
}

/// A GUE header, private data of `words` 32-bit words, and `inner`, behind a UDP header.
pub(crate) fn gue(words: u8, inner: &[u8]) -> Vec<u8> {
    let mut header = vec![words, inner_protocol(inner), 0, 0];
    header.extend(std::iter::repeat_n(0xab, usize::from(words) * 4));
    header.extend(inner);
    udp(0xc001, GUE_PORT, &header)
}

/// A UDP header without a checksum, and its payload.
pub(crate) fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(source.to_be_bytes());
    datagram.extend(destination.to_be_bytes());
    datagram.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// An Ethernet frame around an IP packet, with a VLAN tag for each of `tags`.
pub(crate) fn frame(tags: &[u16], packet: &[u8]) -> Vec<u8> {
    let mut frame = MACS.to_vec();
    for (position, tag) in tags.iter().enumerate() {
        let outermost_of_two = tags.len() == 2 && position == 0;
        frame.extend(if outermost_of_two { [0x88, 0xa8] } else { [0x81, 0x00] });
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend(packet);
    frame
}
