//! A cluster at one moment, as `status` and `top` show it: what follows from a [`Tree`]. Pure: time is an argument.

mod model;
mod problems;
mod real;
mod shares;
#[cfg(test)]
mod tests;
pub mod text;

pub use model::{
    FindingView, FlagView, Health, LeaderView, Link, NextView, NodeView, Order, Overview, Problem, RealView,
    ReplacedView, Standing, VipView,
};
pub(crate) use real::words;
pub use shares::Shares;

use crate::tree::Tree;
use slot_table::placement::{TableParams, weighted};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zk_schema::picture::Found;
use zk_schema::tree::{Applied, Assignment, Head, Mode, Target, Vote, paths};
use zk_schema::{NodeName, RealName, VipName};

impl Overview {
    /// Returns what `tree` shows at `now`, in seconds since 1970, read by `link`.
    #[must_use]
    pub fn of(tree: &Tree, link: Link, now: u64, shares: &mut Shares) -> Self {
        let head = tree.head.as_ref().and_then(Found::ok);
        let leader = tree.leader.as_ref().and_then(Found::ok);
        let leader = leader.map(|term| LeaderView {
            node: term.node.clone(),
            term: term.term,
            since: term.since,
            present: tree.nodes.contains_key(&term.node),
            leads: tree.leads() == Some(&term.node),
            settling: head.is_some_and(|head| head.settling),
        });
        let frozen = tree.flags.freeze.as_ref().filter(|flag| flag.counts(now)).map(FlagView::from);
        let mut overview = Self {
            at: now,
            zookeeper: link,
            leader,
            head: head.map(|head| Order { term: head.term, epoch: head.epoch }),
            frozen,
            nodes: nodes(tree, head, now),
            vips: vips(tree, head, now, shares),
            problems: Vec::new(),
        };
        shares.turn();
        let frozen = overview.frozen.is_some();
        for vip in overview.vips.values_mut() {
            let reasons: Vec<String> =
                vip.reals.values().map(|real| real::why(vip, real, now, frozen)).collect();
            for (real, why) in vip.reals.values_mut().zip(reasons) {
                real.why = why;
            }
        }
        overview.problems = problems::problems(&overview, tree);
        overview
    }

    /// The same, of one VIP alone: others and their problems are left out. `None`: there is no such VIP.
    #[must_use]
    pub fn only(mut self, vip: &VipName) -> Option<Self> {
        self.vips.retain(|name, _| name == vip);
        self.problems.retain(|problem| problem.vip.as_ref().is_none_or(|about| about == vip));
        (!self.vips.is_empty()).then_some(self)
    }
}

fn nodes(tree: &Tree, head: Option<&Head>, now: u64) -> BTreeMap<NodeName, NodeView> {
    let leader = tree.leads();
    let probers = head.into_iter().flat_map(|head| &head.nodes);
    let names: BTreeSet<&NodeName> = tree.nodes.keys().chain(tree.applied.keys()).chain(probers).collect();
    let different = different(tree);
    let view = |name: &NodeName| {
        let member = tree.nodes.get(name).and_then(Found::ok);
        let applied = tree.applied.get(name).and_then(Found::ok);
        let behind = head.zip(applied).map(|(head, applied)| head.epoch.saturating_sub(applied.epoch));
        NodeView {
            present: tree.nodes.contains_key(name),
            leader: leader == Some(name),
            admin: member.map(|member| member.admin),
            software: member.map(|member| member.software.clone()),
            started: member.map(|member| member.started),
            applied: applied.map(order),
            behind,
            mode: applied.map(|applied| applied.mode),
            digest: applied.map(|applied| applied.digest.clone()),
            differs: different.contains(name),
            problem: applied.and_then(|applied| applied.problem.clone()),
            replaced: applied.and_then(|applied| ReplacedView::of(applied, now)),
            lagging: head.is_some_and(|head| head.lagging.contains(name)),
            cut_off: head.is_some_and(|head| head.cut_off.contains(name)),
            maintenance: tree.flags.maintenance.get(name).filter(|flag| flag.counts(now)).map(FlagView::from),
        }
    };
    names.into_iter().map(|name| (name.clone(), view(name))).collect()
}

const fn order(applied: &Applied) -> Order {
    Order { term: applied.term, epoch: applied.epoch }
}

