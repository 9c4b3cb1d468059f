//! A cluster whose ZooKeeper fails in part or altogether: what is in force stays in force.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::{FLOWS, LIMIT, OTHERS, RATE, REALS, SOME};
use drover_tests::{Held, LbNode, Observer, PUBLISH, SUBSCRIBE, Settings, Site, Steady, long, wait_until};

/// Connections that are held all the time.
const HELD: usize = 8;
const ALL: [&str; 3] = ["node-1", "node-2", "node-3"];
/// Longer than sessions and the servers' own timeouts.
const A_WHILE: Duration = Duration::from_secs(6);
/// How long ZooKeeper is away at least in the long form. In the short form: until the nodes have left a dead real out.
const OUTAGE: Duration = Duration::from_secs(60);

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Waits until all nodes are in the tree and follow it.
fn wait_for_return(site: &Site) {
    wait_until("all nodes to be in the tree again", LIMIT, || {
        let live = site
            .nodes
            .iter()
            .flatten()
            .all(|node| node.status().is_ok_and(|status| status["mode"] == "live"));
        let nodes = site.operator.children("/drover/nodes")?;
        Ok((live && nodes.len() == 3).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", site.report()));
    site.wait_settled().unwrap();
}

#[test]
fn the_loss_of_a_server_of_zookeeper_is_not_noticed() {
    let mut site = Site::of_two_services(3, Settings::default()).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    site.wait_settled().unwrap();
    let observer = Observer::start(&site).unwrap();
    let steady = Steady::start(&site.net.clients[0].host, PUBLISH, FLOWS, RATE).unwrap();
    let held = Held::open(&site.net.clients[1].host, SUBSCRIBE, HELD).unwrap();
    steady.pass(SOME).unwrap();

    let leader = site.ensemble.leader().unwrap();
    site.ensemble.kill(leader).unwrap();
    sleep(A_WHILE);
    wait_for_return(&site);
    site.ensemble.restart(leader).unwrap();
    site.ensemble.wait_serving(leader).unwrap();

    // One that serves a node is cut off, with no word to either.
    let client = format!("/{}:", site.net.nodes[0].v4);
    let serving = (0..3).find(|server| site.ensemble.ask(*server, "cons").unwrap().contains(&client));
    let serving = serving.expect("one of the servers serves the first node");
    let is_leader = site.ensemble.leader().unwrap() == serving;
    site.net.cut(&site.net.zookeepers[serving], true).unwrap();
    sleep(A_WHILE);
    wait_for_return(&site);
    site.net.cut(&site.net.zookeepers[serving], false).unwrap();
    site.ensemble.wait_serving(serving).unwrap();
    steady.pass(SOME).unwrap();

    let so_far = observer.so_far();
    for node in ALL {
        let tables = so_far.tables(node, "publish");
        assert_eq!(tables.len(), 1, "{node} changed its table: {tables:?}");
        assert_eq!(tables[0].0, names(REALS));
    }
    // It was no peace of the dead.
    site.set_weight("publish", "real-1", 50).unwrap();
    site.wait_for_weights("publish", &[("real-1", 50), ("real-2", 100), ("real-3", 100)]).unwrap();
    steady.pass(SOME).unwrap();

    let (record, observed) = (steady.stop().unwrap(), observer.stop());
    println!(
        "{} requests, {} lost, {} looks; the server that was cut off led: {is_leader}",
        record.sent,
        record.lost.len(),
        observed.looks
    );
    record.assert_nothing_lost();
    held.assert_all_live();
    observed.assert_never_withdrawn(ALL);
    observed.assert_no_table_was_empty();
    assert!(observed.agreed() > 0);
}

#[test]
fn an_outage_of_zookeeper_loses_no_packet_withdraws_no_vip_and_empties_no_table() {
    let mut site = Site::of_two_services(3, Settings::default()).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    site.wait_settled().unwrap();
    let steady = Steady::start(&site.net.clients[0].host, PUBLISH, FLOWS, RATE).unwrap();
    let held = Held::open(&site.net.clients[1].host, SUBSCRIBE, HELD).unwrap();
    assert_eq!(held.whole().len(), 2, "both reals have connections: {:?}", held.whole());
    steady.pass(SOME).unwrap();

    // Two servers stand still, so that connections to them hang; one is gone, so that they are refused.
    let begun = Instant::now();
    site.ensemble.stop(0).unwrap();
    site.ensemble.stop(1).unwrap();
    site.ensemble.kill(2).unwrap();

    // A node that boots now has nothing but its disk.
    site.terminate(2).unwrap();
    site.wait_for_carriers(&[0, 1]).unwrap();
    LbNode::detach(&site.net.nodes[2]).unwrap();
    steady.pass(SOME).unwrap();
    let launched = Instant::now();
    site.launch(2).unwrap();
    site.wait_for_carriers(&[0, 1, 2]).unwrap();
    let booted = launched.elapsed();
    let observer = Observer::start(&site).unwrap();
    steady.pass(SOME).unwrap();

    // A real that dies now is left out by each node for itself, when it has been alone for long enough.
    let death = steady.sent();
    site.net.cut(&site.net.reals[2], true).unwrap();
    let dead_since = Instant::now();
    wait_until("every node to leave the dead real out", LIMIT, || {
        let observed = observer.so_far();
        let left_out = ALL.iter().all(|node| {
            let last = observed.nodes.get(*node).and_then(|sights| sights.last());
            last.is_some_and(|sight| sight.tables.values().all(|table| !table.reals.contains("real-3")))
        });
        Ok(left_out.then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", site.report()));
    let left_out = dead_since.elapsed();
    let dead = death..steady.sent();

    if long::is_wanted() {
        sleep(OUTAGE.saturating_sub(begun.elapsed()));
    }
    site.ensemble.cont(0).unwrap();
    site.ensemble.cont(1).unwrap();
    site.ensemble.restart(2).unwrap();
    let back = Instant::now();
    wait_for_return(&site);
    site.wait_agreed(&[("publish", &["real-1", "real-2"]), ("subscribe", &["real-2"])]).unwrap();
    let agreed = back.elapsed();
    steady.pass(2 * SOME).unwrap();

    let observed = observer.so_far();
    for node in ALL {
        let tables = observed.tables(node, "publish");
        let reals: Vec<&BTreeSet<String>> = tables.iter().map(|(reals, _)| reals).collect();
        assert_eq!(reals, [&names(REALS), &names(&["real-1", "real-2"])], "{node} flapped");
    }
    site.net.cut(&site.net.reals[2], false).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    steady.pass(SOME).unwrap();

    let (record, observed) = (steady.stop().unwrap(), observer.stop());
    println!(
        "{} requests, {} lost, all of them of a dead real's flows until it was left out, {left_out:?} after its death; a \
         node booted from its disk in {booted:?}; all nodes agreed {agreed:?} after ZooKeeper's return; {} looks",
        record.sent,
        record.lost.len(),
        observed.looks
    );
    held.settle().unwrap();
    for connection in held.connections() {
        let died = connection.server == "real-3";
        assert_eq!(
            connection.broken.is_some(),
            died,
            "only connections to a dead real may break: {connection:?}"
        );
    }
    record.assert_lost_only_with("real-3", &[dead]);
    observed.assert_never_withdrawn(ALL);
    observed.assert_no_table_was_empty();
    assert!(observed.agreed() > 0);
}
