//! Edits of the tree by hand, good ones and bad ones.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{FLOWS, LIMIT, OTHERS, RATE, REALS, SOME};
use drover_tests::{Observer, PUBLISH, SERVICES, Settings, Site, Steady, wait_until};
use zk_schema::tree::paths;

const PUBLISH_PATH: &str = "/drover/vips/publish";
const REAL_PATH: &str = "/drover/vips/publish/reals/real-1";
const ASSIGNMENT_PATH: &str = "/drover/assignments/publish";
const ZKCLI: &str = "/usr/share/zookeeper/bin/zkCli.sh";
const ZKCLI_LIMIT: Duration = Duration::from_secs(60);

fn start() -> Site {
    let site = Site::of_two_services(3, Settings::default()).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    site.wait_settled().unwrap();
    site
}

/// Does what an operator does who has only what comes with ZooKeeper.
fn zkcli(site: &Site, words: &[&str]) -> String {
    let command = site.net.router.command(ZKCLI).args(["-server", &site.ensemble.connect_string()]);
    command.args(words).limit(ZKCLI_LIMIT).run().unwrap()
}

/// The tables' digests by VIP, alike on all nodes.
fn digests(site: &Site) -> BTreeMap<String, String> {
    let tables = site.tables().unwrap().into_iter();
    let one = |(vip, tables): (String, Vec<(u64, String)>)| {
        assert!(
            tables.len() == 3 && tables.iter().all(|(_, digest)| *digest == tables[0].1),
            "{vip}: {tables:?}"
        );
        (vip, tables[0].1.clone())
    };
    tables.map(one).collect()
}

/// Waits until the leader tells of a problem with these words, and every node with it, and returns it.
fn wait_for_problem(site: &Site, words: &[&str]) -> String {
    let fits = |text: &str| words.iter().all(|word| text.contains(word));
    let told = wait_until(format_args!("the leader to tell of {words:?}"), LIMIT, || {
        Ok(site.head()?.problems.into_iter().find(|problem| fits(problem)))
    });
    let told = told.unwrap_or_else(|error| panic!("{error:#}; head: {:?}", site.head()));
    for node in site.nodes.iter().flatten() {
        wait_until("each node to tell of it", LIMIT, || {
            let (code, body) = node.get("/readyz")?;
            Ok((code == 200 && body.lines().any(|line| line == told)).then_some(()))
        })
        .unwrap();
    }
    told
}

fn wait_for_peace(site: &Site) {
    let peace = || Ok(site.head()?.problems.is_empty().then_some(()));
    wait_until("the leader to have nothing to complain of", LIMIT, peace)
        .unwrap_or_else(|error| panic!("{error:#}; head: {:?}", site.head()));
}

