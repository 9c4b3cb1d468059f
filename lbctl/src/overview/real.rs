//! A real as an overview shows it, and why it has the weight that it has.

use super::model::{FindingView, FlagView, Health, RealView, VipView};
use crate::edit::flags::is_disabling;
use crate::time::span;
use crate::tree::Tree;
use policy::verdict::{Verdict, verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use zk_schema::picture::Found;
use zk_schema::tree::{Assignment, Registrant, Target, Vote};
use zk_schema::{NodeName, Real};

/// The inputs of a real's view.
pub(super) struct RealInputs<'a> {
    pub(super) tree: &'a Tree,
    pub(super) votes: &'a BTreeMap<NodeName, Arc<Vote>>,
    pub(super) target: Target,
    pub(super) now: u64,
    /// The operator's record, if there is one.
    pub(super) record: Option<&'a Found<Real>>,
    pub(super) assignment: Option<&'a Assignment>,
    pub(super) slots: u32,
    pub(super) share: f64,
}

impl RealInputs<'_> {
    pub(super) fn view(&self) -> RealView {
        let Self { tree, target, now, .. } = self;
        let name = &target.real;
        let written = self.record.and_then(Found::ok);
        let accepted = self.assignment.and_then(|assignment| assignment.reals.get(name));
        let weight =
            self.assignment.and_then(|assignment| assignment.weights.get(name)).copied().unwrap_or(0);
        let next = self.assignment.and_then(|assignment| assignment.next.as_ref());
        let next = next.map(|next| next.weights.get(name).copied().unwrap_or(0));
        let health = self.health();
        let found_down_by = self.findings();
        let down =
            (health == Health::Down).then(|| found_down_by.values().map(|finding| finding.since).min());
        let drain = tree.flags.drain.get(target).filter(|flag| flag.counts(*now));
        let load = tree.loads.get(target).and_then(Found::ok);
        RealView {
            address: accepted.or(written).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |real| real.address),
            health,
            down_since: down.flatten(),
            found_down_by,
            operator_weight: written.map(|real| real.weight),
            weight,
            next_weight: next.filter(|next| *next != weight),
            slots: self.slots,
            share: self.share,
            drain: drain.map(FlagView::from),
            disabled: drain.is_some_and(is_disabling),
            self_registered: self.record.is_some_and(|found| found.znode.owner.is_some())
                || written.is_some_and(|real| Registrant::of(real).is_some()),
            connections: load.map(|load| load.connections),
            counted: load.map(|load| load.at),
            why: String::new(),
        }
    }

    fn health(&self) -> Health {
        let checked = self.assignment.map(|assignment| assignment.vip.health.is_some());
        let head = self.tree.head.as_ref().and_then(Found::ok);
        match (checked, head) {
            (Some(false), _) => Health::Unchecked,
            (Some(true), Some(head)) => match verdict(&self.target, &head.nodes, self.votes, head.targets) {
                Verdict::Up => Health::Up,
                Verdict::Down => Health::Down,
                Verdict::Open => Health::Unknown,
            },
            _ => Health::Unknown,
        }
    }

    fn findings(&self) -> BTreeMap<NodeName, FindingView> {
        let found = |(node, vote): (&NodeName, &Arc<Vote>)| {
            let finding = vote.down.get(&self.target)?;
            Some((node.clone(), FindingView { since: finding.since, reason: finding.reason.clone() }))
        };
        self.votes.iter().filter_map(found).collect()
    }
}

