//! From one program to the next, while packets flow.

use crate::bench::{
    Bench, CLIENT_4, FAMILIES, Family, VIP_4, XDP_TX, alone, counted, front, hop, ip, mac_of, real, socket,
    test_run, unwrap, vip, with_table,
};
use crate::packet::{ACK, Random, tcp};
use dataplane::Error;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use zk_schema::{Affinity, Capacity, Encapsulation, Limits, Protocol};

/// Runs packets of many flows to VIP_4, port 80, while `change` is at work; returns the outcomes: verdict, real
/// and destination MAC, by flow.
fn meanwhile(
    bench: &mut Bench,
    change: impl FnOnce(&mut Bench, &dyn Fn()),
) -> BTreeSet<(u16, u32, IpAddr, [u8; 6])> {
    let program = bench.program_fd();
    let (done, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                for port in 1..=64 {
                    let input = tcp(socket(CLIENT_4, port), socket(VIP_4, 80), ACK, b"").frame();
                    let (verdict, frame) = test_run(&program, &input, None);
                    let destination = unwrap(&frame, Encapsulation::Ipip).0;
                    seen.insert((port, verdict, destination, frame[..6].try_into().unwrap()));
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            seen
        });
        // Until every flow has been seen in the present state.
        let settle = || {
            let until = rounds.load(Ordering::Relaxed) + 2;
            while rounds.load(Ordering::Relaxed) < until && !runner.is_finished() {
                std::thread::yield_now();
            }
        };
        settle();
        change(bench, &settle);
        settle();
        done.store(true, Ordering::Relaxed);
        runner.join().unwrap()
    })
}

fn owners(bench: &Bench) -> Vec<IpAddr> {
    (1..=64).map(|port| bench.owner("v", socket(CLIENT_4, port), 80).address).collect()
}

fn service() -> (&'static str, u16, Protocol) {
    (VIP_4, 80, Protocol::Tcp)
}

#[test]
fn while_tables_are_swapped_every_packet_goes_to_the_old_or_the_new_real() {
    alone(|| {
        let mut bench = Bench::new();
        bench.add("v", vip(service(), Encapsulation::Ipip, Family::V4, 1, 6));
        bench.apply();
        let mut allowed: Vec<BTreeSet<IpAddr>> =
            owners(&bench).into_iter().map(|real| [real].into()).collect();
        let seen = meanwhile(&mut bench, |bench, settle| {
            for round in 0..40 {
                let mut next = vip(service(), Encapsulation::Ipip, Family::V4, 1 + round % 3, 6);
                for (real, weight) in next.reals.iter_mut().zip([1, 3, 0, 2, 5, 1]) {
                    real.weight = weight + u16::from(round % 2);
                }
                bench.add("v", with_table(next));
                for (allowed, real) in allowed.iter_mut().zip(owners(bench)) {
                    allowed.insert(real);
                }
                let applied = bench.apply();
                assert_eq!((applied.tables, applied.index), (1, false));
                if round % 8 == 0 {
                    settle();
                }
            }
        });
        for (port, verdict, destination, mac) in seen {
            assert_eq!(verdict, XDP_TX);
            assert!(allowed[usize::from(port) - 1].contains(&destination), "port {port} to {destination}");
            assert_eq!(mac, mac_of(destination));
        }
    });
}

#[test]
fn while_a_mac_address_changes_every_packet_has_the_old_or_the_new_one() {
    alone(|| {
        let mut bench = Bench::new();
        bench.add("v", vip(service(), Encapsulation::Ipip, Family::V4, 1, 3));
        bench.apply();
        let other = |address| mac_of(address).map(|byte| byte ^ 0x54);
        let seen = meanwhile(&mut bench, |bench, settle| {
            let old = bench.hops.clone();
            let mut new = old.clone();
            for (address, hop) in &mut new {
                hop.destination_mac = other(*address);
            }
            for _ in 0..40 {
                bench.hops.clone_from(&new);
                bench.apply_next_hops();
                bench.hops.clone_from(&old);
                bench.apply_next_hops();
            }
            bench.hops = new;
            bench.apply_next_hops();
            settle();
        });
        let mut both = BTreeSet::new();
        for (_, verdict, destination, mac) in seen {
            assert_eq!(verdict, XDP_TX);
            assert!(mac == mac_of(destination) || mac == other(destination), "{mac:02x?}");
            both.insert(mac == mac_of(destination));
        }
        assert_eq!(both.len(), 2);
    });
}

