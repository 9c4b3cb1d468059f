//! The panic threshold: which reals of a VIP to use when many look down at once. Pure.
//!
//! When most of a VIP's reals fail together, the likelier culprit is what they share: the network, the
//! check's definition, this node. Taking them all out would turn a doubt into an outage, so they stay and
//! the operator is told.

use std::collections::{BTreeMap, BTreeSet};
use zk_schema::RealName;

/// The state of a candidate: a real whose weight is above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Takes connections.
    Up,
    /// Does not.
    Down,
    /// Too few probes have ended to say.
    Pending,
    /// This node cannot find out: its probes end inconclusively.
    Blind,
}

/// Reals to use, and whether some of them are used in spite of being down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The reals to put in the table: a subset of the candidates.
    pub reals: BTreeSet<RealName>,
    /// Set when `reals` contains reals that are down; to be alarmed about.
    pub held: Option<Held>,
}

/// Reals that are down are used nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{down} of {total} reals are down and the panic threshold is {threshold} %: those in the table are kept; \
     look for a fault that they share, such as the network or the health check itself"
)]
pub struct Held {
    /// Candidates that are down.
    pub down: usize,
    /// All candidates.
    pub total: usize,
    /// The VIP's panic threshold in percent.
    pub threshold: u8,
}

/// Chooses the reals of one VIP.
///
/// `candidates` are the VIP's reals with a weight above 0; those of a VIP without a health check are to be
/// given as [`Standing::Up`]. `in_force` are the reals in its table now; what is in force but no candidate
/// (removed by an operator, or drained) leaves in any case. `threshold` is in percent, 0..=100.
///
/// 1. Every real that is up is used. One that is pending or blind is used if it is in force.
/// 2. While the share of down reals among all candidates is above `threshold`, down reals in force stay.
///    So at 100 removals are never held by this rule, and at 0 always.
/// 3. The last real is never removed, at any threshold: when rules 1 and 2 leave nothing, the down reals in
///    force stay. When the operator replaced all that were in force, the candidates that are not down are
///    used unproven, or all if all are down.
/// 4. With nothing in force (a booting node), the table stays empty until a real is up, or until no
///    candidate is pending any more: then the blind ones are used, or all if all are down, since a table of
///    doubtful reals is better than none.
#[must_use]
pub fn decide(
    candidates: &BTreeMap<RealName, Standing>,
    in_force: &BTreeSet<RealName>,
    threshold: u8,
) -> Decision {
    let total = candidates.len();
    let down = candidates.values().filter(|standing| **standing == Standing::Down).count();
    let panic = down * 100 > total * usize::from(threshold);

    let select = |wanted: &dyn Fn(Standing, bool) -> bool| -> BTreeSet<RealName> {
        candidates
            .iter()
            .filter(|(real, standing)| wanted(**standing, in_force.contains(*real)))
            .map(|(real, _)| real.clone())
            .collect()
    };
    let healthy = |standing: Standing, in_force: bool| match standing {
        Standing::Up => true,
        Standing::Pending | Standing::Blind => in_force,
        Standing::Down => false,
    };

    let mut reals = select(&|standing, in_force| healthy(standing, in_force) || (panic && in_force));
    if reals.is_empty() {
        reals = select(&|_, in_force| in_force);
    }
    let pending = candidates.values().any(|standing| *standing == Standing::Pending);
    if reals.is_empty() && (!in_force.is_empty() || !pending) {
        reals = select(&|standing, _| standing != Standing::Down);
        if reals.is_empty() {
            reals = candidates.keys().cloned().collect();
        }
    }

    let held = reals.iter().any(|real| candidates.get(real) == Some(&Standing::Down)).then_some(Held {
        down,
        total,
        threshold,
    });
    Decision { reals, held }
}

