#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use crate::paint::Paper;
use crate::testing::{NOW, applied, assignment, found, good, name, target};
use zk_schema::tree::{Adoption, Finding, Flag, Line, Load, Place, Registrant, Replaced};

fn overview(tree: &Tree) -> Overview {
    let link = Link { servers: "zk-1:2181".into(), session: "0x1".into(), read_ms: 12 };
    Overview::of(tree, link, NOW, &mut Shares::default())
}

fn problems(tree: &Tree) -> String {
    overview(tree).problems.iter().map(|problem| format!("{}\n", problem.text)).collect()
}

fn why(tree: &Tree, real: &str) -> String {
    overview(tree).vips["mqtt"].reals[real].why.clone()
}

fn head(tree: &mut Tree) -> &mut Head {
    tree.head.as_mut().unwrap().record.as_mut().unwrap()
}

/// `nodes` find `real` down since ten seconds.
fn find_down(tree: &mut Tree, nodes: &[&str], real: &str) {
    for node in nodes {
        let vote = tree.health.get_mut(*node).unwrap().record.as_mut().unwrap();
        let finding = Finding { since: NOW - 10, reason: "connection refused".into() };
        Arc::make_mut(vote).down.insert(target(real), finding);
    }
}

fn flag(by: &str, why: &str) -> Flag {
    Flag { by: by.into(), why: why.into(), ..Flag::default() }
}

#[test]
fn a_cluster_in_good_order_has_no_problems_and_nothing_to_explain() {
    let tree = good();
    let overview = overview(&tree);
    assert_eq!(overview.problems, []);
    let leader = overview.leader.as_ref().unwrap();
    assert_eq!((leader.node.as_str(), leader.term, leader.present), ("lb-2", 3, true));
    assert!(overview.nodes["lb-2"].leader && !overview.nodes["lb-1"].leader);
    let vip = &overview.vips["mqtt"];
    assert_eq!((vip.standing, vip.epoch, vip.since), (Standing::Served, Some(40), Some(38)));
    let reals: Vec<_> =
        vip.reals.values().map(|real| (real.health, real.weight, real.why.as_str())).collect();
    assert_eq!(reals, [(Health::Up, 100, ""); 3]);
    assert_eq!(vip.reals.values().map(|real| real.slots).sum::<u32>(), 65_537);
    assert!(vip.reals.values().all(|real| (0.333..0.334).contains(&real.share)));
}

#[test]
fn shares_are_those_of_the_table_in_force() {
    let mut tree = good();
    let weights = &mut assignment(&mut tree).weights;
    weights.insert(name("a"), 300);
    weights.remove("c");
    let reals = overview(&tree).vips["mqtt"].reals.clone();
    assert!((reals["a"].share - 0.75).abs() < 1e-4 && (reals["b"].share - 0.25).abs() < 1e-4);
    assert_eq!((reals["c"].slots, reals["c"].weight), (0, 0));
    assert_eq!(reals["c"].why, "waits for the leader to let it in");
    assert_eq!(reals["a"].why, "stays at 300 instead of 100 until the leader decides");
}

#[test]
fn a_real_that_is_down_says_since_when_why_and_who_finds_it_so() {
    let mut tree = good();
    find_down(&mut tree, &["lb-1", "lb-3"], "b");
    assert_eq!(
        why(&tree, "b"),
        "down for 10 s: connection refused (lb-1 and lb-3); keeps its slots until the leader decides"
    );
    assignment(&mut tree).weights.remove("b");
    assert_eq!(why(&tree, "b"), "down for 10 s: connection refused (lb-1 and lb-3)");
    assert_eq!(problems(&tree), "mqtt/b is down for 10 s: connection refused (lb-1 and lb-3)\n");
    assignment(&mut tree).weights.insert(name("b"), 100);
    assignment(&mut tree).held = Some("2 of 3 reals are down".into());
    assert!(why(&tree, "b").ends_with("; keeps its slots: 2 of 3 reals are down"));
    assert!(problems(&tree).contains("mqtt: 2 of 3 reals are down\n"));
}

