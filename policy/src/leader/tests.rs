//! Decisions, one situation each. That they hold together over time is what the simulations prove.

mod explain;
mod lockstep;

use super::*;
use crate::removal;
use std::sync::Arc;
use zk_schema::Picture;
use zk_schema::picture::VipFound;
use zk_schema::testing::{broken, checked_vip, desired, name, unchecked_vip, vip_found};
use zk_schema::tree::{Contents, Decided, Finding, Mode, Registrant, Target, Znode};
use zk_schema::{Cluster, Desired, Real, Vip, VipState, to_json};

const SETTINGS: Timeouts = Timeouts {
    session_timeout: Duration::from_secs(6),
    ack_timeout: Duration::from_secs(3),
    withdraw_after: Duration::from_secs(10),
};
/// Long after the leader has settled.
const LATER: Duration = Duration::from_secs(100);

/// A cluster in which every decision is written, and which can be asked for the next one.
struct Case {
    leader: Leader,
    view: View,
    now: Duration,
}

impl Case {
    /// Nodes `lb-1` to `lb-3`, all in good order, and a leader that has settled and published `desired`.
    fn new(desired: &Desired) -> Self {
        let nodes: BTreeSet<NodeName> = ["lb-1", "lb-2", "lb-3"].map(name).into();
        let vips = desired.vips.iter().map(|(vip, state)| (vip.clone(), vip_found(state.clone())));
        let view =
            View { cluster: Some(Ok(Cluster::default())), vips: vips.collect(), nodes, ..View::default() };
        let leader = Leader::new(1, SETTINGS, Published::default(), 0, Duration::ZERO);
        let mut case = Self { leader, view, now: Duration::ZERO };
        for _ in 0..4 {
            case.step();
            case.acknowledge();
        }
        case.now = LATER;
        case.step();
        case.acknowledge();
        case
    }

    /// Decides once and writes what comes of it.
    fn step(&mut self) -> Option<Publication> {
        let publication = self.leader.decide(&self.view, &BTreeSet::new(), self.now).unwrap()?;
        self.leader.published(publication.clone(), self.now);
        Some(publication)
    }

    /// Lets time pass, second by second, in which every node acknowledges.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            self.step();
            self.acknowledge();
        }
    }

    /// The real's znode ends with its agent's session, or the VIP's reals' do.
    fn register(&mut self, reals: &[&str]) {
        for real in reals {
            let found = self.wish().reals.get_mut(*real).unwrap();
            Arc::make_mut(&mut found.znode).owner = Some(1);
        }
        self.pass(1);
    }

    /// Another leader follows, and settles.
    fn succeed(&mut self) {
        let published = self.leader.in_force().clone();
        self.leader = Leader::new(self.leader.term() + 1, SETTINGS, published, 0, self.now);
    }

    /// Every node applies what is in force, and probes what it says.
    fn acknowledge(&mut self) {
        let Some(head) = self.leader.in_force().head.clone() else { return };
        for node in &self.view.nodes {
            let record = Applied {
                announced: None,
                sources: Default::default(),
                boot: None,
                replaced: None,
                term: head.term,
                epoch: head.epoch,
                digest: String::new(),
                mode: Mode::Live,
                problem: None,
                extra: Default::default(),
            };
            self.view.applied.insert(node.clone(), record);
            Arc::make_mut(self.view.votes.entry(node.clone()).or_default()).targets = head.targets;
        }
    }

    fn find_down(&mut self, nodes: &[&str], reals: &[&str]) {
        for node in nodes {
            let vote = Arc::make_mut(self.view.votes.entry(name(node)).or_default());
            for real in reals {
                let finding = Finding { since: 0, reason: "connection refused".into() };
                vote.down.insert(Target { vip: name("mqtt"), real: name(real) }, finding);
            }
        }
    }

    fn mqtt(&self) -> &Assignment {
        &self.leader.in_force().assignments["mqtt"]
    }

    fn weights(&self) -> Vec<(String, u16)> {
        self.mqtt().weights.iter().map(|(real, weight)| (real.to_string(), *weight)).collect()
    }

    fn members(&self) -> Vec<String> {
        self.mqtt().weights.keys().map(ToString::to_string).collect()
    }

    fn problems(&self) -> String {
        let head = self.leader.in_force().head.as_ref().unwrap();
        head.problems.iter().cloned().collect::<Vec<_>>().join("\n")
    }

    fn wish(&mut self) -> &mut VipFound {
        Arc::make_mut(self.view.vips.get_mut("mqtt").unwrap())
    }
}

fn three() -> Case {
    Case::new(&desired([("mqtt", checked_vip(&[("a", 100), ("b", 100), ("c", 100)]))]))
}

const SIX: [&str; 6] = ["v0", "v1", "v2", "v3", "v4", "v5"];

const ALL: [&str; 3] = ["lb-1", "lb-2", "lb-3"];

#[test]
fn without_a_cluster_record_nothing_is_decided() {
    let mut leader = Leader::new(1, SETTINGS, Published::default(), 0, Duration::ZERO);
    assert_eq!(leader.decide(&View::default(), &BTreeSet::new(), LATER).unwrap(), None);
}

