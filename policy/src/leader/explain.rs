//! Decisions in words: the [`Decision`]s of an event, and of the log. Pure.
//!
//! However much happens at once, the story is short: many of a kind are told as one, and words are cut off somewhere.

use super::{Leader, View, difference};
use crate::verdict::{self, Verdict};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use zk_schema::tree::{Assignment, Decision, Head, Target};
use zk_schema::{NodeName, Real, RealName, Record, Vip, VipName, to_json};

/// The most things of a kind that are named one by one.
const FEW: usize = 8;
/// Decisions that an event holds; how many more there were is told in one more.
const MOST: usize = 100;
/// Characters of a decision's text.
const LENGTH: usize = 400;

/// Names the first few of `items`, and how many more there are.
pub(super) fn few<T: Display>(items: impl IntoIterator<Item = T>, separator: &str) -> String {
    let mut items = items.into_iter();
    let named: Vec<String> = items.by_ref().take(FEW).map(|item| item.to_string()).collect();
    match items.count() {
        0 => named.join(separator),
        more => format!("{}{separator}and {more} more", named.join(separator)),
    }
}

/// Returns the decisions that `leader` takes by writing `head` and what `changed`, as it sees `view`.
pub(super) fn tell(
    leader: &Leader,
    view: &View,
    head: &Head,
    changed: &BTreeMap<VipName, Option<Assignment>>,
) -> Vec<Decision> {
    let mut story = Story::default();
    story.head(leader, head);
    story.verdicts(leader, view);
    for (name, new) in changed {
        let old = leader.published.assignments.get(name);
        match (old, new) {
            (None, Some(new)) => {
                story.vip(name, format!("is new: {}", described(new)));
                story.weights(name, None, new);
            }
            (Some(old), Some(new)) => {
                story.changed(name, old, new);
                story.weights(name, Some(old), new);
            }
            (_, None) => story.vip(name, "was removed".to_owned()),
        }
    }
    story.decisions
}

/// A VIP's definition in short.
fn described(assignment: &Assignment) -> String {
    let vip = &assignment.vip;
    format!("{} port {} {}, {} reals", vip.address, vip.port, vip.protocol, assignment.reals.len())
}

#[derive(Default)]
struct Story {
    decisions: Vec<Decision>,
    /// Decisions that were left out.
    more: usize,
}

