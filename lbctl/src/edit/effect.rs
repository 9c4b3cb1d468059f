//! The effect of an edit: what the leader and the nodes make of it.

use super::flags;
use crate::tree::Tree;
use crate::visible;
use anyhow::Result;
use coordination::Session;
use policy::leader::Problem;
use policy::{forecast, removal};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;
use zk_schema::picture::Found;
use zk_schema::tree::{Assignment, Mode, Target};
use zk_schema::{Real, RealName, RecordError, VipName};

/// Time between looks at the tree.
const LOOK_EVERY: Duration = Duration::from_millis(150);

/// The effect of an edit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Effect {
    /// The leader has taken it over, and every node that is there has applied it.
    InForce {
        /// The head's epoch.
        epoch: u64,
        /// Nodes that have applied it.
        nodes: usize,
        /// Things that the leader does other than was asked for, and why.
        held: Vec<String>,
    },
    /// Not yet.
    Pending {
        /// The things that it waits for.
        waits_for: Vec<String>,
    },
    /// The leader refuses it or holds it back.
    Refused {
        /// Why, and the fix, in the leader's words.
        problems: Vec<String>,
    },
    /// No leader has decided anything in this cluster.
    NoLeader,
}

impl Effect {
    /// Returns what it waits for, if it waits, on one line.
    #[must_use]
    pub fn waits_for(&self) -> String {
        match self {
            Self::Pending { waits_for } => visible::line(&waits_for.join("; ")).into_owned(),
            _ => String::new(),
        }
    }

    /// Each line ended.
    #[must_use]
    pub fn text(&self) -> String {
        let lines = |lead: &str, items: &[String]| {
            items.iter().map(|item| format!("{lead}{}\n", visible::line(item))).collect::<String>()
        };
        match self {
            Self::InForce { epoch, nodes, held } => {
                let plural = if *nodes == 1 { "node" } else { "nodes" };
                format!("In force at epoch {epoch} on {nodes} {plural}.\n{}", lines("held: ", held))
            }
            Self::Pending { waits_for } => {
                format!(
                    "Not in force yet:\n{}`lbctl status` tells more; --wait waits.\n",
                    lines("  ", waits_for)
                )
            }
            Self::Refused { problems } => format!("The leader does not follow:\n{}", lines("  ", problems)),
            Self::NoLeader => {
                "No leader has decided anything in this cluster yet: it takes effect when nodes run.\n".into()
            }
        }
    }
}

/// The changes that are to take effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// VIPs whose assignments are to follow their records and flags.
    pub vips: BTreeSet<VipName>,
    /// Reals whose records the leader is to accept.
    pub reals: BTreeSet<Target>,
}

impl Expected {
    /// Returns whether there is nothing to wait for.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.vips.is_empty() && self.reals.is_empty()
    }

    /// Returns what the leader objects to in this, in the tree as it is at `now` (seconds since 1970).
    ///
    /// # Errors
    /// If the leader could not decide anything on this tree.
    pub fn objections(&self, tree: &Tree, now: u64) -> Result<Vec<Problem>, RecordError> {
        if tree.head.as_ref().and_then(Found::ok).is_none() {
            return Ok(Vec::new());
        }
        let mut problems = forecast::objections(&tree.view(now), tree.published())?;
        problems.retain(|problem| match problem {
            Problem::Frozen => true,
            Problem::HeldVips { vips, .. } => !self.vips.is_disjoint(vips),
            Problem::HeldReals { vip, .. } | Problem::RefusedVip { vip, .. } => self.vips.contains(vip),
            Problem::RefusedReal { real, .. } => self.reals.contains(real),
            _ => false,
        });
        Ok(problems)
    }
}

/// Returns the effect of `expected`, as the tree shows it at `now` (seconds since 1970), unless the leader objects to it.
#[must_use]
pub fn effect(tree: &Tree, expected: &Expected, now: u64) -> Effect {
    let Some(head) = tree.head.as_ref().and_then(Found::ok) else { return Effect::NoLeader };
    let (mut waits_for, mut held) = (Vec::new(), Vec::new());
    for vip in &expected.vips {
        let listed = head.vips.get(vip);
        match (tree.vips.get(vip), tree.assignment(vip)) {
            (None, None) if listed.is_none() => {}
            (None, _) => waits_for.push(format!("{vip} is still being served{}", waits_for_company())),
            (Some(_), Some(assignment)) if listed.is_some_and(|entry| entry.epoch == assignment.epoch) => {
                waits_for.extend(lacking(tree, vip, assignment, now));
                held.extend(assignment.held.iter().map(|held| format!("{vip}: {held}")));
                let (absent, down) = absent(tree, vip, assignment, now);
                waits_for.extend(absent);
                held.extend(down);
            }
            (Some(_), _) => waits_for.push(format!("the leader has not taken over {vip}")),
        }
    }
    let late = tree.nodes.keys().filter(|node| {
        let applied = tree.applied.get(*node).and_then(Found::ok);
        applied
            .is_none_or(|applied| (applied.term, applied.epoch) < head.order() || applied.mode != Mode::Live)
    });
    waits_for.extend(late.map(|node| format!("{node} has not applied epoch {}", head.epoch)));
    if waits_for.is_empty() {
        Effect::InForce { epoch: head.epoch, nodes: tree.nodes.len(), held }
    } else {
        Effect::Pending { waits_for }
    }
}

