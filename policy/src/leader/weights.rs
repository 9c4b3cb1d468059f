//! From what is accepted and found to a VIP's weights: which, and when they take effect. Pure.

use super::memo::Circumstances;
use super::problem::Hold;
use super::{Leader, View, bounds, explain, has_applied};
use crate::first_round;
use crate::panic::{self, Standing};
use crate::removal::UNREGISTERED;
use crate::verdict::{self, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use zk_schema::tree::{Adoption, Assignment, Past, Registrant, Target};
use zk_schema::{Real, RealName, VipName, VipState};

/// Earlier weights that an assignment keeps.
const HISTORY: usize = 8;

/// Time that it may take, beyond the probes themselves, until nodes know a new VIP and the leader their first votes.
const NEW_VIP_SLACK: Duration = Duration::from_secs(3);

impl Leader {
    /// The VIP's new assignment, but for term and epoch, and the reason why its weights are not as asked for, if any.
    pub(super) fn assign(
        &self,
        name: &VipName,
        state: &VipState,
        view: &View,
        trust: bool,
        now: Duration,
    ) -> (Assignment, Option<Hold>) {
        let current = self.published.assignments.get(name);
        let mut new = current.map(|current| Assignment::clone(current)).unwrap_or_else(|| Assignment {
            term: 0,
            epoch: 0,
            vip: state.vip.clone(),
            reals: BTreeMap::new(),
            weights: BTreeMap::new(),
            since: self.least_epoch,
            next: None,
            history: Vec::new(),
            held: None,
            held_reals: BTreeSet::new(),
            why: "the VIP is new".to_owned(),
            extra: Default::default(),
        });
        if current.is_some() && (new.vip != state.vip || new.reals != state.reals) {
            new.why = "an operator changed the VIP or its reals".to_owned();
        }
        new.vip = state.vip.clone();
        new.reals = state.reals.clone();

        let weights = new.weights.clone();
        let choice = self.choose(name, state, &weights, view, trust, now);
        new.held = choice.hold.as_ref().map(|hold| bounds::shorten(&hold.to_string()));
        let held = self.vanished.held().reals.get(name);
        new.held_reals = held.cloned().unwrap_or_default();
        new.held_reals.retain(|real| new.reals.contains_key(real));
        let target = choice.weights;
        let lost: Vec<&RealName> = weights
            .keys()
            .filter(|real| {
                !target.contains_key(*real)
                    && (choice.down.contains(*real) || !state.reals.contains_key(*real))
            })
            .collect();
        if weights.is_empty() {
            if !target.is_empty() {
                self.take_effect(&mut new, target, "the reals have been judged".to_owned());
            }
        } else if !lost.is_empty() {
            let why = lost.iter().map(|real| match state.reals.contains_key(*real) {
                true => {
                    let target = Target { vip: name.clone(), real: (*real).clone() };
                    format!("{real} is down ({})", verdict::reason(&target, &view.votes))
                }
                false => format!("{real} was removed"),
            });
            let why = explain::few(why, "; ");
            let mut rest = weights.clone();
            rest.retain(|real, _| !lost.contains(&real));
            // What else is to change follows in two phases, unless there is nothing to wait with.
            self.take_effect(&mut new, if rest.is_empty() { target } else { rest }, why);
        } else if target == weights {
            if new.next.take().is_some() {
                new.why = "the announced weights are no longer wanted".to_owned();
            }
        } else {
            match &new.next {
                Some(next) if next.weights == target => {
                    let announced = (current.map_or(0, |current| current.term), next.epoch);
                    if self.is_adopted(name, announced, view, now) {
                        let why = difference(&weights, &target);
                        self.take_effect(&mut new, target, why);
                    }
                }
                _ => {
                    new.why = format!("announced: {}", difference(&weights, &target));
                    new.next = Some(Adoption { epoch: self.least_epoch, weights: target });
                }
            }
        }
        (new, choice.hold)
    }

    /// The weights that the VIP should have.
    fn choose(
        &self,
        name: &VipName,
        state: &VipState,
        weights: &BTreeMap<RealName, u16>,
        view: &View,
        trust: bool,
        now: Duration,
    ) -> Choice {
        let target = |real: &RealName| Target { vip: name.clone(), real: real.clone() };
        let overdue = self.is_overdue(name, state, now);
        let verdicts = self.judge.verdicts().on(name);
        let standing = |real: &RealName| match verdicts.and_then(|verdicts| verdicts.get(real)) {
            _ if state.vip.health.is_none() => Standing::Up,
            Some(Verdict::Up) => Standing::Up,
            Some(Verdict::Down) => Standing::Down,
            Some(Verdict::Open) | None if overdue => Standing::Blind,
            Some(Verdict::Open) | None => Standing::Pending,
        };
        let candidates: BTreeMap<RealName, Standing> = state
            .reals
            .iter()
            .filter(|(real, record)| record.weight > 0 && !self.is_out(&target(real), record, view, now))
            .map(|(real, _)| (real.clone(), standing(real)))
            .collect();
        let down: BTreeSet<RealName> =
            candidates.iter().filter(|(_, s)| **s == Standing::Down).map(|(real, _)| real.clone()).collect();
        let in_force: BTreeSet<RealName> = weights.keys().cloned().collect();
        let confirmed = view.confirmed.contains(name);
        let threshold = if confirmed { 100 } else { state.vip.panic_threshold };
        let Some(decision) = panic::decide_once_judged(&candidates, &in_force, threshold, overdue) else {
            return Choice { weights: BTreeMap::new(), hold: None, down };
        };
        let mut reals = decision.reals;
        let mut hold = decision.held.map(|held| Hold::Panic { vip: name.clone(), held });
        if !trust {
            let kept: Vec<&RealName> =
                down.iter().filter(|real| in_force.contains(*real) && !reals.contains(*real)).collect();
            if !kept.is_empty() {
                hold = Some(Hold::NoTrust(kept.into_iter().cloned().collect()));
            }
            reals.extend(down.iter().filter(|real| in_force.contains(*real)).cloned());
        }
        let chosen =
            reals.into_iter().filter_map(|real| Some((real.clone(), state.reals.get(&real)?.weight)));
        let mut chosen: BTreeMap<RealName, u16> = chosen.collect();
        if chosen.is_empty() && !state.reals.is_empty() {
            chosen = weights.clone();
            chosen.retain(|real, _| state.reals.contains_key(real));
            hold = Some(Hold::NothingUsable);
        }
        Choice { weights: chosen, hold, down }
    }

    /// Puts weights in force, and those before into the history.
    fn take_effect(&self, assignment: &mut Assignment, weights: BTreeMap<RealName, u16>, why: String) {
        let before = std::mem::replace(&mut assignment.weights, weights);
        if !before.is_empty() {
            assignment.history.insert(0, Past { epoch: assignment.since, weights: before });
            assignment.history.truncate(HISTORY);
        }
        assignment.since = self.least_epoch;
        assignment.next = None;
        assignment.why = bounds::shorten(&why);
    }

    /// Returns whether a VIP's reals have had the time to be judged.
    fn is_overdue(&self, name: &VipName, state: &VipState, now: Duration) -> bool {
        self.known_since
            .get(name)
            .is_some_and(|since| now >= *since + first_round(&state.vip) + NEW_VIP_SLACK)
    }

    /// All that [`Leader::assign`] goes by beside a VIP's definition, what is in force and the verdicts on its reals.
    pub(super) fn circumstances(
        &self,
        name: &VipName,
        state: &VipState,
        view: &View,
        trust: bool,
        now: Duration,
    ) -> Circumstances {
        let of_vip = |real: &RealName| Target { vip: name.clone(), real: real.clone() };
        let missing = self.missing.of(name).filter(|real| state.reals.contains_key(*real));
        let mut out: BTreeSet<RealName> =
            missing.filter(|real| self.is_away(&of_vip(real), view, now)).cloned().collect();
        let first = Target { vip: name.clone(), real: RealName::least() };
        let drained = view.drains.range(first..).take_while(|target| target.vip == *name);
        out.extend(drained.map(|target| target.real.clone()).filter(|real| state.reals.contains_key(real)));
        let current = self.published.assignments.get(name);
        let announced = current.and_then(|current| Some((current.term, current.next.as_ref()?.epoch)));
        Circumstances {
            out,
            hides_drains: view.hidden.drains,
            held: self.vanished.held().reals.get(name).cloned().unwrap_or_default(),
            confirmed: view.confirmed.contains(name),
            trust,
            overdue: self.is_overdue(name, state, now),
            adopted: announced.is_some_and(|announced| self.is_adopted(name, announced, view, now)),
        }
    }

    /// Returns whether every node that is there knows what was `announced` at an order, or has had the time to, and
    /// those that are cut off have had the time to withdraw.
    fn is_adopted(&self, vip: &VipName, announced: (u64, u64), view: &View, now: Duration) -> bool {
        let Some(head) = &self.published.head else { return false };
        let waited =
            self.announced_since.get(vip).is_some_and(|since| now >= *since + self.settings.ack_timeout);
        let is_withdrawn = |since: &Duration| now >= *since + self.settings.withdraw_after;
        (waited || view.nodes.iter().all(|node| has_applied(view, node, announced, head)))
            && self.cut_off_since.values().all(is_withdrawn)
    }

    /// Returns whether a real whose record vanished goes now. One that its agent had registered, and that takes
    /// connections, goes only when it has none left.
    pub(super) fn has_gone(&self, vip: &VipName, real: &RealName) -> bool {
        let Some(current) = self.published.assignments.get(vip) else { return true };
        let takes_connections = current.weights.contains_key(real);
        let is_registered = current.reals.get(real).is_some_and(Registrant::is_registered);
        let going = self.vanished.real_goes(vip, real);
        going.is_some_and(|going| going.is_meant || !(takes_connections && is_registered))
    }

    /// Returns whether a real is to get no new connections: drained by an operator, about to end, or gone for long.
    fn is_out(&self, target: &Target, record: &Real, view: &View, now: Duration) -> bool {
        Registrant::is_leaving(record) || self.is_away(target, view, now)
    }

    /// Returns whether a real is drained by an operator, or gone for long.
    fn is_away(&self, target: &Target, view: &View, now: Duration) -> bool {
        let gone = self.vanished.real_goes(&target.vip, &target.real);
        // Where flags cannot be seen, one may be what keeps it out.
        let current = self.published.assignments.get(&target.vip).map(|current| &current.weights);
        let was_out =
            || current.is_some_and(|weights| !weights.is_empty() && !weights.contains_key(&target.real));
        view.drains.contains(target)
            || (view.hidden.drains && was_out())
            || gone.is_some_and(|going| now >= going.since + UNREGISTERED)
    }
}

/// A choice of weights.
struct Choice {
    weights: BTreeMap<RealName, u16>,
    hold: Option<Hold>,
    /// Reals that are down, used or not.
    down: BTreeSet<RealName>,
}

/// Tells in words what changes between two sets of weights.
pub(super) fn difference(before: &BTreeMap<RealName, u16>, after: &BTreeMap<RealName, u16>) -> String {
    let old = before.iter().filter(|(real, weight)| after.get(*real) != Some(*weight));
    let new = after.iter().filter(|(real, weight)| before.get(*real) != Some(*weight));
    let names: BTreeSet<&RealName> = old.chain(new).map(|(real, _)| real).collect();
    let changes = names.into_iter().filter_map(|real| match (before.get(real), after.get(real)) {
        (None, Some(new)) => Some(format!("{real} joins with {new}")),
        (Some(_), None) => Some(format!("{real} leaves")),
        (old, new) => Some(format!("{real} from {} to {}", old.copied()?, new.copied()?)),
    });
    explain::few(changes, ", ")
}
