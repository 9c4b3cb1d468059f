#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use crate::edit::testing::{put_in_force, tree};
use std::sync::Arc;
use zk_schema::tree::{Adoption, Flag};

fn expected(vips: &[&str]) -> Expected {
    let vips: BTreeSet<VipName> = vips.iter().map(|vip| vip.parse().unwrap()).collect();
    Expected { vips, reals: BTreeSet::new() }
}

fn waits_for(tree: &Tree) -> String {
    match effect(tree, &expected(&["mqtt"]), 0) {
        Effect::Pending { waits_for } => waits_for.join("; "),
        other => panic!("{other:?}"),
    }
}

fn assignment<'t>(tree: &'t mut Tree, vip: &str) -> &'t mut Assignment {
    tree.assignments.get_mut(vip).unwrap().record.as_mut().unwrap()
}

#[test]
fn an_edit_is_in_force_when_the_leader_has_taken_it_over_and_every_node_has_it() {
    let mut tree = tree(&["mqtt/a", "mqtt/b"]);
    let in_force = |epoch| Effect::InForce { epoch, nodes: 1, held: Vec::new() };
    assert_eq!(effect(&tree, &expected(&["mqtt"]), 0), in_force(7));

    Arc::make_mut(tree.vips.get_mut("mqtt").unwrap())
        .reals
        .get_mut("a")
        .unwrap()
        .record
        .as_mut()
        .unwrap()
        .weight = 50;
    assert_eq!(waits_for(&tree), "the leader has not taken over mqtt");

    let mut announced = tree.clone();
    put_in_force(&mut announced, 8);
    let mqtt = assignment(&mut announced, "mqtt");
    mqtt.next = Some(Adoption { epoch: 8, weights: mqtt.weights.clone() });
    mqtt.why = "announced: a from 100 to 50".to_owned();
    assert_eq!(waits_for(&announced), "mqtt: announced: a from 100 to 50");

    put_in_force(&mut tree, 9);
    tree.applied.get_mut("lb-1").unwrap().record.as_mut().unwrap().epoch = 8;
    assert_eq!(waits_for(&tree), "lb-1 has not applied epoch 9");
    put_in_force(&mut tree, 9);
    assert_eq!(effect(&tree, &expected(&["mqtt"]), 0), in_force(9));
}

#[test]
fn a_drain_is_in_force_when_the_real_has_no_slots_unless_the_leader_keeps_it() {
    let mut tree = tree(&["mqtt/a", "mqtt/b"]);
    let flag = Flag { until: Some(100), ..Flag::default() };
    tree.flags.drain.insert("mqtt/a".parse().unwrap(), flag);
    assert_eq!(waits_for(&tree), "mqtt/a has weight 100 in the table");
    assert!(matches!(effect(&tree, &expected(&["mqtt"]), 100), Effect::InForce { .. }), "the flag has ended");
    assignment(&mut tree, "mqtt").held = Some("every real is drained".to_owned());
    let Effect::InForce { held, .. } = effect(&tree, &expected(&["mqtt"]), 0) else { panic!() };
    assert_eq!(held, ["mqtt: every real is drained"]);
}

#[test]
fn a_real_that_is_let_back_is_in_force_when_it_is_in_the_table_or_found_down() {
    let mut tree = tree(&["mqtt/a", "mqtt/b"]);
    assignment(&mut tree, "mqtt").weights.remove("a");
    assert_eq!(waits_for(&tree), "mqtt/a is not in the table yet");
    let finding = zk_schema::tree::Finding { since: 0, reason: "refused".to_owned() };
    let vote =
        zk_schema::tree::Vote { down: [("mqtt/a".parse().unwrap(), finding)].into(), ..Default::default() };
    let znode = tree.vips["mqtt"].vip.znode.clone();
    tree.health.insert("lb-1".parse().unwrap(), Found { record: Ok(Arc::new(vote)), znode });
    let Effect::InForce { held, .. } = effect(&tree, &expected(&["mqtt"]), 0) else { panic!() };
    assert_eq!(held, ["mqtt/a is down (refused): it gets no connections"]);
}

#[test]
fn a_vip_that_is_deleted_is_so_when_the_head_lists_it_no_more() {
    let mut tree = tree(&["mqtt/a", "web/a"]);
    tree.vips.remove("mqtt");
    assert_eq!(
        waits_for(&tree),
        "mqtt is still being served until nothing else has vanished for 2 s, or 10 s if several things have"
    );
    put_in_force(&mut tree, 8);
    assert!(matches!(effect(&tree, &expected(&["mqtt"]), 0), Effect::InForce { .. }));
}

#[test]
fn only_objections_to_what_was_edited_count() {
    let told = |tree: &Tree, what: &Expected| what.objections(tree, 0).unwrap();
    let mut tree = tree(&["mqtt/a", "mqtt/b", "web/a", "dns/a"]);
    let mqtt = expected(&["mqtt"]);
    assert_eq!(told(&tree, &mqtt), []);
    let broken = || Err("weight: -1".to_owned());
    Arc::make_mut(tree.vips.get_mut("web").unwrap()).vip.record = Err("port: 70000".to_owned());
    Arc::make_mut(tree.vips.get_mut("mqtt").unwrap()).reals.get_mut("a").unwrap().record = broken();
    assert_eq!(told(&tree, &mqtt), [], "of the VIP, its own record is what counts");
    let real = Expected { reals: ["mqtt/a".parse().unwrap()].into(), ..expected(&["mqtt"]) };
    let refused = told(&tree, &real);
    let [Problem::RefusedReal { real, in_force: true, .. }] = &refused[..] else { panic!("{refused:?}") };
    assert_eq!(real.to_string(), "mqtt/a");
    assert!(matches!(&told(&tree, &expected(&["web"]))[..], [Problem::RefusedVip { in_force: true, .. }]));

    // What is held is told to those whose it is.
    Arc::make_mut(tree.vips.get_mut("mqtt").unwrap()).reals.remove("b");
    assert_eq!(told(&tree, &mqtt), [], "the leader has not judged it yet");
    assignment(&mut tree, "mqtt").held_reals = ["b".parse().unwrap()].into();
    assert!(matches!(&told(&tree, &mqtt)[..], [Problem::HeldReals { of: 2, nothing_left: false, .. }]));
    tree.vips.remove("dns");
    let head = tree.head.as_mut().unwrap().record.as_mut().unwrap();
    head.held_vips = ["dns".parse().unwrap()].into();
    assert!(matches!(&told(&tree, &expected(&["dns"]))[..], [Problem::HeldVips { of: 3, .. }]));

    tree.flags.freeze = Some(Flag::default());
    assert_eq!(told(&tree, &expected(&["dns"])), [Problem::Frozen]);
    tree.head = None;
    assert_eq!(told(&tree, &mqtt), [], "nobody leads");
    assert_eq!(effect(&Tree::default(), &mqtt, 0), Effect::NoLeader);
}
