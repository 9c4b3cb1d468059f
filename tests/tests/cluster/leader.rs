//! Leaders of a cluster that stand still, die half-way, and wait for nodes that do not answer.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::{FLOWS, LIMIT, OTHERS, RATE, REALS, SOME};
use anyhow::Context as _;
use drover_tests::{Observer, PUBLISH, Settings, Site, Steady, wait_until};
use rustix::process::Signal;
use zk_schema::tree::Assignment;

const EQUAL: &[(&str, u16)] = &[("real-1", 100), ("real-2", 100), ("real-3", 100)];
const SESSION: Duration = Duration::from_secs(5);

/// Three nodes whose sessions outlast a leader's patience with a node that does not acknowledge.
fn start() -> Site {
    let cluster = "autonomy_after_ms = 60000\ndrain_wait_ms = 1000\nack_timeout_ms = 2000\n".to_owned();
    let site =
        Site::of_two_services(3, Settings { session_timeout: SESSION, cluster, ..Settings::default() })
            .unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    site.wait_settled().unwrap();
    site
}

fn signal(site: &mut Site, node: usize, signal: Signal) {
    site.node(node).unwrap().process().signal(signal).unwrap();
}

/// All nodes but this one. A node that stood still for longer than `withdraw_after_ms` announces nothing until it has
/// caught up.
fn all_but(site: &Site, node: usize) -> Vec<&str> {
    (0..3).filter(|other| *other != node).map(|other| site.node_name(other)).collect()
}

fn steady(site: &Site) -> Steady {
    let steady = Steady::start(&site.net.clients[0].host, PUBLISH, FLOWS, RATE).unwrap();
    steady.pass(SOME).unwrap();
    steady
}

/// Waits until the VIP `publish` has weights announced.
fn wait_for_announcement(site: &Site) -> Assignment {
    wait_until("weights to be announced", LIMIT, || {
        Ok(Some(site.assignment("publish")?).filter(|assignment| assignment.next.is_some()))
    })
    .unwrap()
}

/// Waits until somebody else than `old` leads with a greater term, and returns both.
fn wait_for_another(site: &Site, old: (usize, u64)) -> (usize, u64) {
    wait_until("another leader", LIMIT, || {
        let term = site.operator.record::<zk_schema::tree::Term>("/drover/leader")?.context("a leader")?;
        Ok((term.term > old.1).then_some(()))
    })
    .unwrap();
    let new = site.leader().unwrap();
    assert!(new.0 != old.0 && new.1 > old.1, "{new:?} after {old:?}");
    new
}

#[test]
fn a_leader_that_stood_still_beyond_its_session_cannot_write_and_follows() {
    let mut site = start();
    let (observer, steady) = (Observer::start(&site).unwrap(), steady(&site));
    let old = site.leader().unwrap();
    let stopped = Instant::now();
    signal(&mut site, old.0, Signal::STOP);
    // What it would have to do when it goes on.
    site.set_weight("publish", "real-1", 50).unwrap();
    let new = wait_for_another(&site, old);
    let led = stopped.elapsed();
    wait_until("the new leader to decide", LIMIT, || {
        let assignment = site.assignment("publish")?;
        Ok((assignment.term == new.1 && assignment.weights["real-1"] == 50).then_some(()))
    })
    .unwrap();
    site.set_weight("publish", "real-1", 80).unwrap();
    signal(&mut site, old.0, Signal::CONT);

    let watched = Instant::now();
    let mut last = site.head().unwrap();
    while watched.elapsed() < SESSION {
        let head = site.head().unwrap();
        assert!(
            head.term == new.1 && head.order() >= last.order(),
            "a leader of an old term has written {head:?} after {last:?}"
        );
        last = head;
        sleep(Duration::from_millis(20));
    }
    site.wait_for_weights("publish", &[("real-1", 80), ("real-2", 100), ("real-3", 100)]).unwrap();
    let log = site.node(old.0).unwrap().process().log().unwrap();
    let after = log.split(&format!("term={}", old.1)).last().unwrap_or_default().to_owned();
    assert!(
        after.contains("no longer leads") || after.contains("session has ended"),
        "it does not say that it no longer leads:\n{log}"
    );
    let status = site.node(old.0).unwrap().status().unwrap();
    assert!(status["cluster"]["leading"].is_null() && status["term"] == new.1, "{status:#}");
    assert_eq!(site.leader().unwrap(), new);

    let (record, observed) = (steady.stop().unwrap(), observer.stop());
    println!("node {} led {led:?} after node {} stood still; {} requests", new.0 + 1, old.0 + 1, record.sent);
    record.assert_nothing_lost();
    observed.assert_never_withdrawn(all_but(&site, old.0));
    site.wait_for_carriers(&[0, 1, 2]).unwrap();
    assert!(observed.agreed() > 0);
}