/// As [`decide`], or `None` while a VIP without a table waits for its reals to be judged: until no candidate is pending,
/// or the VIP is `overdue`.
///
/// Otherwise the first real to be found up would hold every slot for a moment, and connections of that moment would break
/// when the next real takes its share.
#[must_use]
pub fn decide_once_judged(
    candidates: &BTreeMap<RealName, Standing>,
    in_force: &BTreeSet<RealName>,
    threshold: u8,
    overdue: bool,
) -> Option<Decision> {
    let is_undecided = candidates.values().any(|standing| *standing == Standing::Pending);
    let waits = in_force.is_empty() && is_undecided && !overdue;
    (!waits).then(|| decide(candidates, in_force, threshold))
}

#[cfg(test)]
mod tests {
    use super::Standing::{Blind, Down, Pending, Up};
    use super::*;
    use proptest::prelude::*;

    fn name(index: usize) -> RealName {
        zk_schema::testing::name(&format!("r{index}"))
    }

    fn candidates(standings: &[Standing]) -> BTreeMap<RealName, Standing> {
        standings.iter().enumerate().map(|(index, standing)| (name(index), *standing)).collect()
    }

    fn names(indices: impl IntoIterator<Item = usize>) -> BTreeSet<RealName> {
        indices.into_iter().map(name).collect()
    }

    fn decide_on(standings: &[Standing], in_force: &[usize], threshold: u8) -> Decision {
        decide(&candidates(standings), &names(in_force.iter().copied()), threshold)
    }

    #[test]
    fn a_down_real_leaves_while_the_share_of_down_reals_is_at_most_the_threshold() {
        let decision = decide_on(&[Up, Up, Down, Down], &[0, 1, 2, 3], 50);
        assert_eq!(decision, Decision { reals: names([0, 1]), held: None });
    }

    #[test]
    fn down_reals_in_force_stay_when_their_share_exceeds_the_threshold_and_it_is_told() {
        let decision = decide_on(&[Up, Down, Down, Down], &[0, 1, 2, 3], 50);
        assert_eq!(decision.reals, names([0, 1, 2, 3]));
        assert_eq!(decision.held, Some(Held { down: 3, total: 4, threshold: 50 }));
    }

    #[test]
    fn a_real_that_left_before_the_panic_does_not_come_back_by_it() {
        let decision = decide_on(&[Down, Down, Down, Up], &[2, 3], 50);
        assert_eq!(decision.reals, names([2, 3]));
        assert!(decision.held.is_some());
    }

    #[test]
    fn a_newly_healthy_real_joins_while_removals_are_held() {
        let decision = decide_on(&[Down, Down, Down, Up], &[0, 1, 2], 50);
        assert_eq!(decision.reals, names([0, 1, 2, 3]));
    }

    #[test]
    fn a_pending_real_waits_outside_but_stays_inside() {
        assert_eq!(decide_on(&[Up, Pending], &[0], 50).reals, names([0]));
        assert_eq!(decide_on(&[Up, Pending], &[0, 1], 50).reals, names([0, 1]));
    }

    #[test]
    fn a_booting_node_waits_for_the_first_verdict() {
        assert_eq!(decide_on(&[Pending, Pending], &[], 50), Decision { reals: names([]), held: None });
        assert_eq!(decide_on(&[Pending, Down], &[], 50).reals, names([]));
        assert_eq!(decide_on(&[Pending, Up], &[], 50).reals, names([1]));
    }

    #[test]
    fn a_booting_node_that_finds_all_reals_down_uses_all_and_tells() {
        let decision = decide_on(&[Down, Down], &[], 50);
        assert_eq!(decision.reals, names([0, 1]));
        assert_eq!(decision.held, Some(Held { down: 2, total: 2, threshold: 50 }));
    }

    #[test]
    fn a_booting_node_that_cannot_probe_uses_what_is_not_proven_down() {
        assert_eq!(decide_on(&[Blind, Blind], &[], 50), Decision { reals: names([0, 1]), held: None });
        assert_eq!(decide_on(&[Blind, Down], &[], 50), Decision { reals: names([0]), held: None });
    }

