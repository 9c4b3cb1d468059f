//! From one daemon to the next, with the rights that the service's unit grants and no others.

use crate::bench::{
    BPFFS, Bench, CLIENT_4, Counted, FAMILIES, Family, INTERFACE, VIP_4, XDP_TX, as_the_unit, ip_link,
    settings, socket, vip, with_all_rights, with_table,
};
use crate::packet::{ACK, tcp};
use dataplane::program::Program;
use dataplane::{Dataplane, Settings, Start, detach};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zk_schema::{
    Capacity, Desired, Encapsulation, Protocol, Real, RealName, Vip, VipName, VipState, XdpMode,
};

pub(crate) fn fill(bench: &mut Bench) {
    for (network, family) in (1..).zip(FAMILIES) {
        let service = (family.vip(), 80, Protocol::Tcp);
        bench.add(&format!("v{}", family.digit()), vip(service, Encapsulation::Gue, family, network, 4));
    }
}

pub(crate) fn input() -> Vec<u8> {
    tcp(socket(CLIENT_4, 5), socket(VIP_4, 80), ACK, b"").frame()
}

/// The daemon crashes, and another one starts with these settings and the same program in hand.
fn succeed(bench: Bench, settings: Settings) -> (Bench, Start) {
    let (program, hops) = (bench.program.clone(), bench.hops.clone());
    drop(bench);
    released();
    let (mut next, start) = Bench::open(settings);
    (next.program, next.hops) = (program, hops);
    (next, start)
}

/// Waits until the predecessor's lock is gone: a process that another test starts at the same time has it
/// too, from `fork` until `exec`. To try the lock would leave another one behind in the same way, so the
/// kernel's list of locks is read.
fn released() {
    let directory = fs::metadata(root()).unwrap();
    let (major, minor) = (libc::major(directory.dev()), libc::minor(directory.dev()));
    let of_directory = format!(" {major:02x}:{minor:02x}:{} ", directory.ino());
    eventually("nobody holds the lock", || {
        !fs::read_to_string("/proc/locks").unwrap().contains(&of_directory)
    });
}

/// With room for more VIPs than the predecessor's.
fn larger() -> Settings {
    Settings { capacity: Capacity { vips: 64, ..settings().capacity }, ..settings() }
}

/// The number of the XDP program on the interface.
pub(crate) fn attached() -> Option<u32> {
    let link = ip_link(&format!("-d link show dev {INTERFACE}"));
    let mut words = link.split_whitespace().skip_while(|word| !word.starts_with("prog/xdp"));
    words.nth(2).map(|id| id.parse().unwrap())
}

pub(crate) fn root() -> PathBuf {
    Path::new(BPFFS).join(INTERFACE).join("lb")
}

fn pins(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(folder)).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Runs the attached program, whoever loaded it.
pub(crate) fn run_attached(input: &[u8]) -> (u32, Vec<u8>) {
    let id = attached().expect("a program");
    let pin = root().join("maps").join(format!("program-{id}"));
    crate::bench::test_run(&crate::bench::open_pin(&pin), input, None)
}

#[test]
fn a_successor_takes_over_maps_counters_and_links_and_changes_nothing() {
    as_the_unit(|| {
        let mut first = Bench::new();
        fill(&mut first);
        assert_eq!(attached(), None, "opening attaches nothing");
        first.apply();
        let program = attached();
        assert!(program.is_some());
        let expected = first.run(&input()).frame;
        let counters = first.counters();
        let marks = first.dataplane.probe_marks();
        let links = pins("");
        assert!(links.contains("probe") && (links.contains("xdp-native") || links.contains("xdp-generic")));
        let (mut second, start) = succeed(first, settings());
        assert_eq!(start, Start::TakenOver);
        assert_eq!(attached(), program, "packets notice neither the crash nor the successor's start");
        assert_eq!(run_attached(&input()), (XDP_TX, expected.clone()));
        let applied = second.apply();
        assert_eq!((applied.tables, applied.index), (0, false));
        assert_ne!(attached(), program, "the successor's program is behind the link");
        assert_eq!(second.dataplane.probe_marks(), marks);
        assert_eq!(second.run(&input()).frame, expected);
        // One before the crash, one after it, and one through the successor's program.
        let thrice: Counted = counters.into_iter().map(|(name, count)| (name, count * 3)).collect();
        assert_eq!(second.counters(), thrice);
        assert_eq!(pins(""), links);
    });
}

