#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use crate::edit::testing::{put_in_force, tree, vip};
use std::sync::Arc;
use zk_schema::Encapsulation;

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

fn real_of(tree: &Tree, name: &str) -> (Target, Real) {
    let target = target(name);
    let real = tree.vips[&target.vip].reals[&target.real].ok().unwrap().clone();
    (target, real)
}

fn weigh(tree: &Tree, name: &str, weight: u16) -> Edit {
    let (target, real) = real_of(tree, name);
    Edit::PutReal(target, Real { weight, ..real })
}

fn planned(tree: &Tree, edits: Vec<Edit>) -> Plan {
    plan(tree, edits, 0).unwrap()
}

fn refusal(tree: &Tree, edits: Vec<Edit>) -> String {
    plan(tree, edits, 0).unwrap_err().to_string()
}

fn told(plan: &Plan) -> String {
    plan.remarks.iter().map(|remark| format!("{remark}\n")).collect()
}

fn steps(plan: &Plan) -> String {
    plan.steps.iter().map(ToString::to_string).collect()
}

/// Makes a real's record one that its agent wrote.
fn register(tree: &mut Tree, name: &str) {
    let target = target(name);
    let found = Arc::make_mut(tree.vips.get_mut(&target.vip).unwrap()).reals.get_mut(&target.real).unwrap();
    Arc::make_mut(&mut found.znode).owner = Some(1);
}

#[test]
fn what_is_as_it_should_be_is_not_written() {
    let tree = tree(&["mqtt/a", "mqtt/b"]);
    let (name, mqtt) = vip(&tree, "mqtt");
    let plan = planned(&tree, vec![Edit::PutVip(name, mqtt), weigh(&tree, "mqtt/a", 100)]);
    assert_eq!(plan, Plan::default());
}

#[test]
fn a_change_names_its_fields_and_the_version_that_it_was_made_against() {
    let mut tree = tree(&["mqtt/a", "mqtt/b"]);
    Arc::make_mut(&mut Arc::make_mut(tree.vips.get_mut("mqtt").unwrap()).reals.get_mut("a").unwrap().znode)
        .version = 4;
    let plan = planned(&tree, vec![weigh(&tree, "mqtt/a", 50)]);
    assert_eq!(steps(&plan), "~ real mqtt/a\n    weight: 100 -> 50\n");
    let [Change::Set { path, version: Some(4), .. }] = plan.steps[0].changes.as_slice() else {
        panic!("{:?}", plan.steps)
    };
    assert_eq!(path, "/drover/vips/mqtt/reals/a");
    assert!(!plan.is_dangerous());
    // A third of the slots is due to `a` in place of a half.
    assert_eq!(
        told(&plan),
        "warning: moves about 17 % of mqtt's slots to other reals; established connections in them break\n"
    );
}

#[test]
fn a_new_vip_comes_with_the_parent_of_its_reals() {
    let tree = tree(&["mqtt/a"]);
    let (_, old) = vip(&tree, "mqtt");
    let new = Vip { port: 8883, ..old };
    let edits = vec![
        Edit::PutVip("mqtts".parse().unwrap(), new),
        Edit::PutReal(target("mqtts/a"), Real::new([10, 0, 0, 9].into())),
    ];
    let plan = planned(&tree, edits);
    let paths: Vec<&str> = plan.steps.iter().flat_map(|step| &step.changes).map(Change::path).collect();
    assert_eq!(paths, ["/drover/vips/mqtts", "/drover/vips/mqtts/reals", "/drover/vips/mqtts/reals/a"]);
    assert!(!plan.is_dangerous(), "{}", told(&plan));
}

#[test]
fn taking_most_reals_away_is_said_to_be_held() {
    let tree = tree(&["mqtt/a", "mqtt/b", "mqtt/c", "mqtt/d", "web/a"]);
    let remove = |name| Edit::RemoveReal(target(name));
    let plan = planned(&tree, vec![remove("mqtt/a"), remove("mqtt/b"), remove("mqtt/c")]);
    let told = told(&plan);
    assert!(
        told.contains(
            "danger: takes 3 of 4 reals of mqtt away: the leader will hold that until `lbctl confirm mqtt`"
        ),
        "{told}"
    );
    assert!(told.contains("danger: takes a, b, c out of mqtt while in use"), "{told}");
    assert!(told.contains("warning: moves about 75 % of mqtt's slots"), "{told}");

    let mut confirmed = tree.clone();
    confirmed.flags.confirm.insert("mqtt".to_owned(), Flag::default());
    let plan = planned(&confirmed, vec![remove("mqtt/a"), remove("mqtt/b"), remove("mqtt/c")]);
    assert!(!self::told(&plan).contains("will hold"), "{}", self::told(&plan));

    let last = planned(&tree, vec![remove("web/a")]);
    assert!(self::told(&last).contains("web has no real left"), "{}", self::told(&last));
}

#[test]
fn taking_a_vip_away_takes_all_that_belongs_to_it_and_says_who_is_served_no_more() {
    let mut tree = tree(&["mqtt/a", "mqtt/b"]);
    tree.flags.drain.insert(target("mqtt/b"), Flag::default());
    let plan = planned(&tree, vec![Edit::RemoveVip("mqtt".parse().unwrap())]);
    let deleted: Vec<&str> = plan.steps.iter().flat_map(|step| &step.changes).map(Change::path).collect();
    assert_eq!(
        deleted,
        [
            "/drover/vips/mqtt/reals/a",
            "/drover/vips/mqtt/reals/b",
            "/drover/ops/drain/mqtt.b",
            "/drover/vips/mqtt/reals",
            "/drover/vips/mqtt",
        ]
    );
    let told = told(&plan);
    assert!(
        told.contains("danger: clients of mqtt (198.51.100.0, tcp port 1883) are served no more"),
        "{told}"
    );
    assert!(told.contains("danger: takes 1 of 1 VIPs away: the leader will hold that"), "{told}");
}

