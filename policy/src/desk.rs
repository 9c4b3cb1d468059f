//! A leader's turn: what the tree holds comes in, what is to be written goes out. Pure: time is an argument.
//!
//! A leader takes a turn at every change of the tree and every 200 ms. What a turn costs follows from what changed since
//! the last one, not from the size of the cluster: `cargo xtask bench leader` measures it, [`Work`] counts it.

use crate::leader::{Leader, Publication, Reading, View};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use zk_schema::tree::{Assignment, Contents, Head, StateRecord as _, Znode, paths};
use zk_schema::{NodeName, RecordError, VipName};

/// Time that a leader gives its own writes to come back to it before it takes what it sees for somebody else's.
const ECHO: Duration = Duration::from_secs(3);
/// Time that a node must have been away until what it had in force is deleted.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A leadership, and the tree as it was last read.
#[derive(Debug)]
pub struct Desk {
    leader: Leader,
    reading: Reading,
    contents: Arc<Contents>,
    /// VIPs whose assignments somebody else overwrote, or which were lost.
    damaged: BTreeSet<VipName>,
    /// From then on the tree is compared with what was written.
    echoed_by: Duration,
    /// The contents that were compared last, and the epoch of what they were compared with.
    compared: Option<(Arc<Contents>, u64)>,
    digests: Digests,
    /// Nodes that left something in the tree and are not there, and since when.
    gone: BTreeMap<NodeName, Duration>,
}

/// The work done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Records parsed.
    pub parsed: u64,
    /// Assignments and heads in the tree compared with what was written.
    pub compared: u64,
}

impl Desk {
    /// The desk of `leader`, who finds `contents` at `now`, `wall` seconds since 1970, and the assignments of `damaged`
    /// VIPs lost.
    #[must_use]
    pub fn new(
        leader: Leader,
        contents: Arc<Contents>,
        damaged: BTreeSet<VipName>,
        wall: u64,
        now: Duration,
    ) -> Self {
        let mut reading = Reading::default();
        reading.follow(&contents, wall);
        Self {
            leader,
            reading,
            contents,
            damaged,
            echoed_by: now + ECHO,
            compared: None,
            digests: Digests::default(),
            gone: BTreeMap::new(),
        }
    }

    /// The leader.
    #[must_use]
    pub const fn leader(&self) -> &Leader {
        &self.leader
    }

    /// The tree as it was last read.
    #[must_use]
    pub const fn view(&self) -> &View {
        self.reading.view()
    }

    /// The work done so far.
    #[must_use]
    pub const fn work(&self) -> Work {
        Work { parsed: self.reading.parsed(), compared: self.digests.compared }
    }

    /// Reads what changed, at `now`, `wall` seconds since 1970.
    pub fn look(&mut self, contents: &Arc<Contents>, wall: u64, now: Duration) {
        self.reading.follow(contents, wall);
        self.contents = Arc::clone(contents);
        if now > self.echoed_by {
            self.compare();
        }
    }

    /// Decides at `now` what is to be written; `None`: nothing.
    ///
    /// # Errors
    /// See [`Leader::decide`].
    pub fn decide(&mut self, now: Duration) -> Result<Option<Publication>, RecordError> {
        self.leader.decide(self.reading.view(), &self.damaged, now)
    }

    /// Takes note that `publication` has been written.
    pub fn published(&mut self, publication: Publication, now: Duration) {
        self.leader.published(publication, now);
        self.damaged.clear();
        self.echoed_by = now + ECHO;
    }

    /// A node that has not been there for so long that what it had in force is of no interest any more.
    pub fn long_gone(&mut self, now: Duration) -> Option<NodeName> {
        let view = self.reading.view();
        self.gone.retain(|node, _| view.applied.contains_key(node) && !view.nodes.contains(node));
        for node in view.applied.keys().filter(|node| !view.nodes.contains(*node)) {
            if !self.gone.contains_key(node) {
                self.gone.insert(node.clone(), now);
            }
        }
        let old = self.gone.iter().find(|(_, since)| now >= **since + FORGET_AFTER)?.0.clone();
        self.gone.remove(&old);
        Some(old)
    }

    /// Notes assignments that are not as this leader wrote them; with the head, all of them.
    fn compare(&mut self) {
        let Some(head) = &self.leader.in_force().head else { return };
        if head.term != self.leader.term() {
            return;
        }
        let is_compared = self
            .compared
            .as_ref()
            .is_some_and(|(contents, epoch)| Arc::ptr_eq(contents, &self.contents) && *epoch == head.epoch);
        // What was found then is either noted still or has been written anew since.
        if is_compared {
            return;
        }
        let is_own = self.digests.is(self.contents.get(paths::ASSIGNMENTS), head);
        for (name, entry) in &head.vips {
            let znode = self.contents.get(&paths::assignment(name));
            // What nobody may read is of no use to anybody who does not have it yet.
            let is_hidden = self.contents.unreadable.contains_key(&paths::assignment(name));
            if is_hidden || !is_own || !self.digests.has(name, znode, &entry.digest) {
                self.damaged.insert(name.clone());
            }
        }
        self.digests.of.retain(|name, _| head.vips.contains_key(name));
        self.compared = Some((Arc::clone(&self.contents), head.epoch));
    }
}

/// Znodes that were looked at before.
#[derive(Debug, Default)]
struct Digests {
    of: BTreeMap<VipName, (Arc<Znode>, String)>,
    head: Option<(Arc<Znode>, Option<Head>)>,
    compared: u64,
}

impl Digests {
    /// Returns whether a VIP's assignment has this digest.
    fn has(&mut self, name: &VipName, znode: Option<&Arc<Znode>>, digest: &str) -> bool {
        let Some(znode) = znode else { return false };
        match self.of.get(name) {
            Some((known, found)) if Arc::ptr_eq(known, znode) => found == digest,
            _ => {
                self.compared += 1;
                let found = Assignment::digest(&znode.data);
                let is_right = found == digest;
                self.of.insert(name.clone(), (Arc::clone(znode), found));
                is_right
            }
        }
    }

    /// Returns whether the head in the tree is this one.
    fn is(&mut self, znode: Option<&Arc<Znode>>, head: &Head) -> bool {
        let Some(znode) = znode else { return false };
        if !self.head.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, znode)) {
            self.compared += 1;
            self.head = Some((Arc::clone(znode), Head::parse(&znode.data).ok()));
        }
        self.head.as_ref().is_some_and(|(_, found)| found.as_ref() == Some(head))
    }
}

#[cfg(test)]
mod tests;
