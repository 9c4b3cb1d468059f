//! What operators change by lbctl, in a cluster of real parts.

use std::fs;
use std::path::PathBuf;

use crate::{FLOWS, LIMIT, OTHERS, RATE, REALS, SOME};
use drover_tests::{Answer, Lbctl, Observer, PUBLISH, Settings, Site, Steady};
use serde_json::Value;

const REAL_PATH: &str = "/drover/vips/publish/reals/real-1";
const DRAIN_PATH: &str = "/drover/ops/drain/publish.real-1";

/// A site in good order, and an operator on its router.
fn start() -> (Site, Lbctl) {
    let site = Site::of_two_services(3, Settings::default()).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    site.wait_settled().unwrap();
    let lbctl = Lbctl::new(&site.net.router, &site.ensemble.connect_string());
    (site, lbctl)
}

/// A command that must succeed, and what it printed.
fn done(lbctl: &Lbctl, words: &[&str]) -> String {
    let Answer { code, stdout, stderr } = lbctl.run(words).unwrap();
    println!("$ lbctl {}\n{stdout}{stderr}", words.join(" "));
    assert_eq!(code, 0, "{words:?}: {stdout}{stderr}");
    stdout
}

/// A command that must fail, and all that it printed.
fn refused(lbctl: &Lbctl, words: &[&str]) -> String {
    let Answer { code, stdout, stderr } = lbctl.run(words).unwrap();
    println!("$ lbctl {}   # exit code {code}\n{stdout}{stderr}", words.join(" "));
    assert_eq!(code, 1, "{words:?}: {stdout}{stderr}");
    format!("{stdout}{stderr}")
}

