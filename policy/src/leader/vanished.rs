//! Things that vanished from the tree: how long they stay, which are held, and which may go. Pure.
//!
//! - What vanishes waits: alone for a moment, in company until it has been quiet for a while. Tools delete a tree one znode
//!   after the other and restore it so, too: no step of theirs takes most of what there is, but all of them together do.
//! - Then all of it is [judged together](crate::removal). What looks like an accident is held by name, until it
//!   returns or an operator confirms; the names are in what is published, so that a successor holds them too.
//! - The rest may go.

use super::memo::Missing;
use super::view::{Published, View};
use crate::removal::{ALONE, Loss, Losses, QUIET, suspects};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use zk_schema::picture::VipFound;
use zk_schema::tree::{Assignment, Registrant, Target};
use zk_schema::{NodeName, RealName, VipName};

/// Something that can vanish.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    Vip(VipName),
    Real(Target),
    Node(NodeName),
}

/// The fate of something that vanished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is missing `since` then, and not judged; `again` if it had returned before.
    Missing { since: Duration, again: bool },
    /// It is there again.
    Returned,
    /// It has been judged.
    Judged,
}

/// Something that may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Going {
    /// Since when it is missing.
    pub(super) since: Duration,
    /// True if somebody said so: an operator confirmed it, or its agent took its leave.
    pub(super) is_meant: bool,
}

/// The things that are held, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) vips: BTreeSet<VipName>,
    pub(super) reals: BTreeMap<VipName, BTreeSet<RealName>>,
    pub(super) nodes: BTreeSet<NodeName>,
}

/// The things that vanished, as far as this leader knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Vanished {
    /// The things that vanished since it was quiet for long enough.
    lately: BTreeMap<Object, Fate>,
    /// The time at which something last vanished or returned that had not done so since.
    last: Duration,
    /// The things that may go.
    may_go: BTreeMap<Object, Going>,
    held: Held,
}

impl Vanished {
    /// Begins with what vanished before this leadership: what predecessors held.
    pub(super) fn new(published: &Published) -> Self {
        let head = published.head.as_ref();
        let reals = published.assignments.iter().filter(|(_, current)| !current.held_reals.is_empty());
        let held = Held {
            vips: head.map(|head| head.held_vips.clone()).unwrap_or_default(),
            reals: reals.map(|(vip, current)| (vip.clone(), current.held_reals.clone())).collect(),
            nodes: head.map(|head| head.held_nodes.clone()).unwrap_or_default(),
        };
        Self { held, ..Self::default() }
    }

    /// Returns the things that are held.
    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    /// Returns whether a VIP that is missing goes now.
    pub(super) fn vip_goes(&self, vip: &VipName) -> bool {
        self.may_go.contains_key(&Object::Vip(vip.clone()))
    }

    /// Returns whether a node that is missing goes now.
    pub(super) fn node_goes(&self, node: &NodeName) -> bool {
        self.may_go.contains_key(&Object::Node(node.clone()))
    }

    /// Returns in which way a real that may go is missing.
    pub(super) fn real_goes(&self, vip: &VipName, real: &RealName) -> Option<Going> {
        self.may_go.get(&Object::Real(Target { vip: vip.clone(), real: real.clone() })).copied()
    }

    /// Looks what is missing at `now` of what is `published`, and judges it if `may_judge` and it is time to.
    /// `missing_reals` are those of what is published.
    pub(super) fn look(
        &mut self,
        view: &View,
        published: &Published,
        missing_reals: &Missing,
        may_judge: bool,
        now: Duration,
    ) {
        let missing = Self::missing(view, published, missing_reals, may_judge);
        self.release(&missing, published, now);
        for (object, fate) in &mut self.lately {
            if let Fate::Missing { again, .. } = *fate
                && !missing.contains_key(object)
            {
                *fate = Fate::Returned;
                // What comes and goes does not keep others waiting for ever.
                if !again {
                    self.last = now;
                }
            }
        }
        self.may_go.retain(|object, _| missing.contains_key(object));
        for (object, confirmed) in &missing {
            if self.is_held(object) || self.may_go.contains_key(object) {
                continue;
            }
            if *confirmed {
                self.lately.insert(object.clone(), Fate::Judged);
                self.may_go.insert(object.clone(), Going { since: now, is_meant: true });
                continue;
            }
            let before = self.lately.get(object).copied();
            if let Some(Fate::Missing { .. }) = before {
                continue;
            }
            self.lately.insert(object.clone(), Fate::Missing { since: now, again: before.is_some() });
            if before.is_none() {
                self.last = now;
            }
        }
        if may_judge {
            self.judge(view, published, now);
        }
        if now >= self.last + QUIET {
            self.lately.retain(|_, fate| matches!(fate, Fate::Missing { .. }));
        }
    }