#[test]
fn an_adoption_whose_leader_dies_is_finished_by_the_next_or_undone_with_its_edit() {
    let mut site = start();
    let (observer, steady) = (Observer::start(&site).unwrap(), steady(&site));

    // A node that stands still makes the leader wait.
    let first = site.leader().unwrap();
    let silent = (first.0 + 1) % 3;
    signal(&mut site, silent, Signal::STOP);
    site.set_weight("publish", "real-1", 50).unwrap();
    let announced = wait_for_announcement(&site);
    site.kill(first.0).unwrap();
    let killed = Instant::now();
    assert_eq!(announced.weights["real-1"], 100, "it was adopted without waiting");
    assert!(
        site.assignment("publish").unwrap().next.is_some(),
        "it was adopted before the leader was killed"
    );
    // Only now: a node that acknowledges would have no leader to wait for it.
    signal(&mut site, silent, Signal::CONT);
    let second = wait_for_another(&site, first);
    site.wait_for_weights("publish", &[("real-1", 50), ("real-2", 100), ("real-3", 100)]).unwrap();
    let finished = killed.elapsed();
    site.launch(first.0).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    site.wait_settled().unwrap();

    // The same again, but the operator takes the edit back while nobody leads.
    let tables = site.tables().unwrap();
    let in_force = &tables["publish"][0].1;
    // The observer looks now and then, so it may see what is in force on a node a moment after others did.
    let before = wait_until("the observer to see the table in force on every node", LIMIT, || {
        let seen = observer.so_far();
        let has_seen =
            |node: &str| seen.tables(node, "publish").last().is_some_and(|(_, digest)| digest == in_force);
        Ok(["node-1", "node-2", "node-3"].into_iter().all(has_seen).then_some(seen))
    })
    .unwrap();
    let silent = (0..3).find(|node| *node != second.0).unwrap();
    signal(&mut site, silent, Signal::STOP);
    site.set_weight("publish", "real-1", 200).unwrap();
    wait_for_announcement(&site);
    site.kill(second.0).unwrap();
    site.set_weight("publish", "real-1", 50).unwrap();
    assert!(
        site.assignment("publish").unwrap().next.is_some(),
        "it was adopted before the leader was killed"
    );
    signal(&mut site, silent, Signal::CONT);
    wait_for_another(&site, second);
    site.wait_for_weights("publish", &[("real-1", 50), ("real-2", 100), ("real-3", 100)]).unwrap();
    site.launch(second.0).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    let assignment = site.assignment("publish").unwrap();
    assert!(assignment.history.iter().all(|past| past.weights["real-1"] != 200), "{assignment:?}");

    let (record, observed) = (steady.stop().unwrap(), observer.stop());
    for node in ["node-1", "node-2", "node-3"] {
        assert_eq!(before.tables(node, "publish"), observed.tables(node, "publish"), "{node}");
    }
    println!("the next leader had finished {finished:?} after the first one's end; {} requests", record.sent);
    record.assert_nothing_lost();
    observed.assert_never_withdrawn(["node-1", "node-2", "node-3"]);
    assert!(observed.agreed() > 0);
}

#[test]
fn a_node_that_does_not_acknowledge_in_time_is_listed_and_does_not_block() {
    let mut site = start();
    let (observer, steady) = (Observer::start(&site).unwrap(), steady(&site));
    let (leader, _) = site.leader().unwrap();
    let silent = (leader + 1) % 3;
    let name = site.net.nodes[silent].host.name().to_owned();

    signal(&mut site, silent, Signal::STOP);
    let asked = Instant::now();
    site.set_weight("publish", "real-1", 50).unwrap();
    wait_until("the weights to be in force without the node that stands still", LIMIT, || {
        Ok((site.assignment("publish")?.weights["real-1"] == 50).then_some(()))
    })
    .unwrap();
    let adopted = asked.elapsed();
    let lagging = wait_until("the node to be listed", LIMIT, || {
        let lagging = site.head()?.lagging;
        Ok((!lagging.is_empty()).then_some(lagging))
    })
    .unwrap();
    let names: Vec<&str> = lagging.iter().map(|node| node.as_str()).collect();
    assert_eq!(names, [&name]);
    let said = wait_until("the leader to say so itself", LIMIT, || {
        let status = site.node(leader)?.status()?;
        Ok(Some(status["cluster"]["lagging"].clone())
            .filter(|said| said.as_array().is_some_and(|said| !said.is_empty())))
    });
    assert_eq!(said.unwrap(), serde_json::json!([name]));

    signal(&mut site, silent, Signal::CONT);
    site.wait_for_weights("publish", &[("real-1", 50), ("real-2", 100), ("real-3", 100)]).unwrap();
    wait_until("nobody to be late any more", LIMIT, || Ok(site.head()?.lagging.is_empty().then_some(())))
        .unwrap();
    site.set_weight("publish", "real-1", 100).unwrap();
    site.wait_for_weights("publish", EQUAL).unwrap();

    let (record, observed) = (steady.stop().unwrap(), observer.stop());
    println!("adopted {adopted:?} after the edit without {name}; {} requests", record.sent);
    record.assert_nothing_lost();
    observed.assert_never_withdrawn(all_but(&site, silent));
    assert!(observed.agreed() > 0);
}
