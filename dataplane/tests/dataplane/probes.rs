//! The node's own probes: what carries a real's mark is wrapped for that real on its way out.

use crate::bench::{
    BPFFS, Bench, FAMILIES, Family, INTERFACE, VIP_4, alone, front, hop, ip_link, mac_of, real, socket,
    test_run, unwrap, vip,
};
use crate::dissect::{self, expect};
use crate::packet::{Ip, NODE_MAC, SYN, icmp, tcp, udp};
use aya::programs::links::{FdLink, PinnedLink};
use serde_json::json;
use socket2::{Domain, Protocol as SocketProtocol, SockAddr, Socket, Type};
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use zk_schema::{Encapsulation, Protocol, RealName, VipName};

/// The next program on the interface decides.
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// The attached tc program.
fn program() -> OwnedFd {
    let pin = Path::new(BPFFS).join(INTERFACE).join("lb/probe");
    let link = FdLink::from(PinnedLink::from_pin(pin).unwrap());
    let id = link.info().unwrap().program_id();
    let program = aya::programs::loaded_programs().flatten().find(|program| program.id() == id).unwrap();
    program.fd().unwrap().as_fd().try_clone_to_owned().unwrap()
}

/// Runs a frame through with a mark on it.
fn run(program: &OwnedFd, mark: u32, input: &[u8]) -> (u32, Vec<u8>) {
    // `struct __sk_buff`: the third word is the mark, the others must be zero.
    let mut context = [0; 192];
    context[8..12].copy_from_slice(&mark.to_ne_bytes());
    test_run(program, input, Some(&context))
}

fn mark(bench: &Bench, vip: &str, real: &str) -> u32 {
    let key: (VipName, RealName) = (vip.parse().unwrap(), real.parse().unwrap());
    bench.dataplane.probe_marks()[&key]
}

/// A VIP's name, its family, its reals' family, encapsulation, and port.
type Case = (String, Family, Family, Encapsulation, u16);

/// VIPs of both families with reals of both, by encapsulation.
fn bench() -> (Bench, Vec<Case>) {
    let (mut bench, mut cases) = (Bench::new(), Vec::new());
    for family in FAMILIES {
        for real in FAMILIES {
            for encapsulation in [Encapsulation::Gue, Encapsulation::Ipip, Encapsulation::L2] {
                if encapsulation == Encapsulation::L2 && family != real {
                    continue;
                }
                let network = u8::try_from(cases.len() + 1).unwrap();
                let port = 80 + u16::from(network);
                let name = format!("v{network}");
                let service = (family.vip(), port, Protocol::Tcp);
                bench.add(&name, vip(service, encapsulation, real, network, 3));
                cases.push((name, family, real, encapsulation, port));
            }
        }
    }
    bench.apply();
    (bench, cases)
}

fn probe(family: Family, port: u16) -> Ip {
    let source = if family == Family::V4 { "10.9.0.7" } else { "fd00:9::7" };
    Ip { tos: 0x10, ..tcp(socket(source, 33_333), socket(family.vip(), port), SYN, b"") }
}

#[test]
fn a_marked_probe_is_wrapped_for_the_real_that_its_mark_names() {
    let frames = alone(|| {
        let (bench, cases) = bench();
        let program = program();
        let mut frames = Vec::new();
        for (number, (name, family, real_family, encapsulation, port)) in cases.iter().enumerate() {
            for n in 0..3 {
                let network = u8::try_from(number + 1).unwrap();
                let expected = real(*real_family, network, n);
                let packet = probe(*family, *port);
                let (verdict, frame) =
                    run(&program, mark(&bench, name, expected.name.as_str()), &packet.frame());
                assert_eq!(verdict, TC_ACT_UNSPEC);
                let (destination, inner) = unwrap(&frame, *encapsulation);
                if *encapsulation != Encapsulation::L2 {
                    assert_eq!(destination, expected.address);
                }
                // It comes from this host: its TTL has not been lowered.
                assert_eq!(inner, packet.bytes());
                assert_eq!(frame[..12], [mac_of(expected.address), NODE_MAC].concat());
                frames.push(frame);
            }
        }
        let events = bench.dataplane.statistics().unwrap().events;
        assert_eq!(events["probe_sent"], frames.len() as u64);
        frames
    });
    for layers in dissect::parse(&frames) {
        expect(layers.last().unwrap(), &json!({"layer": "TCP", "checksum": true}));
        for layer in &layers {
            if layer["layer"] == "IP" {
                expect(layer, &json!({"checksum": true, "length": layer["room"], "tos": 0x10}));
            }
        }
    }
}

