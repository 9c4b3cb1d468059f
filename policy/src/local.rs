//! The weights that a single node uses.
//!
//! A standalone node decides them for itself, as a cluster's leader does for all nodes. A node of a cluster takes over
//! the leader's, but for what it finds down while nobody can tell it otherwise.

use crate::panic::{self, Held, Standing};
use std::collections::{BTreeMap, BTreeSet};
use zk_schema::tree::Decided;
use zk_schema::{Desired, RealName, VipName, VipState};

/// A real of a VIP.
pub type Key = (VipName, RealName);

/// The weights that give slots to reals, for all VIPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Rises whenever a weight changes, a VIP comes or a VIP goes. 0: nothing was ever assigned.
    pub epoch: u64,
    /// Every desired VIP.
    pub vips: BTreeMap<VipName, VipAssignment>,
}

/// One VIP of an [`Assignment`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VipAssignment {
    /// The reals that take connections, each with a weight above 0.
    pub weights: BTreeMap<RealName, u16>,
    /// Set while reals that are down keep their slots; to be alarmed about.
    pub held: Option<Held>,
    /// Set while the VIP waits for its first table: what it is waiting for is in the verdicts.
    pub waiting: bool,
}

impl Assignment {
    /// The reals that hold slots.
    #[must_use]
    pub fn members(&self) -> BTreeSet<Key> {
        let pairs = self
            .vips
            .iter()
            .flat_map(|(vip, assigned)| assigned.weights.keys().map(|real| (vip.clone(), real.clone())));
        pairs.collect()
    }

    fn same_weights(&self, other: &BTreeMap<VipName, VipAssignment>) -> bool {
        self.vips.len() == other.len()
            && self
                .vips
                .iter()
                .zip(other)
                .all(|((name, vip), (other_name, other))| name == other_name && vip.weights == other.weights)
    }
}

/// The facts to decide upon.
#[derive(Clone, Copy)]
pub struct Situation<'a> {
    /// The operators' records.
    pub desired: &'a Desired,
    /// The state of a real. One without a health check is up when packets can be sent to it, pending until that is
    /// known, and down if they cannot.
    pub standing: &'a dyn Fn(&Key) -> Standing,
    /// The reals that hold slots in the tables in force.
    pub in_force: &'a BTreeSet<Key>,
    /// VIPs that have waited long enough for all their reals' first verdicts.
    pub overdue: &'a BTreeSet<VipName>,
}

/// Decides on weights. `last` is the assignment before this one; its epoch is kept while the weights stay.
///
/// The rules are those of [`panic::decide_once_judged`], and one more: a real without a health check is up, but it does
/// not join while its next hop is unknown, since packets to it would be dropped. Where they cannot be sent that way, it is
/// down.
#[must_use]
pub fn assign(situation: &Situation<'_>, last: &Assignment) -> Assignment {
    let vips: BTreeMap<VipName, VipAssignment> = situation
        .desired
        .vips
        .iter()
        .map(|(name, state)| (name.clone(), assign_vip(situation, name, state)))
        .collect();
    let unchanged = last.epoch > 0 && last.same_weights(&vips);
    Assignment { epoch: if unchanged { last.epoch } else { last.epoch + 1 }, vips }
}

fn assign_vip(situation: &Situation<'_>, name: &VipName, state: &VipState) -> VipAssignment {
    let overdue = situation.overdue.contains(name);
    let candidates: BTreeMap<RealName, Standing> = state
        .reals
        .iter()
        .filter(|(_, real)| real.weight > 0)
        .map(|(real_name, _)| {
            let standing = match (situation.standing)(&(name.clone(), real_name.clone())) {
                // Nobody will find out.
                Standing::Pending if state.vip.health.is_none() && overdue => Standing::Blind,
                standing => standing,
            };
            (real_name.clone(), standing)
        })
        .collect();
    let in_force: BTreeSet<RealName> =
        situation.in_force.iter().filter(|(vip, _)| vip == name).map(|(_, real)| real.clone()).collect();

    let threshold = state.vip.panic_threshold;
    let Some(decision) = panic::decide_once_judged(&candidates, &in_force, threshold, overdue) else {
        return VipAssignment { waiting: true, ..VipAssignment::default() };
    };
    VipAssignment {
        waiting: decision.reals.is_empty() && !candidates.is_empty(),
        weights: decision.reals.into_iter().map(|real| (real.clone(), state.reals[&real].weight)).collect(),
        held: decision.held,
    }
}

/// Reals that a node leaves out of what the leader decided, since it finds them down itself and nobody can tell it
/// otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// The (term, epoch) of the head that they are made from.
    order: (u64, u64),
    reals: BTreeSet<Key>,
}

