//! The tree parsed once: all that operators, nodes and agents write in it, as the leader and `lbctl` see it.
//!
//! [`Picture::parse`] reads a tree whole. A [`Follower`] keeps a picture current and parses what changed: the leader
//! takes several turns a second at a tree of 100,000 znodes. VIPs are shared between pictures until they change.
//!
//! The records that leaders write are no part of it: a leader knows what it wrote, and must not parse it again each
//! time.

use crate::tree::{
    Applied, Contents, Flag, Load, Member, Place, Registrant, Stat, StateRecord, Target, Vote, Znode, bound,
    paths,
};
use crate::{Cluster, NodeName, Real, RealName, Vip, VipName, from_json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

/// The records that others than leaders have written in the tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picture {
    /// The cluster's record; `None` where there is none.
    pub cluster: Option<Found<Cluster>>,
    /// VIPs as operators wrote them, each with its reals.
    pub vips: BTreeMap<VipName, Arc<VipFound>>,
    /// Flags by which operators steer.
    pub flags: Flags,
    /// Nodes that are there.
    pub nodes: BTreeMap<NodeName, Found<Member>>,
    /// The head that each node has in force; nodes that have left are in it, too.
    pub applied: BTreeMap<NodeName, Found<Applied>>,
    /// Each node's votes.
    pub health: BTreeMap<NodeName, Found<Arc<Vote>>>,
    /// The load that reals tell of.
    pub loads: BTreeMap<Target, Found<Load>>,
    /// Problems elsewhere than in a record of a cluster, VIP or real, which tells that itself: by path, in words.
    pub faults: BTreeMap<String, String>,
    /// Lists that are there and cannot be read.
    pub hidden: Hidden,
}

/// A record and the znode that it was read from.
#[derive(Clone, Debug, PartialEq)]
pub struct Found<T> {
    /// The record, or why there is none: it is broken or may not be read.
    pub record: Result<T, String>,
    /// The znode as it is; without content where that may not be read.
    pub znode: Arc<Znode>,
}

/// A VIP as operators wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct VipFound {
    /// Its record.
    pub vip: Found<Vip>,
    /// Set if the parent of its reals is known to be there.
    pub has_reals: bool,
    /// Its reals.
    pub reals: BTreeMap<RealName, Found<Real>>,
}

/// Operators' flags, whether they count still or not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flags {
    /// Nodes out of service.
    pub maintenance: BTreeMap<NodeName, Flag>,
    /// Reals that are drained.
    pub drain: BTreeMap<Target, Flag>,
    /// The leader changes nothing.
    pub freeze: Option<Flag>,
    /// Suspect changes that are confirmed, by VIP, `_vips` or `_nodes`.
    pub confirm: BTreeMap<String, Flag>,
}

/// Lists and nodes that are there and cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// True if VIPs or reals may be there that are not seen.
    pub vips: bool,
    /// True if reals may be drained without that being seen.
    pub drains: bool,
    /// Nodes that are there, whose records cannot be read.
    pub nodes: BTreeSet<NodeName>,
    /// The first thing, in words, without which nothing can be decided.
    pub essential: Option<String>,
}

impl<T> Found<T> {
    /// The record, if it is one.
    pub fn ok(&self) -> Option<&T> {
        self.record.as_ref().ok()
    }

    /// Parses the content of a znode.
    pub fn parse<E: Display>(znode: &Arc<Znode>, parse: impl FnOnce(&[u8]) -> Result<T, E>) -> Self {
        Self { record: parse(&znode.data).map_err(|error| error.to_string()), znode: Arc::clone(znode) }
    }

    /// A record that may not be read for the reason `why`; of its znode at most version and owner are known.
    #[must_use]
    pub fn hidden(znode: Option<&Arc<Znode>>, why: &str) -> Self {
        Self { record: Err(why.to_owned()), znode: znode.cloned().unwrap_or_default() }
    }
}

impl Found<Real> {
    /// Returns the record as an assignment holds it.
    ///
    /// # Errors
    /// The record's problem, in words. That unknown fields were left out is none of it: [`Picture::faults`] tells that.
    pub fn settled(&self) -> Result<Real, String> {
        let mut record = self.record.clone()?;
        let _ = Registrant::settle(&mut record, self.znode.owner.is_some());
        Ok(record)
    }
}

