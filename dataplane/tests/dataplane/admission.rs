//! Limits on new connections.

use crate::bench::{
    Bench, Counted, FAMILIES, Family, XDP_DROP, XDP_TX, alone, flood, flood_live, front, hop, pin, socket,
    test_run, vip,
};
use crate::packet::{ACK, Ip, NODE_MAC, SYN, icmp, tcp, udp};
use aya::maps::{Array, Map};
use dataplane::nexthop::NextHop;
use lb_ebpf::lb::{Limiter, PACKET_TICK_SHIFT, PREFIX_LINES, PREFIX_TICK_SHIFT, PrefixLine};
use std::net::SocketAddr;
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};
use zk_schema::{Encapsulation, Limits, Protocol};

/// A VIP of each family under `limits`.
fn bench(limits: Limits) -> Bench {
    let now = limiters_clock();
    let mut bench = Bench::new();
    for (network, family) in (1..).zip(FAMILIES) {
        let vip = vip((family.vip(), 80, Protocol::Tcp), Encapsulation::Gue, family, network, 3);
        bench.add(name(family), dataplane::program::VipProgram { limits, ..vip });
    }
    bench.apply();
    forget_prefixes(now);
    bench
}

/// The limiters' clock. It counts from the kernel's start by ticks, and no clock of user space is as good: so it is what a
/// VIP's limiter has after a connection.
fn limiters_clock() -> u64 {
    static READ: OnceLock<(Instant, u64)> = OnceLock::new();
    let (at, clock) = READ.get_or_init(|| {
        alone(|| {
            let mut bench = Bench::new();
            let limits = Limits { connections_per_second: 1_000_000, ..Limits::default() };
            let vip = vip((Family::V4.vip(), 80, Protocol::Tcp), Encapsulation::Gue, Family::V4, 1, 1);
            bench.add("v4", dataplane::program::VipProgram { limits, ..vip });
            bench.apply();
            assert!(opens(&bench, Family::V4, socket(Family::V4.client(), 5000), SYN));
            let limiters: Array<_, Limiter> =
                Array::try_from(Map::Array(Bench::map("VIP_LIMITERS"))).unwrap();
            let arrivals = limiters.iter().map(|limiter| limiter.unwrap().arrival);
            (Instant::now(), arrivals.max().unwrap())
        })
    });
    clock + u64::try_from(at.elapsed().as_nanos()).unwrap()
}

/// Makes the limiters of prefixes as if nobody had sent anything for long. Their clocks wrap, and an empty cell looks like
/// one that is in use just before they do.
fn forget_prefixes(now: u64) {
    for (map, shift) in
        [("PREFIX_LIMITERS", PREFIX_TICK_SHIFT), ("PREFIX_PACKET_LIMITERS", PACKET_TICK_SHIFT)]
    {
        let mut sketch: Array<_, PrefixLine> = Array::try_from(Map::Array(Bench::map(map))).unwrap();
        #[expect(clippy::cast_possible_truncation, reason = "the sketches' clocks wrap")]
        let long_ago = ((now >> shift) as u32).wrapping_sub(1 << 31);
        for line in 0..PREFIX_LINES {
            sketch.set(line, [long_ago; 16], 0).unwrap();
        }
    }
}

fn name(family: Family) -> &'static str {
    if family == Family::V4 { "v4" } else { "v6" }
}

fn opens(bench: &Bench, family: Family, client: SocketAddr, flags: u8) -> bool {
    let input = tcp(client, socket(family.vip(), 80), flags, b"").frame();
    match test_run(&bench.program_fd(), &input, None).0 {
        XDP_TX => true,
        XDP_DROP => false,
        verdict => panic!("{verdict}"),
    }
}

/// A client of one of many prefixes, none of which is used twice.
fn stranger(family: Family, number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    match family {
        Family::V4 => SocketAddr::new([100, high, low, 1].into(), 5000),
        Family::V6 => socket(&format!("2001:db9:{number:x}::1"), 5000),
    }
}

/// Returns the number of connections that get through, of `count` from different prefixes.
fn admitted(bench: &Bench, family: Family, count: u16) -> usize {
    (0..count).filter(|&number| opens(bench, family, stranger(family, number), SYN)).count()
}

