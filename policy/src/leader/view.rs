//! The leader's view: the tree, parsed.

use super::hidden::{self, Hidden};
use super::is_listed;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zk_schema::tree::{
    Applied, Assignment, Contents, Decided, Flag, Head, Member, Place, Registrant, Stat, StateRecord, Target,
    Vote, Znode, bound, is_plausible, paths,
};
use zk_schema::{Cluster, NodeName, Real, RealName, Vip, VipName, from_json};

/// The part of the tree that others write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The cluster's record, if there is one, or what is wrong with it.
    pub cluster: Option<Result<Cluster, String>>,
    /// The operators' records.
    pub wishes: BTreeMap<VipName, Arc<Wish>>,
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
    /// The time at which the first of the flags that count ceases to, in seconds since 1970, if one does.
    pub until: Option<u64>,
    /// Problems of what could not be read, other than the operators' VIPs and reals.
    pub problems: BTreeSet<String>,
    /// Lists that could not be read.
    pub hidden: Hidden,
}

/// A VIP as operators wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Its record, or what is wrong with it.
    pub vip: Result<Vip, String>,
    /// Its reals, or what is wrong with them.
    pub reals: BTreeMap<RealName, Result<Real, String>>,
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
    /// Parses the tree's `contents` at `now`, in seconds since 1970.
    #[must_use]
    pub fn parse(contents: &Arc<Contents>, now: u64) -> Self {
        let mut reading = Reading::default();
        reading.follow(contents, now);
        reading.view
    }
}

/// A [`View`] that follows the tree: only what changed in it is parsed.
///
/// Whatever was read before, what [`Reading::follow`] leads to is what [`View::parse`] gives.
#[derive(Debug, Default)]
pub struct Reading {
    view: View,
    /// The tree that it was read from.
    contents: Arc<Contents>,
    /// Problems of what could not be read, by path.
    problems: BTreeMap<String, String>,
    parsed: u64,
}

impl Reading {
    /// Returns the view that was read.
    #[must_use]
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// Returns the number of records parsed so far: a measure of its work.
    #[must_use]
    pub const fn parsed(&self) -> u64 {
        self.parsed
    }

    /// Reads what differs in `contents` from what was read last, at `now`, in seconds since 1970.
    pub fn follow(&mut self, contents: &Arc<Contents>, now: u64) {
        let flags_end = self.view.until.is_some_and(|end| now >= end);
        if Arc::ptr_eq(&self.contents, contents) && !flags_end {
            return;
        }
        let before = std::mem::replace(&mut self.contents, Arc::clone(contents));
        // In order: a VIP before its reals.
        let mut changed: BTreeSet<String> = contents.changed_since(&before).into_iter().collect();
        let hidden_changed = hidden::changed(contents, &before);
        self.view.hidden = match hidden_changed.is_empty() {
            true => std::mem::take(&mut self.view.hidden),
            false => Hidden::of(&contents.unreadable),
        };
        changed.extend(hidden_changed);
        // The reals of a VIP that came may have been there before it: what is seen of two znodes may be of different
        // moments.
        let came: Vec<&String> =
            changed.iter().filter(|path| is_vip(path) && before.get(path).is_none()).collect();
        let reals: Vec<String> = came
            .into_iter()
            .map(|vip| format!("{vip}/reals"))
            .flat_map(|reals| contents.children(&reals).map(move |(real, _)| format!("{reals}/{real}")))
            .collect();
        changed.extend(reals);
        let mut has_flags = flags_end;
        let mut news = false;
        for path in &changed {
            let parts: Vec<&str> = path.split('/').skip(2).collect();
            let znode = contents.get(path);
            let data = znode.map(|znode| znode.data.as_slice());
            let problem = match parts[..] {
                ["ops", ..] => {
                    has_flags = true;
                    continue;
                }
                _ if contents.unreadable.contains_key(path) => {
                    hidden::hide(&mut self.view, &parts, &contents.unreadable[path])
                }
                [] => {
                    self.parsed += 1;
                    let mut record: Option<Result<Cluster, String>> =
                        data.map(|data| from_json(data).map_err(|error| error.to_string()));
                    let bounded = match &mut record {
                        Some(Ok(record)) => bound(&mut record.extra).map_err(|error| error.to_string()),
                        _ => Ok(()),
                    };
                    self.view.cluster = record;
                    bounded
                }
                ["vips", vip] => self.vip(vip, data),
                ["vips", vip, "reals", real] => self.real(vip, real, znode),
                ["nodes", node] => self.node(node, data),
                ["applied", node] => self.of_node(node, data, |view| &mut view.applied, |applied| applied),
                ["health", node] => self.of_node(node, data, |view| &mut view.votes, Arc::new),
                ["election", _] => match znode.map(|znode| Place::of(path, Stat::from(&**znode), data)) {
                    None | Some(Ok(_)) => Ok(()),
                    Some(Err(why)) => Err(format!("{why}; nobody waits for it: `delete` it")),
                },
                _ => Ok(()),
            };
            news |= match problem {
                Ok(()) => self.problems.remove(path).is_some(),
                Err(problem) => self.problems.insert(path.clone(), problem.clone()) != Some(problem),
            };
        }
        if has_flags {
            news |= self.flags(now);
        }
        if news {
            let problems = self.problems.iter();
            self.view.problems = problems.map(|(path, problem)| format!("{path}: {problem}")).collect();
        }
    }