#[test]
fn while_other_vips_come_and_go_none_of_a_vip_s_packets_is_lost() {
    alone(|| {
        let mut bench = Bench::new();
        bench.add("v", vip(service(), Encapsulation::Ipip, Family::V4, 1, 3));
        bench.apply();
        let expected: Vec<_> = owners(&bench);
        let seen = meanwhile(&mut bench, |bench, _| {
            for round in 0..30 {
                bench.program.vips.retain(|name, _| name.as_str() == "v");
                for port in 0..10 {
                    let service = (VIP_4, 100 + round * 10 + port, Protocol::Tcp);
                    bench.add(&format!("w{port}"), vip(service, Encapsulation::Gue, Family::V6, 9, 2));
                }
                assert!(bench.apply().index);
            }
        });
        assert_eq!(seen.len(), 64);
        for (port, verdict, destination, _) in seen {
            assert_eq!((verdict, destination), (XDP_TX, expected[usize::from(port) - 1]));
        }
    });
}

#[test]
fn a_vip_that_is_removed_is_the_kernel_s_again_and_its_counters_go_with_it() {
    alone(|| {
        let mut bench = Bench::new();
        bench.add("v", vip(service(), Encapsulation::Ipip, Family::V4, 1, 3));
        bench.apply();
        let input = tcp(socket(CLIENT_4, 5), socket(VIP_4, 80), ACK, b"").frame();
        assert_eq!(bench.run(&input).verdict, XDP_TX);
        let mut unreachable = vip((VIP_4, 81, Protocol::Tcp), Encapsulation::Ipip, Family::V4, 2, 1);
        unreachable.reals[0].weight = 0;
        bench.add("dead", with_table(unreachable));
        bench.apply();
        let lost = tcp(socket(CLIENT_4, 5), socket(VIP_4, 81), ACK, b"").frame();
        bench.drops(&lost, "dead/no_real");
        bench.program.vips.clear();
        assert!(bench.apply().index);
        bench.passes(&input, "passed");
        bench.passes(&lost, "passed");
        // Others that take their places in the maps start from nothing.
        bench.add("w", vip(service(), Encapsulation::Ipip, Family::V4, 3, 3));
        bench.add("x", vip((VIP_4, 81, Protocol::Tcp), Encapsulation::Ipip, Family::V4, 4, 3));
        bench.apply();
        let inherited: Vec<_> =
            bench.counters().into_keys().filter(|name| !name.starts_with("events")).collect();
        assert_eq!(inherited, Vec::<String>::new());
    });
}

#[test]
fn applying_the_same_program_again_changes_nothing() {
    alone(|| {
        let mut bench = Bench::new();
        for (network, family) in (1..).zip(FAMILIES) {
            let service = (family.vip(), 80, Protocol::Udp);
            bench.add(&format!("v{network}"), vip(service, Encapsulation::Gue, family, network, 4));
        }
        let first = bench.apply();
        assert_eq!((first.tables, first.index), (2, true));
        let marks = bench.dataplane.probe_marks();
        for _ in 0..3 {
            // An equal table that is not the same one counts as the same, too.
            let vips: Vec<_> = bench.program.vips.values().cloned().map(with_table).collect();
            for (name, vip) in ["v1", "v2"].into_iter().zip(vips) {
                *bench.vip(name) = vip;
            }
            let again = bench.apply();
            assert_eq!((again.tables, again.index), (0, false));
        }
        assert_eq!(bench.dataplane.probe_marks(), marks);
    });
}

