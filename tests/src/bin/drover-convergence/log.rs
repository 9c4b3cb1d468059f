//! What happened when: nodes and their sessions tell, measurements wait for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use drover_tests::interrupt;
use zk_schema::VipName;
use zk_schema::tree::{Assignment, Head, Target};

/// How often a wait looks whether the run has been interrupted.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// (term, epoch) of a decision.
pub(crate) type Order = (u64, u64);

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A leader wrote a decision, or part of one.
    Decided(Box<Decision>),
    /// A node wrote which reals it finds down.
    Voted { node: usize, down: BTreeSet<Target>, began: Instant },
    /// A node is there.
    Registered { node: usize, at: Instant },
    /// A node has a decision, complete.
    Knows { node: usize, order: Order, at: Instant },
    /// A node has a decision in force.
    Applied { node: usize, order: Order, at: Instant },
    /// A node leads, or no longer does.
    Leads { node: usize, term: Option<u64>, at: Instant },
}

/// A commit of a leader's.
#[derive(Debug)]
pub(crate) struct Decision {
    /// When it was sent.
    pub(crate) began: Instant,
    /// When a server said that it is done.
    pub(crate) acknowledged: Instant,
    /// The head, if it is in this commit.
    pub(crate) head: Option<Head>,
    /// The assignments in it.
    pub(crate) changed: Vec<(VipName, Assignment)>,
}

/// How things stand, and what happened since the last [`Log::begin`].
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) events: Vec<Event>,
    pub(crate) nodes: BTreeMap<usize, Node>,
    pub(crate) head: Option<Head>,
    pub(crate) assignments: BTreeMap<VipName, Assignment>,
}

/// A node that runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Node {
    pub(crate) registered: bool,
    pub(crate) applied: Order,
    pub(crate) leads: bool,
}

/// Collects events.
#[derive(Debug, Default)]
pub(crate) struct Log {
    seen: Mutex<Seen>,
    changed: Condvar,
}

impl Log {
    fn locked(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of an event.
    pub(crate) fn note(&self, event: Event) {
        let mut seen = self.locked();
        match &event {
            Event::Decided(decision) => {
                seen.assignments.extend(decision.changed.iter().cloned());
                if let Some(head) = &decision.head {
                    seen.assignments.retain(|vip, _| head.vips.contains_key(vip));
                    seen.head = Some(head.clone());
                }
            }
            Event::Registered { node, .. } => seen.node(*node, |node| node.registered = true),
            Event::Applied { node, order, .. } => seen.node(*node, |node| node.applied = *order),
            Event::Leads { node, term, .. } => seen.node(*node, |node| node.leads = term.is_some()),
            Event::Voted { .. } | Event::Knows { .. } => {}
        }
        seen.events.push(event);
        self.changed.notify_all();
    }

    /// Counts a node among those that run. What it did in an earlier life is forgotten.
    pub(crate) fn enter(&self, node: usize) {
        self.locked().nodes.insert(node, Node::default());
    }

    /// Counts a node no longer.
    pub(crate) fn leave(&self, node: usize) {
        self.locked().nodes.remove(&node);
    }

    /// Forgets all that happened, not how things stand.
    pub(crate) fn begin(&self) {
        self.locked().events.clear();
    }

    /// How things stand.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.locked())
    }

    /// Waits until `find` finds something.
    ///
    /// # Errors
    ///
    /// When it does not in `limit`, or the run is interrupted.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut find: impl FnMut(&Seen) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut seen = self.locked();
        loop {
            if let Some(found) = find(&seen) {
                return Ok(found);
            }
            interrupt::check()?;
            if Instant::now() > deadline {
                let orders: BTreeSet<Order> = seen.nodes.values().map(|node| node.applied).collect();
                let there = seen.nodes.values().filter(|node| node.registered).count();
                bail!(
                    "waited {limit:?} for {what}; {there} of {} nodes are registered, decisions in force are {orders:?}, \
                     the last one written is {:?}",
                    seen.nodes.len(),
                    seen.head.as_ref().map(Head::order)
                );
            }
            seen = self.changed.wait_timeout(seen, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Seen {
    fn node(&mut self, node: usize, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(&node) {
            change(node);
        }
    }

    /// The commits of leaders since [`Log::begin`].
    pub(crate) fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.events.iter().filter_map(|event| match event {
            Event::Decided(decision) => Some(&**decision),
            _ => None,
        })
    }

    /// The first commit with a head that brings a VIP an assignment for which `wanted` holds.
    pub(crate) fn decision(&self, wanted: impl Fn(&Assignment) -> bool) -> Option<(Order, &Decision)> {
        self.decisions().find_map(|decision| {
            let order = decision.head.as_ref()?.order();
            decision.changed.iter().any(|(_, assignment)| wanted(assignment)).then_some((order, decision))
        })
    }

    /// When the last node knew the decision `order`, or a later one; `None` until then.
    pub(crate) fn known_by_all(&self, order: Order) -> Option<Instant> {
        self.by_all(|event| match event {
            Event::Knows { node, order: known, at } if *known >= order => Some((*node, *at)),
            _ => None,
        })
    }

    /// When the last node had the decision `order`, or a later one, in force; `None` until then.
    pub(crate) fn applied_by_all(&self, order: Order) -> Option<Instant> {
        self.by_all(|event| match event {
            Event::Applied { node, order: applied, at } if *applied >= order => Some((*node, *at)),
            _ => None,
        })
    }

    fn by_all(&self, is_such: impl Fn(&Event) -> Option<(usize, Instant)>) -> Option<Instant> {
        let mut first = BTreeMap::new();
        for (node, at) in self.events.iter().filter_map(is_such) {
            first.entry(node).or_insert(at);
        }
        let all = self.nodes.keys().map(|node| first.get(node).copied());
        all.collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}
