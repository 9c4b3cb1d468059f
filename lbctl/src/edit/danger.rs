//! The dangers of a plan to those who use the cluster, in words. Pure.

use super::flags;
use super::step::{Action, Object, Remark, Step};
use crate::tree::Tree;
use policy::forecast;
use policy::leader::{Hold, Leader, Problem, View};
use slot_table::flow::Seed;
use slot_table::maglev::{self, TableSize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zk_schema::picture::{Found, VipFound};
use zk_schema::tree::Target;
use zk_schema::{Protocol, RealName, RecordError, Vip, VipName, VipState};

/// Returns remarks on carrying out `steps` at `now` (seconds since 1970), after which there will be `after` and these
/// `drains`.
///
/// # Errors
/// If the leader could not decide anything on this tree.
pub(super) fn of(
    tree: &Tree,
    after: &BTreeMap<VipName, VipState>,
    drains: &BTreeSet<Target>,
    steps: &[Step],
    now: u64,
) -> Result<Vec<Remark>, RecordError> {
    let touched: BTreeSet<&VipName> = steps.iter().filter_map(|step| step.object.vip()).collect();
    let mut remarks = Vec::new();
    if touched.is_empty() {
        return Ok(remarks);
    }
    if let Some(flag) = tree.flags.freeze.as_ref().filter(|flag| flag.counts(now)) {
        remarks.push(Remark::warning(format!(
            "the cluster is frozen ({}): nothing of this takes effect until `lbctl unfreeze`",
            flags::told(flag)
        )));
    }
    let sound = |name: &VipName| tree.vips.get(name).and_then(|found| found.vip.ok());
    for (name, vip) in touched.iter().filter_map(|name| Some((*name, sound(name)?))) {
        if !after.contains_key(name) {
            remarks.push(Remark::danger(format!("clients of {name} ({}) are served no more", service(vip))));
        }
    }

    let mut view = edited(tree, after, drains, steps, now);
    let mut leader = forecast::at_rest(&view, tree.published())?;
    let mut held = false;
    for problem in leader.problems() {
        let news = match problem {
            Problem::HeldVips { vips, of } => {
                let is_new = vips.iter().any(|vip| touched.contains(vip) && !is_held(tree, vip));
                is_new.then(|| {
                    let lost = vips.len();
                    view.confirmed_vips = true;
                    format!(
                        "takes {lost} of {of} VIPs away: the leader will hold that until `lbctl confirm --vips`"
                    )
                })
            }
            Problem::HeldReals { vip, reals, of, nothing_left } => {
                let before = tree.assignment(vip).map(|assignment| &assignment.held_reals);
                let is_new = touched.contains(vip) && before.is_none_or(|before| !reals.is_subset(before));
                is_new.then(|| {
                    let lost = reals.len();
                    let nothing_left =
                        if *nothing_left { ", and nothing is left to take connections" } else { "" };
                    view.confirmed.insert(vip.clone());
                    format!(
                        "takes {lost} of {of} reals of {vip} away{nothing_left}: the leader will hold that until `lbctl \
                         confirm {vip}`"
                    )
                })
            }
            _ => None,
        };
        held |= news.is_some();
        remarks.extend(news.map(Remark::danger));
    }
    let kept: BTreeSet<&VipName> =
        touched.iter().filter(|name| leader.hold(name) == Some(&Hold::NothingUsable)).copied().collect();
    if held {
        // What it comes to when that is confirmed.
        leader = forecast::at_rest(&view, tree.published())?;
    }
    for name in touched {
        let Some(state) = after.get(name) else { continue };
        if let Some(before) = sound(name) {
            remarks.extend(redefined(name, before, &state.vip));
        }
        remarks.extend(reals(tree, name, state, kept.contains(name), &leader));
    }
    Ok(remarks)
}

/// Returns the leader's view once `steps` are carried out.
fn edited(
    tree: &Tree,
    after: &BTreeMap<VipName, VipState>,
    drains: &BTreeSet<Target>,
    steps: &[Step],
    now: u64,
) -> View {
    let mut view = tree.view(now);
    for Step { object, action, .. } in steps {
        let goes = *action == Action::Delete;
        match object {
            Object::Vip(name) if goes => drop(view.vips.remove(name)),
            Object::Vip(name) => {
                let Some(state) = after.get(name) else { continue };
                let vip = new(state.vip.clone());
                match view.vips.get_mut(name) {
                    Some(found) => Arc::make_mut(found).vip = vip,
                    None => {
                        let found = VipFound { vip, has_reals: true, reals: BTreeMap::new() };
                        view.vips.insert(name.clone(), Arc::new(found));
                    }
                }
            }
            Object::Real(Target { vip, real }) => {
                let Some(found) = view.vips.get_mut(vip).map(Arc::make_mut) else { continue };
                match after.get(vip).and_then(|state| state.reals.get(real)).filter(|_| !goes) {
                    Some(record) => drop(found.reals.insert(real.clone(), new(record.clone()))),
                    None => drop(found.reals.remove(real)),
                }
            }
            Object::Flag(_) | Object::Node(_) => {}
        }
    }
    view.drains.clone_from(drains);
    view
}

/// A record as it will be written.
fn new<T>(record: T) -> Found<T> {
    Found { record: Ok(record), znode: Arc::default() }
}

/// Returns whether the leader holds a VIP already.
fn is_held(tree: &Tree, vip: &VipName) -> bool {
    tree.head.as_ref().and_then(Found::ok).is_some_and(|head| head.held_vips.contains(vip))
}

/// `198.51.100.10 port 1883 tcp`.
pub(crate) fn service(vip: &Vip) -> String {
    match vip.port {
        0 => format!("{}, all {} ports", vip.address, vip.protocol),
        port => format!("{}, {} port {port}", vip.address, vip.protocol),
    }
}

fn redefined(name: &VipName, before: &Vip, after: &Vip) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let place = |vip: &Vip| (vip.address, vip.port, vip.protocol);
    if place(before) != place(after) {
        remarks.push(Remark::danger(format!(
            "{name} moves from {} to {}: clients that use the old place are served no more, and connections there break",
            service(before),
            service(after)
        )));
    }
    if before.encapsulation != after.encapsulation {
        remarks.push(Remark::danger(format!(
            "{name}'s packets travel to its reals by {} in place of {}: each real must take that before, else it gets nothing",
            after.encapsulation, before.encapsulation
        )));
    }
    if before.affinity != after.affinity {
        remarks.push(Remark::danger(format!(
            "{name} places connections by another rule: nearly all that are established go to another real and break"
        )));
    }
    if before.health.is_some() && after.health.is_none() {
        let text = format!("{name} has no health check any more: every real counts as up, dead or not");
        remarks.push(Remark::warning(text));
    }
    if before.panic_threshold < 100 && after.panic_threshold == 100 {
        let text = format!("{name} may lose all of its reals at once: nothing holds what probes find down");
        remarks.push(Remark::warning(text));
    }
    let limits_tcp_only = after.protocol == Protocol::Udp
        && (after.limits.connections_per_second > 0 || after.limits.connections_per_second_per_prefix > 0);
    if limits_tcp_only && before.limits != after.limits {
        remarks.push(Remark::note(format!(
            "{name} is UDP: its limits on connections count for new TCP connections only"
        )));
    }
    remarks
}

