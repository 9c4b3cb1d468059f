//! What a leader decides: from what it sees in the tree to the next assignments. Pure: time is an argument.
//!
//! [`Leader::decide`] is called at every change of the [`View`] and every now and then; it says what to write, if
//! anything. [`Leader::published`] tells it that this has been written. Everything that a successor needs is in the
//! tree: what a leader knows beyond it (verdicts, since when it waits) is made anew by the next.
//!
//! - A real that died gives up its slots at once. Every other change of weights is adopted in two phases: it is
//!   announced as `next`, and takes effect when all nodes have acknowledged that, or have had the time to.
//! - Removals need trust: none while the leader settles, beyond the VIP's panic threshold, or while most nodes are
//!   missing.

mod story;
mod view;
mod wish;

pub use view::{PATTERNS, Published, View, Wish};
pub use wish::{Accepted, Removed, accept};

use super::verdict::{self, Verdict};
use crate::control::first_round;
use crate::health::panic::{self, Standing};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use zk_schema::tree::{
    Adoption, Assignment, Decision, Entry, Head, Mode, Past, StateRecord as _, Target, Term, paths,
};
use zk_schema::{NodeName, RealName, RecordError, VipName, VipState};

/// Earlier weights that an assignment keeps.
const HISTORY: usize = 8;

/// How long it may take, beyond the probes themselves, until nodes know a new VIP and the leader their first votes.
const NEW_VIP_SLACK: Duration = Duration::from_secs(3);

/// What a leader goes by.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long nodes that were there before it need at most to come back: a session's timeout.
    pub session_timeout: Duration,
    /// How long a node may take to acknowledge.
    pub ack_timeout: Duration,
}

/// A leadership.
#[derive(Debug)]
pub struct Leader {
    term: u64,
    settings: Settings,
    /// The least epoch that this leader may write.
    least_epoch: u64,
    /// When it took over, or lost sight of the tree last.
    settling_since: Duration,
    published: Published,
    /// When the head was written.
    head_since: Duration,
    /// The last verdicts that votes gave.
    verdicts: BTreeMap<Target, Verdict>,
    /// Since when each VIP is there and each announcement is out, as far as this leader knows.
    known_since: BTreeMap<VipName, Duration>,
    announced_since: BTreeMap<VipName, Duration>,
    /// Assignments that the head does not list as they are, since a predecessor ended between the two.
    unlisted: BTreeSet<VipName>,
    /// What was removed lately.
    removed: Removed,
    /// The leadership before this one.
    predecessor: Option<Term>,
    /// The verdicts that have been told.
    told: BTreeMap<Target, Verdict>,
}

/// What is to be written, all of it at once or in pieces with the head last.
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// The new head.
    pub head: Head,
    /// Assignments that change; `None`: the VIP goes.
    pub changed: BTreeMap<VipName, Option<Assignment>>,
    /// What that comes to, for people who ask later.
    pub decisions: Vec<Decision>,
}

impl Leader {
    /// A leadership of number `term` that begins at `now`, where `published` is what predecessors wrote. It writes no
    /// epoch up to `beyond`: what this node has in force itself.
    #[must_use]
    pub fn new(term: u64, settings: Settings, published: Published, beyond: u64, now: Duration) -> Self {
        let mut verdicts = BTreeMap::new();
        for (vip, assignment) in &published.assignments {
            for real in assignment.weights.keys() {
                verdicts.insert(Target { vip: vip.clone(), real: real.clone() }, Verdict::Up);
            }
        }
        let least_epoch = published.epoch().max(beyond) + 1;
        let known_since = published.assignments.keys().map(|vip| (vip.clone(), now)).collect();
        let announced = published.assignments.iter().filter(|(_, assignment)| assignment.next.is_some());
        let announced_since = announced.map(|(vip, _)| (vip.clone(), now)).collect();
        let unlisted = published.assignments.iter().filter(|(name, assignment)| {
            !published.head.as_ref().is_some_and(|head| is_listed(head, name, assignment))
        });
        let unlisted = unlisted.map(|(name, _)| name.clone()).collect();
        Self {
            term,
            settings,
            least_epoch,
            settling_since: now,
            unlisted,
            removed: Removed::default(),
            predecessor: None,
            told: verdicts.clone(),
            published,
            head_since: now,
            verdicts,
            known_since,
            announced_since,
        }
    }

