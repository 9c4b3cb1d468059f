//! Tests of how decisions are told.

use super::*;
use zk_schema::testing::found;

/// Returns the decisions: kind, VIP, real and text of each.
fn told(publication: Option<Publication>) -> Vec<String> {
    let decisions = publication.map(|publication| publication.decisions).unwrap_or_default();
    let line = |decision: Decision| {
        let vip = decision.vip.map(|vip| format!(" {vip}")).unwrap_or_default();
        let real = decision.real.map(|real| format!("/{real}")).unwrap_or_default();
        format!("{}{vip}{real}: {}", decision.kind, decision.text)
    };
    decisions.into_iter().map(line).collect()
}

#[test]
fn a_death_is_told_with_votes_and_reason_and_a_return_in_two_steps() {
    let mut case = three();
    case.find_down(&["lb-1", "lb-3"], &["b"]);
    assert_eq!(
        told(case.step()),
        [
            "verdict mqtt/b: is down by 2 of 3 votes: 2 nodes find it down: connection refused",
            "weights mqtt: b leaves: b is down (2 nodes find it down: connection refused)",
        ]
    );
    case.acknowledge();
    case.view.votes.values_mut().for_each(|vote| Arc::make_mut(vote).down.clear());
    assert_eq!(
        told(case.step()),
        ["verdict mqtt/b: is up by 3 of 3 votes", "announced mqtt: b joins with 100"]
    );
    case.acknowledge();
    assert_eq!(told(case.step()), ["weights mqtt: b joins with 100"]);
}

#[test]
fn an_operators_edits_are_told_by_field() {
    let mut case = three();
    case.wish().vip.record.as_mut().unwrap().panic_threshold = 70;
    case.wish().reals.get_mut("a").unwrap().record.as_mut().unwrap().weight = 50;
    case.wish().reals.insert(name("d"), found(Real::new([10, 0, 2, 99].into())));
    case.wish().reals.remove("c");
    assert_eq!(
        told(case.step()),
        [
            "vip mqtt: changed: panic_threshold; reals that came: d; \
             reals that changed: a (weight from 100 to 50)",
            "announced mqtt: a from 100 to 50",
        ]
    );
    case.now += crate::removal::ALONE;
    assert_eq!(
        told(case.step()),
        [
            "vip mqtt: reals that went: c",
            "weights mqtt: c leaves: c was removed",
            "announced mqtt: withdrawn"
        ]
    );
    case.view.vips.remove("mqtt");
    case.view.confirmed_vips = true;
    assert_eq!(told(case.step()), ["vip mqtt: was removed"]);
}

#[test]
fn what_is_refused_or_held_is_told_when_it_begins_and_when_it_ends() {
    let mut case = three();
    let good = std::mem::replace(&mut case.wish().vip, broken("port: missing"));
    let problem = "/drover/vips/mqtt: port: missing; the last good record stays in force until it is fixed";
    assert_eq!(told(case.step()), [format!("refused: {problem}")]);
    case.wish().vip = good;
    assert_eq!(told(case.step()), [format!("refused: no longer: {problem}")]);
    case.find_down(&ALL, &["a", "b"]);
    let lines = told(case.step());
    assert!(lines[0].starts_with("verdict mqtt/a: is down by 3 of 3 votes"), "{lines:?}");
    assert!(lines[2].starts_with("held mqtt: ") && lines.len() == 3, "{lines:?}");
    case.view.votes.values_mut().for_each(|vote| Arc::make_mut(vote).down.clear());
    assert!(told(case.step())[2].starts_with("held mqtt: no longer: "));
}

#[test]
fn a_leader_tells_whom_it_follows_when_it_has_settled_and_who_came_and_is_late() {
    let mut case = three();
    let published = case.leader.in_force().clone();
    let before = Term { node: name("lb-3"), term: 1, since: 0 };
    case.leader = Leader::new(2, SETTINGS, published, 0, case.now).after(Some(before));
    assert_eq!(told(case.step()), ["leader: leads with term 2, after lb-3 (term 1)"]);
    case.acknowledge();
    case.now += LATER;
    assert_eq!(told(case.step()), ["settled: the leader has settled, and removes what is gone"]);
    let epoch = case.leader.in_force().head.as_ref().unwrap().epoch;
    case.acknowledge();
    case.view.nodes.insert(name("lb-4"));
    assert_eq!(told(case.step()), ["nodes: lb-4 came; 4 now"]);
    case.now += LATER;
    let late = format!("did not acknowledge epoch {} in time", epoch + 1);
    assert_eq!(told(case.step()), [format!("lagging: lb-1, lb-2, lb-3, lb-4 {late}")]);
    case.acknowledge();
    assert_eq!(told(case.step()), ["lagging: lb-1, lb-2, lb-3, lb-4 caught up"]);
}

#[test]
fn two_hundred_deaths_at_once_are_a_few_short_lines() {
    let names: Vec<String> = (0..200).map(|number| format!("real-{number}")).collect();
    let reals: Vec<(&str, u16)> = names.iter().map(|name| (name.as_str(), 100)).collect();
    let mut case = Case::new(&desired([("mqtt", checked_vip(&reals))]));
    case.view.confirmed.insert(name("mqtt"));
    let dead: Vec<&str> = names[..199].iter().map(String::as_str).collect();
    case.find_down(&ALL, &dead);
    let publication = case.step();
    assert!(case.mqtt().why.len() < 1000, "{}", case.mqtt().why);
    let lines = told(publication);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("verdict mqtt: 199 reals are down: real-0, real-1,"), "{lines:?}");
    assert!(lines[0].ends_with(" and 191 more"), "{lines:?}");
    assert!(lines.iter().all(|line| line.len() < 500), "{lines:?}");
}

#[test]
fn an_event_holds_a_bounded_number_of_decisions_of_bounded_length() {
    let mut case = three();
    for number in 0..500 {
        case.view.problems.insert(format!("{number:03}: {}", "wrong ".repeat(200)));
    }
    let decisions = case.step().unwrap().decisions;
    assert_eq!(decisions.len(), 101);
    assert_eq!(decisions[100].text, "1 more decisions, of which nothing is kept here");
    assert!(decisions.iter().all(|decision| decision.text.chars().count() <= 401));
}
