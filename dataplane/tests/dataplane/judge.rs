//! The fates that a packet may have, whatever it is: the judge of tests that mangle packets, and of the fuzzer.

use crate::bench::{
    Bench, Counted, FAMILIES, Family, Ran, XDP_DROP, XDP_PASS, XDP_TX, ip, socket, unwrap, vip,
};
use crate::packet::{ACK, FRAGMENT, Ip, SYN, checksum, frame, icmp, tcp, udp};
use dataplane::Statistics;
use zk_schema::{Encapsulation, Protocol};

/// A data plane with VIPs of all kinds.
pub(crate) fn bench() -> Bench {
    let mut bench = Bench::new();
    let mut network = 0;
    for family in FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (port, encapsulation, real) in [
                (80, Encapsulation::Gue, Family::V4),
                (81, Encapsulation::Ipip, Family::V6),
                (82, Encapsulation::L2, family),
            ] {
                network += 1;
                let name = format!("{protocol:?}{}-{port}", family.digit()).to_lowercase();
                bench.add(&name, vip((family.vip(), port, protocol), encapsulation, real, network, 3));
            }
        }
    }
    bench.apply();
    bench
}

/// Sound packets of all kinds.
pub(crate) fn corpus() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for family in FAMILIES {
        for port in [80, 81, 82, 83] {
            let (client, service) = (socket(family.client(), 5000), socket(family.vip(), port));
            packets.push(tcp(client, service, SYN, b""));
            packets.push(tcp(client, service, ACK, b"some data"));
            packets.push(udp(client, service, b"some more"));
            let whole = tcp(service, client, ACK, &[3; 64]);
            let (kind, code) = if family == Family::V4 { (3, 4) } else { (2, 0) };
            packets.push(icmp(client.ip(), service.ip(), kind, code, [0, 0, 5, 0], &whole.bytes()));
        }
        let kind = if family == Family::V4 { 8 } else { 128 };
        packets.push(icmp(ip(family.client()), ip(family.vip()), kind, 0, [1; 4], b"ping"));
        packets.push(Ip::new(ip(family.client()), ip(family.vip()), 132, vec![0; 32]));
    }
    let mut more = Vec::new();
    for packet in &packets {
        if packet.source.is_ipv4() {
            more.push(Ip { options: vec![1; 12], ..packet.clone() });
            more.push(Ip { fragment: 0x2000, ..packet.clone() });
            more.push(Ip { fragment: 0x0010, ..packet.clone() });
        } else {
            let padding = |kind| (kind, vec![0, 1, 4, 0, 0, 0, 0]);
            more.push(Ip { extensions: vec![padding(0), padding(60), padding(43)], ..packet.clone() });
            let first = (FRAGMENT, vec![0, 0, 1, 0, 0, 0, 1]);
            let later = (FRAGMENT, vec![0, 1, 0, 0, 0, 0, 1]);
            more.push(Ip { extensions: vec![first, padding(60)], ..packet.clone() });
            more.push(Ip { extensions: vec![padding(0), later], ..packet.clone() });
        }
    }
    packets.append(&mut more);
    let mut frames: Vec<_> = packets.iter().map(Ip::frame).collect();
    frames.extend(packets.iter().step_by(3).map(|packet| frame(&[5], &packet.bytes())));
    frames.extend(packets.iter().step_by(4).map(|packet| frame(&[5, 6], &packet.bytes())));
    frames
}

/// Offset of the IP packet.
pub(crate) fn l3(frame: &[u8]) -> usize {
    let mut at = 12;
    while at < 20 && matches!(frame[at..], [0x81, 0, ..] | [0x88, 0xa8, ..]) {
        at += 4;
    }
    at + 2
}

/// Returns the packet at the start of `rest` as a router passes it on. The IPv4 checksum is updated and not computed
/// anew, so that a wrong one stays wrong (RFC 1812, section 4.2.2.5).
fn routed(rest: &[u8]) -> Vec<u8> {
    let mut rest = rest.to_vec();
    if rest[0] >> 4 == 6 {
        rest[7] -= 1;
        return rest;
    }
    rest[8] -= 1;
    let sum = u32::from(u16::from_be_bytes([rest[10], rest[11]])) + 0x100;
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    // 0xffff and 0 mean the same.
    let sum = if sum == 0xffff { 0 } else { sum };
    rest[10..12].copy_from_slice(&sum.to_be_bytes());
    rest
}