#[test]
fn a_new_vip_is_made_known_first_and_gets_weights_when_its_reals_have_been_judged() {
    let all = desired([("mqtt", checked_vip(&[("a", 100), ("b", 100)]))]);
    let mut case = Case::new(&Desired::default());
    case.view.vips = Case::new(&all).view.vips;
    let first = case.step().unwrap();
    assert_eq!(case.weights(), [], "nobody has probed them yet");
    assert_eq!(first.head.targets, first.head.epoch);
    assert_eq!(case.step(), None);
    case.acknowledge();
    case.step().unwrap();
    assert_eq!(case.members(), ["a", "b"]);
}

#[test]
fn a_real_that_dies_gives_up_its_slots_at_once() {
    let mut case = three();
    case.find_down(&["lb-1"], &["b"]);
    assert_eq!(case.step(), None, "one of three");
    case.find_down(&["lb-2"], &["b"]);
    let publication = case.step().unwrap();
    assert_eq!(case.members(), ["a", "c"]);
    assert!(case.mqtt().why.contains("b is down (2 nodes find it down: connection refused)"));
    assert_eq!(case.mqtt().history[0].weights.len(), 3);
    assert_eq!(case.mqtt().epoch, publication.head.epoch);
}

#[test]
fn a_change_of_weights_is_announced_and_takes_effect_when_every_node_knows() {
    let mut case = three();
    case.wish().reals.get_mut("a").unwrap().record.as_mut().unwrap().weight = 50;
    let announced = case.step().unwrap();
    assert_eq!(case.weights()[0], ("a".into(), 100));
    assert_eq!(case.mqtt().next.as_ref().unwrap().weights["a"], 50);
    assert_eq!(case.step(), None);
    case.acknowledge();
    case.view.applied.get_mut("lb-2").unwrap().epoch = announced.head.epoch - 1;
    assert_eq!(case.step(), None, "lb-2 does not know yet");
    case.acknowledge();
    case.step().unwrap();
    assert_eq!(case.weights()[0], ("a".into(), 50));
    assert_eq!(case.mqtt().next, None);
    assert_eq!(case.mqtt().history[0].weights["a"], 100);
}

#[test]
fn a_node_that_does_not_acknowledge_is_listed_and_does_not_block_for_ever() {
    let mut case = three();
    case.wish().reals.get_mut("a").unwrap().record.as_mut().unwrap().weight = 50;
    case.step().unwrap();
    let late = case.view.applied["lb-3"].clone();
    case.acknowledge();
    case.view.applied.insert(name("lb-3"), late.clone());
    case.now += SETTINGS.ack_timeout;
    let promoted = case.step().unwrap();
    assert_eq!(case.weights()[0], ("a".into(), 50));
    assert_eq!(promoted.head.lagging, [name("lb-3")].into());
    case.acknowledge();
    case.step().unwrap();
    assert_eq!(case.leader.in_force().head.as_ref().unwrap().lagging, BTreeSet::new());
}

#[test]
fn an_announcement_that_is_no_longer_wanted_is_rolled_back() {
    let mut case = three();
    case.wish().reals.get_mut("a").unwrap().record.as_mut().unwrap().weight = 50;
    case.step().unwrap();
    case.wish().reals.get_mut("a").unwrap().record.as_mut().unwrap().weight = 100;
    case.step().unwrap();
    assert_eq!((case.mqtt().next.clone(), case.weights()[0].1), (None, 100));
}

#[test]
fn a_successor_finishes_an_adoption_or_rolls_it_back() {
    for finish in [true, false] {
        let mut case = three();
        case.wish().reals.get_mut("a").unwrap().record.as_mut().unwrap().weight = 50;
        case.step().unwrap();
        if !finish {
            case.wish().reals.get_mut("a").unwrap().record.as_mut().unwrap().weight = 100;
        }
        let published = case.leader.in_force().clone();
        case.leader = Leader::new(2, SETTINGS, published, 0, case.now);
        let first = case.step().unwrap();
        assert_eq!((first.head.term, first.head.settling), (2, true));
        case.acknowledge();
        case.step();
        assert_eq!((case.mqtt().next.clone(), case.weights()[0].1), (None, if finish { 50 } else { 100 }));
    }
}

#[test]
fn what_a_predecessor_wrote_without_a_head_is_listed_before_anything_else() {
    let mut case = three();
    let mut published = case.leader.in_force().clone();
    let torn = Arc::make_mut(published.assignments.get_mut("mqtt").unwrap());
    (torn.epoch, torn.why) = (torn.epoch + 1, "its writer died before the head".into());
    let epoch = torn.epoch;
    case.leader = Leader::new(2, SETTINGS, published, 0, case.now);
    let first = case.step().unwrap();
    assert!(first.head.epoch > epoch, "no epoch means two things");
    assert_eq!(first.head.vips["mqtt"].epoch, first.head.epoch);
}

#[test]
fn a_leader_goes_on_from_what_its_node_has_in_force() {
    let mut case = three();
    let published = Published { head: None, ..Published::default() };
    case.leader = Leader::new(9, SETTINGS, published, 500, case.now);
    assert_eq!(case.step().unwrap().head.order(), (9, 501));
}