#[track_caller]
fn assert_told(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

fn file(site: &Site, name: &str, text: &str) -> String {
    let path: PathBuf = site.net.router.dir().join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn flag(site: &Site, path: &str) -> Option<Value> {
    site.operator.get(path).unwrap().map(|text| serde_json::from_str(&text).unwrap())
}

#[test]
fn files_are_compared_written_and_exported_and_what_is_wrong_or_has_changed_is_not_written() {
    let (site, lbctl) = start();
    assert_told(&done(&lbctl, &["init"]), &["There is a cluster at /drover already"]);
    assert_told(
        &refused(&lbctl, &["init", "--seed", "00000000000000000000000000000001"]),
        &["of another kind"],
    );

    // What is exported is no change, in either form; also behind a pipe.
    let exported = done(&lbctl, &["export"]);
    let same = file(&site, "same.toml", &exported);
    assert_told(&done(&lbctl, &["apply", "-f", &same, "--prune"]), &["Nothing is to be changed"]);
    let json = file(&site, "same.json", &done(&lbctl, &["export", "--format", "json"]));
    assert_told(&done(&lbctl, &["apply", "-f", &json, "--prune"]), &["Nothing is to be changed"]);

    // Shown, then refused without consent, then written.
    assert_eq!(exported.matches("weight = 100").count(), 5, "{exported}");
    let edited = exported.replacen("weight = 100", "weight = 40", 1);
    let changed = file(&site, "changed.toml", &edited);
    let before = site.operator.get(REAL_PATH).unwrap();
    let shown = done(&lbctl, &["apply", "-f", &changed, "--dry-run"]);
    assert_told(&shown, &["~ real publish/real-1", "weight: 100 -> 40", "% of publish's slots", "dry run"]);
    let told = refused(&lbctl, &["apply", "-f", &changed]);
    assert_told(&told, &["weight: 100 -> 40", "--yes"]);
    assert_eq!(site.operator.get(REAL_PATH).unwrap(), before);
    let told = done(&lbctl, &["apply", "-f", &changed, "--yes", "--wait"]);
    assert_told(&told, &["Written.", "In force at epoch", "on 3 nodes"]);
    let weights = site.assignment("publish").unwrap().weights;
    assert_eq!(weights["real-1"], 40);
    site.wait_for_weights("publish", &[("real-1", 40), ("real-2", 100), ("real-3", 100)]).unwrap();

    // A mistake anywhere, and nothing is written.
    let before = site.operator.version(REAL_PATH).unwrap();
    let broken =
        edited.replacen("weight = 40", "weight = 41", 1).replacen("weight = 100", "weight = 70000", 1);
    let broken = file(&site, "broken.toml", &broken);
    assert_told(
        &refused(&lbctl, &["apply", "-f", &broken, "--yes"]),
        &["70000 is not in 0..=65535", "broken.toml:"],
    );
    let twice = edited.replace("[vips.subscribe", "[vips.other");
    let twice = file(&site, "twice.toml", &twice);
    assert_told(
        &refused(&lbctl, &["apply", "-f", &twice, "--yes"]),
        &["belongs to VIP", "Nothing was written"],
    );
    assert_eq!(site.operator.version(REAL_PATH).unwrap(), before);

    // While an operator thinks about the question, another one edits the same real.
    let ready = site.net.router.dir().join("ready");
    let program = std::env::current_exe().unwrap();
    let binary = program.ancestors().nth(2).unwrap().join("lbctl");
    let command = format!("{} -z {} apply -f {same}", binary.display(), site.ensemble.connect_string());
    let script = format!(
        "(until [ -e {ready} ]; do sleep 0.1; done; echo y) | script -qec '{command}' /dev/null",
        ready = ready.display()
    );
    let mut asked = site.net.router.command("sh").args(["-c", &script]).spawn().unwrap();
    asked.wait_for_line("Write this? [y/N]", LIMIT).unwrap();
    done(&lbctl, &["real", "set", "publish/real-1", "weight=60", "--wait"]);
    fs::write(&ready, "").unwrap();
    let status = asked.wait(LIMIT).unwrap();
    let told = asked.log().unwrap();
    println!("{told}");
    assert!(!status.success());
    assert_told(&told, &["was changed by somebody else", "weight: 40 -> 60", "Nothing was written", "again"]);
    site.wait_for_weights("publish", &[("real-1", 60), ("real-2", 100), ("real-3", 100)]).unwrap();
}

#[test]
fn reals_and_nodes_are_taken_out_and_back_while_clients_go_on() {
    let (site, lbctl) = start();
    let observer = Observer::start(&site).unwrap();
    let steady = Steady::start(&site.net.clients[0].host, PUBLISH, FLOWS, RATE).unwrap();
    steady.pass(SOME).unwrap();

    let drain = ["--by", "anna", "real", "drain", "publish/real-1", "--why", "disk", "--for", "1h", "--wait"];
    assert_told(&done(&lbctl, &drain), &["In force", "publish/real-1 takes no new connections"]);
    assert!(!site.assignment("publish").unwrap().weights.contains_key("real-1"));
    site.wait_agreed(&[("publish", OTHERS)]).unwrap();
    let set = flag(&site, DRAIN_PATH).unwrap();
    assert_eq!((&set["by"], &set["why"]), (&"anna".into(), &"disk".into()));
    assert!(set["until"].as_u64().is_some());
    assert_told(&done(&lbctl, &["real", "ls", "publish"]), &["drained by anna: disk, until "]);
    done(&lbctl, &["real", "undrain", "publish/real-1", "--wait"]);
    site.wait_agreed(&[("publish", REALS)]).unwrap();

    // What is disabled does not come back by undraining.
    done(&lbctl, &["real", "disable", "publish", "real-1", "--why", "broken", "--wait"]);
    site.wait_agreed(&[("publish", OTHERS)]).unwrap();
    assert_told(&refused(&lbctl, &["real", "undrain", "publish/real-1"]), &["disabled", "real enable"]);
    assert!(flag(&site, DRAIN_PATH).is_some());
    done(&lbctl, &["real", "enable", "publish/real-1", "--wait"]);
    assert!(site.assignment("publish").unwrap().weights.contains_key("real-1"));
    site.wait_agreed(&[("publish", REALS)]).unwrap();
    steady.pass(SOME).unwrap();

    let told = done(&lbctl, &["node", "drain", "node-2", "--why", "kernel", "--wait"]);
    assert_told(&told, &["node-2 has withdrawn its VIPs"]);
    site.wait_for_carriers(&[0, 2]).unwrap();
    done(&lbctl, &["node", "ls"]);
    let nodes = lbctl.json(&["node", "ls"]).unwrap();
    let node =
        |name: &str| nodes.as_array().unwrap().iter().find(|node| node["name"] == name).unwrap().clone();
    assert_eq!(node("node-2")["announced"], serde_json::json!([]));
    assert_eq!(node("node-1")["announced"], serde_json::json!([PUBLISH.ip().to_string()]));
    steady.pass(SOME).unwrap();
    assert_told(&refused(&lbctl, &["node", "rm", "node-2"]), &["node-2 is there"]);
    done(&lbctl, &["node", "drain", "node-1", "--wait"]);
    assert_told(&refused(&lbctl, &["node", "drain", "node-3"]), &["the last node in service", "--yes"]);
    done(&lbctl, &["node", "undrain", "node-1"]);
    done(&lbctl, &["node", "undrain", "node-2"]);
    site.wait_for_carriers(&[0, 1, 2]).unwrap();
    steady.pass(SOME).unwrap();

    let (record, observed) = (steady.stop().unwrap(), observer.stop());
    record.assert_nothing_lost();
    observed.assert_no_table_was_empty();
}

#[test]
fn what_the_leader_does_not_follow_is_told_and_refusals_say_what_there_is() {
    let (site, lbctl) = start();
    assert_told(
        &refused(&lbctl, &["vip", "show", "publsh"]),
        &["did you mean publish?", "there are: publish, subscribe"],
    );
    assert_told(
        &refused(&lbctl, &["real", "set", "publish/real-1", "wieght=5"]),
        &["unknown field; did you mean `weight`?"],
    );
    assert_told(&refused(&lbctl, &["vip", "rm", "publish"]), &["are served no more", "--yes"]);
    assert_told(
        &refused(&lbctl, &["vip", "set", "subscribe", "port=7000", "protocol=udp", "--yes"]),
        &["belongs to VIP publish already"],
    );

    // Both reals of a VIP are taken away: held, told, confirmed.
    let exported = done(&lbctl, &["export"]);
    let (without, _) = exported.split_once("[vips.subscribe.reals.").unwrap();
    let without = file(&site, "without.toml", without);
    let told = refused(&lbctl, &["apply", "-f", &without, "--prune", "--yes", "--wait"]);
    assert_told(
        &told,
        &[
            "takes 2 of 2 reals of subscribe away",
            "The leader does not follow",
            "2 of 2 reals vanished in a way that looks like an accident",
        ],
    );
    site.wait_agreed(&[("subscribe", OTHERS)]).unwrap();
    let told = done(&lbctl, &["confirm", "subscribe", "--why", "so it is meant", "--yes"]);
    assert_told(&told, &["held now: "]);
    site.wait_agreed(&[("subscribe", &[])]).unwrap();
    done(&lbctl, &["unconfirm", "subscribe"]);
    let full = file(&site, "full.toml", &exported);
    done(&lbctl, &["apply", "-f", &full, "--yes", "--wait"]);
    site.wait_agreed(&[("subscribe", OTHERS)]).unwrap();

    done(&lbctl, &["freeze", "--why", "racks", "--for", "1h"]);
    let told = refused(&lbctl, &["real", "set", "publish/real-1", "weight=50"]);
    assert_told(&told, &["the cluster is frozen", "The leader does not follow", "/drover/ops/freeze"]);
    assert_eq!(site.assignment("publish").unwrap().weights["real-1"], 100);
    done(&lbctl, &["unfreeze"]);
    site.wait_for_weights("publish", &[("real-1", 50), ("real-2", 100), ("real-3", 100)]).unwrap();

    // A VIP from nothing to its end.
    let add = ["vip", "add", "third", "--address", "198.51.100.11", "--port", "7002", "--protocol", "tcp"];
    done(&lbctl, &[&add[..], &["--health", "tcp", "health.port=7001"]].concat());
    let address = site.net.reals[1].v4.to_string();
    done(&lbctl, &["real", "add", "third/real-2", "--address", &address, "--wait"]);
    let outcome = lbctl.json(&["vip", "rm", "third", "--yes", "--wait"]).unwrap();
    assert_eq!(outcome["written"], true);
    assert_eq!(outcome["effect"]["state"], "in_force");
    assert!(!site.head().unwrap().vips.contains_key("third"));
}
