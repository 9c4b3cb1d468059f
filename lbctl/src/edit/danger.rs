//! The effects of a plan on those who use the cluster, in words. Pure.

use super::flags;
use super::plan::Remark;
use crate::tree::{Found, Tree};
use policy::removal::{self, Loss, Losses};
use slot_table::flow::Seed;
use slot_table::maglev::{self, TableSize};
use std::collections::{BTreeMap, BTreeSet};
use zk_schema::tree::{Registrant, Target, paths};
use zk_schema::{Protocol, RealName, Vip, VipName, VipState};

/// Returns remarks on `after`, with these `drains`, in place of what is in force now for the VIPs that are `touched`.
pub(super) fn of(
    tree: &Tree,
    after: &BTreeMap<VipName, VipState>,
    drains: &BTreeSet<Target>,
    touched: &BTreeSet<VipName>,
    now: u64,
) -> Vec<Remark> {
    let mut remarks = Vec::new();
    if touched.is_empty() {
        return remarks;
    }
    if let Some(flag) = tree.flags.freeze.as_ref().filter(|flag| flag.counts(now)) {
        remarks.push(Remark::warning(format!(
            "the cluster is frozen ({}): nothing of this takes effect until `lbctl unfreeze`",
            flags::told(flag)
        )));
    }
    let gone: Vec<&VipName> = touched
        .iter()
        .filter(|name| tree.vips.contains_key(*name) && !after.contains_key(*name))
        .filter(|name| tree.vips.get(*name).is_some_and(|found| found.vip.ok().is_some()))
        .collect();
    for name in &gone {
        let Some(vip) = tree.vips.get(*name).and_then(|found| found.vip.ok()) else { continue };
        remarks.push(Remark::danger(format!("clients of {name} ({}) are served no more", service(vip))));
    }
    let confirmed = |name: &str| tree.flags.confirm.get(name).is_some_and(|flag| flag.counts(now));
    let losses = losses(tree, after, drains);
    let suspects = removal::suspects(&losses);
    let lets_go = |name: &VipName| {
        confirmed(name.as_str()) || (!after.contains_key(name) && confirmed(paths::name(paths::CONFIRM_VIPS)))
    };
    let vanishes = gone.iter().any(|name| tree.assignments.contains_key(*name) && !lets_go(name));
    let loses = |name: &VipName| losses.reals.get(name).is_some_and(|loss| loss.lost > 0) && !lets_go(name);
    let Loss { lost, of } = losses.vips;
    if suspects.vips && vanishes {
        remarks.push(Remark::danger(format!(
            "takes {lost} of {of} VIPs away: the leader will hold that until `lbctl confirm --vips`"
        )));
    } else if suspects.all && touched.iter().any(loses) {
        remarks.push(Remark::danger(
            "takes most of what there is away, a part of each VIP: the leader will hold that until `lbctl confirm`, for \
             each VIP and with --vips",
        ));
    }
    for name in touched {
        let Some(state) = after.get(name) else { continue };
        let before = tree.vips.get(name).and_then(|found| found.vip.ok());
        if let Some(before) = before {
            remarks.extend(redefined(name, before, &state.vip));
        }
        let of_this = drains.iter().filter(|target| target.vip == *name).map(|target| &target.real);
        let drained: BTreeSet<&RealName> = of_this.collect();
        let is_suspect = suspects.reals.contains(name) && !confirmed(name.as_str());
        let loss = losses.reals.get(name).filter(|_| is_suspect).copied();
        let emptied = losses.emptied.contains(name);
        remarks.extend(reals(tree, name, state, &drained, loss.map(|loss| (loss, emptied))));
    }
    remarks
}

