//! What operators ask for, as far as it is accepted. Pure.
//!
//! A record that is wrong, or too large, is refused alone: the last good one stays, and the operator is told. What is
//! missing stays until it [may go](super::vanished).

use super::bounds::{self, Problems};
use super::story;
use super::vanished::Vanished;
use super::view::{Published, View, Wish};
use std::collections::{BTreeMap, BTreeSet};
use zk_schema::tree::{Assignment, Head, paths};
use zk_schema::{Cluster, Desired, Real, RealName, VipName, VipState};

/// The accepted part, and what was refused or held.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    /// What is to be served.
    pub(super) desired: Desired,
    /// What was refused or held, one sentence each, with the mend.
    pub(super) problems: Problems,
}

impl Accepted {
    /// What is served already, and nothing else.
    pub(super) fn frozen(head: &Head, published: &Published) -> Option<Self> {
        let vips = published.assignments.iter().map(|(name, current)| (name.clone(), last_good(current)));
        let desired = Desired { cluster: head.cluster.clone(), vips: vips.collect() };
        let frozen = format!("{}: nothing changes until it is deleted", paths::FREEZE);
        let mut problems = Problems::default();
        problems.insert(frozen);
        Some(Self { desired, problems })
    }
}

/// Accepts what is sound of the operators' records in `view`, given what is `published`, and `vanished` of that: what is
/// missing stays until it may go.
///
/// `None` while there is neither a cluster record nor a head that holds one: there is nothing to go by.
#[must_use]
pub(super) fn accept(
    view: &View,
    published: &Published,
    vanished: &Vanished,
    has_gone: impl Fn(&VipName, &RealName) -> bool,
) -> Option<Accepted> {
    let mut accepted = Accepted::default();
    held(vanished, published, &mut accepted.problems);
    accepted.desired.cluster = cluster(view, published, &mut accepted.problems)?;

    let names: BTreeSet<&VipName> = view.wishes.keys().chain(published.assignments.keys()).collect();
    let in_head = bounds::in_head(names.iter().copied(), |name| published.assignments.contains_key(name));
    for name in names {
        if !in_head.contains(name) {
            let problem = "there are more VIPs than a head has room for";
            accepted.problems.insert(refused(&paths::vip(name), problem, false));
            continue;
        }
        let current = published.assignments.get(name);
        let state = match (view.wishes.get(name), current) {
            (Some(wish), _) => vip(name, wish, current, |real| has_gone(name, real), &mut accepted.problems),
            (None, Some(current)) if !vanished.vip_goes(name) => Some(last_good(current)),
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

/// Tells what is held.
fn held(vanished: &Vanished, published: &Published, problems: &mut Problems) {
    let held = vanished.held();
    if !held.vips.is_empty() {
        problems.insert(format!(
            "{}: {} of {} VIPs vanished in a way that looks like an accident: {}; each is served on until it returns or \
             `create {}` confirms it",
            paths::VIPS,
            held.vips.len(),
            published.assignments.len(),
            story::few(&held.vips, ", "),
            paths::CONFIRM_VIPS,
        ));
    }
    for (vip, reals) in held.reals.iter().filter(|(vip, _)| !held.vips.contains(*vip)) {
        let Some(current) = published.assignments.get(vip) else { continue };
        problems.insert(format!(
            "{}: {} of {} reals vanished in a way that looks like an accident: {}{}; each is used on until it returns or \
             `create {}` confirms it",
            paths::reals(vip),
            reals.len(),
            current.reals.len(),
            story::few(reals, ", "),
            match current.weights.keys().all(|real| reals.contains(real)) {
                true => ", and nothing is left to take connections",
                false => "",
            },
            paths::confirm(vip),
        ));
    }
}

fn cluster(view: &View, published: &Published, problems: &mut Problems) -> Option<Cluster> {
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

/// What is accepted of a VIP. Of its reals whose records are missing those are left out that have gone.
fn vip(
    name: &VipName,
    wish: &Wish,
    current: Option<&Assignment>,
    has_gone: impl Fn(&RealName) -> bool,
    problems: &mut Problems,
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
    let stay = known.iter().filter(|(real, _)| !wish.reals.contains_key(*real) && !has_gone(real));
    reals.extend(stay.map(|(real, record)| (real.clone(), record.clone())));
    let state = VipState { vip: record, reals };
    let is_last = current.is_some_and(|current| current.vip == state.vip && current.reals == state.reals);
    if let Some(problem) = (!is_last).then(|| bounds::fits(&state).err()).flatten() {
        problems.insert(refused(&paths::vip(name), &problem, current.is_some()));
        return current.map(last_good);
    }
    Some(state)
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

pub(super) fn refused(path: &str, problem: &str, has_last: bool) -> String {
    let so = if has_last { "the last good record stays in force" } else { "it is not served" };
    format!("{path}: {problem}; {so} until it is mended")
}