/// Tells what becomes of the reals of a VIP, which will be those of `after`. `kept` is set if none of them is usable,
/// so that those in the table stay; `leader` has come to rest on it.
fn reals(tree: &Tree, name: &VipName, after: &VipState, kept: bool, leader: &Leader) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let nothing = BTreeMap::new();
    let assignment = tree.assignment(name);
    let known = assignment.map_or(&nothing, |assignment| &assignment.reals);
    let no_weights = BTreeMap::new();
    let in_force = assignment.map_or(&no_weights, |assignment| &assignment.weights);

    let in_use: Vec<&str> = known
        .keys()
        .filter(|real| !after.reals.contains_key(*real) && in_force.contains_key(*real))
        .map(|real| real.as_str())
        .collect();
    if !in_use.is_empty() {
        remarks.push(Remark::danger(format!(
            "takes {} out of {name} while in use: established connections there break",
            in_use.join(", ")
        )));
    }
    for (real, record) in &after.reals {
        let before = known.get(real).filter(|before| before.address != record.address);
        if let Some(before) = before.filter(|_| in_force.contains_key(real)) {
            remarks.push(Remark::danger(format!(
                "{name}/{real} moves from {} to {}: the connections that it holds break",
                before.address, record.address
            )));
        }
    }
    if after.reals.is_empty() {
        if tree.vips.get(name).is_some_and(|found| !found.reals.is_empty()) {
            remarks.push(Remark::danger(format!("{name} has no real left: its clients get no answer")));
        }
        return remarks;
    }
    if kept {
        remarks.push(Remark::danger(format!(
            "every real of {name} is drained, disabled or of weight 0: the leader keeps those that are in the table"
        )));
        return remarks;
    }
    let Some(outcome) = leader.in_force().assignments.get(name).filter(|_| !in_force.is_empty()) else {
        return remarks;
    };
    if let Some(percent) = moved(tree, in_force, &outcome.weights) {
        remarks.push(Remark::warning(format!(
            "moves about {percent} of {name}'s slots to other reals; established connections in them break"
        )));
    }
    remarks
}

/// Returns the part of a table that changes hands between two sets of weights; `None`: nothing.
fn moved(tree: &Tree, before: &BTreeMap<RealName, u16>, after: &BTreeMap<RealName, u16>) -> Option<String> {
    let cluster = tree.cluster.as_ref().and_then(Found::ok)?;
    let (k0, k1) = cluster.seed();
    let size = TableSize::try_from(cluster.table_size).ok()?;
    let build = |weights: &BTreeMap<RealName, u16>| {
        let reals: Vec<maglev::Real<'_>> = weights
            .iter()
            .map(|(real, weight)| maglev::Real { id: real.as_str(), weight: *weight })
            .collect();
        maglev::build(Seed { k0, k1 }, &reals, size).ok()
    };
    if before == after {
        return None;
    }
    let moved = u64::from(maglev::disruption(&build(before)?, &build(after)?).moved);
    let slots = u64::from(size.slots());
    match moved {
        0 => None,
        _ if moved * 100 < slots => Some("less than 1 %".to_owned()),
        _ => Some(format!("{} %", (moved * 100 + slots / 2) / slots)),
    }
}

#[cfg(test)]
mod tests;