#[test]
fn a_burst_gets_through_and_no_more_until_time_has_passed() {
    alone(|| {
        let limits = Limits { connections_per_second: 10, burst: 50, ..Limits::default() };
        let bench = bench(limits);
        for family in FAMILIES {
            let started = Instant::now();
            let through = admitted(&bench, family, 300);
            // A tenth of a second for each beyond the burst.
            let more = started.elapsed().as_millis().div_ceil(100) + 1;
            assert!((50..=50 + usize::try_from(more).unwrap()).contains(&through), "{through}");
            bench_drops(&bench, family, "rate_limited");
        }
        #[allow(clippy::disallowed_methods, reason = "the limiter's clock cannot be moved")]
        std::thread::sleep(Duration::from_millis(350));
        let through = admitted(&bench, Family::V4, 300);
        assert!((3..50).contains(&through), "{through}");
    });
}

fn bench_drops(bench: &Bench, family: Family, reason: &str) {
    let input = tcp(stranger(family, 7), socket(family.vip(), 80), SYN, b"").frame();
    // The limiter may have let one in meanwhile.
    let dropped = (0..20).any(|_| {
        let ran = bench.run(&input);
        ran.verdict == XDP_DROP
            && ran.counted == crate::bench::counted(&[&format!("drops/{}/{reason}", name(family))])
    });
    assert!(dropped);
}

#[test]
fn a_burst_is_one_second_s_worth_unless_it_is_said_otherwise() {
    alone(|| {
        let bench = bench(Limits { connections_per_second: 40, ..Limits::default() });
        let started = Instant::now();
        let through = admitted(&bench, Family::V4, 200);
        let more = started.elapsed().as_millis().div_ceil(25) + 1;
        assert!((40..=40 + usize::try_from(more).unwrap()).contains(&through), "{through}");
    });
}

#[test]
fn what_opens_no_connection_is_never_limited() {
    alone(|| {
        let limits =
            Limits { connections_per_second: 1, connections_per_second_per_prefix: 1, ..Limits::default() };
        let mut bench = bench(limits);
        let datagrams = vip(("198.51.100.1", 80, Protocol::Udp), Encapsulation::Gue, Family::V4, 9, 1);
        bench.add("udp", dataplane::program::VipProgram { limits, ..datagrams });
        bench.apply();
        for family in FAMILIES {
            let client = socket(family.client(), 5000);
            while opens(&bench, family, client, SYN) {}
            for flags in [ACK, ACK | SYN, 0x04, 0x01 | ACK, 0, 0x3f] {
                for _ in 0..50 {
                    assert!(opens(&bench, family, client, flags), "flags {flags:#x}");
                }
            }
        }
        let datagram = udp(socket("203.0.113.9", 1), socket("198.51.100.1", 80), b"").frame();
        for _ in 0..50 {
            assert_eq!(test_run(&bench.program_fd(), &datagram, None).0, XDP_TX);
        }
    });
}

#[test]
fn a_prefix_over_its_limit_affects_no_other() {
    alone(|| {
        let limits = Limits { connections_per_second_per_prefix: 1, prefix_burst: 20, ..Limits::default() };
        let bench = bench(limits);
        for (family, inside, outside) in [
            (Family::V4, ["203.0.113.1", "203.0.113.254"], ["203.0.112.1", "203.0.114.1"]),
            (
                Family::V6,
                ["2001:db8:1:aa00::1", "2001:db8:1:aaff:1::"],
                ["2001:db8:1:ab00::1", "2001:db8:1:a9ff::"],
            ),
        ] {
            let mut through = 0;
            for round in 0..60 {
                // The whole prefix shares one limit, whatever the address and port.
                through += usize::from(opens(&bench, family, socket(inside[round % 2], 1000), SYN));
            }
            assert!((20..=22).contains(&through), "{through}");
            let ran = bench.run(&tcp(socket(inside[0], 1), socket(family.vip(), 80), SYN, b"").frame());
            let reason = format!("drops/{}/prefix_rate_limited", name(family));
            assert_eq!((ran.verdict, ran.counted.get(&reason)), (XDP_DROP, Some(&1)));
            for other in outside {
                for _ in 0..20 {
                    assert!(opens(&bench, family, socket(other, 1000), SYN), "{other}");
                }
            }
        }
    });
}

