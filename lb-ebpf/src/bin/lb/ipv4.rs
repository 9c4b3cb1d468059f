//! IPv4 packets.

use crate::forward::{self, Inner, Packet};
use crate::index::{self, Served};
use crate::maps;
use crate::rare::Step;
use aya_ebpf::bindings::xdp_md;
use lb_ebpf::lb::{DropReason, Event, ipv4_key};
use lb_ebpf::packet::{self, Frame, IPV4_FRAGMENT, Ipv4};
use lb_ebpf::wire::{IPV4_LENGTH, protocol};
use slot_table::flow;

#[inline(always)]
pub fn handle(frame: Frame, l3: usize) -> u32 {
    let Some(ip) = frame.header::<Ipv4>(l3) else { return maps::pass(Event::Passed) };
    let Some(served) = Served::find(ipv4_key(ip.destination)) else { return maps::pass(Event::Passed) };
    if !index::is_ours(&frame, served.config) {
        return maps::pass(Event::PassedOtherHost);
    }
    let total = u32::from(u16::from_be(ip.total_length));
    if total < IPV4_LENGTH as u32 || l3 as u32 + total > frame.length() {
        return maps::discard(0, DropReason::MalformedIp);
    }
    if ip.version_ihl != 0x45 {
        return Step::Ipv4Options.at(l3, 0);
    }
    payload(frame, served, ip, l3, IPV4_LENGTH, total)
}

/// Packets whose header is longer than 20 bytes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ipv4_with_options(ctx: *mut xdp_md, l3: u32) -> u32 {
    let l3 = (l3 & 0x1f) as usize;
    let frame = Frame::new(ctx);
    let Some(ip) = frame.header::<Ipv4>(l3) else { return maps::pass(Event::Passed) };
    let Some(served) = Served::find(ipv4_key(ip.destination)) else { return maps::pass(Event::Passed) };
    let total = u32::from(u16::from_be(ip.total_length));
    let header = ip.header_length();
    if ip.version_ihl >> 4 != 4 || header < IPV4_LENGTH || total < header as u32 {
        return maps::discard(0, DropReason::MalformedIp);
    }
    payload(frame, served, ip, l3, header, total)
}

#[inline(always)]
fn payload(frame: Frame, served: Served, ip: &Ipv4, l3: usize, header: usize, total: u32) -> u32 {
    if ip.fragment & IPV4_FRAGMENT.to_be() != 0 {
        return Step::Ipv4Fragment.at(l3, 0);
    }
    let (ports, syn) = match forward::transport(&frame, l3 + header, total - header as u32, ip.protocol, true)
    {
        Ok(found) => found,
        Err(forward::Other::Malformed) => return maps::discard(0, DropReason::MalformedTransport),
        Err(forward::Other::Protocol) if ip.protocol == protocol::ICMP => {
            return Step::Icmp.at(l3, l3 + header);
        }
        Err(forward::Other::Protocol) => return maps::unserved(),
    };
    let Some(vip) = served.vip(packet::second_port(ports), ip.protocol) else {
        return maps::unserved();
    };
    let source = ip.source;
    forward::to_vip::<false>(
        frame,
        served.config,
        vip,
        Packet { ports, syn, inner: Inner { l3, total, tos: ip.tos, ttl: ip.ttl } },
        |entry| u64::from(source & entry.prefix_mask_v4),
        |seed, ports| flow::hash_v4(seed, source, ports),
    )
}