    fn vip(&mut self, vip: &str, data: Option<&[u8]>) -> Result<(), String> {
        let Some(data) = data else {
            self.view.wishes.remove(vip);
            return Ok(());
        };
        let name: VipName = vip.parse().map_err(in_words)?;
        self.parsed += 1;
        let mut record: Result<Vip, String> = from_json(data).map_err(|error| error.to_string());
        let bounded = record.as_mut().map(|record| bound(&mut record.extra)).unwrap_or(Ok(()));
        match self.view.wishes.get_mut(&name) {
            Some(wish) => Arc::make_mut(wish).vip = record,
            None => {
                let wish = Wish { vip: record, reals: BTreeMap::new() };
                self.view.wishes.insert(name, Arc::new(wish));
            }
        }
        bounded.map_err(|error| error.to_string())
    }

    fn real(&mut self, vip: &str, real: &str, znode: Option<&Arc<Znode>>) -> Result<(), String> {
        let wish = self.view.wishes.get_mut(vip);
        let Some(znode) = znode else {
            if let Some(wish) = wish
                && wish.reals.contains_key(real)
            {
                Arc::make_mut(wish).reals.remove(real);
            }
            return Ok(());
        };
        let _: VipName = vip.parse().map_err(in_words)?;
        let name: RealName = real.parse().map_err(in_words)?;
        self.parsed += 1;
        let mut record: Result<Real, String> = from_json(&znode.data).map_err(|error| error.to_string());
        let is_ephemeral = znode.owner.is_some();
        let settled =
            record.as_mut().map(|record| Registrant::settle(record, is_ephemeral)).unwrap_or(Ok(()));
        if let Some(wish) = wish {
            // Unchanged where only who wrote it changed.
            if wish.reals.get(&name) != Some(&record) {
                Arc::make_mut(wish).reals.insert(name, record);
            }
        }
        settled.map_err(|error| error.to_string())
    }

    fn node(&mut self, node: &str, data: Option<&[u8]>) -> Result<(), String> {
        self.view.nodes.remove(node);
        let Some(data) = data else { return Ok(()) };
        self.parsed += 1;
        Member::parse(data).map_err(|error| error.to_string())?;
        self.view.nodes.insert(node.parse().map_err(in_words)?);
        Ok(())
    }

    /// Reads what a node wrote of itself.
    fn of_node<T: StateRecord, V>(
        &mut self,
        node: &str,
        data: Option<&[u8]>,
        place: fn(&mut View) -> &mut BTreeMap<NodeName, V>,
        kept: impl Fn(T) -> V,
    ) -> Result<(), String> {
        let place = place(&mut self.view);
        place.remove(node);
        let Some(data) = data else { return Ok(()) };
        self.parsed += 1;
        let name: NodeName = node.parse().map_err(in_words)?;
        place.insert(name, kept(T::parse(data).map_err(|error| error.to_string())?));
        Ok(())
    }

    /// Reads all flags: they are few, and until when they count depends on all of them. Returns whether what is wrong
    /// with them changed.
    fn flags(&mut self, now: u64) -> bool {
        let contents = Arc::clone(&self.contents);
        self.view.until = None;
        self.view.frozen = contents.get(paths::FREEZE).is_some_and(|znode| self.flag(&znode.data, now));
        let before: BTreeMap<String, String> =
            self.problems.extract_if(paths::OPS.to_owned().., |path, _| path.starts_with(FLAGS)).collect();
        let mut problems = BTreeMap::new();
        self.view.drains.clear();
        for (real, znode) in contents.children(paths::DRAIN) {
            let counts = self.flag(&znode.data, now);
            match real.replacen('.', "/", 1).parse() {
                Ok(target) => drop(counts.then(|| self.view.drains.insert(target))),
                Err(problem) => drop(problems.insert(format!("{}/{real}", paths::DRAIN), problem)),
            }
        }
        // A flag is meant, whatever it holds; but what lets things go must be read.
        let hidden = contents.unreadable.iter().filter(|(path, _)| path.starts_with(FLAGS));
        for (path, why) in hidden {
            self.view.frozen |= path == paths::FREEZE;
            let real = path.strip_prefix(paths::DRAIN).and_then(|rest| rest.strip_prefix('/'));
            self.view.drains.extend(real.and_then(|real| real.replacen('.', "/", 1).parse::<Target>().ok()));
            problems.insert(path.clone(), why.clone());
        }
        self.view.confirmed.clear();
        (self.view.confirmed_vips, self.view.confirmed_nodes) = (false, false);
        for (name, znode) in contents.children(paths::CONFIRM) {
            let is_hidden = contents.unreadable.contains_key(&format!("{}/{name}", paths::CONFIRM));
            if is_hidden || !self.flag(&znode.data, now) {
                continue;
            }
            match name {
                "_vips" => self.view.confirmed_vips = true,
                "_nodes" => self.view.confirmed_nodes = true,
                vip => match vip.parse() {
                    Ok(vip) => drop(self.view.confirmed.insert(vip)),
                    Err(problem) => {
                        problems.insert(format!("{}/{vip}", paths::CONFIRM), in_words(problem));
                    }
                },
            }
        }
        let news = before != problems;
        self.problems.extend(problems);
        news
    }

    /// Returns whether a flag counts.
    fn flag(&mut self, data: &[u8], now: u64) -> bool {
        self.parsed += 1;
        let flag = Flag::read(data);
        let counts = flag.counts(now);
        if counts {
            self.view.until = self.view.until.into_iter().chain(flag.until).min();
        }
        counts
    }
}

/// The path of the flags.
const FLAGS: &str = "/drover/ops/";

/// Returns whether this is the place of a VIP's record.
fn is_vip(path: &str) -> bool {
    path.strip_prefix(paths::VIPS)
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(|vip| !vip.contains('/'))
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

fn in_words(error: zk_schema::NameError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