#[test]
fn a_minority_of_probers_takes_no_real_down_and_is_told() {
    let mut tree = good();
    find_down(&mut tree, &["lb-1"], "b");
    assert_eq!(why(&tree, "b"), "only some find it down: connection refused (lb-1)");
    assert_eq!(overview(&tree).problems, []);
}

#[test]
fn a_drained_real_says_who_and_why_and_what_it_waits_for() {
    let mut tree = good();
    tree.flags.drain.insert(target("a"), flag("anna", "new disk"));
    assert_eq!(why(&tree, "a"), "drained by anna: new disk; keeps its slots until the leader decides");
    let mut weights = assignment(&mut tree).weights.clone();
    weights.remove("a");
    assignment(&mut tree).next = Some(Adoption { epoch: 42, weights: weights.clone() });
    head(&mut tree).epoch = 42;
    applied(&mut tree, "lb-2").epoch = 42;
    assert_eq!(
        why(&tree, "a"),
        "drained by anna: new disk; leaves the table when lb-1 and lb-3 have acknowledged it"
    );
    applied(&mut tree, "lb-1").epoch = 42;
    assert!(why(&tree, "a").ends_with("leaves the table when lb-3 has acknowledged it"));
    assignment(&mut tree).next = None;
    assignment(&mut tree).weights = weights;
    assert_eq!(why(&tree, "a"), "drained by anna: new disk");
    let text = problems(&tree);
    assert_eq!(text, "lb-3 is 1 epoch behind\n", "a drain is no problem");
}

