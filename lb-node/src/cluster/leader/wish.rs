//! What operators ask for, as far as it is accepted. Pure.
//!
//! A record that is wrong is refused alone: the last good one stays, and the operator is told. A change that takes most of
//! what there is looks like an accident (a tree restored empty, registrations lost) and is held until it is confirmed.

use super::view::{Published, View, Wish};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use zk_schema::tree::{Assignment, Head, Target, paths};
use zk_schema::{Cluster, Desired, Real, RealName, VipName, VipState};

/// The accepted part, and what was refused or held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Accepted {
    /// What is to be served.
    pub desired: Desired,
    /// What was refused or held, one sentence each, with the mend.
    pub problems: BTreeSet<String>,
}

impl Accepted {
    /// What is served already, and nothing else.
    pub(super) fn frozen(head: &Head, published: &Published) -> Option<Self> {
        let vips = published.assignments.iter().map(|(name, current)| (name.clone(), last_good(current)));
        let desired = Desired { cluster: head.cluster.clone(), vips: vips.collect() };
        let frozen = format!("{}: nothing changes until it is deleted", paths::FREEZE);
        Some(Self { desired, problems: [frozen].into() })
    }
}

/// What was removed lately. Tools that delete a tree do so one znode after the other, so that no step of theirs takes most
/// of what there is, but all of them together do.
#[derive(Clone, Debug, Default)]
pub struct Removed {
    vips: BTreeMap<VipName, Duration>,
    reals: BTreeMap<VipName, BTreeMap<RealName, Duration>>,
}

impl Removed {
    /// How long a removal counts together with later ones.
    const LATELY: Duration = Duration::from_secs(10);

    /// Takes note of a VIP's reals, or of its end, at `now`.
    pub(super) fn note(
        &mut self,
        vip: &VipName,
        before: Option<&Assignment>,
        after: Option<&Assignment>,
        now: Duration,
    ) {
        let (Some(before), Some(after)) = (before, after) else {
            if before.is_some() {
                self.vips.insert(vip.clone(), now);
            } else {
                self.vips.remove(vip);
            }
            self.reals.remove(vip);
            return;
        };
        let reals = self.reals.entry(vip.clone()).or_default();
        let gone = before.reals.keys().filter(|real| !after.reals.contains_key(*real));
        reals.extend(gone.map(|real| (real.clone(), now)));
        reals.retain(|real, _| !after.reals.contains_key(real));
    }

    /// Forgets what was removed long before `now`.
    pub(super) fn forget(&mut self, now: Duration) {
        self.vips.retain(|_, at| now < *at + Self::LATELY);
        for reals in self.reals.values_mut() {
            reals.retain(|_, at| now < *at + Self::LATELY);
        }
    }

    fn reals(&self, vip: &VipName) -> usize {
        self.reals.get(vip).map_or(0, BTreeMap::len)
    }
}

/// Accepts what is sound of the operators' records in `view`, given what is `published` and was `removed` lately. While
/// `settling`, nothing that is missing counts as removed.
///
/// `None` while there is neither a cluster record nor a head that holds one: there is nothing to go by.
#[must_use]
pub fn accept(view: &View, published: &Published, removed: &Removed, settling: bool) -> Option<Accepted> {
    let mut accepted = Accepted::default();
    accepted.desired.cluster = cluster(view, published, &mut accepted.problems)?;

    let vanished = published.assignments.keys().filter(|name| !view.wishes.contains_key(*name)).count();
    let hold_vips = vanished > 0
        && (settling
            || (is_most(vanished + removed.vips.len(), published.assignments.len() + removed.vips.len())
                && !view.confirmed_vips));
    if hold_vips && !settling {
        accepted.problems.insert(format!(
            "{}: {vanished} of {} VIPs vanished at once; they are served on until they return or `create {}` confirms it",
            paths::VIPS,
            published.assignments.len(),
            paths::CONFIRM_VIPS,
        ));
    }
    let names: BTreeSet<&VipName> = view.wishes.keys().chain(published.assignments.keys()).collect();
    for name in names {
        let current = published.assignments.get(name);
        let state = match (view.wishes.get(name), current) {
            (Some(wish), _) => {
                vip(view, name, wish, current, removed.reals(name), settling, &mut accepted.problems)
            }
            (None, Some(current)) if hold_vips => Some(last_good(current)),
            (None, _) => None,
        };
        if let Some(state) = state {
            accepted.desired.vips.insert(name.clone(), state);
        }
    }
    if accepted.desired.validate().is_err() {
        keep_peace(&mut accepted, published);
    }
    Some(accepted)
}