impl Found<Vip> {
    /// Returns the record as an assignment holds it.
    ///
    /// # Errors
    /// As for a real's.
    pub fn settled(&self) -> Result<Vip, String> {
        let mut record = self.record.clone()?;
        let _ = bound(&mut record.extra);
        Ok(record)
    }
}

impl Found<Cluster> {
    /// Returns the record as a head holds it.
    ///
    /// # Errors
    /// As for a real's.
    pub fn settled(&self) -> Result<Cluster, String> {
        let mut record = self.record.clone()?;
        let _ = bound(&mut record.extra);
        Ok(record)
    }
}

impl Hidden {
    /// The lists and nodes among what is `unreadable`, by path.
    fn of(unreadable: &BTreeMap<String, String>) -> Self {
        let mut hidden = Self::default();
        for (path, why) in unreadable {
            match parts(path)[..] {
                ["vips"] | ["vips", _, "reals"] => hidden.vips = true,
                ["ops", "drain"] => hidden.drains = true,
                ["nodes", node] => hidden.nodes.extend(node.parse()),
                ["nodes" | "applied" | "health" | "assignments"] => {
                    hidden.essential.get_or_insert_with(|| format!("{path}: {why}"));
                }
                _ => {}
            }
        }
        hidden
    }
}

impl Picture {
    /// Parses the tree's `contents`.
    #[must_use]
    pub fn parse(contents: &Arc<Contents>) -> Self {
        let mut follower = Follower::default();
        follower.follow(contents);
        follower.picture
    }
}

/// A [`Picture`] that follows the tree: only what changed in it is parsed.
///
/// Whatever it read before, it comes to what [`Picture::parse`] gives.
#[derive(Debug, Default)]
pub struct Follower {
    picture: Picture,
    /// The tree that it was read from.
    contents: Arc<Contents>,
    parsed: u64,
}

impl Follower {
    /// The picture.
    #[must_use]
    pub const fn picture(&self) -> &Picture {
        &self.picture
    }

    /// Returns the number of records parsed so far: a measure of its work.
    #[must_use]
    pub const fn parsed(&self) -> u64 {
        self.parsed
    }

    /// Reads what differs in `contents` from what was read last. Returns whether anything does.
    pub fn follow(&mut self, contents: &Arc<Contents>) -> bool {
        if Arc::ptr_eq(&self.contents, contents) {
            return false;
        }
        let before = std::mem::replace(&mut self.contents, Arc::clone(contents));
        // In order: a VIP before its reals.
        let mut changed: BTreeSet<String> = contents.changed_since(&before).into_iter().collect();
        let hidden_changed = hidden_changed(contents, &before);
        if !hidden_changed.is_empty() {
            self.picture.hidden = Hidden::of(&contents.unreadable);
        }
        changed.extend(hidden_changed);
        // The reals of a VIP that came may have been there before it: what is seen of two znodes may be of different
        // moments.
        let vips: Vec<&String> = changed.iter().filter(|path| is_vip(path)).collect();
        let mut more = Vec::new();
        for vip in vips {
            let reals = format!("{vip}/reals");
            let hidden = contents.unreadable.range(reals.clone()..).map(|(path, _)| path);
            more.extend(hidden.take_while(|path| path.starts_with(&reals)).cloned());
            if before.get(vip).is_none() {
                more.extend(contents.children(&reals).map(|(real, _)| format!("{reals}/{real}")));
                more.push(reals);
            }
        }
        changed.extend(more);
        for path in &changed {
            let znode = contents.get(path);
            let read = match contents.unreadable.get(path) {
                Some(why) => self.hide(path, znode, why),
                None => self.read(path, znode),
            };
            match read {
                Ok(()) => drop(self.picture.faults.remove(path)),
                Err(fault) => drop(self.picture.faults.insert(path.clone(), fault)),
            }
        }
        !changed.is_empty()
    }

