//! The tree as it is now.

use coordination::{Error, Session, election};
use policy::leader::{Published, View, Wish};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use zk_schema::tree::{
    Applied, Assignment, Flag, Head, Line, Load, Member, Registrant, StateRecord, Target, Term, Vote, Znode,
    paths,
};
use zk_schema::{Cluster, NodeName, Real, RealName, Record, Vip, VipName, from_json};

/// Paths that go into one multi-read.
const AT_ONCE: usize = 500;

/// All that stands in the tree, but the history of decisions. Znodes that vanish while it is read are left out.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The cluster's record; `None` where no cluster was made.
    pub cluster: Option<Found<Cluster>>,
    /// VIPs as operators wrote them.
    pub vips: BTreeMap<VipName, VipFound>,
    /// Flags by which operators steer.
    pub flags: Flags,
    /// Nodes that are there.
    pub nodes: BTreeMap<NodeName, Found<Member>>,
    /// The heads that nodes have in force; nodes that have left are in it, too.
    pub applied: BTreeMap<NodeName, Found<Applied>>,
    /// The votes of nodes.
    pub health: BTreeMap<NodeName, Found<Vote>>,
    /// The load of reals, as they tell.
    pub loads: BTreeMap<Target, Found<Load>>,
    /// The leadership, or the last one.
    pub leader: Option<Found<Term>>,
    /// The head: what is in force.
    pub head: Option<Found<Head>>,
    /// Each VIP as all nodes serve it.
    pub assignments: BTreeMap<VipName, Found<Assignment>>,
    /// The line of candidates for leadership; `None` where it is not known.
    pub line: Option<Line>,
    /// Paths of znodes with invalid names.
    pub strangers: Vec<String>,
    /// Znodes that are there and cannot be read, by path, with the reason. Of a list, none of its znodes are known.
    pub unreadable: BTreeMap<String, String>,
}

/// A VIP as operators wrote it.
#[derive(Clone, Debug)]
pub struct VipFound {
    /// Its record.
    pub vip: Found<Vip>,
    /// True if there is a parent for its reals.
    pub has_reals: bool,
    /// Its reals.
    pub reals: BTreeMap<RealName, Found<Real>>,
}

/// A znode that holds a record.
#[derive(Clone, Debug)]
pub struct Found<T> {
    /// The record, or what is wrong with it.
    pub record: Result<T, String>,
    /// The znode as it is.
    pub znode: Znode,
}

impl Found<Real> {
    /// The record as an assignment holds it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn settled(&self) -> Result<Real, String> {
        let mut record = self.record.clone()?;
        // What is left out of it, the leader tells.
        let _ = Registrant::settle(&mut record, self.znode.owner.is_some());
        Ok(record)
    }
}

impl Found<Vip> {
    /// The record as an assignment holds it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn settled(&self) -> Result<Vip, String> {
        let mut record = self.record.clone()?;
        let _ = zk_schema::tree::bound(&mut record.extra);
        Ok(record)
    }
}

/// Operators' flags.
#[derive(Clone, Debug, Default)]
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

impl<T> Found<T> {
    /// The record, if it is one.
    pub fn ok(&self) -> Option<&T> {
        self.record.as_ref().ok()
    }

    fn parsed<E: Display>(there: There, parse: impl FnOnce(&[u8]) -> Result<T, E>) -> Self {
        let record = match there.unreadable {
            Some(why) => Err(why),
            None => parse(&there.znode.data).map_err(|error| error.to_string()),
        };
        Self { record, znode: there.znode }
    }

    fn operators(there: There) -> Self
    where
        T: Record,
    {
        Self::parsed(there, from_json)
    }

    fn state(there: There) -> Self
    where
        T: StateRecord,
    {
        Self::parsed(there, T::parse)
    }
}

impl Tree {
    /// Reads it, as fresh as the last write that anybody has finished: all of it. What is written by a tree of which a
    /// part is hidden could be wrong.
    ///
    /// # Errors
    /// If the store fails, or something may not be read.
    pub async fn read<S: Session>(session: &S) -> Result<Self, Error> {
        let (tree, refused) = Self::read_with(session).await?;
        refused.map_or(Ok(tree), Err)
    }

