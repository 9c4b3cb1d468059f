//! Decisions, one situation each. That they hold together over time is what the simulations prove.

mod story;

use super::*;
use crate::testing::{checked_vip, desired, name, unchecked_vip};
use coordination::follow::Decided;
use coordination::{Contents, Znode};
use std::sync::Arc;
use zk_schema::tree::{Applied, Finding, Registrant};
use zk_schema::{Cluster, Desired, Real, Vip, to_json};

const SETTINGS: Settings =
    Settings { session_timeout: Duration::from_secs(6), ack_timeout: Duration::from_secs(3) };
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
        let wishes = desired.vips.iter().map(|(vip, state)| {
            let reals = state.reals.iter().map(|(real, record)| (real.clone(), Ok(record.clone())));
            (vip.clone(), Wish { vip: Ok(state.vip.clone()), reals: reals.collect() })
        });
        let view = View {
            cluster: Some(Ok(Cluster::default())),
            wishes: wishes.collect(),
            nodes,
            ..View::default()
        };
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

    /// Every node applies what is in force, and probes what it says.
    fn acknowledge(&mut self) {
        let Some(head) = self.leader.in_force().head.clone() else { return };
        for node in &self.view.nodes {
            let record = Applied {
                announced: None,
                term: head.term,
                epoch: head.epoch,
                digest: String::new(),
                mode: Mode::Live,
                problem: None,
                extra: Default::default(),
            };
            self.view.applied.insert(node.clone(), record);
            self.view.votes.entry(node.clone()).or_default().targets = head.targets;
        }
    }

    fn find_down(&mut self, nodes: &[&str], reals: &[&str]) {
        for node in nodes {
            let vote = self.view.votes.entry(name(node)).or_default();
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

    fn wish(&mut self) -> &mut Wish {
        self.view.wishes.get_mut("mqtt").unwrap()
    }
}

fn three() -> Case {
    Case::new(&desired([("mqtt", checked_vip(&[("a", 100), ("b", 100), ("c", 100)]))]))
}

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
    case.view.wishes = Case::new(&all).view.wishes;
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
    case.wish().reals.get_mut("a").unwrap().as_mut().unwrap().weight = 50;
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
    case.wish().reals.get_mut("a").unwrap().as_mut().unwrap().weight = 50;
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
    case.wish().reals.get_mut("a").unwrap().as_mut().unwrap().weight = 50;
    case.step().unwrap();
    case.wish().reals.get_mut("a").unwrap().as_mut().unwrap().weight = 100;
    case.step().unwrap();
    assert_eq!((case.mqtt().next.clone(), case.weights()[0].1), (None, 100));
}

#[test]
fn a_successor_finishes_an_adoption_or_rolls_it_back() {
    for finish in [true, false] {
        let mut case = three();
        case.wish().reals.get_mut("a").unwrap().as_mut().unwrap().weight = 50;
        case.step().unwrap();
        if !finish {
            case.wish().reals.get_mut("a").unwrap().as_mut().unwrap().weight = 100;
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
    let torn = published.assignments.get_mut("mqtt").unwrap();
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
    case.view.wishes.remove("mqtt");
    case.step().unwrap();
    assert_eq!(case.members(), ["a", "b", "c"]);
    assert!(case.mqtt().held.as_ref().unwrap().contains("b is down"));
    case.view = View { wishes: three().view.wishes, ..case.view.clone() };
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
    let assignments = sound.assignments.iter().map(|(vip, current)| (vip.clone(), Arc::new(current.clone())));
    let known = Decided { head: head.clone(), assignments: assignments.collect() };
    let damaged = [name::<VipName>("mqtt")].into();

    let mut gone = Published { head: Some(head.clone()), ..Published::default() };
    assert_eq!((gone.complete(Some(&known)), &gone), (damaged, &sound));

    let mut empty = Published::default();
    empty.complete(Some(&known));
    assert_eq!(empty, sound, "a head that is lost is known, too");

    let mut edited = sound.clone();
    edited.assignments.get_mut("mqtt").unwrap().weights.clear();
    edited.complete(Some(&known));
    assert_eq!(edited, sound);

    let mut newer = sound.clone();
    newer.assignments.get_mut("mqtt").unwrap().epoch = head.epoch + 1;
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
    case.step().unwrap();
    assert_eq!(case.members(), ["a", "b", "c"]);
    assert!(case.problems().contains("3 of 3 reals vanished at once"), "{}", case.problems());
    case.view.confirmed.insert(name("mqtt"));
    case.step().unwrap();
    assert_eq!(case.members(), Vec::<String>::new());

    let mut case = three();
    case.view.wishes.clear();
    case.step().unwrap();
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
    case.step().unwrap();
    assert_eq!(case.members(), ["b"]);
    assert!(case.problems().contains("nothing is left to take connections"), "{}", case.problems());
    case.view.drains.clear();
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
    case.step().unwrap();
    assert_eq!(case.members(), ["b", "c"]);
    case.now += Duration::from_secs(1);
    case.wish().reals.remove("b");
    case.step().unwrap();
    assert_eq!(case.members(), ["b", "c"], "the second of three within a moment");
    assert!(case.problems().contains("1 of 2 reals vanished at once"), "{}", case.problems());
    case.now += Duration::from_secs(10);
    case.step().unwrap();
    assert_eq!(case.members(), ["c"], "one after the other, with time to look, is no accident");

    let vips = ["v1", "v2", "v3"].map(|vip| (vip, unchecked_vip(&[("a", 100)])));
    let mut case = Case::new(&desired(vips));
    for vip in ["v1", "v2", "v3"] {
        case.view.wishes.remove(vip);
        case.step();
        case.now += Duration::from_millis(10);
    }
    let left: Vec<_> = case.leader.in_force().assignments.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["v2", "v3"]);
    assert!(case.problems().contains("create /drover/ops/confirm/_vips"), "{}", case.problems());
}

#[test]
fn one_real_that_is_removed_leaves_at_once() {
    let mut case = three();
    case.wish().reals.remove("b");
    case.step().unwrap();
    assert_eq!(case.members(), ["a", "c"]);
    assert_eq!(case.mqtt().why, "b was removed");
}

#[test]
fn a_record_that_is_wrong_is_refused_alone_and_told() {
    let mut case = three();
    case.wish().vip = Err("port: 70000 is not in 0..=65535".into());
    case.wish().reals.insert(name("b"), Err("not JSON".into()));
    case.wish().reals.get_mut("c").unwrap().as_mut().unwrap().weight = 7;
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
    case.view.wishes.insert(name("twin"), Wish { vip: Ok(twin), reals: BTreeMap::new() });
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
    case.wish().reals.get_mut("a").unwrap().as_mut().unwrap().weight = 50;
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
    case.wish().vip.as_mut().unwrap().port = 8883;
    case.step().unwrap();
    assert_eq!((case.mqtt().vip.port, old.port), (8883, 1883));
}

#[test]
fn who_registered_a_real_is_no_part_of_what_is_served() {
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
        let znode = |data| Znode { data, version: 0, created: 0, modified: 0, owner: None };
        let znodes = records.map(|(path, data)| (path.to_owned(), znode(data)));
        View::parse(&Contents { znodes: znodes.into(), complete: true }, 0)
    };
    let plain = view(None);
    assert!(plain.wishes["mqtt"].reals["a"].is_ok());
    assert_eq!(view(Some("boot-1/1/eth0")), plain);
    assert_eq!(view(Some("boot-2/1/eth0")), plain);
}
