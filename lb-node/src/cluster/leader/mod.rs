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
//! - What vanishes from the tree waits, and is held by name where it looks like an accident: see [`vanished`].
//! - What others wrote bounds nobody else: a VIP that does not fit is refused alone, problems are cut off somewhere, and
//!   orders that nobody can come to are ignored.

mod bounds;
mod order;
mod story;
mod vanished;
mod view;
mod weights;
mod wish;

pub use order::credible;
pub use view::{PATTERNS, Published, Reading, View, Wish};
use weights::difference;

use super::verdict::{self, Verdict};
use crate::control::first_round;
use bounds::Problems;
use coordination::removal::Loss;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use vanished::Vanished;
use wish::Accepted;
use zk_schema::tree::{Applied, Assignment, Decision, Entry, Head, StateRecord as _, Target, Term, paths};
use zk_schema::{NodeName, RecordError, VipName, VipState};

/// How long a node that is gone may still forward: one whose daemon is dead withdraws within this time.
pub const WITHDRAW_AFTER: Duration = Duration::from_secs(10);

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
    /// What vanished.
    vanished: Vanished,
    /// Since when each node is cut off, as far as this leader knows.
    cut_off_since: BTreeMap<NodeName, Duration>,
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
    pub fn new(term: u64, settings: Settings, mut published: Published, beyond: u64, now: Duration) -> Self {
        bounds::bound_published(published.head.as_mut(), &mut published.assignments);
        let mut verdicts = BTreeMap::new();
        for (vip, assignment) in &published.assignments {
            for real in assignment.weights.keys() {
                verdicts.insert(Target { vip: vip.clone(), real: real.clone() }, Verdict::Up);
            }
        }
        let least_epoch = order::next(published.epoch().max(beyond));
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
            vanished: Vanished::new(&published),
            cut_off_since: BTreeMap::new(),
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
    /// If the head would be too large, which its bounds prevent.
    pub fn decide(
        &mut self,
        view: &View,
        damaged: &BTreeSet<VipName>,
        now: Duration,
    ) -> Result<Option<Publication>, RecordError> {
        let settling = now < self.settling_since + self.settling_time();
        self.vanished.look(view, &self.published, !settling && !view.frozen, now);
        self.note_cut_off(view, now);
        let accepted = match &self.published.head {
            Some(head) if view.frozen => Accepted::frozen(head, &self.published),
            _ => wish::accept(view, &self.published, &self.vanished, |vip, real| self.has_gone(vip, real)),
        };
        // Without a cluster record there is nothing to go by.
        let Some(accepted) = accepted else { return Ok(None) };
        let mut problems = accepted.problems;
        let (nodes, missing) = self.nodes(view, settling, &mut problems);
        let is_outrun = self.outrun(view, &mut problems);

        let epoch = self.least_epoch;
        let head = self.published.head.as_ref();
        let probers = head.map(|head| head.nodes.clone()).unwrap_or_default();
        let since = head.map_or(0, |head| head.targets);
        self.judge(&accepted.desired.vips, view, &probers, since);
        let head = self.published.head.as_ref();

        let mut changed = BTreeMap::new();
        let mut digests = BTreeMap::new();
        let mut too_large = BTreeSet::new();
        let trust = !settling && !missing;
        for (name, state) in &accepted.desired.vips {
            let current = self.published.assignments.get(name);
            let rewrite = damaged.contains(name) || self.unlisted.contains(name);
            let next = match current {
                Some(current) if view.frozen => current.clone(),
                _ => self.assign(name, state, view, trust, now),
            };
            if rewrite || current.is_none_or(|current| !same(current, &next)) {
                let mut next = Assignment { term: self.term, epoch, ..next };
                match bounds::fit(&mut next) {
                    Ok(digest) => {
                        digests.insert(name.clone(), digest);
                        changed.insert(name.clone(), Some(next));
                    }
                    Err(problem) => {
                        problems.insert(wish::refused(
                            &paths::vip(name),
                            &problem.to_string(),
                            current.is_some(),
                        ));
                        too_large.insert(name.clone());
                    }
                }
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
        vips.extend(digests.into_iter().map(|(name, digest)| (name, Entry { epoch, digest })));
        problems.extend(view.problems.iter().cloned());
        let new = Head {
            term: self.term,
            epoch,
            cluster: accepted.desired.cluster,
            nodes,
            targets: if targets_change { epoch } else { since },
            settling,
            lagging: self.lagging(view, now),
            cut_off: bounds::few_nodes(self.cut_off_since.keys().cloned().collect(), &BTreeSet::new()),
            held_vips: self.vanished.held().vips.clone(),
            held_nodes: self.vanished.held().nodes.clone(),
            problems: problems.told(),
            vips,
            extra: head.map(|head| head.extra.clone()).unwrap_or_default(),
        };
        let same_head = head.is_some_and(|head| Head { epoch: head.epoch, ..new.clone() } == *head);
        if changed.is_empty() && same_head && !is_outrun {
            return Ok(None);
        }
        new.bytes()?;
        let decisions = story::tell(self, view, &new, &changed);
        Ok(Some(Publication { head: new, changed, decisions }))
    }

    /// Takes note that `publication` has been written.
    pub fn published(&mut self, publication: Publication, now: Duration) {
        self.least_epoch = order::next(publication.head.epoch);
        self.head_since = now;
        self.told.clone_from(&self.verdicts);
        for (name, new) in publication.changed {
            self.unlisted.remove(&name);
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
    fn nodes(&self, view: &View, settling: bool, problems: &mut Problems) -> (BTreeSet<NodeName>, bool) {
        let nobody = BTreeSet::new();
        let before = self.published.head.as_ref().map_or(&nobody, |head| &head.nodes);
        let gone: BTreeSet<&NodeName> = before.difference(&view.nodes).collect();
        let stay = gone.iter().filter(|node| !self.vanished.node_goes(node));
        let nodes: BTreeSet<NodeName> = view.nodes.iter().chain(stay.copied()).cloned().collect();
        if nodes.len() > bounds::MOST_NODES {
            problems.insert(format!(
                "{}: {} nodes, of which {} take part in probing",
                paths::NODES,
                nodes.len(),
                bounds::MOST_NODES
            ));
        }
        let nodes = bounds::few_nodes(nodes, before);
        let most = Loss { lost: gone.len(), of: before.len() }.is_most();
        let missing = most && !view.confirmed_nodes && !settling;
        let held = &self.vanished.held().nodes;
        if missing {
            problems.insert(format!(
                "{}: most nodes vanished at once; nothing is removed until they return or `create {}` confirms it",
                paths::NODES,
                paths::CONFIRM_NODES
            ));
        } else if !held.is_empty() && !settling {
            problems.insert(format!(
                "{}: {} vanished when most nodes did; each stays on the list until it returns or `create {}` confirms \
                 it",
                paths::NODES,
                story::few(held, ", "),
                paths::CONFIRM_NODES
            ));
        }
        (nodes, missing)
    }

    /// Takes note of nodes that forward, as they told last, and do not follow.
    fn note_cut_off(&mut self, view: &View, now: Duration) {
        let announces = |applied: &Applied| applied.announced.as_ref().is_some_and(|all| !all.is_empty());
        let is_cut_off =
            |node: &NodeName| !view.nodes.contains(node) && view.applied.get(node).is_some_and(announces);
        self.cut_off_since.retain(|node, _| is_cut_off(node));
        for node in view.applied.keys().filter(|node| is_cut_off(node)) {
            self.cut_off_since.entry(node.clone()).or_insert(now);
        }
    }

    /// Whether nodes have more in force than there is, so that a head beyond that is due; they are told as problems.
    fn outrun(&mut self, view: &View, problems: &mut Problems) -> bool {
        let Some(head) = self.published.head.as_ref().map(Head::order) else { return false };
        let found = order::ahead(&view.applied, head, self.order());
        problems.extend(found.problems);
        let beyond = found.greatest.filter(|(term, epoch)| *term == self.term && *epoch >= self.least_epoch);
        if let Some((_, epoch)) = beyond {
            self.least_epoch = order::next(epoch);
        }
        beyond.is_some()
    }

    /// The order of what it writes next.
    const fn order(&self) -> (u64, u64) {
        (self.term, self.least_epoch)
    }

    /// The term of a node that follows nobody before there is a leadership beyond that; `None`: there is none.
    #[must_use]
    pub fn outranked(&self, view: &View) -> Option<u64> {
        let head = self.published.head.as_ref().map(Head::order)?;
        let (term, _) = order::ahead(&view.applied, head, self.order()).greatest?;
        (term > self.term).then_some(term)
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

    /// Nodes that have had the time to apply the head and have not.
    fn lagging(&self, view: &View, now: Duration) -> BTreeSet<NodeName> {
        let Some(head) = &self.published.head else { return BTreeSet::new() };
        if now < self.head_since + self.settings.ack_timeout {
            // Those that were late before are late until they are seen to have caught up.
            let late = head
                .lagging
                .iter()
                .filter(|node| view.nodes.contains(*node) && !has_applied(view, node, head.order(), head));
            return late.cloned().collect();
        }
        view.nodes.iter().filter(|node| !has_applied(view, node, head.order(), head)).cloned().collect()
    }
}

/// Whether the node has what was written at `order`, and follows.
fn has_applied(view: &View, node: &NodeName, order: (u64, u64), head: &Head) -> bool {
    view.applied.get(node).is_some_and(|applied| applied.acknowledges(order, head.order()))
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

#[cfg(test)]
mod tests;