    /// Tells it of the leadership before it.
    #[must_use]
    pub fn after(self, predecessor: Option<Term>) -> Self {
        Self { predecessor, ..self }
    }

    /// The number of the leadership.
    #[must_use]
    pub const fn term(&self) -> u64 {
        self.term
    }

    /// What has been written.
    #[must_use]
    pub const fn in_force(&self) -> &Published {
        &self.published
    }

    /// Decides at `now` what is to be written; `None`: nothing. `damaged` are VIPs whose records somebody else
    /// overwrote: they are written anew.
    ///
    /// # Errors
    /// If a record would be too large.
    pub fn decide(
        &mut self,
        view: &View,
        damaged: &BTreeSet<VipName>,
        now: Duration,
    ) -> Result<Option<Publication>, RecordError> {
        let settling = now < self.settling_since + self.settling_time();
        self.removed.forget(now);
        let accepted = match &self.published.head {
            Some(head) if view.frozen => Accepted::frozen(head, &self.published),
            _ => accept(view, &self.published, &self.removed, settling),
        };
        // Without a cluster record there is nothing to go by.
        let Some(accepted) = accepted else { return Ok(None) };
        let mut problems = accepted.problems;
        problems.extend(view.problems.iter().cloned());

        let epoch = self.least_epoch;
        let head = self.published.head.as_ref();
        let (nodes, missing) = self.nodes(view, settling);
        if missing {
            problems.insert(format!(
                "{}: most nodes vanished at once; nothing is removed until they return or `create {}` confirms it",
                paths::NODES,
                paths::CONFIRM_NODES
            ));
        }
        let probers = head.map(|head| head.nodes.clone()).unwrap_or_default();
        let since = head.map_or(0, |head| head.targets);
        self.judge(&accepted.desired.vips, view, &probers, since);
        let head = self.published.head.as_ref();

        let mut changed = BTreeMap::new();
        let trust = !settling && !missing;
        for (name, state) in &accepted.desired.vips {
            let current = self.published.assignments.get(name);
            let rewrite = damaged.contains(name) || self.unlisted.contains(name);
            let next = match current {
                Some(current) if view.frozen => current.clone(),
                _ => self.assign(name, state, view, trust, now),
            };
            if rewrite || current.is_none_or(|current| !same(current, &next)) {
                changed.insert(name.clone(), Some(Assignment { term: self.term, epoch, ..next }));
            }
        }
        for name in self.published.assignments.keys() {
            if !accepted.desired.vips.contains_key(name) {
                changed.insert(name.clone(), None);
            }
        }

        let targets_change = head.is_none_or(|head| head.nodes != nodes)
            || changed
                .iter()
                .any(|(name, new)| probed_anew(self.published.assignments.get(name), new.as_ref()));
        let mut vips = head.map(|head| head.vips.clone()).unwrap_or_default();
        vips.retain(|name, _| accepted.desired.vips.contains_key(name));
        for (name, new) in &changed {
            if let Some(new) = new {
                let digest = Assignment::digest(&new.bytes()?);
                vips.insert(name.clone(), Entry { epoch, digest });
            }
        }
        let new = Head {
            term: self.term,
            epoch,
            cluster: accepted.desired.cluster,
            nodes,
            targets: if targets_change { epoch } else { since },
            settling,
            lagging: self.lagging(view, now),
            cut_off: Default::default(),
            held_vips: Default::default(),
            held_nodes: Default::default(),
            problems,
            vips,
            extra: head.map(|head| head.extra.clone()).unwrap_or_default(),
        };
        let same_head = head.is_some_and(|head| Head { epoch: head.epoch, ..new.clone() } == *head);
        if changed.is_empty() && same_head {
            return Ok(None);
        }
        let decisions = story::tell(self, view, &new, &changed);
        Ok(Some(Publication { head: new, changed, decisions }))
    }