#[test]
fn a_flag_that_has_run_out_does_not_count_and_one_without_an_object_is_told() {
    let mut tree = good();
    let over = Flag { until: Some(NOW), ..flag("anna", "") };
    tree.flags.drain.insert(target("a"), over);
    assert_eq!(why(&tree, "a"), "");
    tree.flags.drain.insert(target("z"), Flag { until: Some(NOW + 600), ..flag("anna", "") });
    tree.flags.maintenance.insert(name("lb-9"), flag("", ""));
    let text = problems(&tree);
    assert!(text.contains("/drover/ops/drain/mqtt.z drains a real that there is not"), "{text}");
    assert!(text.contains("/drover/ops/maintenance/lb-9 is about a node that there is not"), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn a_node_that_has_left_is_gone_with_what_it_had() {
    let mut tree = good();
    tree.nodes.remove("lb-3");
    applied(&mut tree, "lb-3").epoch = 39;
    let text = problems(&tree);
    assert!(text.starts_with("lb-3 is gone, with term 3 epoch 39 in force when last heard of"), "{text}");
    assert_eq!(text.lines().count(), 1);
    assert!(!overview(&tree).nodes["lb-3"].present);
}

#[test]
fn nodes_that_lag_differ_or_are_cut_off_are_told() {
    let mut tree = good();
    applied(&mut tree, "lb-1").epoch = 38;
    head(&mut tree).lagging = [name("lb-1")].into();
    applied(&mut tree, "lb-3").mode = Mode::Static;
    let text = problems(&tree);
    assert!(text.contains("lb-1 is 3 epochs behind, and the leader no longer waits"), "{text}");
    assert!(text.contains("lb-3 is static"), "{text}");

    let mut tree = good();
    applied(&mut tree, "lb-3").digest = "other".into();
    assert!(problems(&tree).starts_with("lb-3 has other tables than the rest"), "{}", problems(&tree));
    applied(&mut tree, "lb-3").mode = Mode::Autonomous;
    assert!(!problems(&tree).contains("other tables"), "it leaves reals out on purpose");
    let mut tree = good();
    tree.nodes.remove("lb-1");
    applied(&mut tree, "lb-3").digest = "other".into();
    assert_eq!(problems(&tree).matches("has other tables").count(), 2, "of two nobody can say who is right");
}

#[test]
fn decisions_without_a_node_are_stale_and_so_is_a_leader_that_is_gone() {
    let mut tree = good();
    tree.nodes.remove("lb-2");
    assert!(
        problems(&tree).starts_with("leader lb-2 is gone and has no successor yet"),
        "{}",
        problems(&tree)
    );
    tree.nodes.clear();
    assert!(problems(&tree).starts_with("no node is there: what is in force stays"), "{}", problems(&tree));
    tree.head = None;
    tree.assignments.clear();
    let text = problems(&tree);
    assert!(text.starts_with("nothing was ever decided"), "{text}");
    assert!(text.contains("mqtt: defined, and not served yet"), "{text}");
}

#[test]
fn who_leads_is_the_first_in_line_that_began_the_newest_term_and_else_nobody() {
    let place = |number: u64, node: &str, instance: &str| Place {
        number,
        path: format!("/drover/election/{node}-{instance}-{number:010}"),
        owner: 1,
        node: Some(name(node)),
    };
    let line = |candidates: Vec<Place>| {
        let mut tree = good();
        tree.line = Some(Line { candidates, strays: Vec::new() });
        tree
    };
    let well = line(vec![place(4, "lb-2", "i"), place(7, "lb-1", "i")]);
    assert_eq!(problems(&well), "");
    assert!(overview(&well).nodes["lb-2"].leader);
    for (candidates, first) in [
        (Vec::new(), "no node stands for election"),
        (vec![place(4, "lb-1", "i"), place(7, "lb-2", "i")], "lb-1-i-0000000004 is the first in line"),
        // That of an earlier process of the same node.
        (vec![place(4, "lb-2", "old"), place(7, "lb-2", "i")], "lb-2-old-0000000004 is the first in line"),
    ] {
        let tree = line(candidates);
        let text = problems(&tree);
        assert!(text.starts_with("no leader: ") && text.contains(first), "{text}");
        let overview = overview(&tree);
        assert!(!overview.leader.as_ref().unwrap().leads && !overview.nodes["lb-2"].leader);
        let shown = Paper::default().print(&text::header(&overview));
        assert!(shown.starts_with("Leader     none (lb-2 led last, term 3"), "{shown}");
    }
}

#[test]
fn a_wrong_record_is_told_once_though_leader_and_reader_find_it() {
    let mut tree = good();
    let problem = "/drover/vips/mqtt/reals/a: weight: 70000 is not in 0..=65535; the last good record stays";
    head(&mut tree).problems.insert(problem.into());
    let reals = &mut Arc::make_mut(tree.vips.get_mut("mqtt").unwrap()).reals;
    reals.get_mut("a").unwrap().record = Err("weight: 70000 is not in 0..=65535".into());
    let found = overview(&tree);
    let about: Vec<_> = found.problems.iter().map(|problem| problem.text.as_str()).collect();
    assert_eq!(about, ["mqtt: its records differ from what is in force: not accepted yet", problem]);
    assert!(found.problems.iter().all(|problem| problem.vip == Some(name("mqtt"))));
    assert_eq!(found.vips["mqtt"].standing, Standing::Edited);
}

#[test]
fn a_freeze_and_a_confirmation_are_told() {
    let mut tree = good();
    tree.flags.freeze = Some(flag("anna", "maintenance of the switch"));
    tree.flags.confirm.insert("mqtt".into(), flag("", ""));
    let text = problems(&tree);
    assert!(text.contains("frozen by anna: maintenance of the switch: nothing changes"), "{text}");
    assert!(text.contains(
        "confirmed: mqtt's panic threshold does not hold; `lbctl unconfirm mqtt` when that has happened"
    ));
}

#[test]
fn one_vip_alone_hides_the_problems_of_others_and_no_others() {
    let mut tree = good();
    tree.nodes.remove("lb-3");
    find_down(&mut tree, &["lb-1", "lb-2"], "b");
    let mut other = tree.vips["mqtt"].clone();
    Arc::make_mut(&mut other).reals.clear();
    tree.vips.insert(name("other"), other);
    let all = overview(&tree);
    assert!(all.problems.iter().any(|problem| problem.vip == Some(name("other"))));
    let one = all.clone().only(&name("mqtt")).unwrap();
    assert_eq!(one.vips.len(), 1);
    assert_eq!(one.problems.len(), 2, "{:?}", one.problems);
    assert_eq!(all.only(&name("nobody")), None);
}

#[test]
fn connections_and_self_registration_are_shown() {
    let mut tree = good();
    let load = Load { connections: 1203, at: NOW - 2, extra: Default::default() };
    tree.loads.insert(target("a"), found(load));
    Arc::make_mut(&mut Arc::make_mut(tree.vips.get_mut("mqtt").unwrap()).reals.get_mut("a").unwrap().znode)
        .owner = Some(7);
    let accepted = tree.assignments.get_mut("mqtt").unwrap().record.as_mut().unwrap();
    Registrant::settle(accepted.reals.get_mut("a").unwrap(), true).unwrap();
    let overview = overview(&tree);
    let real = &overview.vips["mqtt"].reals["a"];
    assert_eq!((real.connections, real.counted, real.self_registered), (Some(1203), Some(NOW - 2), true));
    assert_eq!(overview.vips["mqtt"].standing, Standing::Served);
    let text = Paper::default().print(&text::screen(&overview, Paper::default()));
    assert!(text.contains("a (self)  10.0.0.1  up         100  33.3 %  1,203\n"), "{text}");
}

#[test]
fn the_screen_fits_in_a_hundred_columns_however_long_the_reasons_are() {
    let mut tree = good();
    tree.nodes.remove("lb-3");
    find_down(&mut tree, &["lb-1", "lb-2"], "b");
    tree.flags.drain.insert(target("a"), flag("anna", &"a very long reason ".repeat(20)));
    assignment(&mut tree).held = Some("held because of that and that ".repeat(10));
    let overview = overview(&tree);
    let text = Paper::default().print(&text::screen(&overview, Paper::default()));
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}\n{text}");
        assert_eq!(line, line.trim_end());
    }
    assert!(
        text.starts_with("Leader     lb-2, term 3, for 2 h 1 min\nIn force   epoch 41 of term 3\n"),
        "{text}"
    );
    assert!(!text.contains('\x1b'));
}