impl Exclusions {
    /// Returns what a node left out of the head of `order`.
    #[must_use]
    pub fn new(order: (u64, u64), reals: BTreeSet<Key>) -> Self {
        Self { order, reals }
    }

    /// The (term, epoch) of the head that they are made from.
    #[must_use]
    pub fn order(&self) -> (u64, u64) {
        self.order
    }

    /// The reals that are left out.
    #[must_use]
    pub fn reals(&self) -> &BTreeSet<Key> {
        &self.reals
    }

    /// Returns whether nothing is left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reals.is_empty()
    }

    /// Returns what to leave out of `decided`, given what this node's own probes `find`: up or down, or neither as
    /// long as they cannot tell.
    ///
    /// An autonomous node leaves out what it finds down, within the VIP's panic threshold. When it sees the tree again, it
    /// goes on to do so until the leader, by a newer head, has had the time to come to the same: otherwise dead reals
    /// would return to the table for a moment. A real that is left out stays so until it is found up: not to know is no
    /// reason to bring it back, as after a restart, or before the first probe of a node that has just been cut off.
    #[must_use]
    pub fn revised(&self, decided: &Decided, find: impl Fn(&Key) -> Standing, autonomous: bool) -> Self {
        let order = decided.head.order();
        if !autonomous && order != self.order && !decided.head.settling {
            return Self::default();
        }
        let is_down = |key: &Key| match find(key) {
            Standing::Up => false,
            Standing::Down => autonomous || self.reals.contains(key),
            Standing::Pending | Standing::Blind => self.reals.contains(key),
        };
        let mut reals = BTreeSet::new();
        for (vip, assignment) in &decided.assignments {
            let standing = |real: &RealName| match is_down(&(vip.clone(), real.clone())) {
                true => Standing::Down,
                false => Standing::Up,
            };
            let candidates = assignment.weights.keys().map(|real| (real.clone(), standing(real))).collect();
            let in_force = assignment.weights.keys().cloned().collect();
            // What was bearable when the node left it out may be too much of what the leader has decided since.
            let decision = panic::decide(&candidates, &in_force, assignment.vip.panic_threshold);
            let left_out = assignment.weights.keys().filter(|real| !decision.reals.contains(*real));
            reals.extend(left_out.map(|real| (vip.clone(), real.clone())));
        }
        match reals.is_empty() {
            true => Self::default(),
            false => Self { order: if autonomous { order } else { self.order }, reals },
        }
    }
}

/// Returns the leader's decision without the reals that are left out.
#[must_use]
pub fn adopt(decided: &Decided, exclusions: &Exclusions) -> Assignment {
    let vip = |name: &VipName, assignment: &zk_schema::tree::Assignment| {
        let is_used = |real: &RealName| !exclusions.reals.contains(&(name.clone(), real.clone()));
        let weights = assignment.weights.iter().filter(|(real, _)| is_used(real));
        let weights: BTreeMap<RealName, u16> =
            weights.map(|(real, weight)| (real.clone(), *weight)).collect();
        let candidates = assignment.reals.values().any(|real| real.weight > 0);
        VipAssignment { waiting: weights.is_empty() && candidates, weights, held: None }
    };
    let vips = decided.assignments.iter().map(|(name, assignment)| (name.clone(), vip(name, assignment)));
    Assignment { epoch: decided.head.epoch, vips: vips.collect() }
}

#[cfg(test)]
mod tests {
    use super::Standing::{Down, Pending, Up};
    use super::*;
    use zk_schema::testing::{checked_vip, desired, name, unchecked_vip};

    type Standings = BTreeMap<Key, Standing>;

    fn standings(vip: &str, standings: &[(&str, Standing)]) -> Standings {
        standings.iter().map(|(real, standing)| (key(vip, real), *standing)).collect()
    }

    fn of(standings: &Standings) -> impl Fn(&Key) -> Standing {
        |key| standings.get(key).copied().unwrap_or(Pending)
    }

    fn key(vip: &str, real: &str) -> Key {
        (name(vip), name(real))
    }

    /// Everything that a decision may depend on, owned.
    #[derive(Default)]
    struct Case {
        desired: Desired,
        standings: Standings,
        in_force: BTreeSet<Key>,
        overdue: BTreeSet<VipName>,
    }

    impl Case {
        fn assign(&self, last: &Assignment) -> Assignment {
            let situation = Situation {
                desired: &self.desired,
                standing: &of(&self.standings),
                in_force: &self.in_force,
                overdue: &self.overdue,
            };
            assign(&situation, last)
        }

        /// The reals in the table of the VIP `mqtt`.
        fn members(&self) -> Vec<String> {
            let assignment = self.assign(&Assignment::default());
            assignment.vips["mqtt"].weights.keys().map(ToString::to_string).collect()
        }
    }

    fn checked(reals: &[(&str, u16)]) -> Case {
        Case { desired: desired([("mqtt", checked_vip(reals))]), ..Case::default() }
    }