    /// Takes note that `publication` has been written.
    pub fn published(&mut self, publication: Publication, now: Duration) {
        self.least_epoch = publication.head.epoch + 1;
        self.head_since = now;
        self.told.clone_from(&self.verdicts);
        for (name, new) in publication.changed {
            self.unlisted.remove(&name);
            self.removed.note(&name, self.published.assignments.get(&name), new.as_ref(), now);
            let Some(new) = new else {
                self.published.assignments.remove(&name);
                self.known_since.remove(&name);
                self.announced_since.remove(&name);
                self.verdicts.retain(|target, _| target.vip != name);
                continue;
            };
            self.known_since.entry(name.clone()).or_insert(now);
            match &new.next {
                Some(next) if next.epoch == new.epoch => {
                    self.announced_since.insert(name.clone(), now);
                }
                Some(_) => {}
                None => {
                    self.announced_since.remove(&name);
                }
            }
            self.published.assignments.insert(name, new);
        }
        self.published.head = Some(publication.head);
    }

    /// How long nothing is removed after a takeover: until nodes that lost their sessions are back and have probed.
    fn settling_time(&self) -> Duration {
        let rounds = self.published.assignments.values().map(|assignment| first_round(&assignment.vip));
        self.settings.session_timeout + rounds.max().unwrap_or_default()
    }

    /// The nodes that probing is divided among, and whether most of those that were there are missing.
    fn nodes(&self, view: &View, settling: bool) -> (BTreeSet<NodeName>, bool) {
        let Some(head) = &self.published.head else { return (view.nodes.clone(), false) };
        let vanished = head.nodes.difference(&view.nodes).count();
        let most = wish::is_most(vanished, head.nodes.len());
        if vanished > 0 && (settling || (most && !view.confirmed_nodes)) {
            let all = head.nodes.union(&view.nodes).cloned().collect();
            return (all, most && !settling);
        }
        (view.nodes.clone(), false)
    }

    /// Takes the votes into account, as far as they say anything.
    fn judge(
        &mut self,
        vips: &BTreeMap<VipName, VipState>,
        view: &View,
        nodes: &BTreeSet<NodeName>,
        since: u64,
    ) {
        for (vip, state) in vips.iter().filter(|(_, state)| state.vip.health.is_some()) {
            // What nodes have not been told of, they cannot have found up.
            let Some(told) = self.published.assignments.get(vip) else { continue };
            for real in state.reals.keys().filter(|real| told.reals.contains_key(*real)) {
                let target = Target { vip: vip.clone(), real: real.clone() };
                match verdict::verdict(&target, nodes, &view.votes, since) {
                    Verdict::Open => {}
                    verdict => {
                        self.verdicts.insert(target, verdict);
                    }
                }
            }
        }
        let is_there = |target: &Target| {
            vips.get(&target.vip).is_some_and(|state| state.reals.contains_key(&target.real))
        };
        self.verdicts.retain(|target, _| is_there(target));
    }