    /// Reads what is at `path` now.
    ///
    /// # Errors
    /// The problem, unless the record tells it.
    fn read(&mut self, path: &str, znode: Option<&Arc<Znode>>) -> Result<(), String> {
        let picture = &mut self.picture;
        let is_read = match parts(path)[..] {
            [] => {
                picture.cluster = znode.map(|znode| Found::parse(znode, from_json));
                self.parsed += u64::from(znode.is_some());
                let record = picture.cluster.as_ref().and_then(Found::ok);
                return record.map_or(Ok(()), |record| bounded(&record.extra));
            }
            ["vips", vip] => return self.vip(vip, znode),
            ["vips", vip, "reals"] => {
                if let Some(found) = picture.vips.get_mut(vip).filter(|vip| vip.has_reals != znode.is_some())
                {
                    Arc::make_mut(found).has_reals = znode.is_some();
                }
                return Ok(());
            }
            ["vips", vip, "reals", real] => return self.real(vip, real, znode),
            ["nodes", node] => state(&mut picture.nodes, node, znode, |member| member)?,
            ["applied", node] => state(&mut picture.applied, node, znode, |applied| applied)?,
            ["health", node] => state(&mut picture.health, node, znode, Arc::new)?,
            ["load", vip, real] => state(&mut picture.loads, &format!("{vip}/{real}"), znode, |load| load)?,
            ["ops", ref flag @ ..] => return self.flag(flag, znode.map(|znode| Flag::read(&znode.data))),
            ["election", _] => {
                let data = znode.map(|znode| znode.data.as_slice());
                return match znode.map(|znode| Place::of(path, Stat::from(&**znode), data)) {
                    None | Some(Ok(_)) => Ok(()),
                    Some(Err(why)) => Err(format!("{why}; nobody waits for it: `delete` it")),
                };
            }
            _ => return Ok(()),
        };
        self.parsed += u64::from(znode.is_some());
        is_read
    }

    fn vip(&mut self, vip: &str, znode: Option<&Arc<Znode>>) -> Result<(), String> {
        let Some(znode) = znode else {
            self.picture.vips.remove(vip);
            return Ok(());
        };
        let name: VipName = in_words(vip)?;
        self.parsed += 1;
        let found = Found::<Vip>::parse(znode, from_json);
        let bounded = found.ok().map_or(Ok(()), |record| bounded(&record.extra));
        self.put_vip(name, found);
        bounded
    }

    fn put_vip(&mut self, name: VipName, vip: Found<Vip>) {
        match self.picture.vips.get_mut(&name) {
            Some(found) => Arc::make_mut(found).vip = vip,
            None => {
                let found = VipFound { vip, has_reals: false, reals: BTreeMap::new() };
                self.picture.vips.insert(name, Arc::new(found));
            }
        }
    }

    fn real(&mut self, vip: &str, real: &str, znode: Option<&Arc<Znode>>) -> Result<(), String> {
        let found = self.picture.vips.get_mut(vip);
        let Some(znode) = znode else {
            if let Some(found) = found.filter(|found| found.reals.contains_key(real)) {
                Arc::make_mut(found).reals.remove(real);
            }
            return Ok(());
        };
        let _: VipName = in_words(vip)?;
        let name: RealName = in_words(real)?;
        self.parsed += 1;
        let record = Found::<Real>::parse(znode, from_json);
        let settled = match record.ok() {
            Some(record) if !record.extra.is_empty() => {
                Registrant::settle(&mut record.clone(), znode.owner.is_some())
            }
            _ => Ok(()),
        };
        if let Some(found) = found {
            Arc::make_mut(found).reals.insert(name, record);
        }
        settled.map_err(|error| error.to_string())
    }

    /// Reads an operator's flag; `None`: there is none.
    fn flag(&mut self, parts: &[&str], flag: Option<Flag>) -> Result<(), String> {
        fn put<K: Ord>(flags: &mut BTreeMap<K, Flag>, key: K, flag: Option<Flag>) {
            match flag {
                Some(flag) => drop(flags.insert(key, flag)),
                None => drop(flags.remove(&key)),
            }
        }
        self.parsed += u64::from(flag.is_some());
        let flags = &mut self.picture.flags;
        let name = match *parts {
            ["freeze"] => {
                flags.freeze = flag;
                return Ok(());
            }
            // Names have no dots.
            ["drain", real] => {
                real.replacen('.', "/", 1).parse().map(|real| put(&mut flags.drain, real, flag.clone()))
            }
            ["maintenance", node] => {
                in_words(node).map(|node| put(&mut flags.maintenance, node, flag.clone()))
            }
            ["confirm", what] => {
                put(&mut flags.confirm, what.to_owned(), flag.clone());
                let is_known = matches!(what, "_vips" | "_nodes");
                if is_known { Ok(()) } else { in_words::<VipName>(what).map(drop) }
            }
            _ => Ok(()),
        };
        // Where there is nothing, the name does not matter.
        if flag.is_some() { name } else { Ok(()) }
    }