/// A program drawn at random, within the capacity given.
fn random_program(bench: &mut Bench, random: &mut Random, vips: usize, reals: usize) {
    bench.program.vips.clear();
    let mut room = reals;
    for _ in 0..random.below(vips + 1) {
        let number = u8::try_from(random.below(12)).unwrap();
        let family = FAMILIES[random.below(2)];
        let encapsulation = [Encapsulation::Gue, Encapsulation::Ipip, Encapsulation::L2][random.below(3)];
        let protocol = [Protocol::Tcp, Protocol::Udp][random.below(2)];
        let real_family = if encapsulation == Encapsulation::L2 { family } else { FAMILIES[random.below(2)] };
        // A name may come back as something else altogether.
        let name = format!("v{number}");
        if bench.program.vips.contains_key(name.as_str()) {
            continue;
        }
        let port = if random.below(4) == 0 { 0 } else { 80 + u16::from(number) };
        let service = (family.vip(), port, protocol);
        let taken = |known: &dataplane::program::VipProgram| {
            (known.address, known.port, known.protocol) == (ip(family.vip()), port, protocol)
        };
        if bench.program.vips.values().any(taken) {
            continue;
        }
        let count = random.below(room.min(9) + 1);
        room -= count;
        let mut vip = vip(service, encapsulation, real_family, number, 0);
        // Any of a dozen reals, not always the first.
        let skipped = random.below(4);
        vip.reals =
            (0..count).map(|n| real(real_family, number, u8::try_from(n + skipped).unwrap())).collect();
        for real in &mut vip.reals {
            real.weight = u16::try_from(random.below(4)).unwrap();
        }
        vip.reals.sort_by(|a, b| a.name.cmp(&b.name));
        vip.affinity = [Affinity::Flow, Affinity::Source][random.below(2)];
        if random.below(3) == 0 {
            vip.limits = Limits { connections_per_second: 1 + u32::from(random.byte()), ..Limits::default() };
        }
        bench.add(&name, with_table(vip));
    }
}

#[test]
fn hundreds_of_random_programs_in_a_row_fit_a_capacity_that_each_of_them_fits() {
    const SEED: u64 = 0xa991;
    alone(|| {
        let mut settings = crate::bench::settings();
        // Not one VIP or table more than a program may need, but for the table to be switched to.
        settings.capacity = Capacity { vips: 6, reals: 40, tables: 7 };
        let mut bench = Bench::with(settings);
        let mut random = Random(SEED);
        for round in 0..200 {
            random_program(&mut bench, &mut random, 6, 40);
            let result = bench.dataplane.apply(&bench.program, &bench.hops);
            assert!(result.is_ok(), "seed {SEED:#x}, round {round}: {result:?}");
            let test = bench.dataplane.self_test();
            assert_eq!(test.tested, bench.program.vips.len());
            assert!(test.failures.is_empty(), "seed {SEED:#x}, round {round}: {:?}", test.failures);
            let statistics = bench.dataplane.statistics().unwrap();
            let named: BTreeSet<_> = statistics.reals.into_keys().collect();
            let expected: BTreeSet<_> = bench
                .program
                .vips
                .iter()
                .flat_map(|(name, vip)| vip.reals.iter().map(|real| (name.clone(), real.name.clone())))
                .collect();
            assert_eq!(named, expected);
            assert_eq!(bench.dataplane.probe_marks().into_keys().collect::<BTreeSet<_>>(), expected);
            assert!(bench.dataplane.unresolved().is_empty());
        }
    });
}

