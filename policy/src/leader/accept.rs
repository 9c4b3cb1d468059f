//! Accepts the operators' records, as far as they are sound. Pure.
//!
//! A record that is wrong, or too large, is refused alone: the last good one stays, and the operator is told. What is
//! missing stays until it [may go](super::vanished).

use super::bounds::{self, Problems};
use super::memo::{is_same, without};
use super::problem::Problem;
use super::vanished::Vanished;
use super::view::{Published, View};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zk_schema::picture::VipFound;
use zk_schema::tree::{Assignment, Head, Target};
use zk_schema::{Cluster, Desired, Real, RealName, VipName, VipState};

/// The accepted part, and what was refused or held.
#[derive(Debug)]
pub(super) struct Accepted {
    /// The cluster's record, which all VIPs share.
    pub(super) cluster: Cluster,
    /// The VIPs to serve: each the same object until it changes.
    pub(super) vips: BTreeMap<VipName, Arc<VipState>>,
    /// The records that were refused or held.
    pub(super) problems: Problems,
}

/// The definitions accepted in earlier turns.
#[derive(Debug, Default)]
pub(super) struct Before {
    vips: BTreeMap<VipName, Known>,
    /// Definitions in force, where they were asked for.
    in_force: BTreeMap<VipName, (Arc<Assignment>, Definition)>,
    count: u64,
}

/// The accepted definition of a VIP, with its inputs.
#[derive(Debug)]
struct Known {
    wish: Arc<VipFound>,
    current: Option<Arc<Assignment>>,
    gone: BTreeSet<RealName>,
    definition: Option<Definition>,
    problems: Vec<Problem>,
}

/// The accepted definition of a VIP.
#[derive(Clone, Debug)]
struct Definition {
    state: Arc<VipState>,
    /// Its problems, whatever else there is.
    fault: Option<String>,
    /// True if it is another than the one in force.
    is_changed: bool,
}

impl Definition {
    fn new(name: &VipName, state: VipState, is_changed: bool) -> Self {
        let mut alone = Desired::default();
        alone.vips.insert(name.clone(), state);
        let fault = alone.validate().err().map(|problems| problems.to_string());
        let state = alone.vips.remove(name).expect("it is there");
        Self { state: Arc::new(state), fault, is_changed }
    }
}

impl Before {
    /// The number of definitions put together so far.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// The definition in force.
    fn last_good(&mut self, name: &VipName, current: &Arc<Assignment>) -> Definition {
        if let Some((known, definition)) = self.in_force.get(name)
            && Arc::ptr_eq(known, current)
        {
            return definition.clone();
        }
        self.count += 1;
        let definition = Definition::new(name, last_good(current), false);
        self.in_force.insert(name.clone(), (Arc::clone(current), definition.clone()));
        definition
    }

    /// Accepts a VIP that operators ask for.
    fn accept(
        &mut self,
        name: &VipName,
        wish: &Arc<VipFound>,
        current: Option<&Arc<Assignment>>,
        gone: BTreeSet<RealName>,
        problems: &mut Problems,
    ) -> Option<Definition> {
        let is_known = self.vips.get(name).is_some_and(|known| {
            Arc::ptr_eq(&known.wish, wish) && is_same(known.current.as_ref(), current) && known.gone == gone
        });
        if !is_known {
            self.count += 1;
            let mut found = Vec::new();
            let state = vip(name, wish, current.map(|current| &**current), &gone, &mut found);
            let definition = state.map(|state| {
                // That another agent registered a real is no change.
                let before = self.vips.get(name).filter(|known| is_same(known.current.as_ref(), current));
                let before = before.and_then(|known| known.definition.as_ref());
                if let Some(before) = before.filter(|before| *before.state == state) {
                    return before.clone();
                }
                let is_changed =
                    current.is_none_or(|current| current.vip != state.vip || current.reals != state.reals);
                Definition::new(name, state, is_changed)
            });
            let (wish, current) = (Arc::clone(wish), current.cloned());
            let known = Known { wish, current, gone, definition, problems: found };
            self.vips.insert(name.clone(), known);
        }
        let known = self.vips.get(name)?;
        problems.extend(known.problems.iter().cloned());
        known.definition.clone()
    }

