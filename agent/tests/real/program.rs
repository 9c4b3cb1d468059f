//! The program by itself, through BPF_PROG_TEST_RUN.

use crate::bench::{
    Counted, FAMILIES, Family, Fate, Program, XDP_DROP, XDP_PASS, encapsulate, inner, ip, judge, outer,
};
use crate::packet::{checksum, frame, gue, inner_protocol, udp};
use lb_ebpf::real::{DropReason, Encapsulation, Inner, Traffic, traffic_index};
use std::net::IpAddr;

impl Program {
    #[track_caller]
    fn passes_untouched(&mut self, input: &[u8]) {
        assert_eq!(self.run(input), (XDP_PASS, input.to_vec(), Counted::default()));
    }

    #[track_caller]
    fn refuses(&mut self, input: &[u8], reason: DropReason) {
        let (verdict, _, counted) = self.run(input);
        assert_eq!((verdict, counted), (XDP_DROP, Counted::drop(reason)));
    }

    #[track_caller]
    fn decapsulates(&mut self, input: &[u8], output: &[u8]) {
        let (verdict, found, counted) = self.run(input);
        assert_eq!((verdict, found.as_slice()), (XDP_PASS, output), "counted {counted:?}");
        assert_eq!(counted.decapsulated.len(), 1);
        assert_eq!(counted.decapsulated[0].1.packets, 1);
        assert_eq!(counted.drops, []);
    }
}

#[test]
fn every_combination_is_decapsulated_to_the_byte_and_counted() {
    let mut program = Program::load();
    for family in FAMILIES {
        for encapsulation in Encapsulation::ALL {
            for inner_family in FAMILIES {
                let inner = inner(inner_family).bytes();
                let input = frame(&[], &encapsulate(family, encapsulation, &inner).bytes());
                let (verdict, output, counted) = program.run(&input);
                let kind = if inner_family == Family::V4 { Inner::V4 } else { Inner::V6 };
                let traffic = Traffic { packets: 1, bytes: inner.len().try_into().unwrap() };
                let expected = Counted {
                    decapsulated: vec![(traffic_index(encapsulation, kind), traffic)],
                    drops: vec![],
                };
                assert_eq!(
                    (verdict, output, counted),
                    (XDP_PASS, frame(&[], &inner), expected),
                    "{family:?} {encapsulation:?} {inner_family:?}"
                );
            }
        }
    }
}

#[test]
fn vlan_tags_stay_on_the_frame() {
    let mut program = Program::load();
    for tags in [&[100][..], &[0xe00a, 200]] {
        for inner_family in FAMILIES {
            let inner = inner(inner_family).bytes();
            let packet = encapsulate(Family::V4, Encapsulation::Gue, &inner).bytes();
            program.decapsulates(&frame(tags, &packet), &frame(tags, &inner));
        }
    }
    // A third tag is beyond what is looked at.
    let packet = encapsulate(Family::V4, Encapsulation::Gue, &inner(Family::V4).bytes()).bytes();
    program.passes_untouched(&frame(&[1, 2, 3], &packet));
}

#[test]
fn gue_private_data_of_any_length_is_skipped() {
    let mut program = Program::load();
    let inner = inner(Family::V4).bytes();
    for words in [1, 2, 30, 31] {
        program.decapsulates(
            &frame(&[], &outer(Family::V4, 17, gue(words, &inner)).bytes()),
            &frame(&[], &inner),
        );
    }
}

#[test]
fn outer_options_and_extension_headers_are_stepped_over() {
    let mut program = Program::load();
    let inner = inner(Family::V4).bytes();
    for words in 1..=10 {
        let mut packet = encapsulate(Family::V4, Encapsulation::Gue, &inner);
        packet.options = vec![1; words * 4];
        program.decapsulates(&frame(&[], &packet.bytes()), &frame(&[], &inner));
    }
    // Destination options with a tunnel encapsulation limit, as Linux tunnels send them.
    let mut payload = vec![4, 0, 4, 1, 4, 1, 0, 0];
    payload.extend(&inner);
    program.decapsulates(&frame(&[], &outer(Family::V6, 60, payload).bytes()), &frame(&[], &inner));
}

#[test]
fn bytes_after_the_inner_packet_are_left_to_the_stack() {
    let mut program = Program::load();
    let inner = inner(Family::V4).bytes();
    let mut input = frame(&[], &encapsulate(Family::V4, Encapsulation::Ipip, &inner).bytes());
    input.extend([0; 10]);
    let mut output = frame(&[], &inner);
    output.extend([0; 10]);
    program.decapsulates(&input, &output);
}