    #[test]
    fn a_new_vip_waits_until_every_real_is_judged_and_then_takes_all_that_are_up() {
        let mut case = checked(&[("a", 100), ("b", 100), ("c", 100)]);
        case.standings = standings("mqtt", &[("a", Up), ("b", Up), ("c", Pending)]);
        let waiting = case.assign(&Assignment::default());
        assert_eq!(waiting.vips["mqtt"], VipAssignment { waiting: true, ..VipAssignment::default() });
        case.standings = standings("mqtt", &[("a", Up), ("b", Up), ("c", Down)]);
        assert_eq!(case.members(), ["a", "b"]);
    }

    #[test]
    fn a_vip_that_is_overdue_takes_the_reals_that_are_up_without_waiting_for_the_rest() {
        let mut case = checked(&[("a", 100), ("b", 100)]);
        case.standings = standings("mqtt", &[("a", Up), ("b", Pending)]);
        case.overdue = [name("mqtt")].into();
        assert_eq!(case.members(), ["a"]);
        case.standings = standings("mqtt", &[("a", Pending), ("b", Pending)]);
        let assignment = case.assign(&Assignment::default());
        assert!(assignment.vips["mqtt"].waiting, "{assignment:?}");
    }

    #[test]
    fn reals_in_force_stay_while_nothing_is_known_of_them() {
        let mut case = checked(&[("a", 100), ("b", 100)]);
        case.in_force = [key("mqtt", "b")].into();
        assert_eq!(case.members(), ["b"]);
        assert!(!case.assign(&Assignment::default()).vips["mqtt"].waiting);
    }

    #[test]
    fn only_the_vips_own_reals_count_as_in_force() {
        let mut case = checked(&[("a", 100), ("b", 100)]);
        case.in_force = [key("other", "a")].into();
        assert!(case.members().is_empty());
    }

    #[test]
    fn a_real_of_weight_0_is_neither_used_nor_counted() {
        let mut case = checked(&[("a", 7), ("drained", 0)]);
        case.standings = standings("mqtt", &[("a", Down), ("drained", Up)]);
        case.in_force = [key("mqtt", "a"), key("mqtt", "drained")].into();
        let assignment = case.assign(&Assignment::default());
        let vip = &assignment.vips["mqtt"];
        assert_eq!(vip.weights, [(name("a"), 7)].into());
        assert_eq!(vip.held.map(|held| (held.down, held.total)), Some((1, 1)));
    }

    #[test]
    fn removals_beyond_the_panic_threshold_are_held() {
        let mut case = checked(&[("a", 100), ("b", 100), ("c", 100)]);
        case.in_force = case.desired.vips["mqtt"].reals.keys().map(|r| (name("mqtt"), r.clone())).collect();
        case.standings = standings("mqtt", &[("a", Up), ("b", Up), ("c", Down)]);
        assert_eq!(case.members(), ["a", "b"]);
        case.standings = standings("mqtt", &[("a", Up), ("b", Down), ("c", Down)]);
        let assignment = case.assign(&Assignment::default());
        assert_eq!(assignment.vips["mqtt"].weights.len(), 3);
        assert_eq!(assignment.vips["mqtt"].held, Some(Held { down: 2, total: 3, threshold: 50 }));
    }

    #[test]
    fn a_real_without_a_health_check_waits_until_it_can_be_reached_but_not_for_ever() {
        let mut case = Case {
            desired: desired([("mqtt", unchecked_vip(&[("a", 100), ("b", 100)]))]),
            ..Case::default()
        };
        assert!(case.members().is_empty());
        case.standings = standings("mqtt", &[("a", Up), ("b", Up)]);
        assert_eq!(case.members(), ["a", "b"]);

        case.standings = standings("mqtt", &[("a", Up), ("b", Pending)]);
        case.overdue = [name("mqtt")].into();
        assert_eq!(case.members(), ["a"], "what cannot be reached does not take slots");
        case.standings.clear();
        assert_eq!(case.members(), ["a", "b"], "a table of doubtful reals is better than none");
    }

    #[test]
    fn the_epoch_rises_with_every_change_of_a_weight_and_only_then() {
        let mut case = checked(&[("a", 100), ("b", 100)]);
        case.standings = standings("mqtt", &[("a", Up), ("b", Up)]);
        let first = case.assign(&Assignment::default());
        assert_eq!(first.epoch, 1);
        case.in_force = first.members();
        assert_eq!(case.assign(&first), first);

        case.desired.vips.get_mut("mqtt").unwrap().vip.panic_threshold = 10;
        assert_eq!(case.assign(&first).epoch, 1);
        case.desired.vips.get_mut("mqtt").unwrap().reals.get_mut("a").unwrap().weight = 50;
        let second = case.assign(&first);
        assert_eq!((second.epoch, second.vips["mqtt"].weights["a"]), (2, 50));

        case.desired.vips.insert(name("udp"), unchecked_vip(&[]));
        assert_eq!(case.assign(&second).epoch, 3);
        case.desired.vips.clear();
        let empty = case.assign(&second);
        assert_eq!((empty.epoch, empty.vips.len()), (3, 0));
    }