    /// As [`read`](Self::read), but what may not be read is told in `unreadable`, and by the records that are there:
    /// to look at, not to write by.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn read_in_part<S: Session>(session: &S) -> Result<Self, Error> {
        Ok(Self::read_with(session).await?.0)
    }

    /// The tree, and the first refusal.
    async fn read_with<S: Session>(session: &S) -> Result<(Self, Option<Error>), Error> {
        session.sync().await?;
        let mut tree = Self::default();
        let mut reader =
            Reader { session, strangers: Vec::new(), unreadable: BTreeMap::new(), refused: None };

        let vips: Vec<VipName> = reader.names(paths::VIPS).await?;
        let mut reals = Vec::new();
        let mut parents = BTreeMap::new();
        for vip in &vips {
            let names: Option<Vec<RealName>> = reader.some_names(&paths::reals(vip)).await?;
            parents.insert(vip.clone(), names.is_some());
            reals.extend(names.into_iter().flatten().map(|real| Target { vip: vip.clone(), real }));
        }
        let mut loads = Vec::new();
        for vip in reader.names::<VipName>(paths::LOAD).await? {
            let names: Vec<RealName> = reader.names(&paths::loads(&vip)).await?;
            loads.extend(names.into_iter().map(|real| Target { vip: vip.clone(), real }));
        }

        let real_path = |target: &Target| paths::real(&target.vip, &target.real);
        let load_path = |target: &Target| paths::load(&target.vip, &target.real);
        let mut real_records = reader.all(reals, real_path, Found::operators).await?;
        for (name, vip) in reader.all(vips, paths::vip, Found::operators).await? {
            let of_this = real_records.extract_if(.., |target, _| target.vip == name);
            let reals = of_this.map(|(target, found)| (target.real, found)).collect();
            let has_reals = parents.get(&name).copied().unwrap_or(false);
            tree.vips.insert(name, VipFound { vip, has_reals, reals });
        }
        tree.loads = reader.all(loads, load_path, Found::state).await?;
        let nodes = reader.names(paths::NODES).await?;
        tree.nodes = reader.all(nodes, paths::node, Found::state).await?;
        let applied = reader.names(paths::APPLIED).await?;
        tree.applied = reader.all(applied, paths::applied, Found::state).await?;
        let health = reader.names(paths::HEALTH).await?;
        tree.health = reader.all(health, paths::health, Found::state).await?;
        let assignments = reader.names(paths::ASSIGNMENTS).await?;
        tree.assignments = reader.all(assignments, paths::assignment, Found::state).await?;
        tree.flags = reader.flags().await?;

        tree.line = reader.line().await?;

        let single = vec![paths::CLUSTER, paths::LEADER, paths::ASSIGNMENTS];
        let mut single = reader.all(single, |path| (*path).to_owned(), |there| there).await?;
        let mut next = |path| {
            let there = single.remove(path);
            there.filter(|there| there.unreadable.is_some() || !there.znode.data.is_empty())
        };
        tree.cluster = next(paths::CLUSTER).map(Found::operators);
        tree.leader = next(paths::LEADER).map(Found::state);
        tree.head = next(paths::ASSIGNMENTS).map(Found::state);
        tree.strangers = reader.strangers;
        tree.unreadable = reader.unreadable;
        Ok((tree, reader.refused))
    }

    /// Returns the node that leads, by all that the tree tells: whose term is the newest, is there, and is the first in
    /// the line of candidates, all of them the same process.
    #[must_use]
    pub fn leads(&self) -> Option<&NodeName> {
        let node = &self.leader.as_ref()?.ok()?.node;
        let member = self.nodes.get(node)?;
        let Some(line) = &self.line else { return Some(node) };
        let first = line.candidates.first()?;
        let named =
            || paths::name(&first.path).strip_prefix(node.as_str()).is_some_and(|rest| rest.starts_with('-'));
        let is_node = first.node.as_ref().map_or_else(named, |first| first == node);
        let is_process =
            member.ok().zip(first.instance()).is_none_or(|(member, first)| member.instance == first);
        (is_node && is_process).then_some(node)
    }

    /// Returns what a leader sees of it at `now`, in seconds since 1970.
    #[must_use]
    pub fn view(&self, now: u64) -> View {
        let record = |found: &Found<Cluster>| found.record.clone();
        let wish = |found: &VipFound| Wish {
            vip: found.vip.settled(),
            reals: found.reals.iter().map(|(real, found)| (real.clone(), found.settled())).collect(),
        };
        let sound = |(node, found): (&NodeName, &Found<Member>)| found.ok().map(|_| node.clone());
        let flags = &self.flags;
        let confirmed = counting(&flags.confirm, now);
        View {
            cluster: self.cluster.as_ref().map(record),
            wishes: self.vips.iter().map(|(vip, found)| (vip.clone(), Arc::new(wish(found)))).collect(),
            nodes: self.nodes.iter().filter_map(sound).collect(),
            votes: sound_records(&self.health).map(|(node, vote)| (node, Arc::new(vote))).collect(),
            applied: sound_records(&self.applied).collect(),
            drains: counting(&flags.drain, now),
            frozen: flags.freeze.as_ref().is_some_and(|flag| flag.counts(now)),
            confirmed_vips: confirmed.contains(paths::name(paths::CONFIRM_VIPS)),
            confirmed_nodes: confirmed.contains(paths::name(paths::CONFIRM_NODES)),
            confirmed: confirmed.iter().filter_map(|name| name.parse().ok()).collect(),
            ..View::default()
        }
    }

    /// Returns what leaders have written.
    #[must_use]
    pub fn published(&self) -> Published {
        Published {
            head: self.head.as_ref().and_then(Found::ok).cloned(),
            assignments: sound_records(&self.assignments)
                .map(|(vip, record)| (vip, Arc::new(record)))
                .collect(),
        }
    }

    /// What is in force for a VIP, if its record is one.
    #[must_use]
    pub fn assignment(&self, vip: &VipName) -> Option<&Assignment> {
        self.assignments.get(vip).and_then(Found::ok)
    }

    /// Znodes that hold no such record as they should, each with its path and what is wrong.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        fn wrong<'a, K: 'a, T: 'a>(
            found: impl IntoIterator<Item = (&'a K, &'a Found<T>)>,
            path: impl Fn(&K) -> String,
        ) -> Vec<String> {
            let problem = |(key, found): (&'a K, &'a Found<T>)| {
                found.record.as_ref().err().map(|problem| format!("{}: {problem}", path(key)))
            };
            found.into_iter().filter_map(problem).collect()
        }
        let mut problems: Vec<String> =
            self.strangers.iter().map(|path| format!("{path}: invalid name: see docs/znodes.md")).collect();
        let cluster = self.cluster.iter().map(|found| (&(), found));
        problems.extend(wrong(cluster, |()| paths::CLUSTER.to_owned()));
        problems.extend(wrong(self.vips.iter().map(|(name, vip)| (name, &vip.vip)), paths::vip));
        for (name, vip) in &self.vips {
            problems.extend(wrong(&vip.reals, |real| paths::real(name, real)));
        }
        problems.extend(wrong(&self.nodes, paths::node));
        problems.extend(wrong(&self.applied, paths::applied));
        problems.extend(wrong(&self.health, paths::health));
        problems.extend(wrong(&self.loads, |target| paths::load(&target.vip, &target.real)));
        problems.extend(wrong(self.leader.iter().map(|found| (&(), found)), |()| paths::LEADER.to_owned()));
        problems
            .extend(wrong(self.head.iter().map(|found| (&(), found)), |()| paths::ASSIGNMENTS.to_owned()));
        problems.extend(wrong(&self.assignments, paths::assignment));
        let strays = self.line.iter().flat_map(|line| &line.strays);
        problems.extend(
            strays.map(|stray| format!("{}: {}; nobody waits for it: `delete` it", stray.path, stray.why)),
        );
        let told = |path: &String| problems.iter().any(|problem| problem.split(": ").next() == Some(path));
        let others: Vec<_> = self.unreadable.iter().filter(|(path, _)| !told(path)).collect();
        problems.extend(others.into_iter().map(|(path, why)| format!("{path}: {why}")));
        problems
    }
}