#[test]
fn a_new_leader_removes_nothing_until_it_has_settled() {
    let mut case = three();
    let published = case.leader.in_force().clone();
    case.leader = Leader::new(2, SETTINGS, published, 0, case.now);
    case.find_down(&ALL, &["b"]);
    case.view.vips.remove("mqtt");
    case.step().unwrap();
    assert_eq!(case.members(), ["a", "b", "c"]);
    assert!(case.mqtt().held.as_ref().unwrap().contains("b is down"));
    case.view = View { vips: three().view.vips, ..case.view.clone() };
    case.now += Duration::from_secs(20);
    let settled = case.step().unwrap();
    assert!(!settled.head.settling);
    assert_eq!((case.members(), case.mqtt().held.clone()), (vec!["a".into(), "c".into()], None));
}

#[test]
fn removals_beyond_the_panic_threshold_are_held_until_an_operator_confirms() {
    let mut case = three();
    case.find_down(&ALL, &["a", "b"]);
    case.step().unwrap();
    assert_eq!(case.members(), ["a", "b", "c"]);
    assert!(case.mqtt().held.as_ref().unwrap().contains("create /drover/ops/confirm/mqtt"));
    case.view.confirmed.insert(name("mqtt"));
    case.step().unwrap();
    assert_eq!((case.members(), case.mqtt().held.clone()), (vec!["c".into()], None));
}

#[test]
fn while_most_nodes_are_missing_nothing_is_removed() {
    let mut case = three();
    case.view.nodes = [name("lb-1")].into();
    case.view.votes.retain(|node, _| node.as_str() == "lb-1");
    case.find_down(&["lb-1"], &["b"]);
    let publication = case.step().unwrap();
    assert_eq!(publication.head.nodes.len(), 3);
    assert_eq!(case.members(), ["a", "b", "c"]);
    assert!(case.problems().contains("most nodes vanished at once"), "{}", case.problems());
    case.view.confirmed_nodes = true;
    case.step().unwrap();
    assert_eq!(case.leader.in_force().head.as_ref().unwrap().nodes.len(), 1);
}

#[test]
fn a_node_that_goes_is_no_longer_counted_on() {
    let mut case = three();
    case.view.nodes.remove("lb-3");
    case.view.votes.remove("lb-3");
    assert_eq!(case.step(), None, "others may follow");
    case.now += removal::ALONE;
    let publication = case.step().unwrap();
    assert_eq!(publication.head.nodes, ["lb-1", "lb-2"].map(name).into());
    assert_eq!(publication.head.targets, publication.head.epoch, "probing is divided anew");
    assert!(publication.changed.is_empty());
}

#[test]
fn a_new_leader_takes_what_is_damaged_in_the_tree_from_what_its_node_has_in_force() {
    let case = three();
    let sound = case.leader.in_force().clone();
    let head = sound.head.clone().unwrap();
    let known = Decided::written(head.clone(), sound.assignments.clone()).unwrap();
    let damaged = [name::<VipName>("mqtt")].into();

    let mut gone = Published { head: Some(head.clone()), ..Published::default() };
    assert_eq!((gone.complete(Some(&known)), &gone), (damaged, &sound));

    let mut empty = Published::default();
    empty.complete(Some(&known));
    assert_eq!(empty, sound, "a head that is lost is known, too");

    let mut edited = sound.clone();
    Arc::make_mut(edited.assignments.get_mut("mqtt").unwrap()).weights.clear();
    edited.complete(Some(&known));
    assert_eq!(edited, sound);

    let mut newer = sound.clone();
    Arc::make_mut(newer.assignments.get_mut("mqtt").unwrap()).epoch = head.epoch + 1;
    let before = newer.clone();
    assert!(
        newer.complete(Some(&known)).is_empty() && newer == before,
        "a predecessor had begun to write that"
    );

    let mut unknown = Published { head: Some(head), ..Published::default() };
    assert!(unknown.complete(None).is_empty() && unknown.assignments.is_empty());
}

#[test]
fn most_reals_or_vips_that_vanish_at_once_are_used_on_until_that_is_confirmed() {
    let mut case = three();
    case.wish().reals.clear();
    case.pass(11);
    assert_eq!(case.members(), ["a", "b", "c"]);
    assert!(case.problems().contains("3 of 3 reals vanished"), "{}", case.problems());
    assert!(case.problems().contains("nothing is left to take connections"), "{}", case.problems());
    assert_eq!(case.mqtt().held_reals.len(), 3);
    case.view.confirmed.insert(name("mqtt"));
    case.step().unwrap();
    assert_eq!(case.members(), Vec::<String>::new());

    let mut case = three();
    case.view.vips.clear();
    case.pass(3);
    assert_eq!(case.members(), ["a", "b", "c"]);
    assert!(case.problems().contains("create /drover/ops/confirm/_vips"), "{}", case.problems());
    case.view.confirmed_vips = true;
    case.step().unwrap();
    assert!(case.leader.in_force().assignments.is_empty());
}