    /// Forgets VIPs of which there is nothing left.
    fn retain(&mut self, view: &View, published: &Published) {
        self.vips.retain(|name, _| view.vips.contains_key(name));
        self.in_force.retain(|name, _| published.assignments.contains_key(name));
    }
}

impl Accepted {
    /// Keeps what is served already, and nothing else.
    pub(super) fn frozen(head: &Head, published: &Published, before: &mut Before) -> Option<Self> {
        let vips = published.assignments.iter();
        let vips =
            vips.map(|(name, current)| (name.clone(), before.last_good(name, current).state)).collect();
        let mut problems = Problems::default();
        problems.insert(Problem::Frozen);
        Some(Self { cluster: head.cluster.clone(), vips, problems })
    }
}

/// Accepts what is sound of the operators' records in `view`, given what is `published`, and `vanished` of that: what is
/// missing stays until it may go, as the reals that have `gone` may. What was accepted `before` stays if it follows from
/// the same.
///
/// `None` while there is neither a cluster record nor a head that holds one: there is nothing to go by.
#[must_use]
pub(super) fn accept(
    view: &View,
    published: &Published,
    vanished: &Vanished,
    gone: impl Fn(&VipName) -> BTreeSet<RealName>,
    before: &mut Before,
) -> Option<Accepted> {
    let mut problems = Problems::default();
    held(vanished, published, &mut problems);
    let cluster = cluster(view, published, &mut problems)?;

    before.retain(view, published);
    let names: BTreeSet<&VipName> = view.vips.keys().chain(published.assignments.keys()).collect();
    let in_head = bounds::in_head(names.iter().copied(), |name| published.assignments.contains_key(name));
    let mut wanted = BTreeMap::new();
    for name in names {
        if !in_head.contains(name) {
            problems.insert(refused(name, "there are more VIPs than a head has room for", false));
            continue;
        }
        let current = published.assignments.get(name);
        let definition = match (view.vips.get(name), current) {
            (Some(wish), _) => before.accept(name, wish, current, gone(name), &mut problems),
            (None, Some(current)) if !vanished.vip_goes(name) => Some(before.last_good(name, current)),
            (None, _) => None,
        };
        if let Some(definition) = definition {
            wanted.insert(name.clone(), definition);
        }
    }
    let vips = keep_peace(wanted, published, before, &mut problems);
    Some(Accepted { cluster, vips, problems })
}

/// Tells what is held.
fn held(vanished: &Vanished, published: &Published, problems: &mut Problems) {
    let held = vanished.held();
    if !held.vips.is_empty() {
        problems.insert(Problem::HeldVips { vips: held.vips.clone(), of: published.assignments.len() });
    }
    for (vip, reals) in held.reals.iter().filter(|(vip, _)| !held.vips.contains(*vip)) {
        let Some(current) = published.assignments.get(vip) else { continue };
        problems.insert(Problem::HeldReals {
            vip: vip.clone(),
            reals: reals.clone(),
            of: current.reals.len(),
            nothing_left: current.weights.keys().all(|real| reals.contains(real)),
        });
    }
}

fn cluster(view: &View, published: &Published, problems: &mut Problems) -> Option<Cluster> {
    let in_force = published.head.as_ref().map(|head| &head.cluster);
    match (&view.cluster, in_force) {
        (Some(Ok(wanted)), Some(in_force)) if !published.assignments.is_empty() => {
            if (wanted.seed, wanted.table_size) != (in_force.seed, in_force.table_size) {
                let (seed, table_size) = (in_force.seed, in_force.table_size);
                problems.insert(Problem::FixedCluster { seed, table_size });
                return Some(in_force.clone());
            }
            Some(wanted.clone())
        }
        (Some(Ok(wanted)), _) => Some(wanted.clone()),
        (Some(Err(problem)), _) => {
            problems.insert(Problem::BrokenCluster { why: problem.clone() });
            in_force.cloned()
        }
        (None, in_force) => {
            problems.insert(Problem::NoCluster);
            in_force.cloned()
        }
    }
}