#[test]
fn a_successor_tells_which_reals_hold_slots() {
    as_the_unit(|| {
        let mut first = Bench::new();
        fill(&mut first);
        first.vip("v4").reals[2].weight = 0;
        *first.vip("v4") = with_table(first.vip("v4").clone());
        first.apply();
        let expected: BTreeSet<(VipName, RealName)> = first
            .program
            .vips
            .iter()
            .flat_map(|(name, vip)| {
                let holding = vip.reals.iter().filter(|real| real.weight != 0);
                holding.map(|real| (name.clone(), real.name.clone()))
            })
            .collect();
        assert_eq!(expected.len(), 7);
        let desired = desired(&first.program);
        assert_eq!(first.dataplane.in_force(&desired), expected);
        drop(first);
        released();
        let (second, _) = Bench::open(settings());
        assert_eq!(second.dataplane.in_force(&desired), expected);
    });
}

/// Returns the operators' records that come to `program`.
fn desired(program: &Program) -> Desired {
    let mut desired = Desired::default();
    for (name, vip) in &program.vips {
        let mut record = Vip::new(vip.address, vip.port, vip.protocol);
        record.encapsulation = vip.encapsulation;
        let reals = vip.reals.iter().map(|real| (real.name.clone(), Real::new(real.address))).collect();
        desired.vips.insert(name.clone(), VipState { vip: record, reals });
    }
    desired
}

#[test]
fn entries_of_vips_and_reals_that_the_successor_does_not_want_are_freed() {
    as_the_unit(|| {
        let mut first = Bench::new();
        fill(&mut first);
        first.apply();
        drop(first);
        for round in 0..10 {
            released();
            let (mut bench, start) = Bench::open(settings());
            assert_eq!(start, Start::TakenOver);
            for number in 0..32 {
                let service = (VIP_4, 1000 + number, Protocol::Tcp);
                let network = u8::try_from(number).unwrap() + round * 8;
                bench.add(
                    &format!("w{round}-{number}"),
                    vip(service, Encapsulation::Gue, Family::V4, network, 4),
                );
            }
            bench.apply();
            let test = bench.dataplane.self_test();
            assert_eq!((test.tested, test.failures.len()), (32, 0), "{:?}", test.failures);
            bench.drops(&input(), "/no_service");
        }
        released();
        let (mut bench, _) = Bench::open(settings());
        bench.apply();
        bench.passes(&input(), "passed");
    });
}

#[test]
fn another_gue_port_or_source_address_takes_effect_on_takeover() {
    as_the_unit(|| {
        let mut first = Bench::new();
        fill(&mut first);
        first.apply();
        let mut other = settings();
        (other.gue_port, other.source_v4) = (7777, Some("10.9.0.8".parse().unwrap()));
        let (mut second, start) = succeed(first, other);
        assert_eq!(start, Start::TakenOver);
        second.apply();
        let frame = second.run(&input()).frame;
        assert_eq!(frame[26..30], [10, 9, 0, 8]);
        assert_eq!(frame[36..38], 7777_u16.to_be_bytes());
    });
}

#[test]
fn a_successor_with_another_capacity_replaces_maps_and_program() {
    as_the_unit(|| {
        let mut first = Bench::new();
        fill(&mut first);
        first.apply();
        let program = attached();
        let expected = first.run(&input()).frame;
        let mut left = map_ids();
        let (mut second, start) = succeed(first, larger());
        assert_eq!(start, Start::Replacing);
        assert_eq!(attached(), program);
        assert_eq!(run_attached(&input()), (XDP_TX, expected.clone()));
        second.apply();
        assert_ne!(attached(), program);
        assert_eq!(run_attached(&input()), (XDP_TX, expected));
        assert_eq!(pins("next"), BTreeSet::new());
        assert!(!root().join("next").exists());
        eventually("the predecessor's maps are gone", || {
            let now = all_map_ids();
            left.retain(|id| now.contains(id));
            left.is_empty()
        });
        assert_eq!(succeed(second, larger()).1, Start::TakenOver);
    });
}