/// Returns the reason for the weight of `real` of `vip`; empty where it simply has the operator's. `frozen`: whether
/// the leader changes nothing.
pub(super) fn why(vip: &VipView, real: &RealView, now: u64, frozen: bool) -> String {
    let cause = cause(real, now);
    let in_table = real.weight > 0;
    if vip.epoch.is_none() {
        return "the leader has not taken the VIP over yet".to_owned();
    }
    if let (Some(next), Some(weight)) = (&vip.next, real.next_weight) {
        let when = match words(&next.waits_for) {
            None => "at once: all nodes have acknowledged it".to_owned(),
            Some(nodes) => format!("when {nodes} {} acknowledged it", have(next.waits_for.len())),
        };
        let what = match (real.weight, weight) {
            (0, weight) => format!("joins with weight {weight}"),
            (_, 0) => "leaves the table".to_owned(),
            (from, to) => format!("goes from weight {from} to {to}"),
        };
        return join([cause, Some(format!("{what} {when}"))]);
    }
    let kept = || match &vip.held {
        Some(held) => format!("keeps its slots: {held}"),
        None if frozen => "keeps its slots while the cluster is frozen".to_owned(),
        None => "keeps its slots until the leader decides".to_owned(),
    };
    match (cause, in_table) {
        (Some(cause), true) => join([Some(cause), Some(kept())]),
        (Some(cause), false) => cause,
        (None, true) if real.operator_weight.is_some_and(|weight| weight != real.weight) => {
            let asked = real.operator_weight.unwrap_or_default();
            let why = if frozen { "while the cluster is frozen" } else { "until the leader decides" };
            format!("stays at {} instead of {asked} {why}", real.weight)
        }
        (None, true) => minority(real),
        (None, false) => match real.health {
            Health::Unknown => "not judged yet: no node has probed it long enough".to_owned(),
            _ if frozen => "stays out while the cluster is frozen".to_owned(),
            _ => "waits for the leader to let it in".to_owned(),
        },
    }
}

/// Returns what speaks against its taking connections.
fn cause(real: &RealView, now: u64) -> Option<String> {
    if let Some(drain) = &real.drain {
        let until = drain.until.map(|until| format!(", for another {}", span(until.saturating_sub(now))));
        let what = if real.disabled { "disabled" } else { "drained" };
        return Some(format!("{what}{}{}", drain.words(), until.unwrap_or_default()));
    }
    match real.operator_weight {
        Some(0) => return Some("its weight is 0".to_owned()),
        None => return Some("its record is gone, or wrong".to_owned()),
        Some(_) => {}
    }
    (real.health == Health::Down).then(|| down(real, now))
}

/// Since when it is down, and why.
pub(super) fn down(real: &RealView, now: u64) -> String {
    let since = real.down_since.map(|since| format!(" for {}", span(now.saturating_sub(since))));
    format!("down{}: {}", since.unwrap_or_default(), found(real))
}

/// The commonest finding, and whose it is.
fn found(real: &RealView) -> String {
    let mut by_reason: BTreeMap<&str, BTreeSet<NodeName>> = BTreeMap::new();
    for (node, finding) in &real.found_down_by {
        by_reason.entry(&finding.reason).or_default().insert(node.clone());
    }
    match by_reason.into_iter().max_by_key(|(_, nodes)| nodes.len()) {
        Some((reason, nodes)) => format!("{reason} ({})", words(&nodes).unwrap_or_default()),
        None => "no node says why".to_owned(),
    }
}

/// Those who find a real down that most find up.
fn minority(real: &RealView) -> String {
    match real.found_down_by.len() {
        0 => String::new(),
        _ => format!("only some find it down: {}", found(real)),
    }
}

/// `lb-1`, `lb-1 and lb-2`, `lb-1, lb-2 and 5 more`; `None`: nobody.
pub(crate) fn words(nodes: &BTreeSet<NodeName>) -> Option<String> {
    let names: Vec<&str> = nodes.iter().map(NodeName::as_str).collect();
    match names.as_slice() {
        [] => None,
        [one] => Some((*one).to_owned()),
        [one, other] => Some(format!("{one} and {other}")),
        [one, other, third] => Some(format!("{one}, {other} and {third}")),
        [one, other, rest @ ..] => Some(format!("{one}, {other} and {} more", rest.len())),
    }
}

/// `has` or `have`.
const fn have(count: usize) -> &'static str {
    if count == 1 { "has" } else { "have" }
}

fn join<const N: usize>(parts: [Option<String>; N]) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}