#[test]
fn the_last_real_of_a_table_is_not_removed_while_all_others_are_drained() {
    let mut case = Case::new(&desired([("mqtt", checked_vip(&[("a", 100), ("b", 100)]))]));
    case.view.drains.insert(Target { vip: name("mqtt"), real: name("a") });
    for _ in 0..2 {
        case.step();
        case.acknowledge();
    }
    assert_eq!(case.members(), ["b"]);
    case.wish().reals.remove("b");
    case.pass(3);
    assert_eq!(case.members(), ["b"]);
    assert!(case.problems().contains("nothing is left to take connections"), "{}", case.problems());
    case.view.drains.clear();
    case.view.confirmed.insert(name("mqtt"));
    for _ in 0..2 {
        case.step();
        case.acknowledge();
    }
    assert_eq!(case.members(), ["a"]);
}

#[test]
fn what_is_deleted_bit_by_bit_is_held_as_if_it_went_at_once() {
    let mut case = three();
    case.wish().reals.remove("a");
    case.pass(3);
    assert_eq!(case.members(), ["b", "c"]);
    case.wish().reals.remove("b");
    case.pass(15);
    assert_eq!(case.members(), ["b", "c"], "the second of three within a moment");
    assert_eq!(case.mqtt().held_reals, [name("b")].into());

    let mut case = three();
    case.wish().reals.remove("a");
    case.pass(15);
    case.wish().reals.remove("b");
    case.pass(3);
    assert_eq!(case.members(), ["c"], "one after the other, with time to look, is no accident");

    let vips = ["v1", "v2", "v3"].map(|vip| (vip, unchecked_vip(&[("a", 100)])));
    let mut case = Case::new(&desired(vips));
    for vip in ["v1", "v2", "v3"] {
        case.view.vips.remove(vip);
        case.pass(1);
    }
    case.pass(20);
    assert_eq!(case.leader.in_force().assignments.len(), 3);
    assert!(case.problems().contains("create /drover/ops/confirm/_vips"), "{}", case.problems());
}

#[test]
fn one_real_that_is_removed_leaves_after_a_moment_in_which_nothing_else_vanished() {
    let mut case = three();
    case.wish().reals.remove("b");
    assert_eq!(case.step(), None, "not at first sight");
    case.now += removal::ALONE;
    case.step().unwrap();
    assert_eq!(case.members(), ["a", "c"]);
    assert_eq!(case.mqtt().why, "b was removed");
}

#[test]
fn what_vanishes_together_waits_until_it_is_quiet_and_a_few_of_many_then_go_without_confirmation() {
    let reals = ["a", "b", "c", "d", "e"].map(|real| (real, 100));
    let mut case = Case::new(&desired([("mqtt", checked_vip(&reals))]));
    case.wish().reals.remove("a");
    case.pass(1);
    case.wish().reals.remove("b");
    case.pass(9);
    assert_eq!(case.members().len(), 5);
    case.pass(3);
    assert_eq!(case.members(), ["c", "d", "e"]);
    assert_eq!(case.problems(), "");
}

#[test]
fn what_is_held_stays_held_by_name_until_each_returns_also_under_a_successor() {
    let reals = ["r1", "r2", "r3", "r4"].map(|real| (real, 100));
    for successor in [false, true] {
        let mut case = Case::new(&desired([("mqtt", checked_vip(&reals))]));
        let good = case.wish().reals.clone();
        case.wish().reals.retain(|real, _| real.as_str() == "r1");
        case.pass(12);
        assert_eq!(case.mqtt().held_reals.len(), 3);
        case.wish().reals.insert(name("r2"), good["r2"].clone());
        case.pass(5);
        if successor {
            case.succeed();
        }
        case.pass(60);
        assert_eq!(case.members().len(), 4, "half of them are back");
        assert_eq!(case.mqtt().held_reals, ["r3", "r4"].map(name).into());
        case.wish().reals = good;
        case.pass(3);
        assert_eq!((case.members().len(), case.mqtt().held_reals.len()), (4, 0));
        assert_eq!(case.problems(), "");
    }
}

#[test]
fn a_wiped_tree_may_be_restored_vip_by_vip_and_real_by_real_and_loses_nothing() {
    for (successor, pause) in [(false, 1), (false, 11), (true, 1), (true, 3)] {
        let vips = SIX.map(|vip| (vip, unchecked_vip(&[("a", 100), ("b", 100), ("c", 100)])));
        let mut case = Case::new(&desired(vips));
        let before = case.leader.in_force().assignments.clone();
        assert_eq!(before.len(), 6);
        let good = std::mem::take(&mut case.view.vips);
        case.pass(12);
        assert_eq!(case.leader.in_force().head.as_ref().unwrap().held_vips.len(), 6);
        for (vip, wish) in good.clone() {
            let VipFound { vip: record, reals, .. } = Arc::unwrap_or_clone(wish);
            case.view.vips.insert(
                vip.clone(),
                Arc::new(VipFound { vip: record, has_reals: true, reals: BTreeMap::new() }),
            );
            for (real, record) in reals {
                case.pass(pause);
                Arc::make_mut(case.view.vips.get_mut(&vip).unwrap()).reals.insert(real, record);
            }
            if successor && vip.as_str() == "v2" {
                case.succeed();
            }
        }
        case.pass(30);
        let now = &case.leader.in_force().assignments;
        assert!(
            before
                .iter()
                .all(|(vip, before)| now[vip].weights == before.weights && now[vip].since == before.since)
        );
        assert_eq!(case.problems(), "");
    }
}