/// Accepts a VIP. Of its reals whose records are missing those are left out that have `gone`.
fn vip(
    name: &VipName,
    wish: &VipFound,
    current: Option<&Assignment>,
    gone: &BTreeSet<RealName>,
    problems: &mut Vec<Problem>,
) -> Option<VipState> {
    let record = match (wish.vip.settled(), current) {
        (Ok(vip), _) => vip,
        (Err(problem), current) => {
            problems.push(refused(name, &problem, current.is_some()));
            current?.vip.clone()
        }
    };
    let nothing = BTreeMap::new();
    let known = current.map_or(&nothing, |current| &current.reals);
    let accepted = wish.reals.iter().filter_map(|(real, found)| match found.settled() {
        Ok(wanted) => Some((real.clone(), wanted)),
        Err(why) => {
            let last = known.get(real);
            let real_of_vip = Target { vip: name.clone(), real: real.clone() };
            let in_force = last.is_some();
            problems.push(Problem::RefusedReal { real: real_of_vip, why, in_force });
            Some((real.clone(), last?.clone()))
        }
    });
    let mut reals: BTreeMap<RealName, Real> = accepted.collect();
    let stay = without(known.keys(), wish.reals.keys()).filter(|real| !gone.contains(*real));
    reals.extend(stay.map(|real| (real.clone(), known[real].clone())));
    let state = VipState { vip: record, reals };
    let is_last = current.is_some_and(|current| current.vip == state.vip && current.reals == state.reals);
    if let Some(problem) = (!is_last).then(|| bounds::fits(&state).err()).flatten() {
        problems.push(refused(name, &problem, current.is_some()));
        return current.map(last_good);
    }
    Some(state)
}

/// Returns what is sound, and goes together: records that are sound alone may not (two VIPs of one address and port).
/// Then those in force go first.
fn keep_peace(
    wanted: BTreeMap<VipName, Definition>,
    published: &Published,
    before: &mut Before,
    problems: &mut Problems,
) -> BTreeMap<VipName, Arc<VipState>> {
    let claim = |state: &VipState| (state.vip.address, state.vip.port, state.vip.protocol);
    let claims: BTreeSet<_> = wanted.values().map(|definition| claim(&definition.state)).collect();
    let is_sound = |definition: &Definition| definition.fault.is_none();
    if claims.len() == wanted.len() && wanted.values().all(is_sound) {
        return wanted.into_iter().map(|(name, definition)| (name, definition.state)).collect();
    }
    let mut accepted: BTreeMap<VipName, Arc<VipState>> = BTreeMap::new();
    let mut owners: BTreeMap<_, VipName> = BTreeMap::new();
    let (changed, same): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|(_, definition)| definition.is_changed);
    for (name, definition) in same.into_iter().chain(changed) {
        let refusal = definition.fault.or_else(|| {
            let owner = owners.get(&claim(&definition.state))?;
            Some(clash(&name, &definition.state, owner, &accepted[owner]))
        });
        let Some(refusal) = refusal else {
            owners.insert(claim(&definition.state), name.clone());
            accepted.insert(name, definition.state);
            continue;
        };
        let current = published.assignments.get(&name);
        problems.insert(refused(&name, &refusal, current.is_some()));
        let last = current.map(|current| before.last_good(&name, current));
        if let Some(last) = last.filter(|last| is_sound(last) && !owners.contains_key(&claim(&last.state))) {
            owners.insert(claim(&last.state), name.clone());
            accepted.insert(name, last.state);
        }
    }
    accepted
}

/// Says that two VIPs claim the same.
fn clash(one: &VipName, state: &VipState, other: &VipName, its: &VipState) -> String {
    let mut both = Desired::default();
    for (name, state) in [(one, state), (other, its)] {
        both.vips.insert(name.clone(), VipState { vip: state.vip.clone(), reals: BTreeMap::new() });
    }
    both.validate().err().map(|problems| problems.to_string()).unwrap_or_default()
}

fn last_good(current: &Assignment) -> VipState {
    VipState { vip: current.vip.clone(), reals: current.reals.clone() }
}

pub(super) fn refused(vip: &VipName, why: &str, in_force: bool) -> Problem {
    Problem::RefusedVip { vip: vip.clone(), why: why.to_owned(), in_force }
}