    #[test]
    fn reals_that_replace_all_those_in_force_are_used_unproven() {
        let decision = decide_on(&[Pending, Down], &[7], 50);
        assert_eq!(decision, Decision { reals: names([0]), held: None });
    }

    #[test]
    fn a_drained_or_removed_real_leaves_even_while_removals_are_held() {
        assert_eq!(decide_on(&[Down, Down], &[0, 1, 2], 0).reals, names([0, 1]));
    }

    #[test]
    fn a_threshold_of_100_holds_nothing_but_the_last_real() {
        assert_eq!(decide_on(&[Up, Down, Down, Down], &[0, 1, 2, 3], 100).reals, names([0]));
        let last = decide_on(&[Down, Down, Down, Down], &[0], 100);
        assert_eq!(last.reals, names([0]));
        assert!(last.held.is_some());
    }

    #[test]
    fn the_alarm_names_the_figures() {
        let text = Held { down: 3, total: 4, threshold: 50 }.to_string();
        assert!(text.starts_with("3 of 4 reals are down and the panic threshold is 50 %"), "{text}");
    }

    fn situation() -> impl Strategy<Value = (BTreeMap<RealName, Standing>, BTreeSet<RealName>, u8)> {
        let standing = prop_oneof![Just(Up), Just(Down), Just(Pending), Just(Blind)];
        let standings = proptest::collection::vec(standing, 0..12);
        // Indices beyond the candidates are reals that are no longer wanted.
        let in_force = proptest::collection::btree_set(0usize..14, 0..14);
        (standings, in_force, 0u8..=100)
            .prop_map(|(standings, in_force, threshold)| (candidates(&standings), names(in_force), threshold))
    }

    proptest! {
        #[test]
        fn a_table_is_never_emptied_while_there_are_candidates(
            (candidates, in_force, threshold) in situation()
        ) {
            let pending = candidates.values().any(|standing| *standing == Pending);
            prop_assume!(!candidates.is_empty() && (!in_force.is_empty() || !pending));
            prop_assert!(!decide(&candidates, &in_force, threshold).reals.is_empty());
        }

        #[test]
        fn only_candidates_are_used_and_a_healthy_one_is_never_left_out(
            (candidates, in_force, threshold) in situation()
        ) {
            let decision = decide(&candidates, &in_force, threshold);
            prop_assert!(decision.reals.iter().all(|real| candidates.contains_key(real)));
            for (real, standing) in &candidates {
                prop_assert!(*standing != Up || decision.reals.contains(real));
            }
        }

        #[test]
        fn an_unproven_real_in_force_is_never_removed((candidates, in_force, threshold) in situation()) {
            let decision = decide(&candidates, &in_force, threshold);
            for (real, standing) in &candidates {
                let unproven = matches!(standing, Pending | Blind);
                prop_assert!(!unproven || !in_force.contains(real) || decision.reals.contains(real));
            }
        }

        #[test]
        fn at_100_percent_a_down_real_is_used_only_when_nothing_else_is(
            (candidates, in_force, _) in situation()
        ) {
            let decision = decide(&candidates, &in_force, 100);
            if decision.reals.iter().any(|real| candidates[real] == Down) {
                prop_assert!(!candidates.values().any(|standing| *standing == Up));
                let mut stayed = decision.reals.intersection(&in_force);
                prop_assert!(stayed.all(|real| candidates[real] == Down));
            }
        }

        #[test]
        fn removals_are_held_exactly_when_a_down_real_is_used((candidates, in_force, threshold) in situation()) {
            let decision = decide(&candidates, &in_force, threshold);
            let down_used = decision.reals.iter().any(|real| candidates[real] == Down);
            prop_assert_eq!(decision.held.is_some(), down_used);
        }

        #[test]
        fn deciding_again_on_the_result_changes_nothing((candidates, in_force, threshold) in situation()) {
            let first = decide(&candidates, &in_force, threshold);
            prop_assert_eq!(&decide(&candidates, &first.reals, threshold), &first);
        }
    }
}