#[test]
fn a_leader_that_begins_half_way_through_a_restoration_holds_the_rest() {
    let mut case = Case::new(&desired(SIX.map(|vip| (vip, unchecked_vip(&[("a", 100)])))));
    let good = std::mem::take(&mut case.view.vips);
    case.succeed();
    for (vip, wish) in good {
        case.pass(2);
        case.view.vips.insert(vip.clone(), wish);
        if vip.as_str() == "v3" {
            case.pass(60);
        }
    }
    assert_eq!(case.leader.in_force().assignments.len(), 6);
}

#[test]
fn an_operator_confirms_what_is_held_by_its_vips_name_too() {
    let vips = ["v1", "v2", "v3"].map(|vip| (vip, unchecked_vip(&[("a", 100)])));
    let mut case = Case::new(&desired(vips));
    case.view.vips.clear();
    case.pass(12);
    case.view.confirmed.insert(name("v2"));
    case.pass(1);
    let left: Vec<_> = case.leader.in_force().assignments.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["v1", "v3"]);
    case.view.confirmed.clear();
    case.pass(60);
    assert_eq!(case.leader.in_force().assignments.len(), 2);
}

#[test]
fn what_comes_and_goes_again_and_again_does_not_keep_others_from_going() {
    let reals = ["a", "b", "c", "d", "e", "f"].map(|real| (real, 100));
    let mut case = Case::new(&desired([("mqtt", checked_vip(&reals))]));
    let flapping = case.wish().reals["a"].clone();
    case.wish().reals.remove("b");
    for _ in 0..10 {
        case.wish().reals.remove("a");
        case.pass(3);
        case.wish().reals.insert(name("a"), flapping.clone());
        case.pass(3);
    }
    assert_eq!(case.members(), ["a", "c", "d", "e", "f"]);
}

#[test]
fn nodes_that_vanish_bit_by_bit_are_held_as_if_they_went_at_once_and_by_name() {
    let mut case = three();
    for node in ["lb-2", "lb-3"] {
        case.view.nodes.remove(node);
        case.pass(4);
    }
    case.pass(20);
    let head = case.leader.in_force().head.clone().unwrap();
    assert_eq!(head.nodes.len(), 3 - 1, "the first was alone");
    assert_eq!(head.held_nodes, [name("lb-3")].into());
    case.view.nodes.insert(name("lb-2"));
    case.pass(20);
    let head = case.leader.in_force().head.clone().unwrap();
    assert_eq!((head.nodes.len(), head.held_nodes.len()), (3, 1));
    assert!(case.problems().contains("lb-3 vanished when most nodes did"), "{}", case.problems());
    case.view.confirmed_nodes = true;
    case.pass(1);
    assert_eq!(case.leader.in_force().head.as_ref().unwrap().nodes.len(), 2);
}

#[test]
fn a_registered_real_that_probes_find_up_keeps_its_slots_when_its_registration_is_lost() {
    let mut case = three();
    case.register(&["a", "b", "c"]);
    let record = case.wish().reals.remove("b").unwrap();
    case.pass(20);
    assert_eq!((case.members().len(), case.mqtt().next.clone()), (3, None));
    case.wish().reals.insert(name("b"), record);
    case.pass(60);
    assert_eq!(case.members().len(), 3, "back before the time was over");
    case.wish().reals.remove("b");
    case.pass(30);
    assert_eq!((case.members().len(), case.mqtt().next.clone()), (3, None));
    case.now += Duration::from_secs(1);
    case.step().unwrap();
    let announced = case.mqtt().next.clone().unwrap();
    assert_eq!((case.members().len(), announced.weights.len()), (3, 2), "in two phases");
    case.acknowledge();
    case.pass(2);
    assert_eq!((case.members(), case.mqtt().reals.len()), (vec!["a".into(), "c".into()], 2));
}

#[test]
fn a_successor_knows_that_a_real_was_registered() {
    let mut case = three();
    case.register(&["b"]);
    case.wish().reals.remove("b");
    case.succeed();
    case.pass(25);
    assert_eq!(case.members().len(), 3);
    case.pass(10);
    assert_eq!(case.members(), ["a", "c"]);
}

#[test]
fn a_registered_real_that_is_gone_and_down_goes_by_its_probes() {
    let mut case = three();
    case.register(&["b"]);
    case.wish().reals.remove("b");
    case.pass(3);
    case.find_down(&ALL, &["b"]);
    case.step().unwrap();
    assert_eq!(case.members(), ["a", "c"]);
}

#[test]
fn an_agent_that_takes_its_leave_is_gone_in_two_phases_without_delay_and_is_not_missed() {
    let mut case = three();
    case.register(&["a", "b", "c"]);
    for real in ["a", "b"] {
        Registrant::take_leave(case.wish().reals.get_mut(real).unwrap().record.as_mut().unwrap());
    }
    case.step().unwrap();
    assert_eq!(case.mqtt().next.as_ref().unwrap().weights.len(), 1);
    case.acknowledge();
    case.step().unwrap();
    assert_eq!(case.members(), ["c"]);
    case.wish().reals.retain(|real, _| real.as_str() == "c");
    case.step().unwrap();
    assert_eq!((case.mqtt().reals.len(), case.problems()), (1, String::new()));
}