#[test]
fn prefixes_are_as_long_as_the_vip_says() {
    alone(|| {
        let limits = Limits {
            connections_per_second_per_prefix: 1,
            prefix_burst: 3,
            prefix_length_v4: 32,
            prefix_length_v6: 64,
            ..Limits::default()
        };
        let bench = bench(limits);
        for number in 1..100_u8 {
            assert!(opens(&bench, Family::V4, socket(&format!("203.0.113.{number}"), 1), SYN));
            assert!(opens(&bench, Family::V6, socket(&format!("2001:db8:1:{number:x}::1"), 1), SYN));
        }
        let one = || opens(&bench, Family::V4, socket("203.0.113.200", 1), SYN);
        assert!((0..20).filter(|_| one()).count() <= 4);
    });
}

#[test]
fn a_limit_that_is_changed_holds_from_the_start() {
    alone(|| {
        // A burst of a minute's worth has been used up; then the operator allows much more.
        let mut bench = bench(Limits {
            connections_per_second: 1,
            burst: 60,
            connections_per_second_per_prefix: 1,
            prefix_burst: 60,
            ..Limits::default()
        });
        let client = socket(Family::V4.client(), 5000);
        while opens(&bench, Family::V4, client, SYN) {}
        bench.vip("v4").limits = Limits {
            connections_per_second: 1000,
            connections_per_second_per_prefix: 1000,
            ..Limits::default()
        };
        bench.apply();
        for _ in 0..500 {
            assert!(opens(&bench, Family::V4, client, SYN));
        }
    });
}

/// Most that a limit lets through: its burst, and what the time since and two ticks of the clock add.
fn most(burst: u64, per_second: u64, started: Instant) -> u64 {
    let elapsed = started.elapsed() + Duration::from_millis(20);
    burst + u64::try_from(elapsed.as_micros()).unwrap() * per_second / 1_000_000 + 1
}

/// Asserts that the limit let through at least `burst` and at most `most`: `sent` are those that went on to a real. A
/// frame whose TTL is used up may have been let through before it was dropped for that.
fn assert_limited(counted: &Counted, sent: u64, burst: u32, most: u64) {
    let taken = sent + sum(counted, "/ttl_expired");
    assert!(
        u64::from(burst) <= taken && sent <= most,
        "{sent} sent, at most {taken} let through, and not {burst} to {most}: {counted:?}"
    );
}

/// Returns the sum of counters, by the end of their names.
fn sum(counted: &Counted, end: &str) -> u64 {
    counted.iter().filter(|(name, _)| name.ends_with(end)).map(|(_, count)| count).sum()
}

/// A VIP that sends frames back to this host, changed in nothing but the TTL, so that [`flood_live`] may use them again.
fn mirror(family: Family, protocol: Protocol, limits: Limits) -> Bench {
    let now = limiters_clock();
    let mut bench = Bench::new();
    let vip = vip((family.vip(), 80, protocol), Encapsulation::L2, family, 1, 1);
    let address = vip.reals[0].address;
    let to_itself = NextHop { destination_mac: NODE_MAC, ..hop(front(), address) };
    bench.hops.insert(address, to_itself);
    bench.add(name(family), dataplane::program::VipProgram { limits, ..vip });
    bench.apply();
    forget_prefixes(now);
    bench
}

/// Floods the program with a frame from two CPUs at once. A CPU uses its frames again, each until its TTL is used up, and
/// how many it has is the kernel's affair: 256 at most, 64 at times, which are good for some 16,000.
fn flood_from_two_cpus(bench: &Bench, input: &[u8], each: u32) {
    let program = bench.program_fd();
    let both_ready = Barrier::new(2);
    std::thread::scope(|scope| {
        for cpu in 0..2 {
            let (program, both_ready) = (&program, &both_ready);
            scope.spawn(move || {
                pin(cpu);
                both_ready.wait();
                flood_live(program, input, each);
            });
        }
    });
}

#[test]
fn two_cpus_together_admit_no_more_connections_than_the_limit() {
    const BURST: u32 = 20_000;
    let one = Limits { connections_per_second: 1000, burst: BURST, ..Limits::default() };
    let per_prefix =
        Limits { connections_per_second_per_prefix: 1000, prefix_burst: BURST, ..Limits::default() };
    for limits in [one, per_prefix] {
        for family in FAMILIES {
            alone(move || {
                let bench = mirror(family, Protocol::Tcp, limits);
                let packet = tcp(socket(family.client(), 5000), socket(family.vip(), 80), SYN, b"");
                let started = Instant::now();
                flood_from_two_cpus(&bench, &Ip { ttl: 255, ..packet }.frame(), 300_000);
                let counters = bench.counters();
                let most = most(BURST.into(), 1000, started);
                assert_limited(&counters, sum(&counters, "/connections"), BURST, most);
            });
        }
    }
}