    /// What the VIP's assignment is to be, but for term and epoch.
    fn assign(
        &self,
        name: &VipName,
        state: &VipState,
        view: &View,
        trust: bool,
        now: Duration,
    ) -> Assignment {
        let current = self.published.assignments.get(name);
        let mut new = current.cloned().unwrap_or_else(|| Assignment {
            term: 0,
            epoch: 0,
            vip: state.vip.clone(),
            reals: BTreeMap::new(),
            weights: BTreeMap::new(),
            since: self.least_epoch,
            next: None,
            history: Vec::new(),
            held: None,
            held_reals: Default::default(),
            why: "the VIP is new".to_owned(),
            extra: Default::default(),
        });
        if current.is_some() && (new.vip != state.vip || new.reals != state.reals) {
            new.why = "an operator changed the VIP or its reals".to_owned();
        }
        new.vip = state.vip.clone();
        new.reals = state.reals.clone();

        let weights = new.weights.clone();
        let choice = self.choose(name, state, &weights, view, trust, now);
        new.held = choice.held;
        let target = choice.weights;
        let lost: Vec<&RealName> = weights
            .keys()
            .filter(|real| {
                !target.contains_key(*real)
                    && (choice.down.contains(*real) || !state.reals.contains_key(*real))
            })
            .collect();
        if weights.is_empty() {
            if !target.is_empty() {
                self.take_effect(&mut new, target, "the reals have been judged".to_owned());
            }
        } else if !lost.is_empty() {
            let why = lost.iter().map(|real| match state.reals.contains_key(*real) {
                true => {
                    let target = Target { vip: name.clone(), real: (*real).clone() };
                    format!("{real} is down ({})", verdict::reason(&target, &view.votes))
                }
                false => format!("{real} was removed"),
            });
            let why = story::few(why, "; ");
            let mut rest = weights.clone();
            rest.retain(|real, _| !lost.contains(&real));
            // What else is to change follows in two phases, unless there is nothing to wait with.
            self.take_effect(&mut new, if rest.is_empty() { target } else { rest }, why);
        } else if target == weights {
            if new.next.take().is_some() {
                new.why = "the announced weights are no longer wanted".to_owned();
            }
        } else {
            match &new.next {
                Some(next) if next.weights == target => {
                    if self.is_adopted(name, next.epoch, view, now) {
                        let why = difference(&weights, &target);
                        self.take_effect(&mut new, target, why);
                    }
                }
                _ => {
                    new.why = format!("announced: {}", difference(&weights, &target));
                    new.next = Some(Adoption { epoch: self.least_epoch, weights: target });
                }
            }
        }
        new
    }

    /// The weights that the VIP should have.
    fn choose(
        &self,
        name: &VipName,
        state: &VipState,
        weights: &BTreeMap<RealName, u16>,
        view: &View,
        trust: bool,
        now: Duration,
    ) -> Choice {
        let target = |real: &RealName| Target { vip: name.clone(), real: real.clone() };
        let overdue = self
            .known_since
            .get(name)
            .is_some_and(|since| now >= *since + first_round(&state.vip) + NEW_VIP_SLACK);
        let standing = |real: &RealName| match self.verdicts.get(&target(real)) {
            _ if state.vip.health.is_none() => Standing::Up,
            Some(Verdict::Up) => Standing::Up,
            Some(Verdict::Down) => Standing::Down,
            Some(Verdict::Open) | None if overdue => Standing::Blind,
            Some(Verdict::Open) | None => Standing::Pending,
        };
        let candidates: BTreeMap<RealName, Standing> = state
            .reals
            .iter()
            .filter(|(real, record)| record.weight > 0 && !view.drains.contains(&target(real)))
            .map(|(real, _)| (real.clone(), standing(real)))
            .collect();
        let down: BTreeSet<RealName> =
            candidates.iter().filter(|(_, s)| **s == Standing::Down).map(|(real, _)| real.clone()).collect();
        let in_force: BTreeSet<RealName> = weights.keys().cloned().collect();
        let undecided = candidates.values().any(|standing| *standing == Standing::Pending);
        if in_force.is_empty() && undecided && !overdue {
            return Choice { weights: BTreeMap::new(), held: None, down };
        }
        let confirmed = view.confirmed.contains(name);
        let threshold = if confirmed { 100 } else { state.vip.panic_threshold };
        let decision = panic::decide(&candidates, &in_force, threshold);
        let mut reals = decision.reals;
        let mut held =
            decision.held.map(|held| format!("{held}; `create {}` lets them go", paths::confirm(name)));
        if !trust {
            let kept: Vec<&RealName> =
                down.iter().filter(|real| in_force.contains(*real) && !reals.contains(*real)).collect();
            if !kept.is_empty() {
                let kept = story::few(kept.iter().map(|real| real.as_str()), ", ");
                held = Some(format!(
                    "{kept} is down; nothing is removed while the leader settles or most nodes are missing"
                ));
            }
            reals.extend(down.iter().filter(|real| in_force.contains(*real)).cloned());
        }
        let chosen =
            reals.into_iter().filter_map(|real| Some((real.clone(), state.reals.get(&real)?.weight)));
        let mut chosen: BTreeMap<RealName, u16> = chosen.collect();
        if chosen.is_empty() && !state.reals.is_empty() {
            chosen = weights.clone();
            chosen.retain(|real, _| state.reals.contains_key(real));
            held = Some("every real is drained or of weight 0; those in the table are kept".to_owned());
        }
        Choice { weights: chosen, held, down }
    }