#[test]
fn the_last_agent_that_takes_its_leave_keeps_its_slots_until_that_is_confirmed() {
    let mut case = three();
    case.register(&["a", "b", "c"]);
    for real in ["a", "b", "c"] {
        Registrant::take_leave(case.wish().reals.get_mut(real).unwrap().record.as_mut().unwrap());
    }
    case.pass(2);
    case.wish().reals.clear();
    case.pass(60);
    assert_eq!(case.members().len(), 3);
    assert!(case.problems().contains("nothing is left to take connections"), "{}", case.problems());
    case.view.confirmed.insert(name("mqtt"));
    case.pass(40);
    assert_eq!(case.members(), Vec::<String>::new());
}

#[test]
fn the_size_of_one_vip_stops_no_decision_on_others_and_is_told() {
    let long = |number: usize| format!("{number:x<60}");
    let wish = |reals: usize, note: usize, number: u8| {
        let reals = (0..reals).map(|real| {
            let [high, low] = u16::try_from(real).unwrap().to_be_bytes();
            let mut record = Real::new([10, 1, high, low].into());
            record.extra.insert("note".into(), "x".repeat(note).into());
            (name(&long(real)), record)
        });
        let vip = Vip::new([198, 51, 100, number].into(), 1, zk_schema::Protocol::Tcp);
        vip_found(VipState { vip, reals: reals.collect() })
    };
    let mut case = three();
    case.view.vips.insert(name("fits"), wish(700, 0, 7));
    case.view.vips.insert(name("large"), wish(700, 900, 8));
    case.wish().reals.extend(Arc::unwrap_or_clone(wish(700, 900, 9)).reals);
    case.find_down(&ALL, &["b"]);
    case.pass(3);
    assert_eq!(case.members(), ["a", "c"], "what was in force is kept, and goes by its probes");
    assert_eq!(case.leader.in_force().assignments["fits"].weights.len(), 700);
    assert!(!case.leader.in_force().assignments.contains_key("large"));
    for vip in ["mqtt", "large"] {
        let told = format!("/drover/vips/{vip}: with its 70");
        assert!(case.problems().contains(&told), "{}", case.problems());
    }
    // However often its weights change, the record fits.
    for weight in 1..30 {
        for found in Arc::make_mut(case.view.vips.get_mut("fits").unwrap()).reals.values_mut() {
            found.record.as_mut().unwrap().weight = weight;
        }
        case.pass(2);
        assert_eq!(case.leader.in_force().assignments["fits"].weights.values().max(), Some(&weight));
    }
}

#[test]
fn however_much_is_wrong_the_head_stays_small_and_tells_what_matters_first() {
    let mut case = three();
    for number in 0..6000 {
        case.view.problems.insert(format!("/drover/ops/drain/{number:x<200}\u{1b}: {}", "y".repeat(900)));
    }
    case.wish().vip = broken("port: 70000 is not in 0..=65535");
    let publication = case.step().unwrap();
    let bytes = publication.head.bytes().unwrap();
    assert!(bytes.len() < 128 * 1024, "{}", bytes.len());
    assert!(case.problems().contains("/drover/vips/mqtt: port: 70000"));
    assert!(case.problems().contains("and 5901 more problems"));
    assert!(!case.problems().contains('\u{1b}'));
}

#[test]
fn there_are_no_more_vips_and_nodes_than_a_head_has_room_for() {
    let mut case = three();
    for number in 0..6000 {
        let vip =
            Vip::new(std::net::Ipv4Addr::from(0x0a00_0000 + number).into(), 1, zk_schema::Protocol::Tcp);
        case.view
            .vips
            .insert(name(&format!("{number:v<60}")), vip_found(VipState { vip, reals: BTreeMap::new() }));
        case.view.nodes.insert(name(&format!("{number:n<60}")));
    }
    let publication = case.step().unwrap();
    assert!(publication.head.bytes().is_ok());
    assert!(publication.head.vips.len() > 1000 && publication.head.vips.contains_key("mqtt"));
    assert_eq!(publication.head.nodes.len(), 512);
    assert!(case.problems().contains("more VIPs than a head has room for"));
}

/// Says that a node has this in force.
fn applied(term: u64, epoch: u64) -> Applied {
    Applied {
        term,
        epoch,
        announced: None,
        sources: Default::default(),
        boot: None,
        replaced: None,
        digest: String::new(),
        mode: Mode::Live,
        problem: None,
        extra: Default::default(),
    }
}