#[test]
fn all_vips_and_reals_can_be_replaced_at_once_at_full_capacity() {
    alone(|| {
        let mut settings = crate::bench::settings();
        settings.capacity = Capacity { vips: 4, reals: 40, tables: 5 };
        let mut bench = Bench::with(settings);
        for generation in 0..20_u8 {
            bench.program.vips.clear();
            for number in 0..4 {
                let service = (VIP_4, 80 + u16::from(number), Protocol::Tcp);
                let name = format!("v{number}-{generation}");
                bench.add(&name, vip(service, Encapsulation::Gue, Family::V4, generation * 4 + number, 10));
            }
            bench.apply();
            let test = bench.dataplane.self_test();
            assert_eq!((test.tested, test.failures.len()), (4, 0), "{:?}", test.failures);
        }
        // All reals of VIPs that stay.
        for generation in 0..20_u8 {
            for number in 0..4 {
                let service = (VIP_4, 80 + u16::from(number), Protocol::Tcp);
                let name = format!("v{number}-19");
                bench.add(
                    &name,
                    vip(service, Encapsulation::Ipip, Family::V4, 100 + generation * 4 + number, 10),
                );
            }
            bench.apply();
            let test = bench.dataplane.self_test();
            assert_eq!((test.tested, test.failures.len()), (4, 0), "{:?}", test.failures);
        }
    });
}

#[test]
fn a_program_that_does_not_fit_is_refused_and_changes_nothing() {
    alone(|| {
        let mut settings = crate::bench::settings();
        settings.capacity = Capacity { vips: 2, reals: 8, tables: 3 };
        let mut bench = Bench::with(settings);
        bench.add("v", vip(service(), Encapsulation::Ipip, Family::V4, 1, 4));
        bench.apply();
        let good = bench.program.clone();
        let input = tcp(socket(CLIENT_4, 5), socket(VIP_4, 80), ACK, b"").frame();
        let before = bench.run(&input).frame;
        bench.add("w", vip((VIP_4, 81, Protocol::Tcp), Encapsulation::Ipip, Family::V4, 2, 5));
        let refused = bench.dataplane.apply(&bench.program, &bench.hops).unwrap_err();
        assert!(matches!(refused, Error::Capacity { field: "reals", .. }), "{refused}");
        *bench.vip("w") = vip((VIP_4, 81, Protocol::Tcp), Encapsulation::Ipip, Family::V4, 2, 1);
        bench.add("x", vip((VIP_4, 82, Protocol::Tcp), Encapsulation::Ipip, Family::V4, 3, 1));
        let refused = bench.dataplane.apply(&bench.program, &bench.hops).unwrap_err();
        assert!(matches!(refused, Error::Capacity { field: "vips", .. }), "{refused}");
        bench.program = good;
        bench.program.table_size += 6;
        let refused = bench.dataplane.apply(&bench.program, &bench.hops).unwrap_err();
        assert!(matches!(refused, Error::TableSize { .. }), "{refused}");
        assert_eq!(bench.run(&input).frame, before);
        let other = tcp(socket(CLIENT_4, 5), socket(VIP_4, 81), ACK, b"").frame();
        bench.drops(&other, "/no_service");
    });
}

#[test]
fn self_tests_find_a_real_that_is_not_as_the_program_says_and_leave_no_counts() {
    alone(|| {
        let mut bench = Bench::new();
        bench.add("v", vip(service(), Encapsulation::Ipip, Family::V4, 1, 3));
        let mut dead = vip((VIP_4, 81, Protocol::Udp), Encapsulation::Ipip, Family::V4, 2, 1);
        dead.reals[0].weight = 0;
        bench.add("dead", with_table(dead));
        let mut lost = vip((VIP_4, 82, Protocol::Udp), Encapsulation::Ipip, Family::V4, 3, 1);
        lost.reals[0].address = ip("10.77.77.77");
        bench.add("lost", lost);
        bench.hops.remove(&ip("10.77.77.77"));
        bench.apply();
        for _ in 0..10 {
            let test = bench.dataplane.self_test();
            assert_eq!((test.tested, test.failures.len()), (3, 0), "{:?}", test.failures);
        }
        assert_eq!(bench.counters(), counted(&[]));
        // A path too narrow for anything is found.
        for address in bench.hops.clone().into_keys() {
            let mut narrow = hop(front(), address);
            narrow.mtu = 30;
            bench.hops.insert(address, narrow);
        }
        bench.apply_next_hops();
        let test = bench.dataplane.self_test();
        assert_eq!(test.failures.len(), 1, "{:?}", test.failures);
        assert!(test.failures.contains_key("v"));
    });
}
