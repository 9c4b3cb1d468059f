//! The verdicts that votes come to, kept from turn to turn. Pure.
//!
//! Votes name exceptions. So a real that is up, and that no vote mentions, is judged up again whoever votes, or not at
//! all, which leaves it up: only what is mentioned, or not up, is looked at, and only when something changed.

use super::memo::{is_same, without};
use crate::verdict::{self, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zk_schema::tree::{Assignment, Target, Vote};
use zk_schema::{NodeName, RealName, VipName, VipState};

/// The last verdicts that votes gave.
#[derive(Clone, Debug, Default)]
pub(super) struct Judge {
    verdicts: Verdicts,
    /// The grounds of the verdicts; `None`: all is looked at again.
    basis: Option<Basis>,
    /// Reals that are to be judged and are not up.
    doubtful: BTreeSet<Target>,
    judged: u64,
}

/// Verdicts by VIP and real.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Verdicts(BTreeMap<VipName, Arc<BTreeMap<RealName, Verdict>>>);

/// The grounds of verdicts.
#[derive(Clone, Debug, Default)]
struct Basis {
    /// Each VIP as it is to be, and as nodes were told.
    vips: BTreeMap<VipName, (Arc<VipState>, Option<Arc<Assignment>>)>,
    votes: BTreeMap<NodeName, Arc<Vote>>,
    nodes: BTreeSet<NodeName>,
    since: u64,
}

impl Verdicts {
    /// The verdict on a real, if there was one.
    pub(super) fn of(&self, vip: &VipName, real: &RealName) -> Option<Verdict> {
        self.0.get(vip)?.get(real).copied()
    }

    /// The verdicts on a VIP's reals, the same object until one of them changes.
    pub(super) fn on(&self, vip: &VipName) -> Option<&Arc<BTreeMap<RealName, Verdict>>> {
        self.0.get(vip)
    }

    /// The verdicts that were others `before`, or none.
    pub(super) fn changed_since<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (&'a VipName, &'a RealName, Verdict)> {
        let vips =
            self.0.iter().filter(|(vip, now)| !before.0.get(*vip).is_some_and(|then| Arc::ptr_eq(now, then)));
        vips.flat_map(move |(vip, now)| {
            let differs = move |real: &RealName, verdict| before.of(vip, real) != Some(verdict);
            let changed = now.iter().filter(move |(real, verdict)| differs(real, **verdict));
            changed.map(move |(real, verdict)| (vip, real, *verdict))
        })
    }

    fn set(&mut self, vip: &VipName, real: &RealName, verdict: Verdict) {
        if self.of(vip, real) == Some(verdict) {
            return;
        }
        let reals = match self.0.get_mut(vip) {
            Some(reals) => reals,
            None => self.0.entry(vip.clone()).or_default(),
        };
        Arc::make_mut(reals).insert(real.clone(), verdict);
    }
}

impl Judge {
    /// As if every real that is in a table had been found up.
    pub(super) fn new(assignments: &BTreeMap<VipName, Arc<Assignment>>) -> Self {
        let up = |assignment: &Assignment| {
            Arc::new(assignment.weights.keys().map(|real| (real.clone(), Verdict::Up)).collect())
        };
        let verdicts = assignments.iter().map(|(vip, assignment)| (vip.clone(), up(assignment)));
        Self { verdicts: Verdicts(verdicts.collect()), ..Self::default() }
    }

    /// The verdicts.
    pub(super) const fn verdicts(&self) -> &Verdicts {
        &self.verdicts
    }

    /// The number of reals looked at so far.
    pub(super) const fn judged(&self) -> u64 {
        self.judged
    }

    /// Forgets a VIP.
    pub(super) fn forget(&mut self, vip: &VipName) {
        self.verdicts.0.remove(vip);
        self.doubtful.retain(|target| target.vip != *vip);
        if let Some(basis) = &mut self.basis {
            basis.vips.remove(vip);
        }
    }

    /// Looks at every real the next time.
    #[cfg(test)]
    pub(super) fn doubt(&mut self) {
        self.basis = None;
    }

    /// Takes `votes` into account, as far as they say anything: those of `nodes`, on what they have probed `since` an
    /// epoch. `vips` are as they are to be, `told` as nodes know them: what they have not been told of they cannot have
    /// found up.
    pub(super) fn judge(
        &mut self,
        vips: &BTreeMap<VipName, Arc<VipState>>,
        told: &BTreeMap<VipName, Arc<Assignment>>,
        votes: &BTreeMap<NodeName, Arc<Vote>>,
        nodes: &BTreeSet<NodeName>,
        since: u64,
    ) {
        let is_first = self.basis.is_none();
        let mut basis = self.basis.take().unwrap_or_default();
        let mut is_changed = is_first;

        for name in basis.vips.keys().chain(self.verdicts.0.keys()).filter(|name| !vips.contains_key(*name)) {
            self.doubtful.retain(|target| target.vip != *name);
            is_changed = true;
        }
        self.verdicts.0.retain(|name, _| vips.contains_key(name));
        basis.vips.retain(|name, _| vips.contains_key(name));
        for (name, state) in vips {
            let told = told.get(name);
            let is_known = basis.vips.get(name).is_some_and(|(known, known_told)| {
                Arc::ptr_eq(known, state) && is_same(known_told.as_ref(), told)
            });
            if !is_known {
                self.adapt(name, state, told);
                basis.vips.insert(name.clone(), (Arc::clone(state), told.cloned()));
                is_changed = true;
            }
        }
        if basis.since != since || basis.nodes != *nodes {
            basis.nodes.clone_from(nodes);
            basis.since = since;
            is_changed = true;
        }
        let mut pairs = basis.votes.iter().zip(votes);
        let is_same = pairs.all(|(one, other)| one.0 == other.0 && Arc::ptr_eq(one.1, other.1));
        if !is_same || basis.votes.len() != votes.len() {
            basis.votes.clone_from(votes);
            is_changed = true;
        }
        if is_changed {
            let mut open = std::mem::take(&mut self.doubtful);
            let mentioned = votes.values().flat_map(|vote| vote.down.keys().chain(&vote.unknown));
            open.extend(mentioned.filter(|target| is_judged(&basis, target)).cloned());
            if is_first {
                let all = basis.vips.iter().flat_map(|(vip, (state, _))| {
                    state.reals.keys().map(|real| Target { vip: vip.clone(), real: real.clone() })
                });
                open.extend(all.filter(|target| is_judged(&basis, target)));
            }
            for target in open {
                self.judged += 1;
                match verdict::verdict(&target, nodes, votes, since) {
                    Verdict::Open => {}
                    verdict => self.verdicts.set(&target.vip, &target.real, verdict),
                }
                if self.verdicts.of(&target.vip, &target.real) != Some(Verdict::Up) {
                    self.doubtful.insert(target);
                }
            }
        }
        self.basis = Some(basis);
    }

    /// Takes over another definition of a VIP.
    fn adapt(&mut self, name: &VipName, state: &VipState, told: Option<&Arc<Assignment>>) {
        if let Some(reals) = self.verdicts.0.get_mut(name)
            && without(reals.keys(), state.reals.keys()).next().is_some()
        {
            Arc::make_mut(reals).retain(|real, _| state.reals.contains_key(real));
        }
        self.doubtful.retain(|target| target.vip != *name);
        if state.vip.health.is_none() {
            return;
        }
        for real in told.iter().flat_map(|told| told.reals.keys()) {
            if state.reals.contains_key(real) && self.verdicts.of(name, real) != Some(Verdict::Up) {
                self.doubtful.insert(Target { vip: name.clone(), real: real.clone() });
            }
        }
    }
}

/// Returns whether a real is to be judged.
fn is_judged(basis: &Basis, target: &Target) -> bool {
    basis.vips.get(&target.vip).is_some_and(|(state, told)| {
        state.vip.health.is_some()
            && state.reals.contains_key(&target.real)
            && told.as_ref().is_some_and(|told| told.reals.contains_key(&target.real))
    })
}