#[test]
fn a_node_that_is_ahead_of_the_head_has_not_acknowledged_it_and_the_leader_goes_beyond() {
    let mut case = three();
    let term = case.leader.term();
    case.view.applied.insert(name("lb-3"), applied(term, 50_000));
    let publication = case.step().unwrap();
    assert!(publication.head.epoch > 50_000);
    assert!(
        case.problems().contains("/drover/applied/lb-3: (term, epoch) (1, 50000) is ahead"),
        "{}",
        case.problems()
    );
    case.acknowledge();
    case.pass(1);
    assert_eq!(case.problems(), "");

    case.view.applied.insert(name("lb-3"), applied(term + 4, 1));
    case.wish().reals.get_mut("a").unwrap().record.as_mut().unwrap().weight = 50;
    case.step().unwrap();
    assert_eq!(
        case.leader.outranked(&case.view),
        Some(term + 4),
        "only a leader of a greater term is followed"
    );
    let ahead = case.view.applied["lb-3"].clone();
    case.acknowledge();
    case.view.applied.insert(name("lb-3"), ahead);
    case.step();
    assert_eq!(case.weights()[0], ("a".into(), 100), "it has acknowledged nothing");
}

#[test]
fn orders_that_nobody_can_come_to_are_ignored_and_told() {
    let mut case = three();
    let before = case.leader.in_force().head.clone().unwrap().order();
    for (term, epoch) in [(u64::MAX, u64::MAX), (1, u64::MAX), (u64::MAX, 1), (1 << 50, 1)] {
        case.view.applied.insert(name("ghost"), applied(term, epoch));
        case.step();
        assert_eq!(case.leader.outranked(&case.view), None);
        assert!(case.problems().contains("/drover/applied/ghost"), "{}", case.problems());
        let told = case.leader.in_force().head.clone().unwrap().order();
        case.step();
        let again = case.leader.in_force().head.clone().unwrap().order();
        assert_eq!(again, told, "what is told of it makes no further heads");
    }
    let after = case.leader.in_force().head.clone().unwrap().order();
    assert!(after.0 == before.0 && after.1 < before.1 + 10, "{after:?}");
    let mut published = case.leader.in_force().clone();
    Arc::make_mut(published.assignments.get_mut("mqtt").unwrap()).epoch = u64::MAX;
    let mut leader = Leader::new(u64::MAX, SETTINGS, published, u64::MAX, case.now);
    leader.decide(&case.view, &BTreeSet::new(), case.now).unwrap();
}

#[test]
fn a_node_that_forwards_and_does_not_follow_is_listed_and_waited_for_until_it_has_withdrawn() {
    let mut case = three();
    case.view.nodes.remove("lb-3");
    case.view.applied.get_mut("lb-3").unwrap().announced = Some([[198, 51, 100, 1].into()].into());
    case.pass(5);
    let late = case.view.applied["lb-3"].clone();
    assert_eq!(case.leader.in_force().head.as_ref().unwrap().cut_off, [name("lb-3")].into());
    case.wish().reals.get_mut("a").unwrap().record.as_mut().unwrap().weight = 50;
    for _ in 0..5 {
        case.pass(1);
        assert_eq!(case.weights()[0], ("a".into(), 100), "it may still forward");
    }
    case.pass(2);
    assert_eq!(case.weights()[0], ("a".into(), 50));
    case.view.applied.insert(name("lb-3"), Applied { announced: Some(BTreeSet::new()), ..late });
    case.pass(1);
    assert_eq!(case.leader.in_force().head.as_ref().unwrap().cut_off, BTreeSet::new());
}