/// Says what the leader waits for before it lets go what vanished.
fn waits_for_company() -> String {
    format!(
        " until nothing else has vanished for {} s, or {} s if several things have",
        removal::ALONE.as_secs(),
        removal::QUIET.as_secs()
    )
}

/// Returns what an assignment lacks of what its VIP's records and flags say.
fn lacking(tree: &Tree, name: &VipName, assignment: &Assignment, now: u64) -> Option<String> {
    let wanted = tree.vips.get(name)?;
    let vip = wanted.vip.settled().ok()?;
    let reals: BTreeMap<&RealName, Real> =
        wanted.reals.iter().filter_map(|(real, found)| Some((real, found.settled().ok()?))).collect();
    let same_reals = reals.iter().all(|(real, record)| assignment.reals.get(*real) == Some(record))
        && assignment.reals.keys().all(|real| wanted.reals.contains_key(real));
    let stay: Vec<&str> = assignment
        .reals
        .keys()
        .filter(|real| !wanted.reals.contains_key(*real))
        .map(|real| real.as_str())
        .collect();
    let same_others = reals.iter().all(|(real, record)| assignment.reals.get(*real) == Some(record));
    if assignment.vip == vip && same_others && !stay.is_empty() {
        return Some(format!("{name}: still using {}{}", stay.join(", "), waits_for_company()));
    }
    if assignment.vip != vip || !same_reals {
        return Some(format!("the leader has not taken over {name}"));
    }
    if assignment.next.is_some() {
        return Some(format!("{name}: {}", assignment.why));
    }
    if assignment.held.is_some() {
        return None;
    }
    let out = |real: &RealName| {
        let target = Target { vip: name.clone(), real: real.clone() };
        reals.get(real).is_some_and(|record| record.weight == 0)
            || tree.flags.drain.get(&target).is_some_and(|flag| flag.counts(now))
    };
    let wrong = assignment
        .weights
        .iter()
        .find(|(real, weight)| out(real) || reals.get(*real).is_some_and(|record| record.weight != **weight));
    wrong.map(|(real, weight)| format!("{name}/{real} has weight {weight} in the table"))
}

/// Reals that should be in a VIP's table and are not: those that will be when they are found up, and those that are down.
fn absent(tree: &Tree, name: &VipName, assignment: &Assignment, now: u64) -> (Vec<String>, Vec<String>) {
    let (mut waited_for, mut down) = (Vec::new(), Vec::new());
    for (real, record) in &assignment.reals {
        let target = Target { vip: name.clone(), real: real.clone() };
        let is_out = tree.flags.drain.get(&target).is_some_and(|flag| flag.counts(now));
        if record.weight == 0 || is_out || assignment.weights.contains_key(real) {
            continue;
        }
        let votes = tree.health.values().filter_map(Found::ok);
        match votes.into_iter().find_map(|vote| vote.down.get(&target)) {
            Some(finding) => {
                down.push(format!("{target} is down ({}): it gets no connections", finding.reason))
            }
            None => waited_for.push(format!("{target} is not in the table yet")),
        }
    }
    (waited_for, down)
}

/// Waits for at most `limit` until `expected` is in force or refused.
///
/// # Errors
/// If the store fails.
pub async fn wait<S: Session>(
    session: &S,
    expected: &Expected,
    limit: Duration,
    mut progress: impl FnMut(&Effect),
) -> Result<Effect> {
    let start = Instant::now();
    loop {
        let tree = Tree::read(session).await?;
        let now = host::clock::wall();
        let problems = expected.objections(&tree, now)?;
        let effect = match problems.is_empty() {
            true => effect(&tree, expected, now),
            false => Effect::Refused { problems: problems.iter().map(ToString::to_string).collect() },
        };
        if !matches!(effect, Effect::Pending { .. }) || start.elapsed() >= limit {
            return Ok(effect);
        }
        progress(&effect);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Says who drained a real, if somebody did.
#[must_use]
pub fn drained(tree: &Tree, target: &Target, now: u64) -> Option<String> {
    let flag = tree.flags.drain.get(target).filter(|flag| flag.counts(now))?;
    let word = if flags::is_disabling(flag) { "disabled" } else { "drained" };
    Some(format!("{word} {}", flags::told(flag)))
}

#[cfg(test)]
mod tests;