/// The flags that count at `now`, in seconds since 1970.
pub fn counting<K: Ord + Clone>(flags: &BTreeMap<K, Flag>, now: u64) -> BTreeSet<K> {
    flags.iter().filter(|(_, flag)| flag.counts(now)).map(|(key, _)| key.clone()).collect()
}

fn sound_records<K: Clone, T: Clone>(found: &BTreeMap<K, Found<T>>) -> impl Iterator<Item = (K, T)> {
    found.iter().filter_map(|(key, found)| Some((key.clone(), found.ok()?.clone())))
}

/// A znode that is there.
struct There {
    /// The record, as far as it is known.
    znode: Znode,
    /// The reason why its content is not known, if it is not.
    unreadable: Option<String>,
}

/// Reads names and records, and remembers what has no name, and what it may not read.
struct Reader<'a, S> {
    session: &'a S,
    strangers: Vec<String>,
    unreadable: BTreeMap<String, String>,
    refused: Option<Error>,
}

impl<S: Session> Reader<'_, S> {
    /// The children of a znode that have names; none where there is no such znode.
    async fn names<N: FromStr>(&mut self, parent: &str) -> Result<Vec<N>, Error> {
        Ok(self.some_names(parent).await?.unwrap_or_default())
    }

    async fn some_names<N: FromStr>(&mut self, parent: &str) -> Result<Option<Vec<N>>, Error> {
        let children = match self.session.children(parent).await {
            Ok(None) => return Ok(None),
            Ok(Some(children)) => children,
            Err(error) if error.is_of_one_znode() => {
                self.refused(parent, error);
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        let mut names = Vec::with_capacity(children.len());
        for child in children {
            match child.parse() {
                Ok(name) => names.push(name),
                Err(_) => self.strangers.push(format!("{parent}/{child}")),
            }
        }
        Ok(Some(names))
    }

    /// The line of candidates; `None` where it cannot be read.
    async fn line(&mut self) -> Result<Option<Line>, Error> {
        match election::line(self.session).await {
            Ok(line) => Ok(Some(line)),
            Err(Error::NoNode(_)) => Ok(None),
            Err(error) if error.is_of_one_znode() => {
                self.refused(paths::ELECTION, error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn refused(&mut self, path: &str, error: Error) {
        self.unreadable.insert(path.to_owned(), error.unreadable());
        self.refused.get_or_insert(error);
    }

    /// The znodes of these names.
    async fn all<N: Ord, T>(
        &mut self,
        names: Vec<N>,
        path: impl Fn(&N) -> String,
        parse: impl Fn(There) -> T,
    ) -> Result<BTreeMap<N, T>, Error> {
        let paths: Vec<String> = names.iter().map(path).collect();
        let mut outcomes = Vec::with_capacity(paths.len());
        for paths in paths.chunks(AT_ONCE) {
            outcomes.extend(self.session.read_each(paths).await?);
        }
        let mut found = BTreeMap::new();
        for ((name, path), outcome) in names.into_iter().zip(&paths).zip(outcomes) {
            let there = match outcome {
                Ok(None) => continue,
                Ok(Some(znode)) => There { znode, unreadable: None },
                Err(error) => {
                    let Some(stat) = self.session.stat(path).await? else { continue };
                    let (version, owner) = (stat.version, stat.owner);
                    let unreadable = Some(error.unreadable());
                    self.refused(path, error);
                    let znode = Znode { data: Vec::new(), version, created: 0, modified: 0, owner };
                    There { znode, unreadable }
                }
            };
            found.insert(name, parse(there));
        }
        Ok(found)
    }

    async fn flags(&mut self) -> Result<Flags, Error> {
        let flag = |there: There| Flag::read(&there.znode.data);
        let maintenance = self.names(paths::MAINTENANCE).await?;
        let maintenance = self.all(maintenance, paths::maintenance, flag).await?;
        let drained: Vec<String> = self.names(paths::DRAIN).await?;
        let mut targets = Vec::new();
        for name in drained {
            // Names have no dots.
            match name.replacen('.', "/", 1).parse::<Target>() {
                Ok(target) => targets.push(target),
                Err(_) => self.strangers.push(format!("{}/{name}", paths::DRAIN)),
            }
        }
        let drain = self.all(targets, |target| paths::drain(&target.vip, &target.real), flag).await?;
        let freeze = self.all(vec![()], |()| paths::FREEZE.to_owned(), flag).await?.remove(&());
        let confirmed = self.names(paths::CONFIRM).await?;
        let confirm = self.all(confirmed, |name: &String| format!("{}/{name}", paths::CONFIRM), flag).await?;
        Ok(Flags { maintenance, drain, freeze, confirm })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use coordination::memory::MemoryStore;
    use coordination::{Change, Store as _, setup};

    fn create(path: &str, data: &str) -> Change {
        Change::Create { path: path.to_owned(), data: data.as_bytes().to_vec(), ephemeral: false }
    }

    #[tokio::test]
    async fn what_is_wrong_in_the_tree_is_told_by_path_and_the_rest_is_read() {
        let session = MemoryStore::new().client("lbctl").connect().await.unwrap();
        assert!(Tree::read(&session).await.unwrap().cluster.is_none());
        setup::init(&session, &Cluster::default()).await.unwrap();
        let vip = r#"{"address":"198.51.100.10","port":1883,"protocol":"tcp"}"#;
        let changes = vec![
            create("/drover/vips/mqtt", vip),
            create("/drover/vips/mqtt/reals", ""),
            create("/drover/vips/mqtt/reals/a", r#"{"address":"10.0.0.1"}"#),
            create("/drover/vips/mqtt/reals/b", "{"),
            create("/drover/vips/UPPER", vip),
            create("/drover/ops/drain/mqtt.a", r#"{"by":"me"}"#),
        ];
        session.commit(changes).await.unwrap();
        let tree = Tree::read(&session).await.unwrap();
        assert!(tree.cluster.as_ref().is_some_and(|found| found.record.is_ok()));
        let mqtt = &tree.vips["mqtt"];
        assert!(mqtt.has_reals && mqtt.vip.record.is_ok() && mqtt.reals["a"].record.is_ok());
        assert_eq!(tree.flags.drain.values().next().unwrap().by, "me");
        assert!(tree.head.is_none() && tree.flags.freeze.is_none());
        let problems = tree.problems().join("\n");
        assert!(problems.contains("/drover/vips/UPPER:") && problems.contains("/drover/vips/mqtt/reals/b:"));
        assert_eq!(problems.lines().count(), 2, "{problems}");
    }

    #[tokio::test]
    async fn what_may_not_be_read_is_told_and_the_rest_is_read() {
        let store = MemoryStore::new();
        let session = store.client("lbctl").connect().await.unwrap();
        setup::init(&session, &Cluster::default()).await.unwrap();
        let vip = r#"{"address":"198.51.100.10","port":1883,"protocol":"tcp"}"#;
        let changes = vec![
            create("/drover/vips/a", vip),
            create("/drover/vips/b", vip),
            create("/drover/vips/b/reals", ""),
            create("/drover/election/x-0000000000", ""),
        ];
        session.commit(changes).await.unwrap();
        let hidden = ["/drover/vips/a", "/drover/vips/b/reals", "/drover/nodes"];
        hidden.iter().for_each(|path| store.forbid(path, true));
        let tree = Tree::read_in_part(&session).await.unwrap();
        assert!(tree.vips["a"].vip.record.is_err() && tree.vips["b"].vip.record.is_ok());
        assert!(tree.vips["b"].has_reals);
        let problems = tree.problems();
        for path in hidden.into_iter().chain(["/drover/election/x-0000000000"]) {
            let about = problems.iter().filter(|problem| problem.starts_with(&format!("{path}: ")));
            assert_eq!(about.count(), 1, "{path}: {problems:?}");
        }
        // Nobody edits what is not seen.
        assert!(matches!(Tree::read(&session).await, Err(Error::NoAuth(_))));
    }
}
