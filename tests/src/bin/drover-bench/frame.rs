//! The packets that go in, and those that must come out: written byte by byte, independently of the program under
//! test.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use dataplane::nexthop::NextHop;
use lb_ebpf::harness::{Packet, RESTORED, Turn, WORDS_AT};
use lb_ebpf::wire::{ETHERNET_LENGTH, IPV4_LENGTH, IPV6_LENGTH, checksum, fold, protocol};
use slot_table::flow::Flow;
use zk_schema::Encapsulation;

use crate::bed::{self, SERVICE_PORT};
use crate::case::{Case, Version, number};

/// A client that the flows differ from in its last bytes (RFC 1918, RFC 3849).
const CLIENT_V4: [u8; 4] = [10, 1, 2, 3];
const CLIENT_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 9];
const CLIENT_PORT: u16 = 40_001;
/// MAC address of the node, and of the router that clients' packets come from.
pub(crate) const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const TTL: u8 = 64;

/// A case's packets.
pub(crate) struct Frames {
    packet: Packet,
    template: Vec<u8>,
}

impl Frames {
    /// The packets of a case: 64 bytes each for IPv4, 80 for IPv6, Ethernet header and payload included.
    pub(crate) fn new(case: &Case) -> Result<Self> {
        let template = template(case);
        let mut head = [0; 8];
        head[..WORDS_AT].copy_from_slice(&template[..WORDS_AT]);
        let mut words = [0; lb_ebpf::harness::WORDS];
        for (word, bytes) in words.iter_mut().zip(template[WORDS_AT..].chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().context("eight bytes")?);
        }
        let packet = Packet {
            head: u64::from_le_bytes(head),
            words,
            length: u32::try_from(template.len())?,
            version: number(case.scenario.version),
            flows: case.flows,
            destinations: u64::from(case.destinations),
        };
        Ok(Self { packet, template })
    }

    /// What the entry program is told.
    pub(crate) fn packet(&self) -> &Packet {
        &self.packet
    }

    /// The frame of the first turn.
    pub(crate) fn first(&self) -> &[u8] {
        &self.template
    }

    /// The frame of a turn, as the entry program makes it.
    pub(crate) fn of(&self, turn: Turn) -> Vec<u8> {
        let mut frame = self.template.clone();
        for (bytes, word) in frame[WORDS_AT..RESTORED].chunks_exact_mut(8).zip(self.packet.words_of(turn)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        frame
    }

    /// The turn that follows `turn`.
    pub(crate) fn after(&self, turn: Turn) -> Turn {
        self.packet.after(turn)
    }

    /// The turn after `count` others.
    pub(crate) fn turn(&self, count: u32) -> Turn {
        let count = u64::from(count);
        Turn { flow: count % self.packet.flows, destination: count % self.packet.destinations }
    }

    /// The flow of a turn's packet.
    pub(crate) fn flow(&self, turn: Turn) -> Flow {
        let [_, _, w2, w3, _, _, w6] = self.packet.words_of(turn);
        // The client's address and port where they lie in the words (see `Packet::words_of`).
        let (client, port) = if self.packet.version == 4 {
            let [_, _, _, _, address @ ..] = w2.to_le_bytes();
            let [_, _, _, _, p0, p1, ..] = w3.to_le_bytes();
            (IpAddr::from(address), [p0, p1])
        } else {
            let mut address = [0; 16];
            address[..8].copy_from_slice(&w2.to_le_bytes());
            address[8..].copy_from_slice(&w3.to_le_bytes());
            let [p0, p1, ..] = w6.to_le_bytes();
            (IpAddr::from(address), [p0, p1])
        };
        Flow { client: SocketAddr::new(client, u16::from_be_bytes(port)), service_port: SERVICE_PORT }
    }
}

