//! The tree as it is now.

use coordination::{Error, Session, election};
use policy::leader::{Published, View};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::str::FromStr;
use std::sync::Arc;
use zk_schema::picture::Found;
use zk_schema::tree::{Assignment, Contents, Head, Line, StateRecord, Target, Term, Znode, paths};
use zk_schema::{NodeName, Picture, RealName, VipName};

/// Paths that go into one multi-read.
const AT_ONCE: usize = 500;

/// All that stands in the tree, but the history of decisions: a [`Picture`], and what leaders have written. Znodes that
/// vanish while it is read are left out.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The records that others than leaders have written.
    pub picture: Picture,
    /// Who leads, or led last.
    pub leader: Option<Found<Term>>,
    /// The head: what is in force.
    pub head: Option<Found<Head>>,
    /// Each VIP as all nodes serve it.
    pub assignments: BTreeMap<VipName, Found<Assignment>>,
    /// The line of candidates for leadership; `None` where it is not known.
    pub line: Option<Line>,
    /// Paths of znodes with invalid names.
    pub strangers: Vec<String>,
    /// Paths that are there and cannot be read, each with the reason. Of a list, none of its znodes are known.
    pub unreadable: BTreeMap<String, String>,
}

impl Deref for Tree {
    type Target = Picture;

    fn deref(&self) -> &Picture {
        &self.picture
    }
}

impl DerefMut for Tree {
    fn deref_mut(&mut self) -> &mut Picture {
        &mut self.picture
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
        let mut reader = Reader::new(session);

        let vips: Vec<VipName> = reader.names(paths::VIPS).await?;
        let mut all: Vec<String> = vips.iter().map(paths::vip).collect();
        let mut parents = Vec::new();
        for vip in &vips {
            let names: Option<Vec<RealName>> = reader.some_names(&paths::reals(vip)).await?;
            parents.extend(names.is_some().then(|| paths::reals(vip)));
            all.extend(names.into_iter().flatten().map(|real| paths::real(vip, &real)));
        }
        for vip in reader.names::<VipName>(paths::LOAD).await? {
            let names: Vec<RealName> = reader.names(&paths::loads(&vip)).await?;
            all.extend(names.iter().map(|real| paths::load(&vip, real)));
        }
        all.extend(reader.paths(paths::NODES, paths::node).await?);
        all.extend(reader.paths(paths::APPLIED, paths::applied).await?);
        all.extend(reader.paths(paths::HEALTH, paths::health).await?);
        all.extend(reader.paths(paths::MAINTENANCE, paths::maintenance).await?);
        all.extend(reader.paths(paths::CONFIRM, |name: &String| format!("{}/{name}", paths::CONFIRM)).await?);
        for name in reader.names::<String>(paths::DRAIN).await? {
            // Names have no dots.
            match name.replacen('.', "/", 1).parse::<Target>() {
                Ok(target) => all.push(paths::drain(&target.vip, &target.real)),
                Err(_) => reader.strangers.push(format!("{}/{name}", paths::DRAIN)),
            }
        }
        let assignments: Vec<VipName> = reader.names(paths::ASSIGNMENTS).await?;
        all.extend(assignments.iter().map(paths::assignment));
        let single = [paths::FREEZE, paths::CLUSTER, paths::LEADER, paths::ASSIGNMENTS];
        all.extend(single.map(str::to_owned));
        reader.read(&all).await?;
        let line = reader.line().await?;

        let Reader { mut contents, strangers, refused, .. } = reader;
        for path in parents {
            contents.insert(&path, Arc::new(Znode::default()));
        }
        // The skeleton of a tree holds no records.
        for path in [paths::CLUSTER, paths::LEADER, paths::ASSIGNMENTS] {
            let is_empty = contents.get(path).is_some_and(|znode| znode.data.is_empty());
            if is_empty && !contents.unreadable.contains_key(path) {
                contents.remove(path);
            }
        }
        let contents = Arc::new(contents);
        let in_force = assignments.into_iter().filter_map(|vip| {
            let found = state(&contents, &paths::assignment(&vip))?;
            Some((vip, found))
        });
        let tree = Self {
            picture: Picture::parse(&contents),
            leader: state(&contents, paths::LEADER),
            head: state(&contents, paths::ASSIGNMENTS),
            assignments: in_force.collect(),
            line,
            strangers,
            unreadable: contents.unreadable.clone(),
        };
        Ok((tree, refused))
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

    /// Returns what counts of it for a leader at `now`, in seconds since 1970.
    #[must_use]
    pub fn view(&self, now: u64) -> View {
        View::of(&self.picture, now)
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

fn sound_records<K: Clone, T: Clone>(found: &BTreeMap<K, Found<T>>) -> impl Iterator<Item = (K, T)> {
    found.iter().filter_map(|(key, found)| Some((key.clone(), found.ok()?.clone())))
}

/// Returns the record that a leader wrote at `path`, if it is there.
fn state<T: StateRecord>(contents: &Contents, path: &str) -> Option<Found<T>> {
    let znode = contents.get(path)?;
    Some(match contents.unreadable.get(path) {
        Some(why) => Found::hidden(Some(znode), why),
        None => Found::parse(znode, T::parse),
    })
}

/// Reads names and znodes, and remembers what has no name, and what it may not read.
struct Reader<'a, S> {
    session: &'a S,
    contents: Contents,
    strangers: Vec<String>,
    refused: Option<Error>,
}

impl<'a, S: Session> Reader<'a, S> {
    fn new(session: &'a S) -> Self {
        Self { session, contents: Contents::default(), strangers: Vec::new(), refused: None }
    }

    /// The paths of a znode's children that have names.
    async fn paths<N: FromStr>(
        &mut self,
        parent: &str,
        path: impl Fn(&N) -> String,
    ) -> Result<Vec<String>, Error> {
        Ok(self.names(parent).await?.iter().map(path).collect())
    }

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
        self.contents.unreadable.insert(path.to_owned(), error.unreadable());
        self.refused.get_or_insert(error);
    }

    /// Reads the znodes at these paths.
    async fn read(&mut self, paths: &[String]) -> Result<(), Error> {
        for paths in paths.chunks(AT_ONCE) {
            for (path, outcome) in paths.iter().zip(self.session.read_each(paths).await?) {
                let znode = match outcome {
                    Ok(None) => continue,
                    Ok(Some(znode)) => znode,
                    Err(error) => {
                        let Some(stat) = self.session.stat(path).await? else { continue };
                        self.refused(path, error);
                        let (version, owner) = (stat.version, stat.owner);
                        Znode { version, owner, ..Znode::default() }
                    }
                };
                self.contents.insert(path, Arc::new(znode));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use coordination::memory::MemoryStore;
    use coordination::{Change, Store as _, setup};
    use zk_schema::Cluster;

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
