//! The tree as it is now.

use coordination::{Error, Session, Znode};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use zk_schema::tree::{
    Applied, Assignment, Flag, Head, Load, Member, Registrant, StateRecord, Target, Term, Vote, paths,
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
    /// What each node has in force; nodes that have left are in it, too.
    pub applied: BTreeMap<NodeName, Found<Applied>>,
    /// What each node's probes find.
    pub health: BTreeMap<NodeName, Found<Vote>>,
    /// What reals tell of their load.
    pub loads: BTreeMap<Target, Found<Load>>,
    /// Who leads, or led last.
    pub leader: Option<Found<Term>>,
    /// The head: what is in force.
    pub head: Option<Found<Head>>,
    /// Each VIP as all nodes serve it.
    pub assignments: BTreeMap<VipName, Found<Assignment>>,
    /// Znodes whose names are none, each with its path.
    pub strangers: Vec<String>,
}

/// A VIP as operators wrote it.
#[derive(Clone, Debug)]
pub struct VipFound {
    /// Its record.
    pub vip: Found<Vip>,
    /// Whether there is a parent for its reals.
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
    #[must_use]
    pub fn settled(&self) -> Option<Real> {
        let mut record = self.ok()?.clone();
        // What is left out of it, the leader tells.
        let _ = Registrant::settle(&mut record, self.znode.owner.is_some());
        Some(record)
    }
}

impl Found<Vip> {
    /// The record as an assignment holds it.
    #[must_use]
    pub fn settled(&self) -> Option<Vip> {
        let mut record = self.ok()?.clone();
        let _ = zk_schema::tree::bound(&mut record.extra);
        Some(record)
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

    fn parsed<E: Display>(znode: Znode, parse: impl FnOnce(&[u8]) -> Result<T, E>) -> Self {
        Self { record: parse(&znode.data).map_err(|error| error.to_string()), znode }
    }

    fn operators(znode: Znode) -> Self
    where
        T: Record,
    {
        Self::parsed(znode, from_json)
    }

    fn state(znode: Znode) -> Self
    where
        T: StateRecord,
    {
        Self::parsed(znode, T::parse)
    }
}

impl Tree {
    /// Reads it, as fresh as the last write that anybody has finished.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn read<S: Session>(session: &S) -> Result<Self, Error> {
        session.sync().await?;
        let mut tree = Self::default();
        let mut reader = Reader { session, strangers: Vec::new() };

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

        let single = [paths::CLUSTER, paths::LEADER, paths::ASSIGNMENTS].map(str::to_owned);
        let mut single = session.read(&single).await?.into_iter();
        let mut next = || single.next().flatten().filter(|znode| !znode.data.is_empty());
        tree.cluster = next().map(Found::operators);
        tree.leader = next().map(Found::state);
        tree.head = next().map(Found::state);
        tree.strangers = reader.strangers;
        Ok(tree)
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
        let mut problems: Vec<String> = self
            .strangers
            .iter()
            .map(|path| format!("{path}: its name is none: see docs/znodes.md"))
            .collect();
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
        problems
    }
}

/// Reads names and records, and remembers what has no name.
struct Reader<'a, S> {
    session: &'a S,
    strangers: Vec<String>,
}

impl<S: Session> Reader<'_, S> {
    /// The children of a znode that have names; none where there is no such znode.
    async fn names<N: FromStr>(&mut self, parent: &str) -> Result<Vec<N>, Error> {
        Ok(self.some_names(parent).await?.unwrap_or_default())
    }

    async fn some_names<N: FromStr>(&mut self, parent: &str) -> Result<Option<Vec<N>>, Error> {
        let Some(children) = self.session.children(parent).await? else { return Ok(None) };
        let mut names = Vec::with_capacity(children.len());
        for child in children {
            match child.parse() {
                Ok(name) => names.push(name),
                Err(_) => self.strangers.push(format!("{parent}/{child}")),
            }
        }
        Ok(Some(names))
    }

    /// The znodes of these names.
    async fn all<N: Ord, T>(
        &self,
        names: Vec<N>,
        path: impl Fn(&N) -> String,
        parse: impl Fn(Znode) -> T,
    ) -> Result<BTreeMap<N, T>, Error> {
        let paths: Vec<String> = names.iter().map(path).collect();
        let mut znodes = Vec::with_capacity(paths.len());
        for paths in paths.chunks(AT_ONCE) {
            znodes.extend(self.session.read(paths).await?);
        }
        let there = names.into_iter().zip(znodes);
        Ok(there.filter_map(|(name, znode)| Some((name, parse(znode?)))).collect())
    }

    async fn flags(&mut self) -> Result<Flags, Error> {
        let flag = |znode: Znode| Flag::read(&znode.data);
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

    #[tokio::test]
    async fn what_is_wrong_in_the_tree_is_told_by_path_and_the_rest_is_read() {
        let session = MemoryStore::new().client("lbctl").connect().await.unwrap();
        assert!(Tree::read(&session).await.unwrap().cluster.is_none());
        setup::init(&session, &Cluster::default()).await.unwrap();
        let create = |path: &str, data: &str| Change::Create {
            path: path.to_owned(),
            data: data.as_bytes().to_vec(),
            ephemeral: false,
        };
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
}
