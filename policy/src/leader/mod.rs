//! The leader's decisions: from what it sees in the tree to the next assignments. Pure: time is an argument.
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

mod accept;
mod bounds;
mod explain;
mod judge;
mod memo;
mod order;
mod problem;
mod vanished;
mod view;
mod weights;

use crate::removal::Loss;
pub use order::credible;
pub use problem::{Hold, Problem};
pub use view::{PATTERNS, Published, Reading, View};
use weights::difference;

use crate::first_round;
use accept::Accepted;
use bounds::Problems;
use judge::{Judge, Verdicts};
use memo::{Missing, Rest};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use vanished::Vanished;
use zk_schema::tree::{Applied, Assignment, Decision, Entry, Head, StateRecord as _, Term};
use zk_schema::{NodeName, RecordError, VipName};

/// A leader's settings.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// The most time that nodes which were there before it need to come back: a session's timeout.
    pub session_timeout: Duration,
    /// Time that a node may take to acknowledge.
    pub ack_timeout: Duration,
    /// Time for which a node that is cut off may still forward, as far as changes of weights wait for it: the time in
    /// which the guard of a dead daemon withdraws it. Longer delays such changes, shorter has more packets meet old
    /// tables. Zero where guards never withdraw: then waiting would be for nothing.
    pub withdraw_after: Duration,
}

/// A leadership.
#[derive(Debug)]
pub struct Leader {
    term: u64,
    settings: Timeouts,
    /// The least epoch that this leader may write.
    least_epoch: u64,
    /// The time at which it took over, or last lost sight of the tree.
    settling_since: Duration,
    published: Published,
    /// The time at which the head was written.
    head_since: Duration,
    /// The last verdicts that votes gave.
    judge: Judge,
    /// Memory of earlier turns: what is missing, what was accepted, and what came of it.
    missing: Missing,
    accepted: accept::Before,
    rests: BTreeMap<VipName, Rest>,
    /// VIPs whose weights were worked out so far.
    decided: u64,
    /// Since when each VIP is there and each announcement is out, as far as this leader knows.
    known_since: BTreeMap<VipName, Duration>,
    announced_since: BTreeMap<VipName, Duration>,
    /// Assignments that the head does not list as they are, since a predecessor ended between the two.
    unlisted: BTreeSet<VipName>,
    /// The things that vanished.
    vanished: Vanished,
    /// Since when each node is cut off, as far as this leader knows.
    cut_off_since: BTreeMap<NodeName, Duration>,
    /// The leadership before this one.
    predecessor: Option<Term>,
    /// The verdicts that have been told.
    told: Verdicts,
    /// What the last turn did not follow or held back.
    problems: Vec<Problem>,
}

/// A leader's work so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// VIPs whose definitions were put together from operators' records.
    pub accepted: u64,
    /// Reals whose votes were counted.
    pub judged: u64,
    /// VIPs whose weights were worked out.
    pub decided: u64,
}

/// The records to write, all at once or in pieces with the head last.
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// The new head.
    pub head: Head,
    /// Assignments that change; `None`: the VIP goes.
    pub changed: BTreeMap<VipName, Option<Assignment>>,
    /// The bytes of those that do not go.
    pub records: BTreeMap<VipName, Vec<u8>>,
    /// The decisions that this comes to, for people who ask later.
    pub decisions: Vec<Decision>,
}