#[test]
fn edits_by_hand_take_effect_and_broken_ones_change_nothing_and_are_told() {
    let site = start();
    let observer = Observer::start(&site).unwrap();
    let steady = Steady::start(&site.net.clients[0].host, PUBLISH, FLOWS, RATE).unwrap();
    steady.pass(SOME).unwrap();

    // By what comes with ZooKeeper, and by any other client.
    let record = site.operator.get(REAL_PATH).unwrap().unwrap();
    let edited = record.replace("\"weight\":100", "\"weight\":40");
    assert_ne!(record, edited);
    zkcli(&site, &["set", REAL_PATH, &edited]);
    site.wait_for_weights("publish", &[("real-1", 40), ("real-2", 100), ("real-3", 100)]).unwrap();
    let shown = zkcli(&site, &["get", ASSIGNMENT_PATH]);
    assert!(shown.contains("\"real-1\":40"), "{shown}");
    site.operator.put(REAL_PATH, &record).unwrap();
    site.wait_for_weights("publish", &[("real-1", 100), ("real-2", 100), ("real-3", 100)]).unwrap();
    let vip = site.operator.get(PUBLISH_PATH).unwrap().unwrap();
    let mut edited: serde_json::Value = serde_json::from_str(&vip).unwrap();
    edited["encapsulation"] = "ipip".into();
    site.operator.put(PUBLISH_PATH, &edited.to_string()).unwrap();
    wait_until("the other encapsulation to be in force", LIMIT, || {
        Ok((site.assignment("publish")?.vip.encapsulation == zk_schema::Encapsulation::Ipip).then_some(()))
    })
    .unwrap();
    site.wait_agreed(&[("publish", REALS)]).unwrap();
    steady.pass(SOME).unwrap();
    site.operator.put(PUBLISH_PATH, &vip).unwrap();
    wait_until("the first encapsulation to be in force", LIMIT, || {
        Ok((site.assignment("publish")?.vip.encapsulation == zk_schema::Encapsulation::Gue).then_some(()))
    })
    .unwrap();
    site.wait_agreed(&[("publish", REALS)]).unwrap();
    wait_for_peace(&site);

    let (before, in_force) = (digests(&site), site.operator.get(ASSIGNMENT_PATH).unwrap());
    let seen = observer.so_far();
    edited["encapsulation"] = "carrier-pigeon".into();
    let pigeon = edited.to_string();
    let mut newer: serde_json::Value = serde_json::from_str(&vip).unwrap();
    newer["version"] = 99.into();
    let newer = newer.to_string();
    let heavy = record.replace("\"weight\":100", "\"weight\":70000");
    let broken: [(&str, &str, &str, &[&str]); 5] = [
        (PUBLISH_PATH, &vip, "{\"address\": ", &[]),
        (PUBLISH_PATH, &vip, &pigeon, &["carrier-pigeon"]),
        (PUBLISH_PATH, &vip, &newer, &["99"]),
        (REAL_PATH, &record, "weight=5", &[]),
        (REAL_PATH, &record, &heavy, &["weight", "70000"]),
    ];
    for (path, good, bad, words) in broken {
        site.operator.put(path, bad).unwrap();
        let told = wait_for_problem(&site, &[&[path], words].concat());
        println!("{told}");
        assert_eq!(
            site.operator.get(ASSIGNMENT_PATH).unwrap(),
            in_force,
            "a broken edit had an effect: {bad}"
        );
        site.operator.put(path, good).unwrap();
        wait_for_peace(&site);
    }
    assert_eq!(site.operator.get(ASSIGNMENT_PATH).unwrap(), in_force);
    assert_eq!(digests(&site), before);
    let now = observer.so_far();
    for node in ["node-1", "node-2", "node-3"] {
        assert_eq!(now.tables(node, "publish"), seen.tables(node, "publish"), "{node}");
    }

    let (record, observed) = (steady.stop().unwrap(), observer.stop());
    record.assert_nothing_lost();
    observed.assert_never_withdrawn(["node-1", "node-2", "node-3"]);
    assert!(observed.agreed() > 0);
}

#[test]
fn an_edit_of_what_the_leader_wrote_is_repaired_and_the_loss_of_all_vips_must_be_confirmed() {
    let site = start();
    let observer = Observer::start(&site).unwrap();
    let steady = Steady::start(&site.net.clients[0].host, PUBLISH, FLOWS, RATE).unwrap();
    steady.pass(SOME).unwrap();
    let before = digests(&site);

    let written = site.operator.get(ASSIGNMENT_PATH).unwrap().unwrap();
    for edit in [written.replace("\"real-1\":100", "\"real-1\":1"), "gone".to_owned()] {
        assert_ne!(edit, written);
        site.operator.put(ASSIGNMENT_PATH, &edit).unwrap();
        wait_until("the edited assignment to be written anew", LIMIT, || {
            let assignment = site.assignment("publish").ok();
            Ok(assignment.filter(|assignment| assignment.weights["real-1"] == 100).map(|_| ()))
        })
        .unwrap();
        site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    }
    let head = site.operator.get(paths::ASSIGNMENTS).unwrap().unwrap();
    site.operator.put(paths::ASSIGNMENTS, "").unwrap();
    wait_until("the head to be written anew", LIMIT, || {
        Ok(site.operator.get(paths::ASSIGNMENTS)?.filter(|text| !text.is_empty()))
    })
    .unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    assert_ne!(site.operator.get(paths::ASSIGNMENTS).unwrap().unwrap(), head, "no newer epoch");
    assert_eq!(digests(&site), before);

    zkcli(&site, &["deleteall", paths::VIPS]);
    let told = wait_for_problem(&site, &[paths::VIPS, paths::CONFIRM_VIPS]);
    println!("{told}");
    steady.pass(2 * SOME).unwrap();
    assert_eq!(digests(&site), before);
    let so_far = observer.so_far();
    for node in ["node-1", "node-2", "node-3"] {
        let tables = so_far.tables(node, "publish");
        assert_eq!(tables.len(), 1, "{node} changed its table: {tables:?}");
    }
    let record = steady.stop().unwrap();
    let observed = observer.stop();
    record.assert_nothing_lost();
    observed.assert_never_withdrawn(["node-1", "node-2", "node-3"]);
    observed.assert_no_table_was_empty();

    site.operator.put(paths::CONFIRM_VIPS, "{\"by\":\"the test\",\"why\":\"all of it is to go\"}").unwrap();
    wait_until("the VIPs to be gone", LIMIT, || Ok(site.head()?.vips.is_empty().then_some(()))).unwrap();
    let front = site.net.front.as_ref().unwrap();
    front.wait_for_carriers(SERVICES, &[], LIMIT).unwrap();
}