#[test]
fn a_burst_is_at_least_what_the_rate_allows_in_a_tick_of_the_clock() {
    const RATE: u32 = 100_000;
    // With a burst of one, and a clock that stands still for up to ten milliseconds.
    let resolution = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse).tv_nsec;
    let per_tick = u64::try_from(resolution).unwrap() * u64::from(RATE) / 1_000_000_000;
    let one = Limits { connections_per_second: RATE, burst: 1, ..Limits::default() };
    let per_prefix = Limits { connections_per_second_per_prefix: RATE, prefix_burst: 1, ..Limits::default() };
    for limits in [one, per_prefix] {
        alone(move || {
            let bench = mirror(Family::V4, Protocol::Tcp, limits);
            let client = socket(Family::V4.client(), 5000);
            let packet = tcp(client, socket(Family::V4.vip(), 80), SYN, b"");
            let started = Instant::now();
            flood_live(&bench.program_fd(), &Ip { ttl: 255, ..packet }.frame(), 5_000);
            let admitted = sum(&bench.counters(), "/connections");
            // An interval is a whole number of a prefix limiter's ticks, and so up to a tenth short.
            let most = most(per_tick * 11 / 10, u64::from(RATE) * 11 / 10, started);
            assert!(
                (per_tick..=most).contains(&admitted),
                "{admitted}, and not {per_tick} to {most}: {limits:?}"
            );
        });
    }
}

/// VIPs of both families and protocols under limits of packets.
fn packet_bench(limits: Limits) -> Bench {
    let now = limiters_clock();
    let mut bench = Bench::new();
    for (network, family) in (1..).zip(FAMILIES) {
        for (offset, protocol) in [(0, Protocol::Tcp), (10, Protocol::Udp)] {
            let service = (family.vip(), 80, protocol);
            let vip = vip(service, Encapsulation::Gue, family, network + offset, 3);
            let name = format!("{protocol:?}{}", family.digit()).to_lowercase();
            bench.add(&name, dataplane::program::VipProgram { limits, ..vip });
        }
    }
    bench.apply();
    forget_prefixes(now);
    bench
}

#[test]
fn packets_of_every_kind_are_limited_per_vip_and_per_prefix_where_that_is_asked_for() {
    const FLOOD: u32 = 2_000;
    let one = Limits { packets_per_second: 100, packet_burst: 500, ..Limits::default() };
    let per_prefix =
        Limits { packets_per_second_per_prefix: 100, prefix_packet_burst: 500, ..Limits::default() };
    for (limits, reason) in [(one, "packet_rate_limited"), (per_prefix, "prefix_packet_rate_limited")] {
        for family in FAMILIES {
            let (client, service) = (socket(family.client(), 5000), socket(family.vip(), 80));
            let answer = tcp(service, client, ACK, &[7; 64]).bytes();
            let (kind, code) = if family == Family::V4 { (3, 4) } else { (2, 0) };
            for (packet, protocol) in [
                (tcp(client, service, ACK, b"data"), "tcp"),
                (tcp(client, service, SYN, b""), "tcp"),
                (udp(client, service, b"data"), "udp"),
                (icmp(client.ip(), service.ip(), kind, code, [0, 0, 5, 0], &answer), "tcp"),
            ] {
                alone(move || {
                    let bench = packet_bench(limits);
                    let started = Instant::now();
                    flood(&bench.program_fd(), &packet.frame(), FLOOD);
                    let counters = bench.counters();
                    let (sent, most) = (sum(&counters, "/packets"), most(500, 100, started));
                    assert!((500..=most).contains(&sent), "{sent}, and not 500 to {most}");
                    let dropped = counters[&format!("drops/{protocol}{}/{reason}", family.digit())];
                    assert_eq!(sent + dropped, u64::from(FLOOD));
                });
            }
        }
    }
}

