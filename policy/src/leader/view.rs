//! A leader's view: what counts in the tree at a moment. And the records that leaders have written.

use super::is_listed;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zk_schema::picture::{Follower, Found, Hidden, Picture, VipFound};
use zk_schema::tree::{
    Applied, Assignment, Contents, Decided, Flag, Head, StateRecord, Target, Vote, is_plausible, paths,
};
use zk_schema::{Cluster, NodeName, VipName};

/// The part of a [`Picture`] that counts at a moment: sound records of nodes that are there, and flags that have not
/// ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The cluster's record, if there is one, or what is wrong with it.
    pub cluster: Option<Result<Cluster, String>>,
    /// VIPs as operators wrote them.
    pub vips: BTreeMap<VipName, Arc<VipFound>>,
    /// Nodes that are there.
    pub nodes: BTreeSet<NodeName>,
    /// Their votes.
    pub votes: BTreeMap<NodeName, Arc<Vote>>,
    /// The heads that they have in force.
    pub applied: BTreeMap<NodeName, Applied>,
    /// Reals that are to get no new connections.
    pub drains: BTreeSet<Target>,
    /// Nothing is to change.
    pub frozen: bool,
    /// VIPs of which a suspect change is confirmed.
    pub confirmed: BTreeSet<VipName>,
    /// Most VIPs may go.
    pub confirmed_vips: bool,
    /// Most nodes may go.
    pub confirmed_nodes: bool,
    /// When the first of the flags that count ceases to, in seconds since 1970, if one does.
    pub until: Option<u64>,
    /// What could not be read, other than the operators' VIPs and reals.
    pub problems: BTreeSet<String>,
    /// Lists that could not be read.
    pub hidden: Hidden,
}

/// The records that leaders have written so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Published {
    /// The head.
    pub head: Option<Head>,
    /// Assignments by VIP.
    pub assignments: BTreeMap<VipName, Arc<Assignment>>,
}

/// The patterns of the znodes that a [`View`] is read from.
pub const PATTERNS: [&str; 12] = [
    paths::CLUSTER,
    "/drover/vips/*",
    "/drover/vips/*/reals/*",
    "/drover/nodes/*",
    "/drover/applied/*",
    "/drover/health/*",
    "/drover/ops/drain/*",
    paths::FREEZE,
    "/drover/ops/confirm/*",
    "/drover/assignments",
    "/drover/assignments/*",
    "/drover/election/*",
];

impl View {
    /// Returns what counts of `picture` at `now`, in seconds since 1970.
    #[must_use]
    pub fn of(picture: &Picture, now: u64) -> Self {
        let flags = &picture.flags;
        let all = flags.drain.values().chain(&flags.freeze).chain(flags.confirm.values());
        let until = all.filter(|flag| flag.counts(now)).filter_map(|flag| flag.until).min();
        let confirmed = counting(&flags.confirm, now);
        let sound = picture.nodes.iter().filter(|(_, found)| found.record.is_ok());
        Self {
            cluster: picture.cluster.as_ref().map(Found::<Cluster>::settled),
            vips: picture.vips.clone(),
            // Of a node that may not be read, the name is what counts.
            nodes: sound.map(|(node, _)| node).chain(&picture.hidden.nodes).cloned().collect(),
            votes: records(&picture.health),
            applied: records(&picture.applied),
            drains: counting(&flags.drain, now),
            frozen: flags.freeze.as_ref().is_some_and(|flag| flag.counts(now)),
            confirmed_vips: confirmed.contains(paths::name(paths::CONFIRM_VIPS)),
            confirmed_nodes: confirmed.contains(paths::name(paths::CONFIRM_NODES)),
            confirmed: confirmed.iter().filter_map(|name| name.parse().ok()).collect(),
            until,
            problems: picture.faults.iter().map(|(path, fault)| format!("{path}: {fault}")).collect(),
            hidden: picture.hidden.clone(),
        }
    }

    /// Returns the reason why nothing can be decided on this view, if there is one; `decided_before` tells whether
    /// anything has been.
    #[must_use]
    pub fn blind(&self, decided_before: bool) -> Option<String> {
        let no_cluster = match &self.cluster {
            Some(Ok(_)) => None,
            Some(Err(problem)) => Some(problem.as_str()),
            None => Some("no such znode"),
        };
        let no_cluster = no_cluster.filter(|_| !decided_before);
        self.hidden.essential.clone().or_else(|| Some(format!("{}: {}", paths::CLUSTER, no_cluster?)))
    }
}