fn template(case: &Case) -> Vec<u8> {
    // For IPv4 the smallest frame of Ethernet but for its checksum, and what TCP over IPv6 takes.
    let room = match case.scenario.version {
        Version::V4 => 64 - ETHERNET_LENGTH - IPV4_LENGTH,
        Version::V6 => 80 - ETHERNET_LENGTH - IPV6_LENGTH,
    };
    let mut transport = [CLIENT_PORT.to_be_bytes(), SERVICE_PORT.to_be_bytes()].concat();
    let protocol = if case.scenario.udp {
        transport.extend(length(room));
        protocol::UDP
    } else {
        let flags = if case.syn { 0x02 } else { 0x10 };
        transport.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff]);
        protocol::TCP
    };
    transport.resize(room, 0);
    let (ethertype, ip) = match bed::destination(case.scenario.version, 0, case.pass) {
        IpAddr::V4(destination) => ([8, 0], ipv4(CLIENT_V4, destination.octets(), protocol, room)),
        IpAddr::V6(destination) => ([0x86, 0xdd], ipv6(CLIENT_V6, destination.octets(), protocol, room, 0)),
    };
    [&NODE_MAC[..], &ROUTER_MAC, &ethertype, &ip, &transport].concat()
}

/// An IPv4 header without options, DF set.
fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: usize) -> Vec<u8> {
    let [high, low] = length(payload + 20);
    let mut header = vec![0x45, 0, high, low, 0, 0, 0x40, 0, TTL, protocol, 0, 0];
    header.extend(source);
    header.extend(destination);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn ipv6(source: [u8; 16], destination: [u8; 16], protocol: u8, payload: usize, label: u32) -> Vec<u8> {
    let mut header = (6 << 28 | label).to_be_bytes().to_vec();
    header.extend(length(payload));
    header.extend([protocol, TTL]);
    header.extend(source);
    header.extend(destination);
    header
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// The frame that must come out when `frame` went to the real at `real`.
pub(crate) fn forwarded(
    frame: &[u8],
    encapsulation: Encapsulation,
    real: IpAddr,
    hop: &NextHop,
    hash: u32,
) -> Result<Vec<u8>> {
    let mut inner = frame.get(ETHERNET_LENGTH..).context("an Ethernet header")?.to_vec();
    let inner_protocol = if inner[0] >> 4 == 4 {
        inner[8] -= 1;
        // RFC 1624: not anew, since the flows' addresses are changed without their checksum.
        let old = !u16::from_be_bytes([inner[10], inner[11]]);
        let sum = !fold(u32::from(old) + u32::from(!0x0100_u16));
        inner[10..12].copy_from_slice(&sum.to_be_bytes());
        4
    } else {
        inner[7] -= 1;
        41
    };
    let mut payload = Vec::new();
    let protocol = match encapsulation {
        Encapsulation::L2 => {
            return Ok([&hop.destination_mac[..], &hop.source_mac, &frame[12..14], &inner].concat());
        }
        Encapsulation::Ipip => inner_protocol,
        Encapsulation::Gue => {
            let [.., h0, h1] = hash.to_be_bytes();
            payload.extend([0xc0 | h0, h1]);
            payload.extend(bed::GUE_PORT.to_be_bytes());
            payload.extend(length(inner.len() + 12));
            payload.extend([0, 0]);
            payload.extend([0, inner_protocol, 0, 0]);
            protocol::UDP
        }
    };
    payload.extend(inner);
    let (ethertype, outer) = match real {
        IpAddr::V4(real) => ([8, 0], ipv4(bed::SOURCE_V4.octets(), real.octets(), protocol, payload.len())),
        IpAddr::V6(real) => {
            let label = hash & 0x000f_ffff;
            ([0x86, 0xdd], ipv6(bed::SOURCE_V6.octets(), real.octets(), protocol, payload.len(), label))
        }
    };
    Ok([&hop.destination_mac[..], &hop.source_mac, &ethertype, &outer, &payload].concat())
}

/// An error that shows where two frames differ.
pub(crate) fn same(found: &[u8], wanted: &[u8]) -> Result<()> {
    ensure!(
        found.len() == wanted.len(),
        "a frame of {} bytes came out instead of {}:\n  {}\n  {}",
        found.len(),
        wanted.len(),
        hex(found),
        hex(wanted)
    );
    if let Some(at) = found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
        bail!("the frame is wrong at byte {at}; found and wanted:\n  {}\n  {}", hex(found), hex(wanted));
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