/// Counters that rise together: a packet's fate, and for some an event on the way to it.
fn fates(counted: &Counted) -> u64 {
    let beside = |name: &str| {
        ["/bytes", "/connections", "/icmp_errors"].iter().any(|end| name.ends_with(end))
            // Steps of a fragment's way, which ends at a real or a drop.
            || name.starts_with("events/fragment_")
            // A look at the limiters beside a refusal.
            || name.starts_with("events/prefix_")
            // An answer is sent beside the drop of what it answers, or is counted as not sent.
            || matches!(name, "events/too_big_sent" | "events/time_exceeded_sent")
            || name.ends_with("/icmp_rate_limited")
    };
    counted.iter().filter(|(name, _)| !beside(name)).map(|(_, count)| count).sum()
}

/// Events of packets that are left to the kernel.
const PASSED: [&str; 3] = ["events/passed", "events/passed_no_service", "events/passed_other_host"];

fn count(counted: &Counted, name: &str) -> u64 {
    counted.get(name).copied().unwrap_or(0)
}

/// Runs one packet and judges its fate, which is returned.
///
/// # Errors
/// Says what is wrong with it, in words.
pub(crate) fn judge(bench: &Bench, counters: &mut Statistics, input: &[u8]) -> Result<Ran, String> {
    let ran = bench.run_from(counters, input);
    fate(bench, input, &ran).map(|()| ran)
}

fn fate(bench: &Bench, input: &[u8], Ran { verdict, frame, counted }: &Ran) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{what}: verdict {verdict}, {counted:?}\n{frame:02x?}"));
    if fates(counted) != 1 {
        return wrong("not counted exactly once");
    }
    let sent: Vec<_> = counted.keys().filter(|name| name.ends_with("/packets")).collect();
    match *verdict {
        XDP_PASS if frame != input => wrong("a passed packet was changed"),
        XDP_PASS if PASSED.iter().map(|event| count(counted, event)).sum::<u64>() == 1 => Ok(()),
        XDP_DROP if counted.keys().any(|name| name.starts_with("drops/")) => Ok(()),
        XDP_TX if sent.len() == 1 => encapsulated(bench, input, frame, sent[0]).or_else(|what| wrong(&what)),
        XDP_TX if sent.is_empty() => answered(input, frame, counted).or_else(|what| wrong(&what)),
        _ => wrong("verdict and counters disagree"),
    }
}

/// Checks that `output` carries exactly the packet of `input` to the real that was counted.
fn encapsulated(bench: &Bench, input: &[u8], output: &[u8], counter: &str) -> Result<(), String> {
    let mut parts = counter.split('/').skip(1);
    let (vip, real) = (parts.next().unwrap(), parts.next().unwrap());
    let vip = &bench.program.vips[vip];
    let real = vip.reals.iter().find(|known| known.name.as_str() == real).unwrap();
    let (destination, inner) = unwrap(output, vip.encapsulation);
    if vip.encapsulation != Encapsulation::L2 && destination != real.address {
        return Err("sent to another real".into());
    }
    let same = |inner: &[u8]| {
        let mut inner = inner.to_vec();
        if inner[0] >> 4 == 4 && inner[10..12] == [0xff, 0xff] {
            inner[10..12].fill(0);
        }
        inner == routed(&input[l3(input)..])
    };
    if !same(inner) {
        return Err("the inner packet is another".into());
    }
    // The outer header is sound, whatever the inner one is.
    let packet = &output[14..];
    let wrapped = output.len() - 14;
    let declared = match (vip.encapsulation, packet[0] >> 4) {
        (Encapsulation::L2, _) => return Ok(()),
        (_, 4) if checksum(&packet[..20]) != 0 => return Err("the outer checksum is wrong".into()),
        (_, 4) => usize::from(u16::from_be_bytes([packet[2], packet[3]])),
        _ => usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40,
    };
    // There may be padding behind the packet, but never less than declared.
    if declared > wrapped { Err("the outer length is wrong".into()) } else { Ok(()) }
}

/// Checks that `output` is an ICMP message back to the sender of `input`.
fn answered(input: &[u8], output: &[u8], counted: &Counted) -> Result<(), String> {
    if output[..6] != input[6..12] || output[6..12] != input[..6] {
        return Err("an answer to somebody else".into());
    }
    let (at, from) = (l3(output), l3(input));
    let (packet, original) = (&output[at..], &input[from..]);
    let v4 = packet[0] >> 4 == 4;
    let back = if v4 { packet[16..20] == original[12..16] } else { packet[24..40] == original[8..24] };
    if !back {
        return Err("an answer to another address".into());
    }
    if count(counted, "events/echo_answered") == 1 {
        return if output.len() == input.len() { Ok(()) } else { Err("a reply of another length".into()) };
    }
    let header = if v4 { 20 } else { 40 };
    if v4 && (checksum(&packet[..20]) != 0 || checksum(&packet[20..]) != 0) {
        return Err("an answer with a wrong checksum".into());
    }
    let quote = &packet[header + 8..];
    if original.starts_with(quote) && quote.len() >= header {
        Ok(())
    } else {
        Err("an answer about another packet".into())
    }
}