#[test]
fn the_head_names_where_its_nodes_answer_each_other() {
    let mut case = three();
    let peers = |case: &Case| case.leader.in_force().head.as_ref().unwrap().peers.clone();
    assert!(peers(&case).is_empty(), "they do not tell");
    let silent = case.view.applied["lb-1"].clone();
    let tells = |sources: &[&str]| Applied {
        sources: sources.iter().map(|source| source.parse().unwrap()).collect(),
        ..silent.clone()
    };
    let all = tells(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1"]);
    case.view.applied.insert(name("lb-1"), all);
    case.view.applied.insert(name("stranger"), tells(&["10.0.0.9"]));
    case.step().unwrap();
    let one_of_each: BTreeSet<IpAddr> = ["10.0.0.1", "2001:db8::1"].map(|one| one.parse().unwrap()).into();
    assert_eq!(peers(&case), [(name("lb-1"), one_of_each.clone())].into());
    // Its record may be gone while the node is not: an operator deletes what he likes.
    case.view.applied.remove("lb-1");
    case.pass(1);
    assert_eq!(peers(&case), [(name("lb-1"), one_of_each)].into());
}

#[test]
fn a_node_that_is_cut_off_is_waited_for_as_long_as_its_guard_takes() {
    for (withdraw_after, waited) in [(0, 1..=2), (4, 4..=6), (30, 30..=32)] {
        let mut case = three();
        case.leader.settings.withdraw_after = Duration::from_secs(withdraw_after);
        case.view.nodes.remove("lb-3");
        case.view.applied.get_mut("lb-3").unwrap().announced = Some([[198, 51, 100, 1].into()].into());
        case.wish().reals.get_mut("a").unwrap().record.as_mut().unwrap().weight = 50;
        let mut seconds = 0;
        while case.weights()[0] == ("a".into(), 100) {
            seconds += 1;
            assert!(seconds < 60, "not adopted within a minute of {withdraw_after} s");
            case.pass(1);
        }
        assert!(waited.contains(&seconds), "adopted {seconds} s after it was cut off, not {waited:?}");
    }
}

#[test]
fn a_record_that_is_wrong_is_refused_alone_and_told() {
    let mut case = three();
    case.wish().vip = broken("port: 70000 is not in 0..=65535");
    case.wish().reals.insert(name("b"), broken("not JSON"));
    case.wish().reals.get_mut("c").unwrap().record.as_mut().unwrap().weight = 7;
    case.step().unwrap();
    assert!(case.problems().contains("/drover/vips/mqtt: port: 70000"), "{}", case.problems());
    assert!(case.problems().contains("/drover/vips/mqtt/reals/b: not JSON"), "{}", case.problems());
    assert_eq!(case.mqtt().next.as_ref().unwrap().weights["c"], 7, "the rest of the edit counts");
    assert_eq!(case.mqtt().reals["b"].weight, 100);
}

#[test]
fn a_vip_that_clashes_with_one_in_force_is_refused() {
    let mut case = three();
    let twin = case.mqtt().vip.clone();
    case.view.vips.insert(name("twin"), vip_found(VipState { vip: twin, reals: BTreeMap::new() }));
    case.step().unwrap();
    assert!(!case.leader.in_force().assignments.contains_key("twin"));
    assert!(case.problems().contains("/drover/vips/twin"), "{}", case.problems());
}

#[test]
fn the_seed_cannot_change_under_connections() {
    let mut case = three();
    case.view.cluster = Some(Ok(Cluster { seed: 1.into(), ..Cluster::default() }));
    case.step().unwrap();
    let head = case.leader.in_force().head.clone().unwrap();
    assert_eq!(head.cluster.seed, Cluster::default().seed);
    assert!(case.problems().contains("seed and table_size cannot change"), "{}", case.problems());
}

#[test]
fn a_drained_real_leaves_in_two_phases_and_the_last_one_stays() {
    let mut case = three();
    let drain = |real: &str| Target { vip: name("mqtt"), real: name(real) };
    case.view.drains.insert(drain("a"));
    case.step().unwrap();
    assert_eq!(case.members(), ["a", "b", "c"], "announced first");
    case.acknowledge();
    case.step().unwrap();
    assert_eq!(case.members(), ["b", "c"]);
    case.view.drains.extend([drain("b"), drain("c")]);
    case.step().unwrap();
    assert_eq!(case.members(), ["b", "c"]);
    assert!(case.mqtt().held.as_ref().unwrap().contains("every real is drained"));
}

#[test]
fn nothing_changes_while_it_is_frozen() {
    let mut case = three();
    case.view.frozen = true;
    case.find_down(&ALL, &["b"]);
    case.wish().reals.get_mut("a").unwrap().record.as_mut().unwrap().weight = 50;
    let publication = case.step().unwrap();
    assert!(publication.changed.is_empty());
    assert!(case.problems().contains("/drover/ops/freeze"), "{}", case.problems());
    case.view.frozen = false;
    case.step().unwrap();
    assert_eq!(case.members(), ["a", "c"]);
}

#[test]
fn what_somebody_else_overwrote_is_written_anew() {
    let mut case = three();
    assert_eq!(case.step(), None);
    let damaged = [name("mqtt")].into();
    let publication = case.leader.decide(&case.view, &damaged, case.now).unwrap().unwrap();
    assert!(publication.changed.contains_key("mqtt"));
    assert_eq!(publication.changed["mqtt"].as_ref().unwrap().epoch, publication.head.epoch);
}

#[test]
fn a_vip_without_a_health_check_is_served_at_once_and_its_definition_changes_at_once() {
    let mut case = Case::new(&desired([("mqtt", unchecked_vip(&[("a", 100), ("b", 100)]))]));
    assert_eq!(case.members(), ["a", "b"]);
    let old: Vip = case.mqtt().vip.clone();
    case.wish().vip.record.as_mut().unwrap().port = 8883;
    case.step().unwrap();
    assert_eq!((case.mqtt().vip.port, old.port), (8883, 1883));
}

#[test]
fn who_registered_a_real_is_no_part_of_what_is_served_but_that_an_agent_did_is() {
    let view = |registrant: Option<&str>| {
        let mut real = Real::new([10, 0, 2, 1].into());
        if let Some(registrant) = registrant {
            Registrant::new(registrant).sign(&mut real);
        }
        let vip = Vip::new([198, 51, 100, 1].into(), 1883, zk_schema::Protocol::Tcp);
        let records = [
            ("/drover/vips/mqtt", to_json(&vip).unwrap()),
            ("/drover/vips/mqtt/reals/a", to_json(&real).unwrap()),
        ];
        let znode = |data| Znode { data, version: 0, created: 0, modified: 0, owner: registrant.map(|_| 7) };
        let znodes = records.map(|(path, data)| (path.to_owned(), znode(data)));
        View::of(&Picture::parse(&Arc::new(Contents::of(znodes))), 0)
    };
    let settled = |view: &View| view.vips["mqtt"].reals["a"].settled().unwrap();
    let is_registered = |view: &View| Registrant::is_registered(&settled(view));
    assert!(!is_registered(&view(None)));
    assert!(is_registered(&view(Some("boot-1/1/eth0"))));
    assert_eq!(settled(&view(Some("boot-1/1/eth0"))), settled(&view(Some("boot-2/1/eth0"))));
}
