use super::*;
use lb_ebpf::wire::protocol::{IPV4, IPV6, UDP};
use proptest::prelude::*;

const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const REAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const REAL6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 9);
const GUE: u16 = 6080;

fn reals() -> BTreeSet<IpAddr> {
    [REAL.into(), REAL6.into()].into()
}

fn expect(reals: &BTreeSet<IpAddr>) -> Expect<'_> {
    Expect { sources: Sources { v4: Some(NODE), v6: Some(NODE6) }, gue_port: GUE, reals }
}

fn v4(bytes: &[u8]) -> Option<PathMtu> {
    parse_v4(bytes, &expect(&reals()))
}

fn v6(bytes: &[u8]) -> Option<PathMtu> {
    parse_v6(bytes, &expect(&reals()))
}

fn ipv4(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, total_length: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = total_length.to_be_bytes();
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// "Fragmentation needed" with the right checksum, as a raw socket receives it.
fn needed(mtu: u16, quoted: &[u8]) -> Vec<u8> {
    let [high, low] = mtu.to_be_bytes();
    let mut message = vec![3, 4, 0, 0, 0, 0, high, low];
    message.extend(quoted);
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let length = u16::try_from(20 + message.len()).expect("short");
    ipv4(1, ROUTER, NODE, length, &message)
}

fn udp(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![0x80, 1, high, low, 0, 0, 0, 0]
}

fn too_big(mtu: u32, next_header: u8, destination: Ipv6Addr, payload_length: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![2, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend([0x60, 0, 0, 0]);
    message.extend(payload_length.to_be_bytes());
    message.extend([next_header, 64]);
    message.extend(NODE6.octets());
    message.extend(destination.octets());
    message.extend(payload);
    message
}

fn learnt(real: impl Into<IpAddr>, mtu: u32) -> Option<PathMtu> {
    Some(PathMtu { real: real.into(), mtu })
}

#[test]
fn every_encapsulation_is_recognised_from_eight_quoted_bytes() {
    for (protocol, payload) in [(IPV4, vec![0; 8]), (IPV6, vec![0; 8]), (UDP, udp(GUE))] {
        assert_eq!(v4(&needed(1400, &ipv4(protocol, NODE, REAL, 1500, &payload))), learnt(REAL, 1400));
        assert_eq!(v6(&too_big(1400, protocol, REAL6, 1460, &payload)), learnt(REAL6, 1400));
    }
}

#[test]
fn errors_about_other_packets_teach_nothing() {
    let stranger = Ipv4Addr::new(203, 0, 113, 1);
    for quoted in [
        ipv4(IPV4, NODE, stranger, 1500, &[0; 8]),
        ipv4(IPV4, stranger, REAL, 1500, &[0; 8]),
        ipv4(6, NODE, REAL, 1500, &[0; 8]),
        ipv4(UDP, NODE, REAL, 1500, &udp(53)),
        ipv4(UDP, NODE, REAL, 1500, &[]),
    ] {
        assert_eq!(v4(&needed(1400, &quoted)), None);
    }
    assert_eq!(v6(&too_big(1400, IPV4, NODE6, 1460, &[0; 8])), None);
    assert_eq!(v6(&too_big(1400, 6, REAL6, 1460, &[0; 8])), None);
    assert_eq!(v6(&too_big(1400, UDP, REAL6, 1460, &udp(53))), None);
}

#[test]
fn a_later_fragment_is_not_ours() {
    let mut quoted = ipv4(IPV4, NODE, REAL, 1500, &[0; 8]);
    quoted[7] = 1;
    assert_eq!(v4(&needed(1400, &quoted)), None);
}

#[test]
fn other_types_and_codes_teach_nothing() {
    for (kind, code) in [(3, 1), (11, 4), (0, 0)] {
        let mut bytes = needed(1400, &ipv4(IPV4, NODE, REAL, 1500, &[0; 8]));
        (bytes[20], bytes[21]) = (kind, code);
        bytes[22..24].fill(0);
        let sum = checksum(&bytes[20..]).to_be_bytes();
        bytes[22..24].copy_from_slice(&sum);
        assert_eq!(v4(&bytes), None, "type {kind} code {code}");
    }
    let mut bytes = too_big(1400, IPV4, REAL6, 1460, &[0; 8]);
    bytes[0] = 1;
    assert_eq!(v6(&bytes), None);
}

#[test]
fn an_mtu_that_the_quoted_packet_fits_is_a_lie() {
    let quoted = ipv4(IPV4, NODE, REAL, 1400, &[0; 8]);
    assert_eq!(v4(&needed(1400, &quoted)), None);
    assert_eq!(v4(&needed(1399, &quoted)), learnt(REAL, 1399));
    assert_eq!(v6(&too_big(1400, IPV4, REAL6, 1360, &[0; 8])), None);
    assert_eq!(v6(&too_big(1399, IPV4, REAL6, 1360, &[0; 8])), learnt(REAL6, 1399));
}

#[test]
fn tiny_mtus_are_raised_to_the_floor_on_ipv4_and_discarded_on_ipv6() {
    let quoted = ipv4(IPV4, NODE, REAL, 1500, &[0; 8]);
    assert_eq!(v4(&needed(68, &quoted)), learnt(REAL, 576));
    assert_eq!(v6(&too_big(1279, IPV4, REAL6, 1460, &[0; 8])), None);
    assert_eq!(v6(&too_big(1280, IPV4, REAL6, 1460, &[0; 8])), learnt(REAL6, 1280));
}

#[test]
fn a_router_that_tells_no_mtu_means_the_next_plateau() {
    let told = |length| v4(&needed(0, &ipv4(IPV4, NODE, REAL, length, &[0; 8])));
    assert_eq!(told(9000), learnt(REAL, 8166));
    assert_eq!(told(1500), learnt(REAL, 1492));
    assert_eq!(told(1492), learnt(REAL, 1006));
    assert_eq!(told(576), None);
}

#[test]
fn a_wrong_checksum_and_a_foreign_destination_are_refused() {
    let good = needed(1400, &ipv4(IPV4, NODE, REAL, 1500, &[0; 8]));
    for at in [16, 22, 27, 50] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert_eq!(v4(&bad), None, "byte {at}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_teach_nothing_and_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
        prop_assert_eq!(v4(&bytes), None);
        prop_assert_eq!(v6(&bytes), None);
    }

    #[test]
    fn damaged_errors_teach_only_what_the_rules_allow(
        at in 0_usize..56, byte in any::<u8>(), cut in 0_usize..=56, length in any::<u16>(), mtu in any::<u16>(),
    ) {
        let mut quoted = ipv4(UDP, NODE, REAL, length, &udp(GUE));
        quoted[at % 28] = byte;
        let bytes = needed(mtu, &quoted);
        if let Some(found) = v4(&bytes[..cut.min(bytes.len())]) {
            prop_assert_eq!(found.real, IpAddr::V4(REAL));
            prop_assert!(found.mtu >= FLOOR_V4);
        }
        let mut bytes = too_big(u32::from(mtu), UDP, REAL6, length, &udp(GUE));
        bytes[at % 56] = byte;
        if let Some(found) = v6(&bytes[..cut.min(bytes.len())]) {
            prop_assert_eq!(found.real, IpAddr::V6(REAL6));
            prop_assert!(found.mtu >= FLOOR_V6);
        }
    }
}