    #[test]
    fn the_first_assignment_of_no_vips_has_an_epoch_too() {
        assert_eq!(Case::default().assign(&Assignment::default()).epoch, 1);
    }

    /// A decision on three reals, at this epoch.
    fn three(epoch: u64, settling: bool) -> Decided {
        let all = desired([("mqtt", checked_vip(&[("a", 100), ("b", 100), ("c", 100)]))]);
        let mut decided = zk_schema::testing::decided(1, epoch, &all);
        decided.head.settling = settling;
        decided
    }

    fn used(decided: &Decided, exclusions: &Exclusions) -> Vec<String> {
        adopt(decided, exclusions).vips["mqtt"].weights.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_node_that_sees_the_tree_does_what_the_leader_decided_whatever_it_finds_itself() {
        let found = standings("mqtt", &[("a", Down), ("b", Up), ("c", Up)]);
        let exclusions = Exclusions::default().revised(&three(5, false), of(&found), false);
        assert!(exclusions.is_empty());
        let adopted = adopt(&three(5, false), &exclusions);
        assert_eq!((adopted.epoch, used(&three(5, false), &exclusions).len()), (5, 3));
    }

    #[test]
    fn an_autonomous_node_leaves_out_what_it_finds_down_within_the_panic_threshold() {
        let alone = |found: &[(&str, Standing)]| {
            let exclusions =
                Exclusions::default().revised(&three(5, false), of(&standings("mqtt", found)), true);
            used(&three(5, false), &exclusions)
        };
        assert_eq!(alone(&[("a", Down), ("b", Up), ("c", Pending)]), ["b", "c"]);
        assert_eq!(alone(&[("a", Down), ("b", Down), ("c", Up)]), ["a", "b", "c"]);
        assert_eq!(alone(&[("a", Up)]), ["a", "b", "c"], "what it knows nothing of stays");
    }

    #[test]
    fn what_was_left_out_returns_when_it_is_up_or_a_settled_leader_has_decided_anew() {
        let down = standings("mqtt", &[("a", Down), ("b", Up), ("c", Up)]);
        let alone = Exclusions::default().revised(&three(5, false), of(&down), true);
        let back =
            |decided: &Decided, found: &Standings| used(decided, &alone.revised(decided, of(found), false));
        assert_eq!(back(&three(5, false), &down), ["b", "c"], "no newer head has come yet");
        assert_eq!(back(&three(6, true), &down), ["b", "c"], "the new leader removes nothing yet");
        assert_eq!(back(&three(7, false), &down), ["a", "b", "c"], "the leader knows better");
        let up = standings("mqtt", &[("a", Up), ("b", Up), ("c", Up)]);
        assert_eq!(back(&three(6, true), &up), ["a", "b", "c"]);
        assert_eq!(back(&three(6, true), &Standings::new()), ["b", "c"], "others probe it now");
    }

    #[test]
    fn what_a_node_left_out_never_empties_what_a_leader_decided_since() {
        let found = standings("mqtt", &[("a", Up), ("b", Down), ("c", Up)]);
        let alone = Exclusions::default().revised(&three(7, false), of(&found), true);
        let only = desired([("mqtt", checked_vip(&[("b", 100)]))]);
        let mut only = zk_schema::testing::decided(1, 8, &only);
        only.head.settling = true;
        assert_eq!(used(&only, &alone.revised(&only, of(&found), false)), ["b"]);
    }

    #[test]
    fn what_was_left_out_before_a_restart_stays_out_until_it_is_found_up() {
        let kept = Exclusions::new((1, 5), [key("mqtt", "a")].into());
        let unknown = standings("mqtt", &[("a", Pending), ("b", Up), ("c", Up)]);
        for autonomous in [false, true] {
            for found in [&Standings::new(), &unknown] {
                let revised = kept.revised(&three(5, false), of(found), autonomous);
                assert_eq!(used(&three(5, false), &revised), ["b", "c"], "autonomous: {autonomous}");
            }
            let up = standings("mqtt", &[("a", Up)]);
            let revised = kept.revised(&three(5, false), of(&up), autonomous);
            assert_eq!(used(&three(5, false), &revised), ["a", "b", "c"]);
        }
        let revised = kept.revised(&three(6, false), of(&unknown), false);
        assert_eq!(used(&three(6, false), &revised), ["a", "b", "c"], "a settled leader has decided since");
    }
}