#[test]
fn a_vip_that_moves_or_travels_otherwise_is_dangerous() {
    let tree = tree(&["mqtt/a"]);
    let (name, old) = vip(&tree, "mqtt");
    let moved = Vip { address: [198, 51, 100, 77].into(), ..old.clone() };
    let plan = planned(&tree, vec![Edit::PutVip(name.clone(), moved)]);
    assert!(told(&plan).contains("danger: mqtt moves from 198.51.100.0, tcp port 1883 to 198.51.100.77"));
    let plan = planned(&tree, vec![Edit::PutVip(name, Vip { encapsulation: Encapsulation::Ipip, ..old })]);
    assert!(plan.is_dangerous(), "{}", told(&plan));
}

#[test]
fn what_does_not_go_together_is_refused_but_not_what_was_wrong_before() {
    let mut tree = tree(&["mqtt/a", "web/a", "third/a"]);
    let (_, mqtt) = vip(&tree, "mqtt");
    let same = refusal(&tree, vec![Edit::PutVip("web".parse().unwrap(), mqtt.clone())]);
    assert!(same.contains("belongs to VIP mqtt already") && same.contains("Nothing was written"), "{same}");

    // Somebody wrote by hand what does not go together: that is no reason to refuse something else.
    Arc::make_mut(tree.vips.get_mut("web").unwrap()).vip.record = Ok(mqtt);
    let plan = planned(&tree, vec![weigh(&tree, "third/a", 5)]);
    assert_eq!(plan.steps.len(), 1);
}

#[test]
fn a_real_that_registers_itself_is_neither_written_nor_deleted() {
    let mut tree = tree(&["mqtt/a", "mqtt/b"]);
    register(&mut tree, "mqtt/a");
    let plan = planned(&tree, vec![weigh(&tree, "mqtt/a", 5)]);
    assert!(plan.steps.is_empty() && told(&plan).contains("registered by its own agent"), "{plan:?}");
    let plan = planned(&tree, vec![Edit::RemoveReal(target("mqtt/a"))]);
    assert!(plan.steps.is_empty() && told(&plan).contains("registered by its own agent"), "{plan:?}");
    let refused = refusal(&tree, vec![Edit::RemoveVip("mqtt".parse().unwrap())]);
    assert!(refused.contains("stop those agents first"), "{refused}");
    // One that is written as it is already is none of anybody's business.
    assert_eq!(planned(&tree, vec![weigh(&tree, "mqtt/a", 100)]), Plan::default());
}

#[test]
fn fields_of_newer_software_stay_and_its_records_are_not_overwritten() {
    let mut tree = tree(&["mqtt/a", "mqtt/b"]);
    let found = Arc::make_mut(tree.vips.get_mut("mqtt").unwrap()).reals.get_mut("a").unwrap();
    found.record.as_mut().unwrap().extra.insert("colour".to_owned(), "blue".into());
    let (target, _) = real_of(&tree, "mqtt/a");
    let plan = planned(&tree, vec![Edit::PutReal(target.clone(), Real::new([10, 0, 0, 77].into()))]);
    let Change::Set { data, .. } = &plan.steps[0].changes[0] else { panic!("{plan:?}") };
    assert!(String::from_utf8_lossy(data).contains(r#""colour":"blue""#));

    let broken = |data: &str| {
        let mut tree = tree.clone();
        let found = Arc::make_mut(tree.vips.get_mut("mqtt").unwrap()).reals.get_mut("a").unwrap();
        found.record = Err("it is wrong".to_owned());
        Arc::make_mut(&mut found.znode).data = data.as_bytes().to_vec();
        tree
    };
    let put = || vec![Edit::PutReal(target.clone(), Real::new([10, 0, 0, 1].into()))];
    let refused = refusal(&broken(r#"{"version":2,"address":"10.0.0.1"}"#), put());
    assert!(refused.contains("newer software"), "{refused}");
    let plan = planned(&broken("{"), put());
    assert!(told(&plan).contains("is broken and is replaced whole") && plan.steps.len() == 1, "{plan:?}");
}

#[test]
fn draining_the_last_real_that_is_left_is_said_to_have_no_effect() {
    let mut tree = tree(&["mqtt/a", "mqtt/b"]);
    let drain = |name: &str| Edit::PutFlag(FlagName::Drain(target(name)), Flag::default(), None);
    let plan = planned(&tree, vec![drain("mqtt/a")]);
    assert!(!plan.is_dangerous() && told(&plan).contains("moves about 50 %"), "{}", told(&plan));
    tree.flags.drain.insert(target("mqtt/a"), Flag::default());
    put_in_force(&mut tree, 8);
    let plan = planned(&tree, vec![drain("mqtt/b")]);
    assert!(told(&plan).contains("danger: every real of mqtt is drained"), "{}", told(&plan));
    // And back again.
    let znode = Znode::clone(&tree.vips["mqtt"].vip.znode);
    let undrain = Edit::RemoveFlag(FlagName::Drain(target("mqtt/a")), znode);
    assert!(told(&planned(&tree, vec![undrain])).contains("moves about 50 %"));
}

#[test]
fn a_frozen_cluster_is_told_of() {
    let mut tree = tree(&["mqtt/a", "mqtt/b"]);
    tree.flags.freeze = Some(Flag { by: "anna".to_owned(), why: "racks".to_owned(), ..Flag::default() });
    let told = told(&planned(&tree, vec![weigh(&tree, "mqtt/a", 5)]));
    assert!(told.contains("the cluster is frozen (by anna: racks)"), "{told}");
}