/// Returns what is gone of what is in force, once `after` is what there is: with what is missing already, since the
/// leader judges all of it together. What vanished and was let go within the last seconds, which it counts as well, the
/// tree does not tell.
fn losses(tree: &Tree, after: &BTreeMap<VipName, VipState>, drains: &BTreeSet<Target>) -> Losses {
    let mut losses = Losses::default();
    for node in tree.head.as_ref().and_then(Found::ok).iter().flat_map(|head| &head.nodes) {
        losses.nodes.of += 1;
        losses.nodes.lost += usize::from(!tree.nodes.contains_key(node));
    }
    for name in tree.assignments.keys() {
        let Some(assignment) = tree.assignment(name) else { continue };
        let known = &assignment.reals;
        let there = tree.vips.get(name);
        losses.vips.of += 1;
        let Some(state) = after.get(name) else {
            // What is broken is there.
            let is_broken = there.is_some_and(|there| there.vip.ok().is_none());
            losses.vips.lost += usize::from(!is_broken);
            let lost = if is_broken { 0 } else { known.len() };
            losses.reals.insert(name.clone(), Loss { lost, of: known.len() });
            continue;
        };
        let is_broken = |real: &RealName| {
            let found = there.and_then(|there| there.reals.get(real));
            found.is_some_and(|found| found.ok().is_none())
        };
        let stays = |real: &RealName| state.reals.contains_key(real) || is_broken(real);
        let lost = known.keys().filter(|real| !stays(real)).count();
        losses.reals.insert(name.clone(), Loss { lost, of: known.len() });
        let is_drained = |real: &RealName| drains.contains(&Target { vip: name.clone(), real: real.clone() });
        let is_leaving = |real: &RealName| {
            let settled = there.and_then(|there| there.reals.get(real)?.settled());
            settled.is_some_and(|record| Registrant::is_leaving(&record))
        };
        let is_usable = |(real, record): (&RealName, &zk_schema::Real)| {
            record.weight > 0 && !is_drained(real) && !is_leaving(real)
        };
        let last_good = known.iter().filter(|(real, _)| is_broken(real));
        let in_force = &assignment.weights;
        let is_emptied = lost > 0
            && !in_force.is_empty()
            && !in_force.keys().any(stays)
            && !state.reals.iter().chain(last_good).any(is_usable);
        if is_emptied {
            losses.emptied.insert(name.clone());
        }
    }
    losses
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

fn reals(
    tree: &Tree,
    name: &VipName,
    after: &VipState,
    drained: &BTreeSet<&RealName>,
    held: Option<(Loss, bool)>,
) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let nothing = BTreeMap::new();
    let assignment = tree.assignment(name);
    let known = assignment.map_or(&nothing, |assignment| &assignment.reals);
    let in_force: BTreeMap<&RealName, u16> = assignment
        .into_iter()
        .flat_map(|assignment| &assignment.weights)
        .map(|(real, weight)| (real, *weight))
        .collect();

    let usable = |real: &RealName| {
        after.reals.get(real).is_some_and(|record| record.weight > 0) && !drained.contains(real)
    };
    let vanished: Vec<&RealName> = known.keys().filter(|real| !after.reals.contains_key(*real)).collect();
    if let Some((Loss { lost, of }, emptied)) = held.filter(|_| !vanished.is_empty()) {
        let nothing_left = if emptied { ", and nothing is left to take connections" } else { "" };
        remarks.push(Remark::danger(format!(
            "takes {lost} of {of} reals of {name} away{nothing_left}: the leader will hold that until `lbctl confirm {name}`"
        )));
    }
    let in_use: Vec<&str> =
        vanished.iter().filter(|real| in_force.contains_key(*real)).map(|real| real.as_str()).collect();
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
    let had_reals = tree.vips.get(name).is_some_and(|found| !found.reals.is_empty());
    if after.reals.is_empty() {
        if had_reals {
            remarks.push(Remark::danger(format!("{name} has no real left: its clients get no answer")));
        }
        return remarks;
    }
    if !after.reals.keys().any(usable) {
        remarks.push(Remark::danger(format!(
            "every real of {name} is drained, disabled or of weight 0: the leader keeps those that are in the table"
        )));
        return remarks;
    }
    let is_new = |real: &RealName| {
        // One that was known and out is down, as far as the leader knows, unless it was taken out by hand.
        known.get(real).is_none_or(|before| before.weight == 0)
            || tree.flags.drain.contains_key(&Target { vip: name.clone(), real: real.clone() })
    };
    let wanted: BTreeMap<&RealName, u16> = after
        .reals
        .iter()
        .filter(|(real, _)| usable(real) && (in_force.contains_key(*real) || is_new(real)))
        .map(|(real, record)| (real, record.weight))
        .collect();
    if let Some(percent) = moved(tree, &in_force, &wanted).filter(|_| !in_force.is_empty()) {
        remarks.push(Remark::warning(format!(
            "moves about {percent} of {name}'s slots to other reals; established connections in them break"
        )));
    }
    remarks
}

/// Returns the part of a table that changes hands between two sets of weights; `None`: nothing.
fn moved(tree: &Tree, before: &BTreeMap<&RealName, u16>, after: &BTreeMap<&RealName, u16>) -> Option<String> {
    let cluster = tree.cluster.as_ref().and_then(Found::ok)?;
    let (k0, k1) = cluster.seed();
    let size = TableSize::try_from(cluster.table_size).ok()?;
    let build = |weights: &BTreeMap<&RealName, u16>| {
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