#[test]
fn what_is_no_tunnel_packet_for_this_host_passes_untouched() {
    let mut program = Program::load();
    let inner_4 = inner(Family::V4).bytes();
    let inner_6 = inner(Family::V6).bytes();
    // Not for us, although from a node.
    for (encapsulation, inner) in Encapsulation::ALL.into_iter().zip([&inner_4, &inner_6]) {
        for (family, elsewhere) in [(Family::V4, "10.0.0.101"), (Family::V6, "fd00::101")] {
            let mut packet = encapsulate(family, encapsulation, inner);
            packet.destination = ip(elsewhere);
            program.passes_untouched(&frame(&[], &packet.bytes()));
        }
    }
    // Plain traffic, to us and to the VIP; another UDP port; another Ethernet type; a runt.
    program.passes_untouched(&frame(&[], &inner_4));
    program.passes_untouched(&frame(&[], &inner_6));
    program.passes_untouched(&frame(&[], &outer(Family::V4, 17, udp(1, 6081, &inner_4)).bytes()));
    program.passes_untouched(&frame(&[], &outer(Family::V6, 6, vec![0; 20]).bytes()));
    let mut arp = frame(&[], &inner_4);
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    program.passes_untouched(&arp);
    program.passes_untouched(&frame(&[], &inner_4)[..14]);
    // A later fragment of a UDP packet shows no port.
    let mut fragment = outer(Family::V4, 17, gue(0, &inner_4));
    fragment.fragment = 0x0003;
    program.passes_untouched(&frame(&[], &fragment.bytes()));
    let mut payload = vec![17, 0, 0, 8, 0, 0, 0, 1];
    payload.extend(gue(0, &inner_4));
    program.passes_untouched(&frame(&[], &outer(Family::V6, 44, payload).bytes()));
}

#[test]
fn a_source_that_is_not_a_known_node_is_refused() {
    let mut program = Program::load();
    for encapsulation in Encapsulation::ALL {
        let inner = inner(Family::V4).bytes();
        // Just beyond 10.0.0.0/28 and fd00::/124; and the IPv4 node's address in IPv6 dress.
        for (family, stranger) in
            [(Family::V4, "10.0.0.16"), (Family::V6, "fd00::17"), (Family::V6, "::ffff:10.0.0.7")]
        {
            let mut packet = encapsulate(family, encapsulation, &inner);
            packet.source = ip(stranger);
            program.refuses(&frame(&[], &packet.bytes()), DropReason::UnknownSource);
        }
    }
}

#[test]
fn an_inner_destination_that_is_not_a_vip_is_refused() {
    let mut program = Program::load();
    for encapsulation in Encapsulation::ALL {
        for (family, elsewhere) in
            [(Family::V4, "198.51.100.2"), (Family::V6, "2001:db8:5::2"), (Family::V6, "::ffff:198.51.100.1")]
        {
            let mut packet = inner(family);
            packet.destination = ip(elsewhere);
            let input = frame(&[], &encapsulate(Family::V4, encapsulation, &packet.bytes()).bytes());
            program.refuses(&input, DropReason::NotAVip);
        }
    }
}

#[test]
fn outer_fragments_are_refused() {
    let mut program = Program::load();
    let inner = inner(Family::V4).bytes();
    for encapsulation in Encapsulation::ALL {
        let mut first = encapsulate(Family::V4, encapsulation, &inner);
        first.fragment = 0x2000;
        program.refuses(&frame(&[], &first.bytes()), DropReason::Fragment);
    }
    let mut later = encapsulate(Family::V4, Encapsulation::Ipip, &inner);
    later.fragment = 0x0003;
    program.refuses(&frame(&[], &later.bytes()), DropReason::Fragment);
    // Don't-fragment is no fragment.
    let mut whole = encapsulate(Family::V4, Encapsulation::Ipip, &inner);
    whole.fragment = 0x4000;
    program.decapsulates(&frame(&[], &whole.bytes()), &frame(&[], &inner));

    let fragment_header = |position: [u8; 2]| {
        let mut payload = vec![4, 0, position[0], position[1], 0, 0, 0, 1];
        payload.extend(&inner);
        frame(&[], &outer(Family::V6, 44, payload).bytes())
    };
    program.refuses(&fragment_header([0, 1]), DropReason::Fragment);
    program.refuses(&fragment_header([0, 8]), DropReason::Fragment);
    // An atomic fragment (RFC 6946) is whole.
    program.decapsulates(&fragment_header([0, 0]), &frame(&[], &inner));
}

#[test]
fn an_inner_fragment_is_the_stacks_business() {
    let mut program = Program::load();
    let mut fragment = inner(Family::V4);
    fragment.fragment = 0x2003;
    let fragment = fragment.bytes();
    program.decapsulates(
        &frame(&[], &encapsulate(Family::V4, Encapsulation::Gue, &fragment).bytes()),
        &frame(&[], &fragment),
    );
}