#[test]
fn the_self_test_finds_nothing_wrong_with_a_vip_that_is_flooded_beyond_its_limit() {
    alone(|| {
        let limits = Limits { packets_per_second: 1, packet_burst: 1, ..Limits::default() };
        let mut bench = packet_bench(limits);
        let client = socket(Family::V4.client(), 5000);
        let input = tcp(client, socket(Family::V4.vip(), 80), ACK, b"").frame();
        let limited = |bench: &Bench| sum(&bench.counters(), "/packet_rate_limited");
        let started = Instant::now();
        loop {
            flood(&bench.program_fd(), &input, 100);
            let before = limited(&bench);
            let tested = bench.dataplane.self_test();
            assert!(tested.failures.is_empty(), "{tested:?}");
            if limited(&bench) > before {
                break;
            }
            // A second has passed in between, and the limit let the self-test's packet through.
            assert!(started.elapsed() < Duration::from_secs(60));
        }
    });
}

#[test]
fn two_cpus_together_admit_no_more_packets_than_the_limit() {
    alone(|| {
        const BURST: u32 = 20_000;
        let limits = Limits { packets_per_second: 1000, packet_burst: BURST, ..Limits::default() };
        let bench = mirror(Family::V4, Protocol::Udp, limits);
        let packet = udp(socket(Family::V4.client(), 5000), socket(Family::V4.vip(), 80), b"");
        let started = Instant::now();
        flood_from_two_cpus(&bench, &Ip { ttl: 255, ..packet }.frame(), 300_000);
        let (counters, most) = (bench.counters(), most(BURST.into(), 1000, started));
        assert_limited(&counters, sum(&counters, "/packets"), BURST, most);
    });
}

#[test]
fn a_prefix_that_floods_with_packets_affects_no_other_and_no_connection() {
    alone(|| {
        let limits = Limits {
            connections_per_second_per_prefix: 100,
            packets_per_second_per_prefix: 100,
            prefix_packet_burst: 100,
            ..Limits::default()
        };
        let bench = packet_bench(limits);
        let service = socket(Family::V4.vip(), 80);
        flood(&bench.program_fd(), &tcp(socket("203.0.113.9", 1), service, ACK, b"").frame(), 2_000);
        for flags in [ACK, SYN] {
            assert!(opens(&bench, Family::V4, socket("203.0.114.9", 1), flags));
        }
        let counters = bench.counters();
        assert_eq!(sum(&counters, "/prefix_rate_limited"), 0);
        assert!(sum(&counters, "/prefix_packet_rate_limited") > 0);
    });
}

#[test]
fn limits_of_prefixes_that_refuse_strangers_can_be_seen_to_do_so() {
    alone(|| {
        let limits = Limits { connections_per_second_per_prefix: 1, prefix_burst: 1, ..Limits::default() };
        let bench = bench(limits);
        let program = bench.program_fd();
        let mut sketch: Array<_, PrefixLine> =
            Array::try_from(Map::Array(Bench::map("PREFIX_LIMITERS"))).unwrap();
        let [idle, ..] = sketch.get(&0, 0).unwrap();
        let input = tcp(socket(Family::V4.client(), 5000), socket(Family::V4.vip(), 80), SYN, b"").frame();
        // One prefix alone, which is refused: its two cells are no sign of anything.
        flood(&program, &input, 10_000);
        let counters = bench.counters();
        let (sampled, full) = (sum(&counters, "/prefix_sampled"), sum(&counters, "/prefix_sampled_full"));
        assert!(sampled > 300 && full * 20 < sampled, "{full} of {sampled}");

        // As after a flood from all over the Internet: the time that a cell got stands in every cell.
        let started = Instant::now();
        loop {
            flood(&program, &input, 1);
            // The clock wraps, so the newest is the one that is furthest from what has been idle all the time.
            let cells = (0..PREFIX_LINES).flat_map(|line| sketch.get(&line, 0).unwrap());
            let newest = cells.max_by_key(|cell| cell.wrapping_sub(idle)).unwrap();
            for line in 0..PREFIX_LINES {
                sketch.set(line, [newest; 16], 0).unwrap();
            }
            let before = bench.counters();
            flood(
                &program,
                &tcp(socket("203.0.114.1", 1), socket(Family::V4.vip(), 80), SYN, b"").frame(),
                2_000,
            );
            let after = bench.counters();
            let full = sum(&after, "/prefix_sampled_full") - sum(&before, "/prefix_sampled_full");
            // The cells are full for a second, which may be over already.
            if full > 20 {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{full}");
        }
    });
}