#[test]
fn what_carries_no_mark_or_another_s_or_is_no_tcp_stays_as_it_is() {
    alone(|| {
        let (bench, cases) = bench();
        let program = program();
        let (name, family, _, _, port) = &cases[0];
        let packet = probe(*family, *port);
        for other in [0, 1, 0xd600_0001, 0x1700_0001, u32::MAX] {
            assert_eq!(run(&program, other, &packet.frame()), (TC_ACT_UNSPEC, packet.frame()));
        }
        let ours = mark(&bench, name, "r0");
        let (source, vip) = (socket("10.9.0.7", 1), socket(VIP_4, 80));
        for packet in [udp(source, vip, b""), icmp(source.ip(), vip.ip(), 8, 0, [0; 4], b"")] {
            assert_eq!(run(&program, ours, &packet.frame()), (TC_ACT_UNSPEC, packet.frame()));
        }
        assert!(!bench.counters().keys().any(|name| name.contains("probe")));
    });
}

#[test]
fn a_probe_whose_real_is_unknown_or_unresolved_is_dropped_and_counted() {
    alone(|| {
        let (mut bench, cases) = bench();
        let program = program();
        let (_, family, _, _, port) = &cases[0];
        let input = probe(*family, *port).frame();
        for index in [0, 100, 0x00ff_ffff] {
            assert_eq!(run(&program, 0xd700_0000 | index, &input).0, TC_ACT_SHOT);
        }
        let lost = vip((VIP_4, 999, Protocol::Tcp), Encapsulation::Gue, Family::V4, 77, 1);
        bench.hops.remove(&lost.reals[0].address);
        bench.program.vips.insert("lost".parse().unwrap(), lost);
        bench.apply();
        assert_eq!(run(&program, mark(&bench, "lost", "r0"), &input).0, TC_ACT_SHOT);
        assert_eq!(bench.counters()["events/probe_failed"], 4);
    });
}

#[test]
fn a_probe_leaves_tagged_or_by_another_interface_where_the_next_hop_says_so() {
    alone(|| {
        let (mut bench, cases) = bench();
        let program = program();
        let (name, family, _, encapsulation, port) = &cases[0];
        let address = real(Family::V4, 1, 0).address;
        bench.hops.get_mut(&address).unwrap().vlan = Some(77);
        bench.apply_next_hops();
        let packet = probe(*family, *port);
        let (verdict, frame) = run(&program, mark(&bench, name, "r0"), &packet.frame());
        assert_eq!(verdict, TC_ACT_UNSPEC);
        // The kernel keeps the tag beside the frame until it leaves, or puts it in.
        let (_, inner) = unwrap(&frame, *encapsulation);
        assert_eq!(inner, packet.bytes());
        bench.hops.insert(address, hop(front() + 1000, address));
        bench.apply_next_hops();
        assert_eq!(run(&program, mark(&bench, name, "r0"), &packet.frame()).0, TC_ACT_REDIRECT);
        assert_eq!(run(&program, mark(&bench, name, "r1"), &packet.frame()).0, TC_ACT_UNSPEC);
    });
}

#[test]
fn a_socket_with_the_mark_really_sends_its_syn_to_the_real() {
    let frames = alone(|| {
        ip_link(&format!("address add 10.9.0.7/24 dev {INTERFACE}"));
        ip_link(&format!("neighbour add 10.9.0.254 lladdr 02:00:00:00:00:99 dev {INTERFACE}"));
        ip_link("route add default via 10.9.0.254");
        let (bench, cases) = bench();
        // The other end, and everything that arrives there.
        let all = i32::from(u16::try_from(libc::ETH_P_ALL).unwrap().to_be());
        let mut wire = Socket::new(Domain::PACKET, Type::RAW, Some(SocketProtocol::from(all))).unwrap();
        wire.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut frames = Vec::new();
        for (name, family, real_family, encapsulation, port) in &cases {
            if *family != Family::V4 || *encapsulation == Encapsulation::L2 {
                continue;
            }
            for marked in [true, false] {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                if marked {
                    socket.set_mark(mark(&bench, name, "r1")).unwrap();
                }
                socket.set_nonblocking(true).unwrap();
                let vip: SocketAddr = format!("{VIP_4}:{port}").parse().unwrap();
                let _ = socket.connect(&SockAddr::from(vip));
                let layer3 = if marked && *real_family == Family::V6 { [0x86, 0xdd] } else { [8, 0] };
                let network = u8::try_from(*port - 80).unwrap();
                let destination = mac_of(real(*real_family, network, 1).address);
                let expected = if marked { destination } else { [2, 0, 0, 0, 0, 0x99] };
                let started = Instant::now();
                let found = loop {
                    assert!(started.elapsed() < Duration::from_secs(5), "{name}: no SYN, marked {marked}");
                    let mut buffer = [0; 2048];
                    let Ok(length) = wire.read(&mut buffer) else { continue };
                    if buffer[..6] == expected && buffer[12..14] == layer3 {
                        break buffer[..length].to_vec();
                    }
                };
                frames.push((marked, found));
            }
        }
        frames
    });
    let parsed = dissect::parse(&frames.iter().map(|(_, frame)| frame.clone()).collect::<Vec<_>>());
    assert_eq!(parsed.len(), 8);
    for ((marked, _), layers) in frames.iter().zip(parsed) {
        expect(layers.last().unwrap(), &json!({"layer": "TCP", "flags": "S"}));
        let headers =
            layers.iter().filter(|layer| layer["layer"].as_str().unwrap().starts_with("IP")).count();
        assert_eq!(headers, if *marked { 2 } else { 1 }, "{layers:?}");
    }
}