#[test]
fn a_wrong_outer_checksum_is_refused() {
    let mut program = Program::load();
    let mut packet = encapsulate(Family::V4, Encapsulation::Ipip, &inner(Family::V4).bytes());
    let mut input = frame(&[], &packet.bytes());
    input[14 + 8] ^= 1;
    program.refuses(&input, DropReason::Checksum);
    packet.options = vec![1; 40];
    let mut input = frame(&[], &packet.bytes());
    input[14 + 59] ^= 1;
    program.refuses(&input, DropReason::Checksum);
}

#[test]
fn gue_of_other_kinds_is_refused() {
    let mut program = Program::load();
    let inner = inner(Family::V4).bytes();
    let start = 14 + 20 + 8;
    for (offset, value) in [(0, 0x40), (0, 0x80), (0, 0x20), (1, 6), (1, 0), (2, 0x80), (3, 1)] {
        let mut input = frame(&[], &outer(Family::V4, 17, gue(0, &inner)).bytes());
        input[start + offset] = value;
        program.refuses(&input, DropReason::Unsupported);
    }
}

#[test]
fn lengths_and_versions_that_contradict_each_other_are_refused() {
    let mut program = Program::load();
    for inner_family in FAMILIES {
        let inner = inner(inner_family).bytes();
        for encapsulation in Encapsulation::ALL {
            // The inner packet claims more than there is.
            let mut longer = inner.clone();
            let length_field = if inner_family == Family::V4 { 2..4 } else { 4..6 };
            longer[length_field.start + 1] += 1;
            let packet = encapsulate(Family::V4, encapsulation, &longer).bytes();
            program.refuses(&frame(&[], &packet), DropReason::Malformed);
            let mut padded = frame(&[], &packet);
            padded.extend([0; 32]);
            program.refuses(&padded, DropReason::Malformed);
            // Another version than the protocol number says.
            let mut other = inner.clone();
            other[0] ^= 0x20;
            let mut packet = encapsulate(Family::V4, encapsulation, &inner);
            let at = packet.payload.len() - inner.len();
            packet.payload.splice(at.., other);
            program.refuses(&frame(&[], &packet.bytes()), DropReason::Malformed);
        }
    }
    // An inner header length below the least, and beyond the packet.
    for version_length in [0x44, 0x4f] {
        let mut inner = inner(Family::V4);
        inner.payload.clear();
        let mut bytes = inner.bytes();
        bytes[0] = version_length;
        let packet = encapsulate(Family::V6, Encapsulation::Gue, &bytes);
        program.refuses(&frame(&[], &packet.bytes()), DropReason::Malformed);
    }
    // The UDP length reaches beyond the outer packet, or not around the GUE header.
    for length in [0u16, 11, 200] {
        let mut packet = outer(Family::V6, 17, gue(0, &inner(Family::V4).bytes()));
        packet.payload[4..6].copy_from_slice(&length.to_be_bytes());
        program.refuses(&frame(&[], &packet.bytes()), DropReason::Malformed);
    }
    // Private data beyond the datagram.
    let mut packet = outer(Family::V6, 17, gue(0, &inner(Family::V4).bytes()));
    packet.payload[8] = 31;
    program.refuses(&frame(&[], &packet.bytes()), DropReason::Malformed);
}

#[test]
fn a_packet_cut_short_anywhere_is_never_decapsulated() {
    let mut program = Program::load();
    for family in FAMILIES {
        for encapsulation in Encapsulation::ALL {
            let whole = frame(&[], &encapsulate(family, encapsulation, &inner(family).bytes()).bytes());
            for length in 14..whole.len() {
                let (verdict, output, counted) = program.run(&whole[..length]);
                match verdict {
                    // Not even enough left to see that it is ours.
                    XDP_PASS => {
                        assert_eq!((output, counted), (whole[..length].to_vec(), Counted::default()));
                    }
                    _ => assert_eq!((verdict, counted), (XDP_DROP, Counted::drop(DropReason::Malformed))),
                }
            }
        }
    }
}

