//! Packets written byte by byte, independently of the program under test.

use std::net::{IpAddr, SocketAddr};

pub(crate) const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const FRAGMENT: u8 = 44;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

/// IPv4: more fragments follow.
pub(crate) const MORE: u16 = 0x2000;

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum()
}

/// One's complement sum of 16-bit words, complemented (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    finish(sum(bytes))
}

fn finish(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An IP packet to be.
#[derive(Clone, Debug)]
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) ttl: u8,
    /// The whole byte: DSCP and ECN.
    pub(crate) tos: u8,
    pub(crate) identification: u16,
    /// IPv4: flags and offset as they are in the header.
    pub(crate) fragment: u16,
    /// IPv4 options; a multiple of four.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers: type, and all bytes but the first.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    pub(crate) protocol: u8,
    pub(crate) payload: Vec<u8>,
}

impl Ip {
    pub(crate) fn new(source: IpAddr, destination: IpAddr, protocol: u8, payload: Vec<u8>) -> Self {
        Self {
            source,
            destination,
            ttl: 63,
            tos: 0,
            identification: 0x1234,
            fragment: 0,
            options: vec![],
            extensions: vec![],
            protocol,
            payload,
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        if self.source.is_ipv4() { self.v4() } else { self.v6() }
    }

    fn v4(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = u16::try_from(header + self.payload.len()).unwrap();
        let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), self.tos];
        packet.extend(total.to_be_bytes());
        packet.extend(self.identification.to_be_bytes());
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([self.ttl, self.protocol, 0, 0]);
        packet.extend(octets(self.source));
        packet.extend(octets(self.destination));
        packet.extend(&self.options);
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(&self.payload);
        packet
    }

    fn v6(&self) -> Vec<u8> {
        let mut rest = Vec::new();
        let mut types = self.extensions.iter().map(|(kind, _)| *kind).chain([self.protocol]);
        let first = types.next().unwrap();
        for ((_, bytes), next) in self.extensions.iter().zip(types) {
            rest.push(next);
            rest.extend(bytes);
        }
        rest.extend(&self.payload);
        let mut packet = vec![0x60 | self.tos >> 4, self.tos << 4 | 0x5, 0x43, 0x21];
        packet.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        packet.extend([first, self.ttl]);
        packet.extend(octets(self.source));
        packet.extend(octets(self.destination));
        packet.extend(rest);
        packet
    }

    /// In an Ethernet frame from the router to the node.
    pub(crate) fn frame(&self) -> Vec<u8> {
        frame(&[], &self.bytes())
    }
}

/// A transport checksum with its pseudo-header.
fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let length = u32::try_from(bytes.len()).unwrap();
    finish(sum(&octets(source)) + sum(&octets(destination)) + u32::from(protocol) + length + sum(bytes))
}

/// A TCP segment.
pub(crate) fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8, data: &[u8]) -> Ip {
    let mut bytes = Vec::new();
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(data);
    let sum = transport_checksum(source.ip(), destination.ip(), TCP, &bytes);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    Ip::new(source.ip(), destination.ip(), TCP, bytes)
}

/// A UDP datagram.
pub(crate) fn udp(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Ip {
    let mut bytes = Vec::new();
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes.extend(u16::try_from(8 + data.len()).unwrap().to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(data);
    let sum = transport_checksum(source.ip(), destination.ip(), UDP, &bytes);
    let sum = if sum == 0 { 0xffff } else { sum };
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    Ip::new(source.ip(), destination.ip(), UDP, bytes)
}

/// An ICMP or ICMPv6 message; `rest` is the header's second word.
pub(crate) fn icmp(
    source: IpAddr,
    destination: IpAddr,
    kind: u8,
    code: u8,
    rest: [u8; 4],
    data: &[u8],
) -> Ip {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest);
    bytes.extend(data);
    let protocol = if source.is_ipv4() { ICMP } else { ICMPV6 };
    let sum = match source {
        IpAddr::V4(_) => checksum(&bytes),
        IpAddr::V6(_) => transport_checksum(source, destination, protocol, &bytes),
    };
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    Ip::new(source, destination, protocol, bytes)
}

/// An Ethernet frame from the router around an IP packet, with a VLAN tag for each of `tags`.
pub(crate) fn frame(tags: &[u16], packet: &[u8]) -> Vec<u8> {
    let mut frame = [NODE_MAC, ROUTER_MAC].concat();
    for (position, tag) in tags.iter().enumerate() {
        let outermost_of_two = tags.len() == 2 && position == 0;
        frame.extend(if outermost_of_two { [0x88, 0xa8] } else { [0x81, 0x00] });
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend(packet);
    frame
}

/// Returns an IP packet as a router passes it on: TTL or hop limit lowered, the IPv4 header's checksum computed anew.
pub(crate) fn routed(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 6 {
        packet[7] -= 1;
        return packet;
    }
    packet[8] -= 1;
    packet[10..12].fill(0);
    let header = usize::from(packet[0] & 0xf) * 4;
    let sum = checksum(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Random numbers from a seed (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    pub(crate) fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }
}