impl Story {
    fn add(&mut self, kind: &str, vip: Option<&VipName>, real: Option<&RealName>, text: String) {
        let text = match text.char_indices().nth(LENGTH) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        };
        let (kind, vip, real) = (kind.to_owned(), vip.cloned(), real.cloned());
        let decision = Decision { kind, vip, real, text, extra: Default::default() };
        if self.decisions.len() < MOST {
            return self.decisions.push(decision);
        }
        self.more += 1;
        self.decisions.truncate(MOST);
        let text = format!("{} more decisions, of which nothing is kept here", self.more);
        self.decisions.push(Decision { kind: "more".to_owned(), vip: None, real: None, text, ..decision });
    }

    fn vip(&mut self, name: &VipName, text: String) {
        self.add("vip", Some(name), None, text);
    }

    /// Tells of the cluster as a whole.
    fn head(&mut self, leader: &Leader, new: &Head) {
        let old = leader.published.head.as_ref();
        if old.is_none_or(|old| old.term != new.term) {
            let after = match &leader.predecessor {
                Some(before) => format!("after {} (term {})", before.node, before.term),
                None => "the first leader, or the first since /drover/leader was deleted".to_owned(),
            };
            self.add("leader", None, None, format!("leads with term {}, {after}", new.term));
        }
        if old.is_some_and(|old| old.settling) && !new.settling {
            self.add("settled", None, None, "the leader has settled, and removes what is gone".to_owned());
        }
        if old.is_some_and(|old| old.cluster != new.cluster) {
            self.add("cluster", None, None, "the cluster's record changed".to_owned());
        }
        let nobody = BTreeSet::new();
        let nodes = old.map_or(&nobody, |old| &old.nodes);
        if let Some(text) = came_and_went(nodes, &new.nodes, "came", "went") {
            self.add("nodes", None, None, format!("{text}; {} now", new.nodes.len()));
        }
        let lagging = old.map_or(&nobody, |old| &old.lagging);
        let epoch = old.map_or(0, |old| old.epoch);
        let late = format!("did not acknowledge epoch {epoch} in time");
        // A node that is gone has not caught up.
        let still: BTreeSet<NodeName> =
            new.lagging.iter().chain(lagging.difference(&new.nodes)).cloned().collect();
        if let Some(text) = came_and_went(lagging, &still, &late, "caught up") {
            self.add("lagging", None, None, text);
        }
        let cut_off = old.map_or(&nobody, |old| &old.cut_off);
        let gone = "left the tree and, as told last, announce addresses: they forward by what they have";
        let back = "are back, or announce nothing any more";
        if let Some(text) = came_and_went(cut_off, &new.cut_off, gone, back) {
            self.add("cut-off", None, None, text);
        }
        let none = BTreeSet::new();
        let problems = old.map_or(&none, |old| &old.problems);
        for problem in new.problems.difference(problems) {
            self.add("refused", None, None, problem.clone());
        }
        for problem in problems.difference(&new.problems) {
            self.add("refused", None, None, format!("no longer: {problem}"));
        }
    }

    /// Verdicts that differ from those told.
    fn verdicts(&mut self, leader: &Leader, view: &View) {
        let mut news: BTreeMap<(&VipName, bool), Vec<Target>> = BTreeMap::new();
        for (vip, real, verdict) in leader.judge.verdicts().changed_since(&leader.told) {
            let is_down = verdict == Verdict::Down;
            // That a new real is up goes without saying.
            let was_down = leader.told.of(vip, real) == Some(Verdict::Down);
            if is_down != was_down {
                let target = Target { vip: vip.clone(), real: real.clone() };
                news.entry((vip, is_down)).or_default().push(target);
            }
        }
        let nobody = BTreeSet::new();
        let (nodes, since) = match &leader.published.head {
            Some(head) => (&head.nodes, head.targets),
            None => (&nobody, 0),
        };
        for ((vip, is_down), targets) in news {
            if targets.len() > FEW {
                let state = if is_down { "down" } else { "up" };
                let names = few(targets.iter().map(|target| &target.real), ", ");
                self.add("verdict", Some(vip), None, format!("{} reals are {state}: {names}", targets.len()));
                continue;
            }
            for target in targets {
                let tally = verdict::tally(&target, nodes, &view.votes, since);
                let text = match is_down {
                    true => format!(
                        "is down by {} of {} votes: {}",
                        tally.down,
                        tally.votes,
                        verdict::reason(&target, &view.votes)
                    ),
                    false => format!("is up by {} of {} votes", tally.votes - tally.down, tally.votes),
                };
                self.add("verdict", Some(vip), Some(&target.real), text);
            }
        }
    }

    /// Tells what changed in a VIP's definition.
    fn changed(&mut self, name: &VipName, old: &Assignment, new: &Assignment) {
        let mut parts = Vec::new();
        let fields = differing(&old.vip, &new.vip);
        if !fields.is_empty() {
            parts.push(format!("changed: {}", few(fields, ", ")));
        }
        let real_parts = |names: Vec<&RealName>, what: &str| {
            (!names.is_empty()).then(|| format!("{what}: {}", few(names, ", ")))
        };
        let come = new.reals.keys().filter(|real| !old.reals.contains_key(*real)).collect();
        let gone = old.reals.keys().filter(|real| !new.reals.contains_key(*real)).collect();
        parts.extend(real_parts(come, "reals that came"));
        parts.extend(real_parts(gone, "reals that went"));
        let edits: Vec<String> = new
            .reals
            .iter()
            .filter_map(|(real, record)| {
                let before = old.reals.get(real).filter(|before| *before != record)?;
                Some(format!("{real} ({})", edit(before, record)))
            })
            .collect();
        if !edits.is_empty() {
            parts.push(format!("reals that changed: {}", few(edits, ", ")));
        }
        let said = |assignment: &Assignment| {
            let Assignment { weights, next, held, held_reals, .. } = assignment.clone();
            (weights, next, held, held_reals)
        };
        let is_same = parts.is_empty() && said(old) == said(new);
        match is_same {
            true => self.vip(name, "its assignment is written anew, since it was lost or edited".to_owned()),
            false if parts.is_empty() => {}
            false => self.vip(name, parts.join("; ")),
        }
    }

    /// Tells what becomes of a VIP's weights.
    fn weights(&mut self, name: &VipName, old: Option<&Assignment>, new: &Assignment) {
        let nothing = BTreeMap::new();
        let before = old.map_or(&nothing, |old| &old.weights);
        if *before != new.weights {
            let change = difference(before, &new.weights);
            let text = if change == new.why { change } else { format!("{change}: {}", new.why) };
            self.add("weights", Some(name), None, text);
        }
        let announced = old.and_then(|old| old.next.as_ref());
        if let Some(next) = new.next.as_ref().filter(|next| Some(*next) != announced) {
            self.add("announced", Some(name), None, difference(&new.weights, &next.weights));
        } else if new.next.is_none() && announced.is_some_and(|next| next.weights != new.weights) {
            self.add("announced", Some(name), None, "withdrawn".to_owned());
        }
        match (old.and_then(|old| old.held.as_ref()), &new.held) {
            (old, Some(held)) if old != Some(held) => self.add("held", Some(name), None, held.clone()),
            (Some(held), None) => self.add("held", Some(name), None, format!("no longer: {held}")),
            _ => {}
        }
    }
}

fn came_and_went(
    old: &BTreeSet<NodeName>,
    new: &BTreeSet<NodeName>,
    came: &str,
    went: &str,
) -> Option<String> {
    let part = |names: BTreeSet<&NodeName>, what: &str| {
        (!names.is_empty()).then(|| format!("{} {what}", few(names, ", ")))
    };
    let parts = [part(new.difference(old).collect(), came), part(old.difference(new).collect(), went)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// A record's fields.
fn fields<T: Record>(record: &T) -> Map<String, Value> {
    let bytes = to_json(record).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// The names of the fields in which two VIPs differ.
fn differing(old: &Vip, new: &Vip) -> BTreeSet<String> {
    if old == new {
        return BTreeSet::new();
    }
    let (old, new) = (fields(old), fields(new));
    old.keys().chain(new.keys()).filter(|key| old.get(*key) != new.get(*key)).cloned().collect()
}

/// In which fields two records of a real differ, and how.
fn edit(old: &Real, new: &Real) -> String {
    let (old, new) = (fields(old), fields(new));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let shown = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), ToString::to_string);
    let changes = keys
        .into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| format!("{key} from {} to {}", shown(old.get(key)), shown(new.get(key))));
    few(changes, ", ")
}