    /// Returns what is missing, and whether an operator confirmed that it goes.
    fn missing(
        view: &View,
        published: &Published,
        missing_reals: &Missing,
        may_confirm: bool,
    ) -> BTreeMap<Object, bool> {
        let mut missing = BTreeMap::new();
        for (vip, current) in &published.assignments {
            let confirmed = may_confirm && view.confirmed.contains(vip);
            match view.vips.get(vip) {
                None => {
                    let confirmed = confirmed || (may_confirm && view.confirmed_vips);
                    missing.insert(Object::Vip(vip.clone()), confirmed);
                }
                Some(wish) => {
                    let gone =
                        missing_reals.of(vip).map(|real| Target { vip: vip.clone(), real: real.clone() });
                    let says_goodbye = |target: &Target| took_leave(current, wish, &target.real);
                    missing.extend(gone.map(|target| {
                        let goes = confirmed || (may_confirm && says_goodbye(&target));
                        (Object::Real(target), goes)
                    }));
                }
            }
        }
        let nodes = published.head.iter().flat_map(|head| &head.nodes);
        let nodes = nodes.filter(|node| !view.nodes.contains(*node));
        let confirmed = may_confirm && view.confirmed_nodes;
        missing.extend(nodes.map(|node| (Object::Node(node.clone()), confirmed)));
        missing
    }

    /// Ends the hold of what is there again, or confirmed.
    fn release(&mut self, missing: &BTreeMap<Object, bool>, published: &Published, now: Duration) {
        let before = self.held.clone();
        let stays = |object: Object| missing.get(&object) == Some(&false);
        self.held.vips.retain(|vip| stays(Object::Vip(vip.clone())));
        self.held.nodes.retain(|node| stays(Object::Node(node.clone())));
        for vip in before.vips.difference(&self.held.vips) {
            if missing.contains_key(&Object::Vip(vip.clone())) {
                continue;
            }
            // It may return in pieces: its reals are held as it was.
            let Some(current) = published.assignments.get(vip) else { continue };
            self.held.reals.entry(vip.clone()).or_default().extend(current.reals.keys().cloned());
        }
        for (vip, reals) in &mut self.held.reals {
            // While the VIP itself is missing, nothing is known of its reals.
            if missing.contains_key(&Object::Vip(vip.clone())) {
                continue;
            }
            reals.retain(|real| stays(Object::Real(Target { vip: vip.clone(), real: real.clone() })));
        }
        self.held.reals.retain(|vip, reals| published.assignments.contains_key(vip) && !reals.is_empty());
        if self.held != before {
            // Somebody is restoring it: what else vanishes meanwhile waits.
            self.last = now;
        }
    }

    fn is_held(&self, object: &Object) -> bool {
        match object {
            Object::Vip(vip) => self.held.vips.contains(vip),
            Object::Real(target) => {
                self.held.reals.get(&target.vip).is_some_and(|reals| reals.contains(&target.real))
            }
            Object::Node(node) => self.held.nodes.contains(node),
        }
    }

