//! The outer IP header.

use crate::Refusal::{self, Drop, NotOurs};
use crate::maps::{GUE_PORT, Lookup};
use aya_ebpf::helpers::generated::bpf_xdp_get_buff_len;
use lb_ebpf::packet::{
    Extension, Fragment, Frame, Header, IPV4_FRAGMENT, IPV4_FRAGMENT_OFFSET, Ipv4, Ipv6, Udp, second_port,
};
use lb_ebpf::real::DropReason;
use lb_ebpf::wire::{IPV4_LENGTH, IPV6_LENGTH, fold, protocol};

/// IPv6 extension headers that are walked before the tunnel header. Nodes send none; Linux tunnels
/// put one in front (destination options, RFC 2473 section 4.1.1).
const MAX_EXTENSION_HEADERS: usize = 4;
/// Longest IPv4 header.
const IPV4_LONGEST: usize = 60;

/// An outer IP header, judged as far as it takes to know whether the packet is for this program.
pub struct Outer {
    source: Lookup,
    /// Protocol after all headers that were walked.
    pub protocol: u8,
    /// Start of that protocol's header, as an offset in the frame.
    pub payload: usize,
    /// End of the IP packet, likewise.
    pub end: usize,
    /// Congestion mark.
    pub ecn: u8,
    fragment: bool,
    checksum_ok: bool,
}

impl Outer {
    /// Refuses what no node sends.
    #[inline(always)]
    pub fn check(&self, frame: &Frame) -> Result<(), Refusal> {
        if !self.source.is_node() {
            return Err(Drop(DropReason::UnknownSource));
        }
        if self.fragment {
            return Err(Drop(DropReason::Fragment));
        }
        if !self.checksum_ok {
            return Err(Drop(DropReason::Checksum));
        }
        // SAFETY: the context is this program's own.
        let length = unsafe { bpf_xdp_get_buff_len(frame.ctx) } as usize;
        if self.end > length || self.payload > self.end {
            return Err(Drop(DropReason::Malformed));
        }
        Ok(())
    }
}

/// The IPv4 header at `network`.
#[inline(always)]
pub fn ipv4(frame: &Frame, network: usize) -> Result<Outer, Refusal> {
    let ip = frame.header::<Ipv4>(network).ok_or(NotOurs)?;
    let header = ip.header_length();
    if ip.version_ihl >> 4 != 4 || header < IPV4_LENGTH {
        return Err(NotOurs);
    }
    let fragment = u16::from_be(ip.fragment);
    let later_fragment = fragment & IPV4_FRAGMENT_OFFSET != 0;
    let payload = network + header;
    is_ours(frame, ip.protocol, payload, later_fragment, || Lookup::v4(ip.destination))?;
    Ok(Outer {
        source: Lookup::v4(ip.source),
        protocol: ip.protocol,
        payload,
        end: network + usize::from(u16::from_be(ip.total_length)),
        ecn: ip.tos & crate::inner::ecn::CE,
        fragment: fragment & IPV4_FRAGMENT != 0,
        checksum_ok: ipv4_checksum_ok(frame, network, header),
    })
}

/// An IPv4 header without options, as the checksum sums it.
#[repr(C, packed)]
struct Ipv4Words {
    words: [u16; IPV4_LENGTH / 2],
}
// SAFETY: packed, integers only.
unsafe impl Header for Ipv4Words {}

/// Two bytes of options.
#[repr(C, packed)]
struct Word {
    word: u16,
}
// SAFETY: packed, an integer only.
unsafe impl Header for Word {}

/// Returns whether the header's one's complement sum is what RFC 791 wants. A header that is cut short is left for the
/// length check to refuse.
#[inline(always)]
fn ipv4_checksum_ok(frame: &Frame, network: usize, header: usize) -> bool {
    let Some(start) = frame.header::<Ipv4Words>(network) else { return true };
    let mut sum: u32 = 0;
    for word in start.words {
        sum += u32::from(word);
    }
    if header > IPV4_LENGTH {
        for option in 0..(IPV4_LONGEST - IPV4_LENGTH) / 2 {
            let offset = IPV4_LENGTH + 2 * option;
            if offset >= header {
                break;
            }
            let Some(option) = frame.header::<Word>(network + offset) else { return true };
            sum += u32::from(option.word);
        }
    }
    fold(sum) == 0xffff
}

/// The IPv6 header at `network`, and the extension headers behind it.
#[inline(always)]
pub fn ipv6(frame: &Frame, network: usize) -> Result<Outer, Refusal> {
    let ip = frame.header::<Ipv6>(network).ok_or(NotOurs)?;
    if ip.version() != 6 {
        return Err(NotOurs);
    }
    let mut protocol = ip.next_header;
    let mut payload = network + IPV6_LENGTH;
    let mut fragment = false;
    let mut later_fragment = false;
    for _ in 0..MAX_EXTENSION_HEADERS {
        match protocol {
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS => {
                let header = frame.header::<Extension>(payload).ok_or(NotOurs)?;
                protocol = header.next_header;
                payload += (usize::from(header.length) + 1) * 8;
            }
            protocol::FRAGMENT => {
                let header = frame.header::<Fragment>(payload).ok_or(NotOurs)?;
                let position = u16::from_be(header.offset);
                // An atomic fragment (RFC 6946) is no fragment.
                fragment = position & 0xfff9 != 0;
                later_fragment = position & 0xfff8 != 0;
                protocol = header.next_header;
                payload += size_of::<Fragment>();
                if later_fragment {
                    break;
                }
            }
            _ => break,
        }
    }
    is_ours(frame, protocol, payload, later_fragment, || Lookup::v6(ip.destination[0], ip.destination[1]))?;
    Ok(Outer {
        source: Lookup::v6(ip.source[0], ip.source[1]),
        protocol,
        payload,
        end: network + IPV6_LENGTH + usize::from(u16::from_be(ip.payload_length)),
        ecn: ip.traffic_class() & crate::inner::ecn::CE,
        fragment,
        checksum_ok: true,
    })
}

/// Refuses what is not a tunnel packet to this host. A later fragment of a UDP packet shows no port;
/// it passes, and is of no use without the first fragment, which is dropped.
#[inline(always)]
fn is_ours(
    frame: &Frame,
    protocol: u8,
    payload: usize,
    later_fragment: bool,
    destination: impl FnOnce() -> Lookup,
) -> Result<(), Refusal> {
    match protocol {
        protocol::IPV4 | protocol::IPV6 => {}
        protocol::UDP if !later_fragment => {
            let udp = frame.header::<Udp>(payload).ok_or(NotOurs)?;
            if u16::from_be(second_port(udp.ports)) != GUE_PORT.load() {
                return Err(NotOurs);
            }
        }
        _ => return Err(NotOurs),
    }
    if destination().is_local() { Ok(()) } else { Err(NotOurs) }
}