    /// Takes into account that what is at `path` cannot be read.
    ///
    /// # Errors
    /// Why, unless its record tells that.
    fn hide(&mut self, path: &str, znode: Option<&Arc<Znode>>, why: &str) -> Result<(), String> {
        let picture = &mut self.picture;
        match parts(path)[..] {
            [] => {
                picture.cluster = Some(Found::hidden(znode, why));
                return Ok(());
            }
            ["vips", vip] => {
                if let Ok(name) = vip.parse() {
                    self.put_vip(name, Found::hidden(znode, why));
                    return Ok(());
                }
            }
            ["vips", vip, "reals"] => {
                if let Some(found) = picture.vips.get_mut(vip) {
                    Arc::make_mut(found).has_reals = true;
                }
            }
            ["vips", vip, "reals", real] => {
                if let (Some(found), Ok(real)) = (picture.vips.get_mut(vip), real.parse()) {
                    Arc::make_mut(found).reals.insert(real, Found::hidden(znode, why));
                    return Ok(());
                }
            }
            ["nodes", node] => hide(&mut picture.nodes, node, znode, why),
            ["applied", node] => hide(&mut picture.applied, node, znode, why),
            ["health", node] => hide(&mut picture.health, node, znode, why),
            ["load", vip, real] => hide(&mut picture.loads, &format!("{vip}/{real}"), znode, why),
            // What lets things go must be read. Any other flag is meant, whatever it holds.
            ["ops", "confirm", what] => drop(picture.flags.confirm.remove(what)),
            ["ops", ref flag @ ..] => drop(self.flag(flag, Some(Flag::default()))),
            _ => {}
        }
        Err(why.to_owned())
    }
}

/// Reads what a node or an agent wrote of itself; returns what is wrong with that. The outer error: its name.
fn state<K: Ord + FromStr<Err: Display>, T: StateRecord, V>(
    place: &mut BTreeMap<K, Found<V>>,
    name: &str,
    znode: Option<&Arc<Znode>>,
    kept: impl FnOnce(T) -> V,
) -> Result<Result<(), String>, String> {
    let name: Result<K, String> = in_words(name);
    let Some(znode) = znode else {
        if let Ok(name) = name {
            place.remove(&name);
        }
        return Ok(Ok(()));
    };
    let found = Found::parse(znode, |data| T::parse(data).map(kept));
    let is_read = found.record.as_ref().map(drop).map_err(Clone::clone);
    place.insert(name?, found);
    Ok(is_read)
}

fn hide<K: Ord + FromStr, T>(
    place: &mut BTreeMap<K, Found<T>>,
    name: &str,
    znode: Option<&Arc<Znode>>,
    why: &str,
) {
    if let Ok(name) = name.parse() {
        place.insert(name, Found::hidden(znode, why));
    }
}

/// Checks whether unknown fields fit into what the leader writes.
fn bounded(extra: &crate::records::Extra) -> Result<(), String> {
    if extra.is_empty() { Ok(()) } else { bound(&mut extra.clone()).map_err(|error| error.to_string()) }
}

/// The paths that cannot be read and could be `before`, or the other way round, or for another reason.
fn hidden_changed(contents: &Contents, before: &Contents) -> Vec<String> {
    let (now, then) = (&contents.unreadable, &before.unreadable);
    let new = now.iter().filter(|(path, why)| then.get(*path) != Some(why));
    let over = then.iter().filter(|(path, _)| !now.contains_key(*path));
    new.chain(over).map(|(path, _)| path.clone()).collect()
}

/// The parts of a path below `/drover`.
fn parts(path: &str) -> Vec<&str> {
    path.split('/').skip(2).collect()
}

/// Returns whether this is the place of a VIP's record.
fn is_vip(path: &str) -> bool {
    path.strip_prefix(paths::VIPS)
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(|vip| !vip.contains('/'))
}

fn in_words<T: FromStr<Err: Display>>(name: &str) -> Result<T, String> {
    name.parse().map_err(|error: T::Err| error.to_string())
}

#[cfg(test)]
mod tests;