/// Identifiers of the maps that are pinned as those in use.
fn map_ids() -> BTreeSet<u32> {
    let pins = pins("maps").into_iter().filter(|name| !name.starts_with("program-"));
    let pins = pins.map(|name| root().join("maps").join(name));
    pins.map(|path| aya::maps::MapInfo::from_pin(path).unwrap().id()).collect()
}

/// Waits for what the kernel does after a grace period, and tells nobody.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        #[allow(clippy::disallowed_methods, reason = "there is nothing to wait for but time")]
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("after five seconds it is still not so that {what}");
}

fn all_map_ids() -> BTreeSet<u32> {
    with_all_rights(|| aya::maps::loaded_maps().flatten().map(|map| map.id()).collect())
}

#[test]
fn a_crash_before_the_program_is_replaced_leaves_the_predecessor_s_in_force() {
    as_the_unit(|| {
        let mut first = Bench::new();
        fill(&mut first);
        first.apply();
        let program = attached();
        let (second, start) = succeed(first, larger());
        assert_eq!(start, Start::Replacing);
        assert!(root().join("next").exists());
        let (mut third, start) = succeed(second, settings());
        assert_eq!(start, Start::TakenOver);
        assert!(!root().join("next").exists());
        assert_eq!(attached(), program);
        assert_eq!(third.apply().tables, 0);
    });
}

#[test]
fn a_crash_between_replacing_the_program_and_renaming_its_maps_is_mended() {
    as_the_unit(|| {
        let mut first = Bench::new();
        fill(&mut first);
        first.apply();
        let expected = first.run(&input()).frame;
        let counters = first.counters();
        // As if the daemon had died there: the live maps are in `next`.
        fs::rename(root().join("maps"), root().join("next")).unwrap();
        fs::create_dir(root().join("maps")).unwrap();
        let (mut second, start) = succeed(first, settings());
        assert_eq!(start, Start::TakenOver);
        assert!(!root().join("next").exists());
        assert_eq!(second.apply().tables, 0);
        assert_eq!(second.counters(), counters);
        assert_eq!(second.run(&input()).frame, expected);
    });
}

#[test]
fn a_program_that_forwards_is_never_replaced_by_one_with_empty_maps() {
    as_the_unit(|| {
        let mut first = Bench::new();
        fill(&mut first);
        first.apply();
        let program = attached();
        let expected = first.run(&input()).frame;
        let running = first.program_fd();
        drop(first);
        released();
        // As a predecessor that pinned no programs leaves it when it dies between replacing and renaming.
        fs::rename(root().join("maps"), root().join("next")).unwrap();
        fs::remove_file(root().join(format!("next/program-{}", program.unwrap()))).unwrap();
        let error = Dataplane::open(&settings()).err().expect("refused").to_string();
        assert!(error.contains("CAP_SYS_ADMIN"), "{error}");
        assert_eq!(attached(), program);
        assert_eq!(crate::bench::test_run(&running, &input(), None), (XDP_TX, expected));
        released();
        let start = with_all_rights(|| Dataplane::open(&settings()).unwrap().1);
        assert_eq!(start, Start::TakenOver, "the kernel's list of programs tells");

        released();
        remove_pins("maps").unwrap();
        let error = Dataplane::open(&settings()).err().expect("refused").to_string();
        assert!(error.contains("lb-node detach"), "{error}");
        assert_eq!(attached(), program);
        released();
        assert!(detach(INTERFACE, Path::new(BPFFS)).unwrap());
    });
}

