//! From nodes' votes on a real to the leader's verdict. Pure.

use crate::probers::probers;
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use zk_schema::NodeName;
use zk_schema::tree::{Target, Vote};

/// Fewer targets than these make no vote suspect: half of them is too easily had.
const SUSPECT_FROM: usize = 3;

/// The votes on a real, put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// At least half of those that have an opinion find it up.
    Up,
    /// Most of those that have an opinion find it down.
    Down,
    /// Nobody has an opinion: what was known last holds.
    Open,
}

/// Returns whether a node should mark its own vote as suspect: more than half of its targets are down, which is more
/// likely its own fault than theirs.
#[must_use]
pub fn is_suspect(down: usize, targets: usize) -> bool {
    targets >= SUSPECT_FROM && down * 2 > targets
}

/// The verdict on `target`, which is probed by those of `nodes` that [`probers`] names since the epoch `since`.
///
/// - A node that is absent, or that does not know (yet), abstains.
/// - Suspect votes count only where there are no others.
/// - A real is down if more than half of the votes that count say so.
#[must_use]
pub fn verdict<V: Borrow<Vote>>(
    target: &Target,
    nodes: &BTreeSet<NodeName>,
    votes: &BTreeMap<NodeName, V>,
    since: u64,
) -> Verdict {
    match tally(target, nodes, votes, since) {
        Tally { votes: 0, .. } => Verdict::Open,
        Tally { votes, down } if down * 2 > votes => Verdict::Down,
        Tally { .. } => Verdict::Up,
    }
}

/// The votes that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// The number of those that have an opinion.
    pub votes: usize,
    /// The number of those that say down.
    pub down: usize,
}

/// Counts the votes that count on `target`: see [`verdict`].
#[must_use]
pub fn tally<V: Borrow<Vote>>(
    target: &Target,
    nodes: &BTreeSet<NodeName>,
    votes: &BTreeMap<NodeName, V>,
    since: u64,
) -> Tally {
    // Votes by whether they are suspect: how many there are, and how many say down.
    let mut tally = [(0, 0); 2];
    for vote in probers(nodes, target).into_iter().filter_map(|node| votes.get(node)) {
        let vote: &Vote = vote.borrow();
        let down = vote.down.contains_key(target);
        if !down && (vote.targets < since || vote.unknown.contains(target)) {
            continue;
        }
        let (all, downs) = &mut tally[usize::from(vote.suspect)];
        *all += 1;
        *downs += usize::from(down);
    }
    let [trusted, suspect] = tally;
    let (votes, down) = if trusted.0 > 0 { trusted } else { suspect };
    Tally { votes, down }
}

/// Returns the reason why a real is down, in the words of the probers that found it so: the commonest reason, and how
/// many of them.
#[must_use]
pub fn reason<V: Borrow<Vote>>(target: &Target, votes: &BTreeMap<NodeName, V>) -> String {
    let findings = votes.values().filter_map(|vote| vote.borrow().down.get(target));
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for finding in findings {
        *reasons.entry(finding.reason.as_str()).or_default() += 1;
    }
    let count: usize = reasons.values().sum();
    match reasons.into_iter().max_by_key(|(_, count)| *count) {
        Some((reason, _)) => format!("{count} nodes find it down: {reason}"),
        None => "no node finds it down".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zk_schema::testing::name;
    use zk_schema::tree::Finding;

    fn target() -> Target {
        Target { vip: name("mqtt"), real: name("broker-1") }
    }

    #[derive(Clone, Copy)]
    enum Says {
        Up,
        Down,
        Unknown,
        Nothing,
        SuspectUp,
        SuspectDown,
        OldUp,
        OldDown,
    }
    use Says::{Down, Nothing, OldDown, OldUp, SuspectDown, SuspectUp, Unknown, Up};

    fn vote(says: Says) -> Option<Vote> {
        let mut vote = Vote { targets: 7, ..Vote::default() };
        vote.suspect = matches!(says, SuspectUp | SuspectDown);
        if matches!(says, OldUp | OldDown) {
            vote.targets = 6;
        }
        if matches!(says, Down | SuspectDown | OldDown) {
            vote.down.insert(target(), Finding { since: 0, reason: "connection refused".into() });
        }
        if matches!(says, Unknown) {
            vote.unknown.insert(target());
        }
        (!matches!(says, Nothing)).then_some(vote)
    }

    fn of(said: &[Says]) -> Verdict {
        let names = |number: usize| name::<NodeName>(&format!("lb-{number}"));
        let nodes = (0..said.len()).map(names).collect();
        let votes = said.iter().enumerate().filter_map(|(number, says)| Some((names(number), vote(*says)?)));
        verdict(&target(), &nodes, &votes.collect(), 7)
    }

    #[test]
    fn down_needs_more_than_half_of_the_votes() {
        assert_eq!(of(&[Up, Up, Down]), Verdict::Up);
        assert_eq!(of(&[Up, Down]), Verdict::Up);
        assert_eq!(of(&[Up, Down, Down]), Verdict::Down);
        assert_eq!(of(&[Down]), Verdict::Down);
    }

    #[test]
    fn who_is_absent_or_does_not_know_abstains() {
        assert_eq!(of(&[Nothing, Unknown, Down]), Verdict::Down);
        assert_eq!(of(&[Nothing, Unknown, Up]), Verdict::Up);
        assert_eq!(of(&[Nothing, Unknown, OldUp]), Verdict::Open);
        assert_eq!(of(&[]), Verdict::Open);
    }

    #[test]
    fn what_was_found_down_before_the_targets_changed_is_still_down() {
        assert_eq!(of(&[OldDown, OldUp]), Verdict::Down);
    }

    #[test]
    fn suspect_votes_count_only_among_themselves() {
        assert_eq!(of(&[SuspectDown, SuspectDown, Up]), Verdict::Up);
        assert_eq!(of(&[SuspectUp, SuspectUp, Down]), Verdict::Down);
        assert_eq!(of(&[SuspectDown, SuspectDown, SuspectUp]), Verdict::Down);
        assert_eq!(of(&[SuspectDown, SuspectDown, Unknown]), Verdict::Down);
    }

    #[test]
    fn the_votes_of_nodes_that_do_not_probe_the_target_do_not_count() {
        let nodes: BTreeSet<NodeName> = (0..20).map(|n| name(&format!("lb-{n}"))).collect();
        let chosen: BTreeSet<_> = probers(&nodes, &target()).into_iter().cloned().collect();
        let say = |node: &NodeName| vote(if chosen.contains(node) { Up } else { Down });
        let votes = nodes.iter().filter_map(|node| Some((node.clone(), say(node)?))).collect();
        assert_eq!(verdict(&target(), &nodes, &votes, 7), Verdict::Up);
    }

    #[test]
    fn a_vote_is_suspect_when_most_of_several_targets_are_down() {
        assert!(!is_suspect(1, 1) && !is_suspect(2, 2), "too few to tell");
        assert!(is_suspect(2, 3) && !is_suspect(2, 4) && is_suspect(3, 4));
        assert!(!is_suspect(0, 100));
    }

    #[test]
    fn the_commonest_reason_is_told() {
        let votes = [vote(Down), vote(Down), vote(Up)];
        let votes = votes.into_iter().flatten().enumerate().map(|(n, vote)| (name(&format!("lb-{n}")), vote));
        assert_eq!(reason(&target(), &votes.collect()), "2 nodes find it down: connection refused");
    }
}
