//! `lbctl capture`: samples of several nodes in one file that other programs read.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::REALS;
use drover_tests::{Host, Lbctl, PUBLISH, Process, Protocol, Settings, Site, visit, wait_until};

const LIMIT: Duration = Duration::from_secs(30);
const FLOWS: usize = 48;
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9940);

/// `lbctl`, built beside this test.
fn lbctl() -> PathBuf {
    let own = env::current_exe().unwrap();
    let found =
        own.ancestors().skip(1).take(2).map(|folder| folder.join("lbctl")).find(|path| path.is_file());
    found.expect("lbctl is built beside the tests (`cargo xtask build`)")
}

/// One host's admin address at another host's loopback, as by `ssh -L`.
fn tunnel(at: &Host, port: u16, to: &Host) {
    let listener = at.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).unwrap().unwrap();
    let to = to.clone();
    thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.unwrap();
            let far = to.enter(|| TcpStream::connect_timeout(&ADMIN, LIMIT)).unwrap().unwrap();
            let (mut near_reader, mut far_writer) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || {
                let _ = io::copy(&mut near_reader, &mut far_writer);
                let _ = far_writer.shutdown(std::net::Shutdown::Both);
            });
            thread::spawn(move || {
                let (mut near, mut far) = (near, far);
                let _ = io::copy(&mut far, &mut near);
                let _ = near.shutdown(std::net::Shutdown::Both);
            });
        }
    });
}

/// Interface, comment, destination and UDP port of each packet, as tshark reads them.
fn packets(host: &Host, file: &Path) -> Vec<[String; 4]> {
    let fields = ["frame.interface_name", "frame.comment", "ip.dst", "udp.dstport"];
    let mut command = host.command("tshark").arg("-r").arg(file).args(["-T", "fields"]);
    for field in fields {
        command = command.args(["-e", field]);
    }
    let text = command.run().unwrap();
    let line = |line: &str| {
        let words: Vec<String> = line.split('\t').map(str::to_owned).collect();
        words.try_into().unwrap_or_else(|words| panic!("not four fields: {words:?}"))
    };
    text.lines().map(line).collect()
}

/// Waits until the file has the names of these nodes, which they write when they begin to take samples.
fn wait_for_names(capture: &mut Process, file: &Path, names: &[&str]) {
    let outcome = capture.wait_ready("nodes to take samples", LIMIT, || {
        let bytes = fs::read(file).unwrap_or_default();
        let has = |name: &&str| bytes.windows(name.len()).any(|part| part == name.as_bytes());
        Ok(names.iter().all(has).then_some(()))
    });
    outcome.unwrap();
}

#[test]
fn packets_of_all_nodes_are_in_one_file_with_node_and_real() {
    let site = Site::of_two_services(2, Settings::default()).unwrap();
    site.wait_agreed(&[("publish", REALS)]).unwrap();
    let (first, second) = (&site.net.nodes[0].host, &site.net.nodes[1].host);
    tunnel(first, 9950, second);
    let file = first.dir().join("publish.pcapng");
    let command = first.command(lbctl()).args(["capture", "publish", "--seconds", "20", "--count", "48"]);
    let command =
        command.args(["--admin", "127.0.0.1:9940", "--admin", "127.0.0.1:9950", "-o", "json", "-w"]);
    let mut capture = command.arg(&file).spawn().unwrap();
    wait_for_names(&mut capture, &file, &["node-1", "node-2"]);

    // A node has one reader at a time.
    let operator = Lbctl::new(first, &site.ensemble.connect_string());
    let busy = operator.run(&["capture", "publish", "--node", "node-1", "-w", "/dev/null"]).unwrap();
    assert!(busy.code == 1 && busy.stderr.contains("another capture is under way"), "{busy:?}");

    let client = &site.net.clients[0].host;
    let visits = visit(client, Protocol::Udp, PUBLISH, FLOWS, b"hello", LIMIT).unwrap();
    assert_eq!(visits.failed, [""; 0]);
    let status = capture.wait(LIMIT).unwrap();
    assert!(status.success(), "{}", capture.log().unwrap());
    let said: serde_json::Value = serde_json::from_str(&capture.log().unwrap()).unwrap();
    assert_eq!(said["packets"], FLOWS, "{said:#}");

    let packets = packets(first, &file);
    assert_eq!(packets.len(), FLOWS);
    let (mut nodes, mut reals) = (BTreeSet::new(), BTreeSet::new());
    for [node, comment, to, port] in &packets {
        assert_eq!((to.as_str(), port.as_str()), ("198.51.100.10", "7000"), "{packets:?}");
        nodes.insert(node.as_str());
        reals.insert(comment.as_str());
    }
    assert_eq!(nodes, ["node-1", "node-2"].into());
    // Which reals they went to, each server can tell as well.
    let served = visits.servers().into_iter().map(|server| format!("real={server}")).collect::<BTreeSet<_>>();
    assert_eq!(reals, served.iter().map(String::as_str).collect());
}

#[test]
fn a_node_that_only_its_own_host_can_ask_is_named_and_sampling_ends_with_its_reader() {
    let site = Site::of_two_services(2, Settings::default()).unwrap();
    site.wait_agreed(&[("publish", REALS)]).unwrap();
    let operator = Lbctl::new(&site.net.nodes[0].host, &site.ensemble.connect_string());
    let file = site.net.nodes[0].host.dir().join("some.pcapng");
    let file = file.to_str().unwrap();

    let refused = operator.run(&["capture", "publish", "-w", file]).unwrap();
    assert!(
        refused.code == 1 && refused.stderr.contains("node-2 listens on 127.0.0.1:9940 only"),
        "{refused:?}"
    );
    assert!(refused.stderr.contains("--node node-1"), "{refused:?}");
    let unknown = operator.run(&["capture", "nothing", "-w", file]).unwrap();
    assert!(unknown.code == 1 && unknown.stderr.contains("there are publish, subscribe"), "{unknown:?}");
    // Nobody sends anything: the time ends it.
    let own =
        operator.json(&["capture", "publish", "--node", "node-1", "--seconds", "1", "-w", file]).unwrap();
    assert_eq!((&own["packets"], &own["nodes"][0]["node"]), (&0.into(), &"node-1".into()), "{own:#}");

    // A reader that goes away lets the next one in.
    let host = &site.net.nodes[0].host;
    let other = host.dir().join("other.pcapng");
    let command = host.command(lbctl()).args(["capture", "publish", "--admin", "127.0.0.1:9940", "-w"]);
    let mut reader = command.arg(&other).spawn().unwrap();
    wait_for_names(&mut reader, &other, &["node-1"]);
    let one_second = ["capture", "publish", "--node", "node-1", "--seconds", "1", "-w", file];
    assert_eq!(operator.run(&one_second).unwrap().code, 1);
    reader.kill().unwrap();
    wait_until("the next one to be let in", LIMIT, || {
        Ok((operator.run(&one_second)?.code == 0).then_some(()))
    })
    .unwrap();
}