/// Removes a folder of pins: a bpffs does not tell the types of its entries, which `remove_dir_all` relies on.
fn remove_pins(folder: &str) -> std::io::Result<()> {
    for pin in pins(folder) {
        fs::remove_file(root().join(folder).join(pin))?;
    }
    fs::remove_dir(root().join(folder))
}

#[test]
fn on_a_kernel_without_pinnable_links_on_egress_nothing_is_touched() {
    as_the_unit(|| {
        let error = Dataplane::open_on("6.1.0-13-amd64", &settings()).err().expect("refused").to_string();
        assert!(error.contains("6.6 or later") && error.contains("6.1.0-13-amd64"), "{error}");
        assert_eq!(attached(), None);
        assert!(!Path::new(BPFFS).join(INTERFACE).exists());
        drop(Dataplane::open_on("6.6.0", &settings()).unwrap());
        assert_eq!(attached(), None, "opening attaches nothing");
    });
}

#[test]
fn detach_leaves_nothing_and_may_be_repeated() {
    as_the_unit(|| {
        let mut bench = Bench::new();
        fill(&mut bench);
        bench.apply();
        let busy = detach(INTERFACE, Path::new(BPFFS)).unwrap_err();
        assert!(busy.to_string().contains("lb-node run"), "{busy}");
        drop(bench);
        released();
        assert!(detach(INTERFACE, Path::new(BPFFS)).unwrap());
        eventually("the kernel has let the program go", || attached().is_none());
        assert!(!Path::new(BPFFS).join(INTERFACE).exists());
        let filters = std::process::Command::new("tc")
            .args(["filter", "show", "dev", INTERFACE, "egress"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&filters.stdout), "");
        assert!(!detach(INTERFACE, Path::new(BPFFS)).unwrap());
        let mut bench = Bench::new();
        fill(&mut bench);
        bench.apply();
        assert!(attached().is_some());
    });
}

#[test]
fn a_second_daemon_on_the_interface_is_refused_and_disturbs_nothing() {
    as_the_unit(|| {
        let mut bench = Bench::new();
        fill(&mut bench);
        bench.apply();
        let program = attached();
        let error = Dataplane::open(&settings()).err().expect("refused").to_string();
        assert!(error.contains("another `lb-node run`"), "{error}");
        assert_eq!(attached(), program);
        assert_eq!(bench.run(&input()).verdict, XDP_TX);
    });
}

#[test]
fn the_mode_is_as_asked_and_can_be_changed() {
    as_the_unit(|| {
        let mut bench = Bench::new();
        fill(&mut bench);
        bench.apply();
        assert!(bench.dataplane.is_native(), "veth has native XDP");
        for (mode, native, link) in [
            (XdpMode::Generic, false, "xdp-generic"),
            (XdpMode::Auto, false, "xdp-generic"),
            (XdpMode::Native, true, "xdp-native"),
            (XdpMode::Auto, true, "xdp-native"),
        ] {
            let (next, start) = succeed(bench, Settings { xdp_mode: mode, ..settings() });
            bench = next;
            assert_eq!(start, Start::TakenOver);
            bench.apply();
            assert_eq!(bench.dataplane.is_native(), native, "{mode:?}");
            assert!(pins("").contains(link), "{:?}", pins(""));
            assert_eq!(pins("").iter().filter(|name| name.starts_with("xdp-")).count(), 1);
            assert_eq!(run_attached(&input()).0, XDP_TX);
        }
    });
}

#[test]
fn an_interface_that_was_made_anew_gets_the_programs_again() {
    as_the_unit(|| {
        let mut bench = Bench::new();
        fill(&mut bench);
        bench.apply();
        ip_link(&format!("link del {INTERFACE}"));
        ip_link(&format!("link add {INTERFACE} address 02:00:00:00:00:01 type veth peer name back"));
        ip_link(&format!("link set {INTERFACE} up"));
        let (mut bench, start) = succeed(bench, settings());
        assert_eq!(start, Start::TakenOver);
        for hop in bench.hops.values_mut() {
            hop.ifindex = crate::bench::front();
        }
        bench.apply();
        assert_eq!(run_attached(&input()).0, XDP_TX);
    });
}
