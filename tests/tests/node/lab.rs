//! The lab itself: before it judges others, it must be sound.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use drover_tests::{Broker, Fleet, Lab, MQTT_PORT, Segment, Topology, wait_until};

const SOON: Duration = Duration::from_secs(10);

fn namespaces_of(lab: &str) -> Vec<String> {
    let Ok(listing) = fs::read_dir("/run/netns") else { return Vec::new() };
    let names = listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("{lab}-"))).collect()
}

fn runs(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // A zombie has ended; it only waits to be reaped.
    !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

#[test]
fn hosts_reach_each_other_over_both_families_on_every_kind_of_segment() {
    for segment in [Segment::Routed, Segment::Shared] {
        let net = Topology::builder().clients(1).nodes(1).reals(2).segment(segment).build().unwrap();
        for from in net.clients.iter().chain(&net.nodes).chain(&net.reals) {
            for to in net.clients.iter().chain(&net.nodes).chain(&net.reals) {
                from.host.run(["ping", "-c1", "-W2", &to.v4.to_string()]).unwrap();
                from.host.run(["ping", "-c1", "-W2", &to.v6.to_string()]).unwrap();
            }
        }
    }
}

#[test]
fn a_lab_leaves_nothing_behind() {
    let net = Topology::builder().build().unwrap();
    let (name, dir, bpffs) = (net.lab.name().to_owned(), net.lab.dir(), net.router.bpffs().to_owned());
    let daemon = net.router.command("sleep").arg("1000").spawn().unwrap();
    // Something that the lab has no handle for, as a daemon that left its parent.
    net.router.run(["sh", "-c", "setsid sleep 1001 </dev/null >/dev/null 2>&1 & echo $!"]).unwrap();
    let stray = net.router.run(["ip", "netns", "pids", net.router.namespace()]).unwrap();
    let strays: Vec<u32> =
        stray.lines().filter_map(|pid| pid.trim().parse().ok()).filter(|pid| runs(*pid)).collect();
    assert!(strays.contains(&daemon.pid()), "{strays:?}");
    assert!(strays.len() >= 2, "{strays:?}");
    assert_eq!(namespaces_of(&name).len(), 4);
    assert!(bpffs.is_dir());

    drop(net);

    assert_eq!(namespaces_of(&name), Vec::<String>::new());
    for pid in strays {
        assert!(!runs(pid), "process {pid} outlived the lab");
    }
    assert!(!dir.exists());
    assert!(!bpffs.exists());
    drop(daemon);
}

/// Not a test of its own: the process that the next test lets crash.
#[test]
fn predecessor() {
    let Ok(note) = std::env::var("DROVER_LAB_PREDECESSOR") else { return };
    let lab = Lab::new().unwrap();
    let host = lab.host("orphan").unwrap();
    let sleeper = host.command("sleep").arg("1000").spawn().unwrap();
    assert_eq!(namespaces_of(lab.name()), [host.namespace()]);
    assert!(runs(sleeper.pid()));
    if note.ends_with(".kept") {
        fs::write(&note, format!("{} {}", lab.name(), sleeper.pid())).unwrap();
        lab.keep().unwrap();
        return;
    }
    fs::write(note, format!("{} {}", lab.name(), sleeper.pid())).unwrap();
    std::process::abort();
}

/// Runs [`predecessor`] in a process of its own and returns its lab's name and the process it started.
fn leave_a_lab_behind(note: &Path) -> (String, u32) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["lab::predecessor", "--exact"])
        .env("DROVER_LAB_PREDECESSOR", note)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.success(), note.extension().is_some_and(|ending| ending == "kept"));
    let text = fs::read_to_string(note).unwrap();
    let (lab, pid) = text.split_once(' ').unwrap();
    (lab.to_owned(), pid.parse().unwrap())
}

#[test]
fn what_a_crashed_predecessor_left_is_swept_and_what_lives_is_not() {
    let living = Lab::new().unwrap();
    let host = living.host("living").unwrap();
    let mut process = host.command("sleep").arg("1000").spawn().unwrap();

    let folder = tempfile::tempdir().unwrap();
    let (lab, pid) = leave_a_lab_behind(&folder.path().join("note"));
    // Another run on this machine may already have swept; that is as good.
    Lab::sweep().unwrap();

    assert_eq!(namespaces_of(&lab), Vec::<String>::new());
    assert!(!runs(pid));
    assert!(!Path::new("/run/drover-lab").join(&lab).exists());
    assert_eq!(namespaces_of(living.name()).len(), 1);
    assert!(process.is_running().unwrap());
}