    /// Puts weights in force, and those before into the history.
    fn take_effect(&self, assignment: &mut Assignment, weights: BTreeMap<RealName, u16>, why: String) {
        let before = std::mem::replace(&mut assignment.weights, weights);
        if !before.is_empty() {
            assignment.history.insert(0, Past { epoch: assignment.since, weights: before });
            assignment.history.truncate(HISTORY);
        }
        assignment.since = self.least_epoch;
        assignment.next = None;
        assignment.why = why;
    }

    /// Whether every node that is there knows what was announced at `epoch`, or has had the time to.
    fn is_adopted(&self, vip: &VipName, epoch: u64, view: &View, now: Duration) -> bool {
        let waited =
            self.announced_since.get(vip).is_some_and(|since| now >= *since + self.settings.ack_timeout);
        waited || view.nodes.iter().all(|node| has_applied(view, node, epoch))
    }

    /// Nodes that have had the time to apply the head and have not.
    fn lagging(&self, view: &View, now: Duration) -> BTreeSet<NodeName> {
        let Some(head) = &self.published.head else { return BTreeSet::new() };
        if now < self.head_since + self.settings.ack_timeout {
            // Those that were late before are late until they are seen to have caught up.
            let late = head
                .lagging
                .iter()
                .filter(|node| view.nodes.contains(*node) && !has_applied(view, node, head.epoch));
            return late.cloned().collect();
        }
        view.nodes.iter().filter(|node| !has_applied(view, node, head.epoch)).cloned().collect()
    }
}

/// A choice of weights.
struct Choice {
    weights: BTreeMap<RealName, u16>,
    held: Option<String>,
    /// Reals that are down, used or not.
    down: BTreeSet<RealName>,
}

fn has_applied(view: &View, node: &NodeName, epoch: u64) -> bool {
    view.applied.get(node).is_some_and(|applied| applied.epoch >= epoch && applied.mode == Mode::Live)
}

/// Whether the head lists this assignment as it is.
fn is_listed(head: &Head, name: &VipName, assignment: &Assignment) -> bool {
    let digest = || assignment.bytes().map(|bytes| Assignment::digest(&bytes));
    head.vips.get(name).is_some_and(|entry| {
        entry.epoch == assignment.epoch && digest().is_ok_and(|digest| digest == entry.digest)
    })
}

/// Whether two assignments say the same, whoever wrote them when and why.
fn same(current: &Assignment, new: &Assignment) -> bool {
    let new =
        Assignment { term: current.term, epoch: current.epoch, why: current.why.clone(), ..new.clone() };
    *current == new
}

/// Whether nodes are to probe something else than before.
fn probed_anew(current: Option<&Assignment>, new: Option<&Assignment>) -> bool {
    let probed = |assignment: &Assignment| {
        let vip = &assignment.vip;
        let reals: BTreeMap<_, _> =
            assignment.reals.iter().map(|(name, real)| (name.clone(), real.address)).collect();
        (vip.address, vip.port, vip.protocol, vip.encapsulation, vip.health.clone(), reals)
    };
    current.map(probed) != new.map(probed)
}

/// What changes between two sets of weights, in words.
fn difference(before: &BTreeMap<RealName, u16>, after: &BTreeMap<RealName, u16>) -> String {
    let names: BTreeSet<&RealName> = before.keys().chain(after.keys()).collect();
    let changes = names.into_iter().filter_map(|real| match (before.get(real), after.get(real)) {
        (old, new) if old == new => None,
        (None, Some(new)) => Some(format!("{real} joins with {new}")),
        (Some(_), None) => Some(format!("{real} leaves")),
        (old, new) => Some(format!("{real} from {} to {}", old.copied()?, new.copied()?)),
    });
    story::few(changes, ", ")
}

#[cfg(test)]
mod tests;