/// A tcx program behind those on the interface's egress, which writes [`STAMP`] over the source's MAC address. It is
/// there as long as what is returned.
fn stamp() -> OwnedFd {
    const SCHED_CLS: u32 = 3;
    const PROG_LOAD: libc::c_long = 5;
    const LINK_CREATE: libc::c_long = 28;
    const TCX_EGRESS: u32 = 47;
    // The instructions as in `linux/bpf.h`: operation, registers, offset, constant.
    let instruction = |code: u8, registers: u8, offset: i16, constant: i32| {
        let [c0, c1, c2, c3] = constant.to_le_bytes();
        let [o0, o1] = offset.to_le_bytes();
        u64::from_le_bytes([code, registers, o0, o1, c0, c1, c2, c3])
    };
    let code = [
        // skb_store_bytes(skb, 6, &STAMP, 4, 0)
        instruction(0x62, 0x0a, -4, i32::from_le_bytes(STAMP)),
        instruction(0xb7, 0x02, 0, 6),
        instruction(0xbf, 0xa3, 0, 0),
        instruction(0x07, 0x03, 0, -4),
        instruction(0xb7, 0x04, 0, 4),
        instruction(0xb7, 0x05, 0, 0),
        instruction(0x85, 0x00, 0, 9),
        // return TC_ACT_UNSPEC
        instruction(0xb7, 0x00, 0, -1),
        instruction(0x95, 0x00, 0, 0),
    ];
    let bpf = |command: libc::c_long, attributes: &mut [u64]| {
        // SAFETY: the attributes have the kernel's layout; their pointers are to what lives here.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes))
        };
        let fd = i32::try_from(result).unwrap();
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: a fresh descriptor of ours.
        unsafe { OwnedFd::from_raw_fd(fd) }
    };
    let two = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let license = c"GPL";
    let count = u32::try_from(code.len()).unwrap();
    let mut load = [two(SCHED_CLS, count), code.as_ptr() as u64, license.as_ptr() as u64];
    let program = bpf(PROG_LOAD, &mut load);
    let number = u32::try_from(program.as_raw_fd()).unwrap();
    // Longer than what is set: the kernel reads what this kind of link has beside it.
    let mut create = [two(number, front()), two(TCX_EGRESS, 0), 0, 0, 0];
    bpf(LINK_CREATE, &mut create)
}

const STAMP: [u8; 4] = [0x5e, 0xed, 0x5e, 0xed];

#[test]
fn programs_behind_the_probe_s_see_every_packet_probes_included() {
    alone(|| {
        ip_link(&format!("address add 10.9.0.7/24 dev {INTERFACE}"));
        ip_link(&format!("neighbour add 10.9.0.254 lladdr 02:00:00:00:00:99 dev {INTERFACE}"));
        ip_link("route add default via 10.9.0.254");
        let (bench, cases) = bench();
        let (name, _, _, _, port) = &cases[0];
        let _second = stamp();
        let all = i32::from(u16::try_from(libc::ETH_P_ALL).unwrap().to_be());
        let mut wire = Socket::new(Domain::PACKET, Type::RAW, Some(SocketProtocol::from(all))).unwrap();
        wire.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        for marked in [false, true] {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            if marked {
                socket.set_mark(mark(&bench, name, "r0")).unwrap();
            }
            socket.set_nonblocking(true).unwrap();
            let vip: SocketAddr = format!("{VIP_4}:{port}").parse().unwrap();
            let _ = socket.connect(&SockAddr::from(vip));
            let destination =
                if marked { mac_of(real(Family::V4, 1, 0).address) } else { [2, 0, 0, 0, 0, 0x99] };
            let started = Instant::now();
            loop {
                assert!(started.elapsed() < Duration::from_secs(20), "not seen, marked {marked}");
                let mut buffer = [0; 2048];
                let Ok(length) = wire.read(&mut buffer) else { continue };
                if length >= 14 && buffer[..6] == destination {
                    assert_eq!(buffer[6..10], STAMP, "marked {marked}");
                    break;
                }
            }
        }
    });
}