#[test]
fn a_kept_lab_outlives_its_process_and_sweeps_until_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (lab, pid) = leave_a_lab_behind(&folder.path().join("note.kept"));

    Lab::sweep().unwrap();
    assert_eq!(namespaces_of(&lab).len(), 1);
    assert!(runs(pid));

    assert!(Lab::kept().unwrap().contains(&lab));
    Lab::remove_kept(&lab).unwrap();
    assert!(!Lab::kept().unwrap().contains(&lab));
    assert_eq!(namespaces_of(&lab), Vec::<String>::new());
    assert!(!runs(pid));
}

#[test]
fn sockets_opened_inside_a_host_stay_there() {
    let net = Topology::builder().build().unwrap();
    let (client, real) = (&net.clients[0], &net.reals[0]);
    let listener = real.host.enter(|| TcpListener::bind((real.v6, 7))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    assert!(TcpStream::connect_timeout(&address, SOON).is_err(), "reachable from outside the lab");
    let stream = client.host.enter(|| TcpStream::connect_timeout(&address, SOON)).unwrap().unwrap();
    assert_eq!(stream.local_addr().unwrap().ip(), IpAddr::from(client.v6));
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer, stream.local_addr().unwrap());
}

#[test]
fn a_command_that_hangs_is_ended_and_named() {
    let lab = Lab::new().unwrap();
    let host = lab.host("slow").unwrap();
    let error = host.command("sleep").arg("1000").limit(Duration::from_millis(50)).run().unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("sleep 1000") && message.contains("slow"), "{message}");
    wait_until("the hanging command to be gone", SOON, || {
        Ok(host
            .run(["ip", "netns", "pids", host.namespace()])?
            .lines()
            .all(|pid| {
                pid.trim().parse::<u32>().is_ok_and(|pid| {
                    !fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains("sleep")
                })
            })
            .then_some(()))
    })
    .unwrap();
}

#[test]
fn a_process_that_ends_too_early_is_reported_with_its_output() {
    let lab = Lab::new().unwrap();
    let host = lab.host("brief").unwrap();
    let mut process = host.command("sh").args(["-c", "echo the dog ate it >&2; exit 3"]).spawn().unwrap();
    let message = format!("{:#}", process.wait_for_line("never", SOON).unwrap_err());
    assert!(message.contains("the dog ate it") && message.contains("3"), "{message}");
}

#[test]
fn mqtt_clients_hold_connections_to_a_broker_and_notice_its_death() {
    let net = Topology::builder().clients(1).reals(1).build().unwrap();
    let vips: [IpAddr; 2] = ["198.51.100.10".parse().unwrap(), "2001:db8:100::10".parse().unwrap()];
    for vip in vips {
        net.reals[0].host.hold_vip(vip).unwrap();
        net.route_vip_to(vip, &net.reals).unwrap();
    }
    let mut broker = Broker::start(&net.reals[0].host).unwrap();
    let fleets = vips.map(|vip| {
        let ids = (0..5).map(move |n| format!("{}-{n}", if vip.is_ipv4() { "v4" } else { "v6" }));
        Fleet::connect(&net.clients[0].host, SocketAddr::new(vip, MQTT_PORT), ids).unwrap()
    });
    for fleet in &fleets {
        fleet.settle(2).unwrap();
        assert_eq!(fleet.alive().len(), 5, "{:?}", fleet.sessions());
    }
    let accepted = broker.accepted().unwrap();
    assert_eq!(accepted.len(), 10);
    let peers = accepted.iter().map(|connection| connection.peer).collect();
    assert_eq!(broker.established().unwrap(), peers);

    broker.process().kill().unwrap();

    for fleet in &fleets {
        fleet.settle(1).unwrap();
        assert_eq!(fleet.alive().len(), 0, "{:?}", fleet.sessions());
    }
}
