//! What a leader sees: the tree, parsed.

use super::is_listed;
use coordination::Contents;
use coordination::follow::Decided;
use std::collections::{BTreeMap, BTreeSet};
use zk_schema::tree::{
    Applied, Assignment, Flag, Head, Member, Registrant, StateRecord, Target, Vote, bound, is_plausible,
    paths,
};
use zk_schema::{Cluster, NodeName, Real, RealName, Vip, VipName, from_json};

/// The part of the tree that others write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The cluster's record, if there is one, or what is wrong with it.
    pub cluster: Option<Result<Cluster, String>>,
    /// What operators ask for.
    pub wishes: BTreeMap<VipName, Wish>,
    /// Nodes that are there.
    pub nodes: BTreeSet<NodeName>,
    /// What they find.
    pub votes: BTreeMap<NodeName, Vote>,
    /// What they have in force.
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
}

/// A VIP as operators wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Its record, or what is wrong with it.
    pub vip: Result<Vip, String>,
    /// Its reals, or what is wrong with them.
    pub reals: BTreeMap<RealName, Result<Real, String>>,
}

/// What leaders have written so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Published {
    /// The head.
    pub head: Option<Head>,
    /// Assignments by VIP.
    pub assignments: BTreeMap<VipName, Assignment>,
}

/// The patterns of the znodes that a [`View`] is read from.
pub const PATTERNS: [&str; 11] = [
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
];

impl View {
    /// Parses the tree's `contents` at `now`, in seconds since 1970.
    #[must_use]
    pub fn parse(contents: &Contents, now: u64) -> Self {
        let mut view = Self::default();
        for (path, znode) in &contents.znodes {
            let parts: Vec<&str> = path.split('/').skip(2).collect();
            let known = match parts[..] {
                [] => {
                    let mut record: Result<Cluster, String> =
                        from_json(&znode.data).map_err(|error| error.to_string());
                    let bounded = record.as_mut().map(|record| bound(&mut record.extra)).unwrap_or(Ok(()));
                    view.cluster = Some(record);
                    bounded.map_err(|error| error.to_string())
                }
                ["vips", vip] => view.vip(vip, &znode.data),
                ["vips", vip, "reals", real] => view.real(vip, real, &znode.data, znode.owner.is_some()),
                ["nodes", node] => {
                    Member::parse(&znode.data).map_err(|error| error.to_string()).and_then(|_| {
                        view.nodes.insert(node.parse().map_err(in_words)?);
                        Ok(())
                    })
                }
                ["applied", node] => insert(&mut view.applied, node, &znode.data),
                ["health", node] => insert(&mut view.votes, node, &znode.data),
                ["ops", "drain", real] => {
                    let counts = view.flag(&znode.data, now);
                    let target = real.replacen('.', "/", 1).parse();
                    target.map(|target| counts && view.drains.insert(target)).map(|_| ())
                }
                ["ops", "freeze"] => {
                    view.frozen = view.flag(&znode.data, now);
                    Ok(())
                }
                ["ops", "confirm", name] => {
                    let counts = view.flag(&znode.data, now);
                    match name {
                        _ if !counts => Ok(()),
                        "_vips" => {
                            view.confirmed_vips = true;
                            Ok(())
                        }
                        "_nodes" => {
                            view.confirmed_nodes = true;
                            Ok(())
                        }
                        vip => {
                            vip.parse().map(|vip| view.confirmed.insert(vip)).map(|_| ()).map_err(in_words)
                        }
                    }
                }
                _ => Ok(()),
            };
            if let Err(problem) = known {
                view.problems.insert(format!("{path}: {problem}"));
            }
        }
        view
    }

    /// Whether a flag counts.
    fn flag(&mut self, data: &[u8], now: u64) -> bool {
        let flag = Flag::read(data);
        let counts = flag.counts(now);
        if counts {
            self.until = self.until.into_iter().chain(flag.until).min();
        }
        counts
    }

    fn vip(&mut self, vip: &str, data: &[u8]) -> Result<(), String> {
        let name: VipName = vip.parse().map_err(in_words)?;
        let mut record: Result<Vip, String> = from_json(data).map_err(|error| error.to_string());
        let bounded = record.as_mut().map(|record| bound(&mut record.extra)).unwrap_or(Ok(()));
        match self.wishes.get_mut(&name) {
            Some(wish) => wish.vip = record,
            None => {
                self.wishes.insert(name, Wish { vip: record, reals: BTreeMap::new() });
            }
        }
        bounded.map_err(|error| error.to_string())
    }

    fn real(&mut self, vip: &str, real: &str, data: &[u8], is_ephemeral: bool) -> Result<(), String> {
        let name: VipName = vip.parse().map_err(in_words)?;
        let real: RealName = real.parse().map_err(in_words)?;
        let mut record: Result<Real, String> = from_json(data).map_err(|error| error.to_string());
        let settled =
            record.as_mut().map(|record| Registrant::settle(record, is_ephemeral)).unwrap_or(Ok(()));
        // A VIP's znode is read before those of its reals; if it is gone by now, so will they be.
        if let Some(wish) = self.wishes.get_mut(&name) {
            wish.reals.insert(real, record);
        }
        settled.map_err(|error| error.to_string())
    }
}

impl Published {
    /// Parses what leaders have written. What cannot be read is missing, and will be written anew.
    #[must_use]
    pub fn parse(contents: &Contents) -> Self {
        let mut published = Self::default();
        for (path, znode) in &contents.znodes {
            if path == paths::ASSIGNMENTS {
                published.head = Head::parse(&znode.data).ok().filter(|head| is_plausible(head.order()));
            } else if let Some(name) = path.strip_prefix("/drover/assignments/")
                && let Ok(name) = name.parse()
                && let Ok(assignment) = Assignment::parse(&znode.data)
                && is_plausible((assignment.term, assignment.epoch))
            {
                published.assignments.insert(name, assignment);
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
                self.assignments.insert(name.clone(), Assignment::clone(last));
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

fn insert<T: StateRecord>(into: &mut BTreeMap<NodeName, T>, node: &str, data: &[u8]) -> Result<(), String> {
    let name: NodeName = node.parse().map_err(in_words)?;
    into.insert(name, T::parse(data).map_err(|error| error.to_string())?);
    Ok(())
}

fn in_words(error: zk_schema::NameError) -> String {
    error.to_string()
}