/// Nodes whose tables are not those of the others at the same term and epoch: all of them where no more than half
/// agree. Autonomous nodes leave reals out by themselves, so they are not asked.
fn different(tree: &Tree) -> BTreeSet<NodeName> {
    let mut digests: BTreeMap<Order, BTreeMap<&str, BTreeSet<&NodeName>>> = BTreeMap::new();
    let there = tree.applied.iter().filter(|(node, _)| tree.nodes.contains_key(*node));
    let applied = there.filter_map(|(node, found)| Some((node, found.ok()?)));
    for (node, applied) in applied.filter(|(_, applied)| applied.mode != Mode::Autonomous) {
        digests.entry(order(applied)).or_default().entry(&applied.digest).or_default().insert(node);
    }
    let mut different = BTreeSet::new();
    for by_digest in digests.values().filter(|by_digest| by_digest.len() > 1) {
        let all: usize = by_digest.values().map(BTreeSet::len).sum();
        let others = by_digest.values().filter(|nodes| nodes.len() * 2 <= all);
        different.extend(others.flatten().map(|node| (*node).clone()));
    }
    different
}

fn vips(tree: &Tree, head: Option<&Head>, now: u64, shares: &mut Shares) -> BTreeMap<VipName, VipView> {
    let params = head.and_then(|head| TableParams::of(&head.cluster).ok());
    let votes: BTreeMap<NodeName, Arc<Vote>> =
        tree.health.iter().filter_map(|(node, found)| Some((node.clone(), found.ok()?.clone()))).collect();
    let names: BTreeSet<&VipName> = tree.vips.keys().chain(tree.assignments.keys()).collect();
    let mut vips = BTreeMap::new();
    for name in names {
        let written = tree.vips.get(name);
        let record = written.and_then(|found| found.vip.ok());
        let assignment = tree.assignment(name);
        // What can be read neither here nor there is among the problems.
        let Some(vip) = assignment.map(|assignment| &assignment.vip).or(record) else { continue };
        let accepted = assignment.into_iter().flat_map(|assignment| assignment.reals.keys());
        let defined = written.into_iter().flat_map(|written| written.reals.keys());
        let reals: BTreeSet<&RealName> = accepted.chain(defined).collect();
        let slots = match (params, assignment) {
            (Some(params), Some(assignment)) => {
                let table = weighted(assignment.reals.keys(), &assignment.weights);
                let slots = shares.slots(params, table);
                assignment.reals.keys().zip(slots.iter().copied()).collect()
            }
            _ => BTreeMap::new(),
        };
        let all: u32 = slots.values().sum();
        let view = |real: &RealName| {
            let held = slots.get(real).copied().unwrap_or(0);
            let sources = real::RealInputs {
                tree,
                votes: &votes,
                target: Target { vip: name.clone(), real: real.clone() },
                now,
                record: written.and_then(|written| written.reals.get(real)),
                assignment,
                slots: held,
                share: if all == 0 { 0.0 } else { f64::from(held) / f64::from(all) },
            };
            (real.clone(), sources.view())
        };
        let view = VipView {
            address: vip.address,
            port: vip.port,
            protocol: vip.protocol,
            encapsulation: vip.encapsulation,
            affinity: vip.affinity,
            standing: standing(tree, name, assignment),
            epoch: assignment.map(|assignment| assignment.epoch),
            since: assignment.filter(|assignment| !assignment.weights.is_empty()).map(|a| a.since),
            why: assignment.map(|assignment| assignment.why.clone()),
            held: assignment.and_then(|assignment| assignment.held.clone()),
            next: assignment.and_then(|assignment| {
                let next = assignment.next.as_ref()?;
                let waits_for = unacknowledged(tree, (assignment.term, next.epoch));
                Some(NextView { epoch: next.epoch, waits_for })
            }),
            reals: reals.into_iter().map(view).collect(),
        };
        vips.insert(name.clone(), view);
    }
    vips
}

/// Nodes that are there and do not know yet what was announced at `epoch`.
fn unacknowledged(tree: &Tree, order: (u64, u64)) -> BTreeSet<NodeName> {
    let head = tree.head.as_ref().and_then(Found::ok).map_or(order, Head::order);
    let has = |node: &NodeName| {
        let applied = tree.applied.get(node).and_then(Found::ok);
        applied.is_some_and(|applied| applied.acknowledges(order, head))
    };
    tree.nodes.keys().filter(|node| !has(node)).cloned().collect()
}

fn standing(tree: &Tree, name: &VipName, assignment: Option<&Assignment>) -> Standing {
    let Some(assignment) = assignment else { return Standing::New };
    // What cannot be seen is as it was, as far as anybody knows.
    let hides = |path: &str| tree.unreadable.contains_key(path);
    let Some(written) = tree.vips.get(name) else {
        return if hides(paths::VIPS) { Standing::Served } else { Standing::Deleted };
    };
    let same_vip = written.vip.settled().as_ref() == Ok(&assignment.vip);
    let same_real = |(real, found): (&RealName, &Found<zk_schema::Real>)| {
        found.settled().ok().as_ref() == assignment.reals.get(real)
    };
    let same_reals = hides(&paths::reals(name))
        || written.reals.len() == assignment.reals.len() && written.reals.iter().all(same_real);
    if same_vip && same_reals { Standing::Served } else { Standing::Edited }
}
