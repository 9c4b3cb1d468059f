//! The front: nodes announce VIPs by BIRD, and a router spreads clients over the nodes that do.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use drover_tests::{Lab, Protocol, Segment, Server, Service, Topology, visit, wait_until};
use lb_node::front::{self, AnnounceError, Announcer as _, Bird, Driver};
use rustix::process::Signal;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use zk_schema::NodeFile;

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10));
const VIPS: [IpAddr; 2] = [VIP4, VIP6];
const PORT: u16 = 7000;
const NODES: u8 = 3;
const BOOT: &str = "this-boot";

/// For what takes BGP or BFD to be noticed. Much less than BGP's own hold time, which is 240 s.
const SOON: Duration = Duration::from_secs(20);

fn network(nodes: u8, segment: Segment) -> Topology {
    Topology::builder().nodes(nodes).reals(0).segment(segment).bird_front().build().unwrap()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn driver(net: &Topology, node: usize, boot: &str) -> Result<Bird, AnnounceError> {
    let (file, socket) = net.front.as_ref().unwrap().driver_paths(node);
    Bird::open(&file, &socket, boot)
}

/// Waits until the router sends both VIPs to these nodes, and says how long after `start` that was.
fn assert_carried(net: &Topology, nodes: &[usize], after: &str, start: Instant) {
    for vip in VIPS {
        net.front.as_ref().unwrap().wait_for_carriers(vip, nodes, SOON).unwrap();
    }
    println!("{after}: the router sends both VIPs to {nodes:?} after {:?}", start.elapsed());
}

#[test]
fn the_router_spreads_clients_over_the_nodes_that_announce_and_that_live() {
    let mut net = network(NODES, Segment::Routed);
    let runtime = runtime();
    let mut drivers: Vec<Bird> = (0..NODES.into()).map(|node| driver(&net, node, BOOT).unwrap()).collect();
    let start = Instant::now();
    for driver in &mut drivers {
        runtime.block_on(driver.replace(&BTreeSet::from(VIPS))).unwrap();
    }
    assert_carried(&net, &[0, 1, 2], "announced by three", start);

    // Each node plays the whole service here, so that a client sees which one its packets came to.
    let servers: Vec<Server> = net
        .nodes
        .iter()
        .map(|node| {
            let kernel = node.host.ip(&format!("route show {VIP4}")).unwrap()
                + &node.host.ip(&format!("-6 route show {VIP6}")).unwrap();
            assert_eq!(kernel, "", "the blackhole routes are for BIRD alone");
            for vip in VIPS {
                node.host.hold_vip(vip).unwrap();
            }
            Server::start(&node.host, [Service::TcpEcho(PORT)]).unwrap()
        })
        .collect();
    let met = |vip| {
        let at = SocketAddr::new(vip, PORT);
        let visits = visit(&net.clients[0].host, Protocol::Tcp, at, 60, b"who is there?", SOON).unwrap();
        assert_eq!(visits.failed, Vec::<String>::new());
        visits.served.into_keys().collect::<Vec<_>>()
    };
    for vip in VIPS {
        assert_eq!(met(vip), ["node-1", "node-2", "node-3"]);
    }

    let start = Instant::now();
    runtime.block_on(drivers[1].withdraw(VIP4)).unwrap();
    let told = start.elapsed();
    net.front.as_ref().unwrap().wait_for_carriers(VIP4, &[0, 2], SOON).unwrap();
    println!("withdrawn by one: BIRD has done it after {told:?}, the router after {:?}", start.elapsed());
    assert_eq!(met(VIP4), ["node-1", "node-3"]);
    assert_eq!(met(VIP6), ["node-1", "node-2", "node-3"]);
    let start = Instant::now();
    runtime.block_on(drivers[1].withdraw_all()).unwrap();
    assert_carried(&net, &[0, 2], "all withdrawn by one", start);
    let start = Instant::now();
    runtime.block_on(drivers[1].replace(&BTreeSet::from(VIPS))).unwrap();
    assert_carried(&net, &[0, 1, 2], "announced again", start);
    drop(servers);

    let bird = |net: &mut Topology, node: usize, signal| {
        net.front.as_mut().unwrap().nodes[node].process().signal(signal).unwrap();
    };
    // A host that hangs or is cut off closes no connection: only BFD can tell.
    let start = Instant::now();
    bird(&mut net, 0, Signal::STOP);
    assert_carried(&net, &[1, 2], "one host silent", start);
    let start = Instant::now();
    bird(&mut net, 0, Signal::CONT);
    assert_carried(&net, &[0, 1, 2], "heard again", start);

    let start = Instant::now();
    net.front.as_mut().unwrap().nodes[2].process().kill().unwrap();
    assert_carried(&net, &[0, 1], "one BIRD killed", start);
    assert!(matches!(runtime.block_on(drivers[2].check()), Err(AnnounceError::Connect { .. })));
    assert_eq!(*drivers[2].announced(), BTreeSet::new());
    let start = Instant::now();
    net.front.as_mut().unwrap().nodes[2].restart().unwrap();
    assert_carried(&net, &[0, 1, 2], "back", start);
    runtime.block_on(drivers[2].replace(&BTreeSet::from(VIPS))).unwrap();
    runtime.block_on(drivers[2].check()).unwrap();
}

#[test]
fn bird_takes_the_configuration_that_the_documents_show() {
    let document = include_str!("../../../docs/node-file.md");
    let (_, rest) = document.split_once("### BIRD's side").unwrap();
    let (_, rest) = rest.split_once("```\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    assert!(example.contains("protocol bgp"), "{example}");
    let lab = Lab::new().unwrap();
    let host = lab.host("reader").unwrap();
    let config = host.dir().join("bird.conf");
    fs::write(&config, format!("router id 10.0.0.2;\n{example}")).unwrap();
    host.command("bird").arg("-p").arg("-c").arg(&config).run().unwrap();
}

#[test]
fn a_mistake_elsewhere_in_birds_configuration_is_told_and_cannot_keep_a_node_from_withdrawing() {
    let net = network(1, Segment::Routed);
    let runtime = runtime();
    let mut driver = driver(&net, 0, BOOT).unwrap();
    runtime.block_on(driver.announce(VIP4)).unwrap();
    let front = net.front.as_ref().unwrap();
    front.wait_for_carriers(VIP4, &[0], SOON).unwrap();

    let config = front.nodes[0].config();
    let good = fs::read_to_string(config).unwrap();
    fs::write(config, format!("{good}nonsense;\n")).unwrap();
    let error = runtime.block_on(driver.announce(VIP6)).unwrap_err().to_string();
    let line = good.lines().count() + 1;
    assert!(error.contains(&format!("8002 {}:{line}:", config.display())), "{error}");
    assert_eq!(*driver.announced(), BTreeSet::from([VIP4]));
    assert_eq!(front.carriers(VIP4).unwrap().len(), 1);

    assert!(runtime.block_on(driver.withdraw_all()).is_err());
    assert_eq!(*driver.announced(), BTreeSet::new());
    front.wait_for_carriers(VIP4, &[], SOON).unwrap();

    fs::write(config, good.replace("include", "# include")).unwrap();
    let error = runtime.block_on(driver.announce(VIP4)).unwrap_err();
    assert!(matches!(error, AnnounceError::NotIncluded { .. }), "{error}");

    fs::write(config, good).unwrap();
    runtime.block_on(driver.replace(&BTreeSet::from(VIPS))).unwrap();
    for vip in VIPS {
        front.wait_for_carriers(vip, &[0], SOON).unwrap();
    }
}

#[test]
fn a_daemon_that_starts_again_keeps_its_announcements_and_a_host_that_boots_again_does_not() {
    let net = network(1, Segment::Shared);
    let runtime = runtime();
    let front = net.front.as_ref().unwrap();
    let node_file = format!(
        "[node]\nname = \"lb-1\"\ninterface = \"eth0\"\n[zookeeper]\nservers = \"zk\"\n{}announce_hold_ms = 50\n",
        front.node_file_table(0)
    );
    let settings = NodeFile::parse(&node_file, "node.toml").unwrap().front;
    let run = |boot: &str, at_work: &dyn Fn(BTreeSet<IpAddr>), stop: bool| {
        let front = front::Front::new(Driver::open(&settings, boot).unwrap(), settings.announce_hold());
        let mut status = front.status();
        let inherited = status.borrow().announced.clone();
        let (wanted, receiver) = watch::channel(inherited.clone());
        let (shutdown, stopped) = oneshot::channel::<()>();
        runtime.block_on(async {
            let task = tokio::spawn(front.run(receiver, async {
                let _ = stopped.await;
            }));
            at_work(inherited);
            wanted.send_replace(BTreeSet::from(VIPS));
            tokio::time::timeout(SOON, status.wait_for(|status| status.announced.len() == 2))
                .await
                .unwrap()
                .unwrap();
            if stop {
                shutdown.send(()).unwrap();
                task.await.unwrap().unwrap();
            } else {
                task.abort();
            }
        });
    };

    let start = Instant::now();
    run(BOOT, &|inherited| assert!(inherited.is_empty()), false);
    assert_carried(&net, &[0], "announced", start);
    // The first daemon has died without a word. The next finds what it announced, and shuts down in order.
    let start = Instant::now();
    run(BOOT, &|inherited| assert_eq!(inherited, BTreeSet::from(VIPS)), true);
    assert_carried(&net, &[], "shut down", start);

    let start = Instant::now();
    run(BOOT, &|inherited| assert!(inherited.is_empty()), false);
    assert_carried(&net, &[0], "announced again", start);
    let start = Instant::now();
    let mut after_boot = driver(&net, 0, "another-boot").unwrap();
    assert_eq!(*after_boot.announced(), BTreeSet::new());
    let changes = wait_until("the old announcements to go", SOON, || {
        Ok(runtime.block_on(after_boot.replace(&BTreeSet::new())).ok())
    });
    changes.unwrap();
    assert_carried(&net, &[], "booted again", start);
}
