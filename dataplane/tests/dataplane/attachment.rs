//! Tests that the programs stay attached.

use crate::bench::{Bench, INTERFACE, XDP_TX, as_the_unit, ip_link};
use crate::takeover::{attached, eventually, fill, input, root, run_attached};
use aya::Ebpf;
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use dataplane::attachment::{Attachment, Lost};
use std::fs;
use std::process::Command;

/// A data plane that forwards in the driver.
fn forwarding() -> Bench {
    let mut bench = Bench::new();
    fill(&mut bench);
    assert_eq!(bench.dataplane.look_after_attachment(), Attachment::default(), "nothing is missing yet");
    bench.apply();
    assert!(bench.dataplane.is_native());
    assert_eq!(bench.dataplane.look_after_attachment(), Attachment::default());
    bench
}

/// Takes a program off the interface while its link stays pinned.
fn detach_link(pin: &str) {
    let pin = root().join(pin);
    let done = Command::new("bpftool").args(["link", "detach", "pinned"]).arg(pin).output().expect("bpftool");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_program_that_somebody_took_off_is_put_back() {
    as_the_unit(|| {
        let mut bench = forwarding();
        detach_link("xdp-native");
        eventually("XDP is off", || attached().is_none());
        assert_eq!(bench.dataplane.look_after_attachment(), Attachment { problem: None, restored: 1 });
        assert_eq!(run_attached(&input()).0, XDP_TX);

        detach_link("probe");
        assert_eq!(bench.dataplane.look_after_attachment(), Attachment { problem: None, restored: 2 });

        fs::remove_file(root().join("xdp-native")).unwrap();
        eventually("XDP is off", || attached().is_none());
        assert_eq!(bench.dataplane.look_after_attachment(), Attachment { problem: None, restored: 3 });
        assert_eq!(run_attached(&input()).0, XDP_TX);
        assert_eq!(bench.dataplane.look_after_attachment(), Attachment { problem: None, restored: 3 });
    });
}

#[test]
fn where_another_program_has_taken_the_place_it_is_told_until_that_is_gone() {
    as_the_unit(|| {
        let mut bench = forwarding();
        detach_link("xdp-native");
        eventually("XDP is off", || attached().is_none());
        let mut other = Ebpf::load(dataplane::BENCHMARK_HARNESS).unwrap();
        let program: &mut Xdp = other.program_mut("drover_empty").unwrap().try_into().unwrap();
        program.load().unwrap();
        let link = program.attach(INTERFACE, XdpMode::Driver).unwrap();
        let Some(Lost::Program(problem)) = bench.dataplane.look_after_attachment().problem else {
            panic!("not noticed")
        };
        assert!(problem.contains("drover_lb") && problem.contains(INTERFACE), "{problem}");
        program.detach(link).unwrap();
        eventually("the place is free", || attached().is_none());
        assert_eq!(bench.dataplane.look_after_attachment(), Attachment { problem: None, restored: 1 });
        assert_eq!(run_attached(&input()).0, XDP_TX);
    });
}

#[test]
fn an_interface_that_is_gone_or_made_anew_is_noticed_and_nothing_is_attached_to_the_stranger() {
    as_the_unit(|| {
        let mut bench = forwarding();
        let lost = |bench: &mut Bench| match bench.dataplane.look_after_attachment() {
            Attachment { problem: Some(Lost::Interface(problem)), restored: 0 } => problem,
            other => panic!("{other:?}"),
        };
        ip_link(&format!("link del {INTERFACE}"));
        assert!(lost(&mut bench).contains("is gone"));
        ip_link(&format!("link add {INTERFACE} type veth peer name back"));
        assert!(lost(&mut bench).contains("made anew"));
        assert_eq!(attached(), None);
    });
}

#[test]
fn a_new_mac_address_of_the_interface_is_known_without_news_of_next_hops() {
    as_the_unit(|| {
        let mut bench = forwarding();
        let mut frame = input();
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x55]);
        assert_ne!(bench.run(&frame).verdict, XDP_TX);
        ip_link(&format!("link set dev {INTERFACE} address 02:00:00:00:00:55"));
        assert_eq!(bench.dataplane.look_after_attachment(), Attachment::default());
        assert_eq!(bench.run(&frame).verdict, XDP_TX);
    });
}
