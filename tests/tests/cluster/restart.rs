//! Nodes of a cluster whose daemon is killed, at the worst time or for too long.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{FLOWS, LIMIT, OTHERS, RATE, REALS, SOME};
use drover_tests::{LbNode, Observer, PUBLISH, Settings, Site, Steady, wait_until};

fn settings() -> Settings {
    let cluster = "autonomy_after_ms = 3000\ndrain_wait_ms = 1000\nack_timeout_ms = 3000\n".to_owned();
    Settings { cluster, ..Settings::default() }
}

/// The epoch that a node has in force, and the part of the service's slots that `real-3` has there.
fn in_force(site: &Site) -> Option<(u64, f64)> {
    let status = site.nodes[0].as_ref().unwrap().status().ok()?;
    let share = status["vips"]["publish"]["reals"]["real-3"]["share"].as_f64()?;
    Some((status["epoch"].as_u64()?, share))
}

#[test]
fn a_restart_during_an_outage_brings_back_neither_an_older_table_nor_a_dead_real() {
    let mut site = Site::of_two_services(2, settings()).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    site.wait_settled().unwrap();
    let cache = site.net.nodes[0].host.dir().join("state/node-1.json");
    let older = fs::read(&cache).unwrap();
    site.set_weight("publish", "real-1", 50).unwrap();
    site.wait_for_weights("publish", &[("real-1", 50), ("real-2", 100), ("real-3", 100)]).unwrap();
    site.wait_settled().unwrap();
    let epoch = site.head().unwrap().epoch;
    wait_until("the newest decision to be on disk", LIMIT, || {
        Ok((in_force(&site).is_some_and(|(now, _)| now == epoch) && fs::read(&cache)? != older).then_some(()))
    })
    .unwrap();
    let newer = fs::read(&cache).unwrap();
    let observer = Observer::start(&site).unwrap();
    let steady = Steady::start(&site.net.clients[0].host, PUBLISH, FLOWS, RATE).unwrap();
    steady.pass(SOME).unwrap();
    for server in 0..3 {
        site.ensemble.kill(server).unwrap();
    }

    // Its disk has been full for a while, and it is killed.
    site.kill(0).unwrap();
    fs::write(&cache, &older).unwrap();
    site.launch(0).unwrap();
    let node = site.node(0).unwrap();
    node.process().wait_for_line("older than the tables in the kernel", LIMIT).unwrap();
    wait_until("its pages to answer", LIMIT, || {
        Ok(node.get("/livez").is_ok_and(|(code, _)| code == 200).then_some(()))
    })
    .unwrap();
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        for page in ["/healthz", "/readyz", "/announced", "/status"] {
            let (code, body) = node.get(page).unwrap();
            assert_eq!(code, 503, "{page}: {body}");
        }
        assert!(node.get("/readyz").unwrap().1.contains("waiting for the first decision"));
        assert_eq!(node.get("/livez").unwrap().0, 200);
        assert_eq!(node.metrics().unwrap().sum("drover_zookeeper_connected", &[]), Some(0.0));
        sleep(Duration::from_millis(250));
    }
    site.wait_for_carriers(&[0, 1]).unwrap();
    steady.pass(SOME).unwrap();

    // With what is as new as the tables it goes on by itself.
    site.kill(0).unwrap();
    fs::write(&cache, &newer).unwrap();
    site.launch(0).unwrap();
    wait_until("the node to go by its disk", LIMIT, || {
        Ok(in_force(&site).filter(|(now, _)| *now == epoch).map(drop))
    })
    .unwrap();
    steady.pass(SOME).unwrap();
    let record = steady.stop().unwrap();
    record.assert_nothing_lost();

    // A real dies, the node leaves it out by its own judgement, and is killed.
    site.net.cut(&site.net.reals[2], true).unwrap();
    let leaves_it_out = |site: &Site| in_force(site).is_some_and(|(_, share)| share == 0.0);
    wait_until("the node to leave the dead real out", LIMIT, || Ok(leaves_it_out(&site).then_some(())))
        .unwrap();
    let kept = site.net.nodes[0].host.dir().join("state/node-1.exclusions.json");
    wait_until("that to be on disk", LIMIT, || Ok(kept.exists().then_some(()))).unwrap();
    site.kill(0).unwrap();
    site.launch(0).unwrap();
    wait_until("the node to go by its disk", LIMIT, || Ok(in_force(&site).map(drop))).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        assert!(leaves_it_out(&site), "the dead real has slots again: {:?}", in_force(&site));
        sleep(Duration::from_millis(100));
    }

    // It is no exile for ever.
    site.net.cut(&site.net.reals[2], false).unwrap();
    wait_until("the real to be taken in again", LIMIT, || {
        Ok(in_force(&site).is_some_and(|(_, share)| share > 0.3).then_some(()))
    })
    .unwrap();
    wait_until("nothing to be kept of it", LIMIT, || Ok((!kept.exists()).then_some(()))).unwrap();
    observer.stop().assert_never_withdrawn(["node-1", "node-2"]);
}

#[test]
fn the_guard_withdraws_a_node_whose_daemon_stays_away_or_hangs_and_no_other() {
    let mut site = Site::of_two_services(2, settings()).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    let mut guard = LbNode::guard(&site.net.nodes[0]).unwrap();
    guard.wait_for_line("watching the daemon's sign of life", LIMIT).unwrap();
    let observer = Observer::start(&site).unwrap();
    let steady = Steady::start(&site.net.clients[0].host, PUBLISH, FLOWS, RATE).unwrap();
    steady.pass(SOME).unwrap();

    // Killed and started again, and for longer without ZooKeeper than the guard waits: nothing is withdrawn.
    site.kill(0).unwrap();
    sleep(Duration::from_secs(1));
    site.launch(0).unwrap();
    wait_until("the node to announce", LIMIT, || {
        Ok((site.nodes[0].as_ref().unwrap().get("/announced").is_ok_and(|(code, _)| code == 200))
            .then_some(()))
    })
    .unwrap();
    for server in 0..3 {
        site.ensemble.kill(server).unwrap();
    }
    sleep(Duration::from_secs(14));
    for server in 0..3 {
        site.ensemble.restart(server).unwrap();
    }
    for server in 0..3 {
        site.ensemble.wait_serving(server).unwrap();
    }
    steady.pass(SOME).unwrap();
    observer.stop().assert_never_withdrawn(["node-1", "node-2"]);

    // It stays away.
    let killed = Instant::now();
    site.kill(0).unwrap();
    site.wait_for_carriers(&[1]).unwrap();
    let withdrawn = killed.elapsed();
    assert!(withdrawn >= Duration::from_secs(8), "withdrawn after {withdrawn:?}: a restart would not fit in");
    guard.wait_for_line("withdrawn for a daemon that gives no sign of life", LIMIT).unwrap();
    steady.pass(SOME).unwrap();
    site.launch(0).unwrap();
    site.wait_for_carriers(&[0, 1]).unwrap();
    steady.pass(SOME).unwrap();

    // It hangs.
    site.node(0).unwrap().process().signal(Signal::STOP).unwrap();
    site.wait_for_carriers(&[1]).unwrap();
    site.node(0).unwrap().process().signal(Signal::CONT).unwrap();
    site.wait_for_carriers(&[0, 1]).unwrap();
    steady.pass(SOME).unwrap();
    println!("withdrawn after {withdrawn:?}");
    steady.stop().unwrap().assert_nothing_lost();
    guard.kill().unwrap();
}