#[test]
fn the_json_names_what_scripts_ask_for() {
    let json = serde_json::to_value(overview(&good())).unwrap();
    assert_eq!(json["leader"]["node"], "lb-2");
    assert_eq!(json["head"]["epoch"], 41);
    assert_eq!(json["nodes"]["lb-1"]["mode"], "live");
    assert_eq!(json["nodes"]["lb-1"]["behind"], 0);
    assert_eq!(json["vips"]["mqtt"]["reals"]["a"]["health"], "up");
    assert_eq!(json["vips"]["mqtt"]["reals"]["a"]["weight"], 100);
    assert_eq!(json["problems"], serde_json::json!([]));
}

#[test]
fn a_machine_that_took_over_a_nodes_name_is_told_for_a_day_with_both_machines() {
    let mut tree = good();
    let record = applied(&mut tree, "lb-1");
    record.boot = Some("boot-2".into());
    record.sources = ["10.0.0.2".parse().unwrap()].into();
    record.replaced = Some(Replaced {
        boot: "boot-1".into(),
        sources: ["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()].into(),
        at: NOW - 720,
        extra: Default::default(),
    });
    assert_eq!(overview(&tree).problems, [], "a machine may be replaced on purpose");
    let text = overview(&tree).nodes["lb-1"].replaced.as_ref().unwrap().words.clone();
    let told = "another machine took this name over 12 min ago: it is 10.0.0.2 (boot boot-2) now and was 10.0.0.1 \
                and 2001:db8::1 (boot boot-1) before";
    assert!(text.starts_with(told), "{text}");
    let screen = Paper::default().print(&text::nodes(&overview(&tree), 200));
    assert!(screen.contains("another machine had this name until 12 min ago"), "{screen}");
    applied(&mut tree, "lb-1").replaced.as_mut().unwrap().at = NOW - Replaced::TOLD_FOR_S;
    assert!(overview(&tree).nodes["lb-1"].replaced.is_none());
}