fn cluster(view: &View, published: &Published, problems: &mut BTreeSet<String>) -> Option<Cluster> {
    let in_force = published.head.as_ref().map(|head| &head.cluster);
    match (&view.cluster, in_force) {
        (Some(Ok(wanted)), Some(in_force)) if !published.assignments.is_empty() => {
            if (wanted.seed, wanted.table_size) != (in_force.seed, in_force.table_size) {
                problems.insert(format!(
                    "{}: seed and table_size cannot change while there are VIPs, since every connection would move; \
                     set them back to {} and {}",
                    paths::CLUSTER,
                    in_force.seed,
                    in_force.table_size
                ));
                return Some(in_force.clone());
            }
            Some(wanted.clone())
        }
        (Some(Ok(wanted)), _) => Some(wanted.clone()),
        (Some(Err(problem)), _) => {
            problems.insert(format!("{}: {problem}; the last good record stays in force", paths::CLUSTER));
            in_force.cloned()
        }
        (None, in_force) => {
            problems.insert(format!("{}: no such znode; the last record stays in force", paths::CLUSTER));
            in_force.cloned()
        }
    }
}

fn vip(
    view: &View,
    name: &VipName,
    wish: &Wish,
    current: Option<&Assignment>,
    removed: usize,
    settling: bool,
    problems: &mut BTreeSet<String>,
) -> Option<VipState> {
    let record = match (&wish.vip, current) {
        (Ok(vip), _) => vip.clone(),
        (Err(problem), current) => {
            problems.insert(refused(&paths::vip(name), problem, current.is_some()));
            current?.vip.clone()
        }
    };
    let nothing = BTreeMap::<RealName, Real>::new();
    let known = current.map_or(&nothing, |current| &current.reals);
    let mut reals = nothing.clone();
    for (real, wanted) in &wish.reals {
        let last = known.get(real);
        match wanted {
            Ok(wanted) => reals.insert(real.clone(), wanted.clone()),
            Err(problem) => {
                problems.insert(refused(&paths::real(name, real), problem, last.is_some()));
                last.and_then(|last| reals.insert(real.clone(), last.clone()))
            }
        };
    }
    let vanished: Vec<(&RealName, &Real)> =
        known.iter().filter(|(real, _)| !wish.reals.contains_key(*real)).collect();
    let is_usable = |(real, record): (&RealName, &Real)| {
        record.weight > 0 && !view.drains.contains(&Target { vip: name.clone(), real: real.clone() })
    };
    let in_table = || current.into_iter().flat_map(|current| current.weights.keys());
    let empties = in_table().count() > 0
        && !in_table().any(|real| reals.contains_key(real))
        && !reals.iter().any(is_usable);
    let most = !vanished.is_empty() && is_most(vanished.len() + removed, known.len() + removed);
    let suspect = (most || empties) && !view.confirmed.contains(name);
    if suspect && !settling {
        problems.insert(format!(
            "{}: {} of {} reals vanished at once{}; they are used on until they return or `create {}` confirms it",
            paths::reals(name),
            vanished.len(),
            known.len(),
            if empties { ", and nothing is left to take connections" } else { "" },
            paths::confirm(name),
        ));
    }
    if suspect || settling {
        reals.extend(vanished.into_iter().map(|(real, record)| (real.clone(), record.clone())));
    }
    Some(VipState { vip: record, reals })
}

/// Records that are sound alone may not go together (two VIPs of one address and port): those in force go first.
fn keep_peace(accepted: &mut Accepted, published: &Published) {
    let wanted = std::mem::take(&mut accepted.desired.vips);
    let is_changed = |name: &VipName, state: &VipState| {
        published.assignments.get(name).is_none_or(|current| last_good(current) != *state)
    };
    let (changed, same): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|(name, state)| is_changed(name, state));
    for (name, state) in same.into_iter().chain(changed) {
        accepted.desired.vips.insert(name.clone(), state);
        let Err(refusal) = accepted.desired.validate() else { continue };
        accepted.desired.vips.remove(&name);
        let current = published.assignments.get(&name);
        accepted.problems.insert(refused(&paths::vip(&name), &refusal.to_string(), current.is_some()));
        if let Some(current) = current {
            accepted.desired.vips.insert(name.clone(), last_good(current));
            if accepted.desired.validate().is_err() {
                accepted.desired.vips.remove(&name);
            }
        }
    }
}

fn last_good(current: &Assignment) -> VipState {
    VipState { vip: current.vip.clone(), reals: current.reals.clone() }
}

fn refused(path: &str, problem: &str, has_last: bool) -> String {
    let so = if has_last { "the last good record stays in force" } else { "it is not served" };
    format!("{path}: {problem}; {so} until it is mended")
}

/// More than half.
pub(super) const fn is_most(part: usize, whole: usize) -> bool {
    part * 2 > whole
}