impl Leader {
    /// A leadership of number `term` that begins at `now`, where `published` is what predecessors wrote. It writes no
    /// epoch up to `beyond`: what this node has in force itself.
    #[must_use]
    pub fn new(term: u64, settings: Timeouts, mut published: Published, beyond: u64, now: Duration) -> Self {
        bounds::bound_published(published.head.as_mut(), &mut published.assignments);
        let judge = Judge::new(&published.assignments);
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
            told: judge.verdicts().clone(),
            published,
            head_since: now,
            judge,
            missing: Missing::default(),
            accepted: accept::Before::default(),
            rests: BTreeMap::new(),
            decided: 0,
            known_since,
            announced_since,
            problems: Vec::new(),
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

    /// Takes note of what has been written.
    #[must_use]
    pub const fn in_force(&self) -> &Published {
        &self.published
    }

    /// What the last turn did not follow or held back, the most important first. The head tells of it in words.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Why reals of a VIP stay in its table, if so and nothing is to be written of the VIP.
    #[must_use]
    pub fn hold(&self, vip: &VipName) -> Option<&Hold> {
        self.rests.get(vip)?.hold.as_ref()
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
        self.missing.look(view, &self.published);
        let may_judge = !settling && !view.frozen && !view.hidden.vips;
        self.vanished.look(view, &self.published, &self.missing, may_judge, now);
        self.note_cut_off(view, now);
        let mut before = std::mem::take(&mut self.accepted);
        let accepted = match &self.published.head {
            Some(head) if view.frozen => Accepted::frozen(head, &self.published, &mut before),
            _ => {
                let gone = |vip: &VipName| {
                    self.missing.of(vip).filter(|real| self.has_gone(vip, real)).cloned().collect()
                };
                accept::accept(view, &self.published, &self.vanished, gone, &mut before)
            }
        };
        self.accepted = before;
        self.problems.clear();
        // Without a cluster record there is nothing to go by.
        let Some(accepted) = accepted else { return Ok(None) };
        let mut problems = accepted.problems;
        let (nodes, missing) = self.nodes(view, settling, &mut problems);
        let is_outrun = self.outrun(view, &mut problems);

        let epoch = self.least_epoch;
        let head = self.published.head.as_ref();
        let probers = head.map(|head| head.nodes.clone()).unwrap_or_default();
        let since = head.map_or(0, |head| head.targets);
        self.judge.judge(&accepted.vips, &self.published.assignments, &view.votes, &probers, since);

        let mut changed = BTreeMap::new();
        let mut records = BTreeMap::new();
        let trust = !settling && !missing;
        let mut rests = std::mem::take(&mut self.rests);
        rests.retain(|name, _| accepted.vips.contains_key(name));
        for (name, state) in &accepted.vips {
            let current = self.published.assignments.get(name);
            let verdicts = self.judge.verdicts().on(name);
            let circumstances = self.circumstances(name, state, view, trust, now);
            let rewrite = damaged.contains(name) || self.unlisted.contains(name);
            if !rewrite {
                if view.frozen && current.is_some() {
                    continue;
                }
                if let Some(rest) = rests.get(name)
                    && rest.holds(state, current, verdicts, &circumstances)
                {
                    problems.extend(rest.refused.clone());
                    continue;
                }
            }
            self.decided += 1;
            let (next, hold) = match current {
                Some(current) if view.frozen => (Assignment::clone(current), None),
                _ => self.assign(name, state, view, trust, now),
            };
            let mut refused = None;
            if rewrite || current.is_none_or(|current| !same(current, &next)) {
                let mut next = Assignment { term: self.term, epoch, ..next };
                match bounds::fit(&mut next) {
                    Ok(bytes) => {
                        records.insert(name.clone(), bytes);
                        changed.insert(name.clone(), Some(next));
                        rests.remove(name);
                        continue;
                    }
                    Err(problem) => {
                        let problem = accept::refused(name, &problem.to_string(), current.is_some());
                        problems.insert(problem.clone());
                        refused = Some(problem);
                    }
                }
            }
            let rest = Rest {
                state: Arc::clone(state),
                current: current.cloned(),
                verdicts: verdicts.cloned(),
                circumstances,
                refused,
                hold,
            };
            rests.insert(name.clone(), rest);
        }
        self.rests = rests;
        let head = self.published.head.as_ref();
        for name in self.published.assignments.keys() {
            if !accepted.vips.contains_key(name) {
                changed.insert(name.clone(), None);
            }
        }

        let targets_change = head.is_none_or(|head| head.nodes != nodes)
            || changed.iter().any(|(name, new)| {
                probed_anew(self.published.assignments.get(name).map(|old| &**old), new.as_ref())
            });
        let mut vips = head.map(|head| head.vips.clone()).unwrap_or_default();
        vips.retain(|name, _| accepted.vips.contains_key(name));
        let entry = |bytes: &Vec<u8>| Entry { epoch, digest: Assignment::digest(bytes) };
        vips.extend(records.iter().map(|(name, bytes)| (name.clone(), entry(bytes))));
        problems.extend(view.problems.iter().cloned().map(Problem::Unreadable));
        let (problems, told) = problems.told();
        self.problems = problems;
        let new = Head {
            term: self.term,
            epoch,
            cluster: accepted.cluster,
            peers: peers(&nodes, view, head),
            nodes,
            targets: if targets_change { epoch } else { since },
            settling,
            lagging: self.lagging(view, now),
            cut_off: bounds::few_nodes(self.cut_off_since.keys().cloned().collect(), &BTreeSet::new()),
            held_vips: self.vanished.held().vips.clone(),
            held_nodes: self.vanished.held().nodes.clone(),
            problems: told,
            vips,
            extra: head.map(|head| head.extra.clone()).unwrap_or_default(),
        };
        let same_head = head.is_some_and(|head| Head { epoch: head.epoch, ..new.clone() } == *head);
        if changed.is_empty() && same_head && !is_outrun {
            return Ok(None);
        }
        new.bytes()?;
        let decisions = explain::tell(self, view, &new, &changed);
        Ok(Some(Publication { head: new, changed, records, decisions }))
    }

    /// Takes note that `publication` has been written.
    pub fn published(&mut self, publication: Publication, now: Duration) {
        self.least_epoch = order::next(publication.head.epoch);
        self.head_since = now;
        self.told.clone_from(self.judge.verdicts());
        for (name, new) in publication.changed {
            self.unlisted.remove(&name);
            let Some(new) = new else {
                self.published.assignments.remove(&name);
                self.known_since.remove(&name);
                self.announced_since.remove(&name);
                self.judge.forget(&name);
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
            self.published.assignments.insert(name, Arc::new(new));
        }
        self.published.head = Some(publication.head);
    }

    /// Returns the numbers of VIPs accepted anew, of reals judged, and of VIPs for which it has worked out the
    /// weights so far: a measure of its work.
    #[must_use]
    pub const fn work(&self) -> Work {
        Work { accepted: self.accepted.count(), judged: self.judge.judged(), decided: self.decided }
    }

    /// Forgets what it worked out in earlier turns, but for what it decided: the next turn goes through everything.
    #[cfg(test)]
    fn start_over(&mut self) {
        self.judge.doubt();
        self.missing = Missing::default();
        self.accepted = accept::Before::default();
        self.rests.clear();
    }

    /// Returns the time for which nothing is removed after a takeover: until nodes that lost their sessions are back
    /// and have probed.
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
            problems.insert(Problem::ManyNodes { nodes: nodes.len(), most: bounds::MOST_NODES });
        }
        let nodes = bounds::few_nodes(nodes, before);
        let most = Loss { lost: gone.len(), of: before.len() }.is_most();
        let missing = most && !view.confirmed_nodes && !settling;
        let held = &self.vanished.held().nodes;
        if missing {
            problems.insert(Problem::MostNodesMissing);
        } else if !held.is_empty() && !settling {
            problems.insert(Problem::HeldNodes(held.clone()));
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

    /// Returns whether nodes have more in force than there is, so that a head beyond that is due; they are told as
    /// problems.
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

/// Returns the addresses at which the nodes answer each other, as they told last.
fn peers(
    nodes: &BTreeSet<NodeName>,
    view: &View,
    before: Option<&Head>,
) -> BTreeMap<NodeName, BTreeSet<IpAddr>> {
    let before = |node: &NodeName| before.and_then(|head| head.peers.get(node)).cloned();
    let peer = |node: &NodeName| match view.applied.get(node) {
        Some(applied) => {
            let one = |wanted: fn(&IpAddr) -> bool| applied.sources.iter().copied().find(wanted);
            let sources: BTreeSet<IpAddr> =
                one(IpAddr::is_ipv4).into_iter().chain(one(IpAddr::is_ipv6)).collect();
            (!sources.is_empty()).then_some(sources)
        }
        None => before(node),
    };
    nodes.iter().filter_map(|node| Some((node.clone(), peer(node)?))).collect()
}

/// Returns whether the node has what was written at `order`, and follows.
fn has_applied(view: &View, node: &NodeName, order: (u64, u64), head: &Head) -> bool {
    view.applied.get(node).is_some_and(|applied| applied.acknowledges(order, head.order()))
}

/// Returns whether the head lists this assignment as it is.
fn is_listed(head: &Head, name: &VipName, assignment: &Assignment) -> bool {
    let digest = || assignment.bytes().map(|bytes| Assignment::digest(&bytes));
    head.vips.get(name).is_some_and(|entry| {
        entry.epoch == assignment.epoch && digest().is_ok_and(|digest| digest == entry.digest)
    })
}

/// Returns whether two assignments say the same, whoever wrote them when and why.
fn same(current: &Assignment, new: &Assignment) -> bool {
    let Assignment {
        term: _,
        epoch: _,
        vip,
        reals,
        weights,
        since,
        next,
        history,
        held,
        held_reals,
        why: _,
        extra,
    } = new;
    current.since == *since
        && (&current.vip, &current.weights, &current.next) == (vip, weights, next)
        && (&current.held, &current.held_reals, &current.extra) == (held, held_reals, extra)
        && current.reals == *reals
        && current.history == *history
}

/// Returns whether nodes are to probe something else than before.
fn probed_anew(current: Option<&Assignment>, new: Option<&Assignment>) -> bool {
    let (Some(current), Some(new)) = (current, new) else { return current.is_some() != new.is_some() };
    let (one, other) = (&current.vip, &new.vip);
    let is_same_vip = (one.address, one.port, one.protocol, one.encapsulation)
        == (other.address, other.port, other.protocol, other.encapsulation)
        && one.health == other.health;
    let reals = current.reals.iter().map(|(name, real)| (name, real.address));
    !is_same_vip || !reals.eq(new.reals.iter().map(|(name, real)| (name, real.address)))
}

#[cfg(test)]
mod tests;