#[test]
fn congestion_marks_move_inwards_as_rfc_6040_says() {
    const CE: u8 = 0b11;
    // RFC 6040, figure 4: rows are the inner mark, columns the outer one: Not-ECT, ECT(1), ECT(0), CE.
    const DROP: Option<u8> = None;
    let table = [
        (0b00, [Some(0b00), Some(0b00), Some(0b00), DROP]),
        (0b01, [Some(0b01), Some(0b01), Some(0b01), Some(CE)]),
        (0b10, [Some(0b10), Some(0b01), Some(0b10), Some(CE)]),
        (CE, [Some(CE); 4]),
    ];
    const DSCP: u8 = 46 << 2;
    let mut program = Program::load();
    for family in FAMILIES {
        for inner_family in FAMILIES {
            for (inner_mark, row) in table {
                for (outer_mark, expected) in (0u8..).zip(row) {
                    let mut inner = inner(inner_family);
                    inner.traffic_class = DSCP | inner_mark;
                    let mut packet = encapsulate(family, Encapsulation::Gue, &inner.bytes());
                    packet.traffic_class = outer_mark;
                    let input = frame(&[], &packet.bytes());
                    match expected {
                        // The builder sums the header afresh, so this checks the updated checksum too.
                        Some(mark) => {
                            inner.traffic_class = DSCP | mark;
                            program.decapsulates(&input, &frame(&[], &inner.bytes()));
                        }
                        None => program.refuses(&input, DropReason::Ecn),
                    }
                }
            }
        }
    }
}

#[test]
fn marking_keeps_the_checksum_right_whatever_it_was() {
    let mut program = Program::load();
    let mut random = Random(0x5eed);
    for _ in 0..200 {
        let mut inner = inner(Family::V4);
        inner.source = IpAddr::from(random.next().to_be_bytes()[..4].first_chunk::<4>().copied().unwrap());
        inner.traffic_class = 0b10;
        let mut packet = encapsulate(Family::V4, Encapsulation::Ipip, &inner.bytes());
        packet.traffic_class = 0b11;
        let (_, output, _) = program.run(&frame(&[], &packet.bytes()));
        assert_eq!(checksum(&output[14..34]), 0, "{}", inner.source);
    }
}

/// xorshift64*: enough for a corpus that can be replayed from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }
}

/// A packet of the kinds above, with random parts, before it is spoilt.
fn random_packet(random: &mut Random) -> Vec<u8> {
    let family = FAMILIES[random.below(2)];
    let mut inner = inner(FAMILIES[random.below(2)]);
    inner.payload = vec![0x55; random.below(200)];
    inner.traffic_class = u8::try_from(random.below(4)).unwrap();
    let inner = inner.bytes();
    let mut packet = match random.below(3) {
        0 => outer(family, inner_protocol(&inner), inner),
        1 => outer(family, 17, gue(0, &inner)),
        _ => outer(family, 17, gue(u8::try_from(random.below(32)).unwrap(), &inner)),
    };
    packet.traffic_class = u8::try_from(random.below(4)).unwrap();
    packet.options = vec![1; 4 * random.below(11)];
    let tags = [&[][..], &[], &[7], &[7, 8]][random.below(4)];
    frame(tags, &packet.bytes())
}

#[test]
fn a_spoilt_packet_gets_a_verdict_and_a_counter_and_never_leaves_mangled() {
    let seed = std::env::var("DROVER_SEED").ok().map_or(1, |seed| seed.parse().unwrap());
    let mut program = Program::load();
    let mut random = Random(seed | 1);
    let (mut untouched, mut decapsulated, mut dropped) = (0, 0, 0);
    for round in 0..3000 {
        let mut input = random_packet(&mut random);
        for _ in 0..random.below(4) {
            // Most of what is judged is near the front.
            let end = input.len().min(if random.below(2) == 0 { 64 } else { usize::MAX });
            let at = 12 + random.below(end - 12);
            input[at] = match random.below(3) {
                0 => input[at] ^ (1 << random.below(8)),
                1 => [0, 1, 4, 6, 17, 41, 44, 60, 0x45, 0x4f, 0x60, 0xff][random.below(12)],
                _ => u8::try_from(random.below(256)).unwrap(),
            };
        }
        // Half of them get a right outer checksum, to come further.
        let header = usize::from(input[14] & 0xf) * 4;
        if random.below(2) == 0
            && input[12..14] == [8, 0]
            && input[14] >> 4 == 4
            && header >= 20
            && input.len() > 14 + header
        {
            input[24..26].fill(0);
            let sum = checksum(&input[14..14 + header]);
            input[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        match random.below(4) {
            0 => input.truncate(14 + random.below(input.len() - 14)),
            1 => input.extend(std::iter::repeat_n(0, random.below(40))),
            _ => {}
        }
        match judge(&mut program, &input, &format!("seed {seed}, round {round}")).0 {
            Fate::Untouched => untouched += 1,
            Fate::Decapsulated => decapsulated += 1,
            Fate::Dropped => dropped += 1,
        }
    }
    // The corpus reaches every kind of end.
    assert!(untouched > 100 && decapsulated > 100 && dropped > 100, "{untouched} {decapsulated} {dropped}");
}
