//! The life of a cluster's nodes: they join, go out of service, leave, die and return.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::{FLOWS, LIMIT, OTHERS, RATE, REALS, SOME};
use drover_tests::{Held, Observer, PUBLISH, SERVICES, SUBSCRIBE, Settings, Site, Steady, wait_until};

/// Connections that are held all the time.
const HELD: usize = 20;
/// What the settings of a site say.
const DRAIN_WAIT: Duration = Duration::from_secs(1);

fn start(late: usize) -> Site {
    let site = Site::of_two_services(4, Settings { late, ..Settings::default() }).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    site.wait_settled().unwrap();
    site
}

fn steady(site: &Site) -> Steady {
    let steady = Steady::start(&site.net.clients[0].host, PUBLISH, FLOWS, RATE).unwrap();
    steady.pass(SOME).unwrap();
    steady
}

/// Requests that a node has passed on so far.
fn passed(site: &mut Site, node: usize) -> f64 {
    let metrics = site.node(node).unwrap().metrics().unwrap();
    metrics.sum("drover_real_packets_total", &[("vip", "publish")]).unwrap_or_default()
}

fn wait_for_nodes(site: &Site, names: &[&str]) -> Duration {
    let start = Instant::now();
    let wanted: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    wait_until(format_args!("the tree to show {names:?}"), LIMIT, || {
        let there: BTreeSet<String> = site.operator.children("/drover/nodes")?.into_iter().collect();
        Ok((there == wanted).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", site.report()));
    start.elapsed()
}

#[test]
fn a_node_that_joins_announces_when_it_has_everything_and_one_out_of_service_forwards_on() {
    let mut site = start(1);
    let (observer, steady) = (Observer::start(&site).unwrap(), steady(&site));

    let launched = Instant::now();
    site.launch(3).unwrap();
    site.wait_for_carriers(&[0, 1, 2, 3]).unwrap();
    let joined = launched.elapsed();
    let tables = site.tables().unwrap();
    for (vip, tables) in &tables {
        assert!(
            tables.len() == 4 && tables.iter().all(|(_, digest)| *digest == tables[0].1),
            "{vip}: {tables:?}"
        );
    }
    wait_for_nodes(&site, &["node-1", "node-2", "node-3", "node-4"]);
    let before = passed(&mut site, 3);
    steady.pass(2 * SOME).unwrap();
    let share = passed(&mut site, 3) - before;
    assert!(share > 0.0, "the new node gets no traffic");

    // A client whose packets go by the second node whatever the front says.
    let (client, node) = (&site.net.clients[1], &site.net.nodes[1]);
    site.net.router.ip(&format!("route add table 99 {SERVICES}/32 via {}", node.v4)).unwrap();
    site.net.router.ip(&format!("rule add priority 80 from {}/32 lookup 99", client.v4)).unwrap();
    let pinned = Steady::start(&client.host, PUBLISH, FLOWS, RATE / 2).unwrap();
    let flag = "/drover/ops/maintenance/node-2";
    site.operator.put(flag, "{\"by\":\"the test\",\"why\":\"new memory\"}").unwrap();
    site.wait_for_carriers(&[0, 2, 3]).unwrap();
    let (code, page) = site.node(1).unwrap().get("/readyz").unwrap();
    assert!(code == 200 && page.contains("out of service"), "{code}: {page}");
    let (code, page) = site.node(1).unwrap().get("/announced").unwrap();
    assert!(code == 503 && page.contains("out of service"), "{code}: {page}");
    let before = passed(&mut site, 1);
    pinned.pass(SOME).unwrap();
    let forwarded = passed(&mut site, 1) - before;
    assert!(forwarded > 0.0, "a node out of service forwards no more");
    site.set_weight("publish", "real-1", 50).unwrap();
    site.wait_for_weights("publish", &[("real-1", 50), ("real-2", 100), ("real-3", 100)]).unwrap();
    site.operator.delete(flag).unwrap();
    site.wait_for_carriers(&[0, 1, 2, 3]).unwrap();
    let node = site.node(1).unwrap();
    wait_until("all to be announced again", LIMIT, || Ok((node.get("/announced")?.0 == 200).then_some(())))
        .unwrap();
    steady.pass(SOME).unwrap();

    pinned.stop().unwrap().assert_nothing_lost();
    let (record, observed) = (steady.stop().unwrap(), observer.stop());
    println!(
        "joined in {joined:?}, then had {share} of {} requests; out of service it passed on {forwarded}",
        2 * SOME
    );
    record.assert_nothing_lost();
    observed.assert_never_withdrawn(["node-1", "node-3"]);
    assert!(observed.agreed() > 0);
}

#[test]
fn nodes_that_leave_or_die_or_lose_their_bird_cost_no_packet() {
    let mut site = start(0);
    let (observer, steady) = (Observer::start(&site).unwrap(), steady(&site));

    let held = Held::open(&site.net.clients[1].host, SUBSCRIBE, HELD).unwrap();

    // Told to stop: out of the front first, then out of the tree at once.
    let told = Instant::now();
    site.terminate(2).unwrap();
    let ended = told.elapsed();
    assert!(ended >= DRAIN_WAIT, "it ended after {ended:?}, while packets were still on their way to it");
    assert!(
        !site.operator.children("/drover/nodes").unwrap().contains(&"node-3".to_owned()),
        "it is still in the tree"
    );
    site.wait_for_carriers(&[0, 1, 3]).unwrap();
    steady.pass(SOME).unwrap();
    site.launch(2).unwrap();
    site.wait_for_carriers(&[0, 1, 2, 3]).unwrap();
    wait_for_nodes(&site, &["node-1", "node-2", "node-3", "node-4"]);
    // The observer looks now and then, so it may learn of the last change a moment later.
    let seen = || observer.so_far().carriers[&SERVICES].len();
    let left = wait_until("the observer to see both changes", LIMIT, || Ok(Some(seen()).filter(|n| *n >= 3)));
    let left = left.unwrap();
    assert_eq!(left, 3, "withdrawn once and announced once: {:?}", observer.so_far().carriers);

    // Killed: what it pinned in the kernel forwards, and BIRD announces.
    let (leader, _) = site.leader().unwrap();
    let victim = (leader + 1) % 4;
    let name = site.net.nodes[victim].host.name().to_owned();
    site.kill(victim).unwrap();
    let others: Vec<String> = (1..=4).map(|n| format!("node-{n}")).filter(|other| *other != name).collect();
    let vanished = wait_for_nodes(&site, &others.iter().map(String::as_str).collect::<Vec<_>>());
    steady.pass(SOME).unwrap();
    assert_eq!(observer.so_far().carriers[&SERVICES].len(), left, "its routes went with it");
    site.launch(victim).unwrap();
    wait_for_nodes(&site, &["node-1", "node-2", "node-3", "node-4"]);
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    steady.pass(SOME).unwrap();
    assert_eq!(observer.so_far().carriers[&SERVICES].len(), left, "its routes flapped when it returned");

    // Its BIRD dies: the front goes on without it.
    let bird = &mut site.net.front.as_mut().unwrap().nodes[victim];
    bird.process().kill().unwrap();
    let rest: Vec<usize> = (0..4).filter(|node| *node != victim).collect();
    let died = Instant::now();
    site.wait_for_carriers(&rest).unwrap();
    let moved = died.elapsed();
    steady.pass(SOME).unwrap();
    site.net.front.as_mut().unwrap().nodes[victim].restart().unwrap();
    site.wait_for_carriers(&[0, 1, 2, 3]).unwrap();
    steady.pass(SOME).unwrap();

    let (record, observed) = (steady.stop().unwrap(), observer.stop());
    println!(
        "told to stop it ended in {ended:?}; killed it was gone from the tree in {vanished:?}; without BIRD the router \
         went on in {moved:?}; of {} requests {} were lost",
        record.sent,
        record.lost.len()
    );
    record.assert_nothing_lost();
    held.assert_all_live();
    assert!(observed.agreed() > 0);
}

#[test]
fn a_node_that_is_cut_off_alone_learns_that_the_others_went_on_and_withdraws_until_it_has_caught_up() {
    let settings = Settings { withdraw_after: Some(Duration::from_secs(3)), ..Settings::default() };
    let mut site = Site::of_two_services(3, settings).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    let (observer, steady) = (Observer::start(&site).unwrap(), steady(&site));
    let held = Held::open(&site.net.clients[1].host, SUBSCRIBE, HELD).unwrap();
    let part = |site: &Site, parted| {
        let (net, node) = (&site.net, &site.net.nodes[1]);
        net.zookeepers.iter().for_each(|server| net.part(node, server, parted).unwrap());
    };

    part(&site, true);
    site.wait_for_carriers(&[0, 2]).unwrap();
    let (code, page) = site.node(1).unwrap().get("/announced").unwrap();
    assert!(code == 503 && page.contains("2 of 2 other nodes"), "{code}: {page}");
    let metrics = site.node(1).unwrap().metrics().unwrap();
    assert_eq!(metrics.sum("drover_overtaken", &[]), Some(1.0));
    steady.pass(SOME).unwrap();

    part(&site, false);
    site.wait_for_carriers(&[0, 1, 2]).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    steady.pass(SOME).unwrap();
    steady.stop().unwrap().assert_nothing_lost();
    held.assert_all_live();
    observer.stop().assert_never_withdrawn(["node-1", "node-3"]);
}

#[test]
fn a_node_by_the_name_of_a_living_one_is_refused_and_does_not_disturb_it() {
    let mut site = start(1);
    let (observer, steady) = (Observer::start(&site).unwrap(), steady(&site));
    let member = site.operator.get("/drover/nodes/node-1").unwrap();
    let applied = site.operator.version("/drover/applied/node-1").unwrap();
    let voted = site.operator.version("/drover/health/node-1").unwrap();
    let leader = site.leader().unwrap();

    site.launch_as(3, "node-1").unwrap();
    let line = site.node(3).unwrap().process().wait_for_line("another node of this name", LIMIT).unwrap();
    println!("{line}");
    steady.pass(5 * SOME).unwrap();
    let page = site.node(3).unwrap().get("/readyz").unwrap().1;
    assert!(page.contains("another node of this name"), "{page}");
    assert_eq!(site.operator.get("/drover/nodes/node-1").unwrap(), member);
    assert_eq!(
        site.operator.version("/drover/applied/node-1").unwrap(),
        applied,
        "the other's record was overwritten"
    );
    assert_eq!(
        site.operator.version("/drover/health/node-1").unwrap(),
        voted,
        "the other's votes were overwritten"
    );
    let candidates = site.operator.children("/drover/election").unwrap();
    assert_eq!(candidates.len(), 3, "{candidates:?}");

    // When the other one has left, the name is free.
    site.terminate(0).unwrap();
    wait_until("the name to change hands", LIMIT, || {
        let now = site.operator.get("/drover/nodes/node-1")?;
        Ok((now.is_some() && now != member).then_some(()))
    })
    .unwrap();
    site.wait_for_carriers(&[1, 2, 3]).unwrap();

    let (record, observed) = (steady.stop().unwrap(), observer.stop());
    let history = &observed.carriers[&SERVICES];
    println!("the leader was node {}; carriers: {history:?}", leader.0 + 1);
    let both =
        history.iter().find(|(_, carriers)| carriers.contains("node-1") && carriers.contains("node-4"));
    assert!(both.is_none(), "two nodes of one name announced: {both:?}");
    record.assert_nothing_lost();
}