    /// Judges what is missing for long enough, together with all that vanished lately and all that is held.
    fn judge(&mut self, view: &View, published: &Published, now: Duration) {
        let wait = if self.lately.len() > 1 { QUIET } else { ALONE };
        if now < self.last + wait {
            return;
        }
        let due = |fate: &Fate| match fate {
            Fate::Missing { since, .. } => (*since + ALONE <= now).then_some(*since),
            Fate::Returned | Fate::Judged => None,
        };
        let due: BTreeMap<Object, Duration> =
            self.lately.iter().filter_map(|(object, fate)| Some((object.clone(), due(fate)?))).collect();
        if due.is_empty() {
            return;
        }
        let suspects = suspects(&self.losses(view, published));
        for (object, since) in due {
            let is_suspect = suspects.all
                || match &object {
                    Object::Vip(_) => suspects.vips,
                    Object::Real(target) => suspects.reals.contains(&target.vip),
                    Object::Node(_) => suspects.nodes,
                };
            self.lately.insert(object.clone(), Fate::Judged);
            match (is_suspect, object) {
                (false, object) => drop(self.may_go.insert(object, Going { since, is_meant: false })),
                (true, Object::Vip(vip)) => drop(self.held.vips.insert(vip)),
                (true, Object::Node(node)) => drop(self.held.nodes.insert(node)),
                (true, Object::Real(Target { vip, real })) => {
                    self.held.reals.entry(vip).or_default().insert(real);
                }
            }
        }
    }

    /// Returns what there was, and what of it vanished lately or is held.
    fn losses(&self, view: &View, published: &Published) -> Losses {
        let mut lost_vips = self.held.vips.clone();
        let mut lost_nodes = self.held.nodes.clone();
        let mut lost_reals = self.held.reals.clone();
        for object in self.lately.keys() {
            match object.clone() {
                Object::Vip(vip) => drop(lost_vips.insert(vip)),
                Object::Node(node) => drop(lost_nodes.insert(node)),
                Object::Real(Target { vip, real }) => drop(lost_reals.entry(vip).or_default().insert(real)),
            }
        }
        let loss = |lost: usize, others: usize| Loss { lost, of: lost + others };
        let others = published.assignments.keys().filter(|vip| !lost_vips.contains(*vip)).count();
        let nodes = published.head.iter().flat_map(|head| &head.nodes);
        let mut losses = Losses {
            vips: loss(lost_vips.len(), others),
            nodes: loss(lost_nodes.len(), nodes.filter(|node| !lost_nodes.contains(*node)).count()),
            ..Losses::default()
        };
        for (vip, current) in &published.assignments {
            let nothing = BTreeSet::new();
            let lost = lost_reals.get(vip).unwrap_or(&nothing);
            let of_vip = match lost_vips.contains(vip) && !view.vips.contains_key(vip) {
                true => loss(current.reals.len(), 0),
                false => {
                    let others = current.reals.keys().filter(|real| !lost.contains(*real)).count();
                    loss(lost.len(), others)
                }
            };
            losses.reals.insert(vip.clone(), of_vip);
            if view.vips.get(vip).is_some_and(|wish| empties(vip, current, wish, view)) {
                losses.emptied.insert(vip.clone());
            }
        }
        losses
    }
}

/// Returns whether a real's agent said that it would end, and there is somebody else to take connections.
fn took_leave(current: &Assignment, wish: &VipFound, real: &RealName) -> bool {
    let leaves = |real: &RealName| current.reals.get(real).is_some_and(Registrant::is_leaving);
    let is_used = current.weights.contains_key(real);
    let others = || current.weights.keys().any(|other| wish.reals.contains_key(other));
    leaves(real) && (!is_used || others())
}

/// Returns whether a VIP that takes connections would have nothing left that does.
fn empties(name: &VipName, current: &Assignment, wish: &VipFound, view: &View) -> bool {
    let is_usable = |real: &RealName| {
        let record = wish.reals.get(real).and_then(|found| found.settled().ok());
        let record = record.as_ref().or(current.reals.get(real));
        let drained = view.drains.contains(&Target { vip: name.clone(), real: real.clone() });
        record.is_some_and(|record| record.weight > 0 && !Registrant::is_leaving(record)) && !drained
    };
    !current.weights.is_empty()
        && !current.weights.keys().any(|real| wish.reals.contains_key(real))
        && !wish.reals.keys().any(is_usable)
}