/// The flags that count at `now`, in seconds since 1970.
fn counting<K: Ord + Clone>(flags: &BTreeMap<K, Flag>, now: u64) -> BTreeSet<K> {
    flags.iter().filter(|(_, flag)| flag.counts(now)).map(|(key, _)| key.clone()).collect()
}

fn records<T: Clone>(found: &BTreeMap<NodeName, Found<T>>) -> BTreeMap<NodeName, T> {
    found.iter().filter_map(|(node, found)| Some((node.clone(), found.ok()?.clone()))).collect()
}

/// A [`View`] that follows the tree: only what changed in it is parsed.
#[derive(Debug, Default)]
pub struct Reading {
    tree: Follower,
    view: View,
}

impl Reading {
    /// Returns the view.
    #[must_use]
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// Returns the number of records parsed so far: a measure of its work.
    #[must_use]
    pub const fn parsed(&self) -> u64 {
        self.tree.parsed()
    }

    /// Reads what differs in `contents` from what was read last, at `now`, in seconds since 1970.
    pub fn follow(&mut self, contents: &Arc<Contents>, now: u64) {
        let flags_end = self.view.until.is_some_and(|end| now >= end);
        if self.tree.follow(contents) || flags_end {
            self.view = View::of(self.tree.picture(), now);
        }
    }
}

impl Published {
    /// Parses what leaders have written. What cannot be read is missing, and will be written anew.
    #[must_use]
    pub fn parse(contents: &Contents) -> Self {
        let mut published = Self::default();
        if let Some(head) = contents.get(paths::ASSIGNMENTS) {
            published.head = Head::parse(&head.data).ok().filter(|head| is_plausible(head.order()));
        }
        for (name, znode) in contents.children(paths::ASSIGNMENTS) {
            if let Ok(name) = name.parse()
                && let Ok(assignment) = Assignment::parse(&znode.data)
                && is_plausible((assignment.term, assignment.epoch))
            {
                published.assignments.insert(name, Arc::new(assignment));
            }
        }
        published
    }

    /// Takes what is missing or damaged in the tree from what this node has `known` of it; returns the VIPs whose
    /// assignments are to be written anew.
    ///
    /// What is newer than the head was written by a predecessor that ended before it wrote the head, and stays.
    pub fn complete(&mut self, known: Option<&Decided>) -> BTreeSet<VipName> {
        let Some(known) = known else { return BTreeSet::new() };
        let head = self.head.get_or_insert_with(|| known.head.clone());
        let mut completed = BTreeSet::new();
        for (name, entry) in &head.vips {
            let Some(last) = known.assignments.get(name) else { continue };
            let is_right =
                |assignment: &Assignment| assignment.epoch > head.epoch || is_listed(head, name, assignment);
            let is_lost = match self.assignments.get(name) {
                None => true,
                Some(there) => !is_right(there) && known.head.vips.get(name) == Some(entry),
            };
            if is_lost {
                self.assignments.insert(name.clone(), Arc::clone(last));
                completed.insert(name.clone());
            }
        }
        completed
    }

    /// The greatest epoch that any record bears; 0 if there is none.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        let assignments = self.assignments.values().map(|assignment| assignment.epoch);
        assignments.chain(self.head.iter().map(|head| head.epoch)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zk_schema::tree::Znode;

    #[test]
    fn flags_count_until_they_end_and_are_not_read_again_for_that() {
        let mut contents = Contents::default();
        for (path, data) in
            [("/drover/ops/drain/a.one", r#"{"until":100}"#), (paths::FREEZE, r#"{"until":200}"#)]
        {
            let znode = Znode { data: data.into(), version: 0, created: 0, modified: 0, owner: None };
            contents.insert(path, Arc::new(znode));
        }
        let (contents, mut reading) = (Arc::new(contents), Reading::default());
        let mut seen = |now| {
            reading.follow(&contents, now);
            let view = reading.view();
            (view.drains.len(), view.frozen, view.until, reading.parsed())
        };
        assert_eq!(seen(0), (1, true, Some(100), 2));
        assert_eq!(seen(99), (1, true, Some(100), 2));
        assert_eq!(seen(100), (0, true, Some(200), 2));
        assert_eq!(seen(300), (0, false, None, 2));
    }
}
