//! Znodes and what may be done to them: ZooKeeper's rules, without sessions' lives, watches and time.

use crate::{Change, Error};
use std::collections::{BTreeMap, BTreeSet};
use zk_schema::tree::Znode;

/// The tree. Its root is always there.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
    /// The newest transaction.
    last: i64,
}

/// A znode and what hangs below it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    znode: Znode,
    /// Their names.
    children: BTreeSet<String>,
    /// The number of children that it ever had: the next sequential child's number.
    births: u32,
}

/// A change that has been made, with what is needed to take it back.
#[derive(Debug)]
pub(super) enum Step {
    /// A znode that was not there.
    Created(String),
    /// Its content before.
    Written(String, Znode),
    /// The node that it was.
    Deleted(String, Node),
}

impl Tree {
    pub(super) fn new() -> Self {
        let root = Node::new(Znode { data: Vec::new(), version: 0, created: 0, modified: 0, owner: None });
        Self { nodes: BTreeMap::from([("/".to_owned(), root)]), last: 0 }
    }

    pub(super) fn znode(&self, path: &str) -> Result<Option<Znode>, Error> {
        check_path(path)?;
        Ok(self.nodes.get(path).map(|node| node.znode.clone()))
    }

    pub(super) fn children(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        check_path(path)?;
        Ok(self.nodes.get(path).map(|node| node.children.iter().cloned().collect()))
    }

    /// All znodes but the root.
    pub(super) fn dump(&self) -> BTreeMap<String, Znode> {
        let nodes = self.nodes.iter().filter(|(path, _)| *path != "/");
        nodes.map(|(path, node)| (path.clone(), node.znode.clone())).collect()
    }

    /// Makes all changes in one transaction, or none.
    pub(super) fn commit(&mut self, session: i64, changes: Vec<Change>) -> Result<Vec<Step>, Error> {
        let mut steps = Vec::new();
        for change in changes {
            match self.apply(session, change) {
                Ok(step) => steps.extend(step),
                Err(error) => {
                    steps.into_iter().rev().for_each(|step| self.revert(step));
                    return Err(error);
                }
            }
        }
        self.last += 1;
        Ok(steps)
    }

    /// Creates `prefix` and the parent's next number, ephemeral.
    pub(super) fn create_sequential(
        &mut self,
        session: i64,
        prefix: &str,
        data: Vec<u8>,
    ) -> Result<(String, Vec<Step>), Error> {
        let parent = match prefix.rfind('/') {
            None => return Err(Error::Other(format!("{prefix}: a znode's path begins with a slash"))),
            Some(0) => "/",
            Some(slash) => &prefix[..slash],
        };
        let births = self.nodes.get(parent).map_or(0, |node| node.births);
        let path = format!("{prefix}{births:010}");
        let change = Change::Create { path: path.clone(), data, ephemeral: true };
        Ok((path, self.commit(session, vec![change])?))
    }

    /// Deletes what a session owns, in one transaction.
    pub(super) fn delete_owned(&mut self, session: i64) -> Vec<Step> {
        let owned = self.nodes.iter().filter(|(_, node)| node.znode.owner == Some(session));
        let changes = owned.map(|(path, _)| Change::Delete { path: path.clone(), version: None }).collect();
        self.commit(session, changes).expect("ephemeral znodes are there, and have no children")
    }

    /// Makes a change in the transaction to come.
    fn apply(&mut self, session: i64, change: Change) -> Result<Option<Step>, Error> {
        check_path(change.path())?;
        match change {
            Change::Check { path, version } => {
                self.existing(&path, version)?;
                Ok(None)
            }
            Change::Create { path, data, ephemeral } => {
                let transaction = self.last + 1;
                let Some((parent, name)) = split(&path) else { return Err(Error::Exists(path)) };
                let parent = self.nodes.get_mut(parent).ok_or_else(|| Error::NoNode(path.clone()))?;
                if parent.children.contains(name) {
                    return Err(Error::Exists(path));
                }
                if parent.znode.owner.is_some() {
                    return Err(Error::Other(format!("{path}: its parent is ephemeral, so it cannot be")));
                }
                parent.children.insert(name.to_owned());
                parent.births += 1;
                self.nodes.insert(
                    path.clone(),
                    Node::new(Znode {
                        data,
                        version: 0,
                        created: transaction,
                        modified: transaction,
                        owner: ephemeral.then_some(session),
                    }),
                );
                Ok(Some(Step::Created(path)))
            }
            Change::Set { path, data, version } => {
                let transaction = self.last + 1;
                let node = self.existing(&path, version)?;
                let written =
                    Znode { data, version: node.znode.version + 1, modified: transaction, ..node.znode };
                let before = std::mem::replace(&mut node.znode, written);
                Ok(Some(Step::Written(path, before)))
            }
            Change::Delete { path, version } => {
                let node = self.existing(&path, version)?;
                if !node.children.is_empty() {
                    return Err(Error::NotEmpty(path));
                }
                if path == "/" {
                    return Err(Error::Other("/: the root cannot be deleted".to_owned()));
                }
                let node = self.remove(&path);
                Ok(Some(Step::Deleted(path, node)))
            }
        }
    }

    /// A znode that must be there, of this version if one is given.
    fn existing(&mut self, path: &str, version: Option<i32>) -> Result<&mut Node, Error> {
        let node = self.nodes.get_mut(path).ok_or_else(|| Error::NoNode(path.to_owned()))?;
        if version.is_some_and(|version| version != node.znode.version) {
            return Err(Error::BadVersion(path.to_owned()));
        }
        Ok(node)
    }

    /// Takes a change back, which must be the last one.
    fn revert(&mut self, step: Step) {
        match step {
            Step::Created(path) => {
                self.remove(&path);
                self.parent(&path).0.births -= 1;
            }
            Step::Written(path, before) => {
                self.nodes.get_mut(&path).expect("it was written").znode = before;
            }
            Step::Deleted(path, node) => {
                let (parent, name) = self.parent(&path);
                parent.children.insert(name.to_owned());
                self.nodes.insert(path, node);
            }
        }
    }

    /// Removes a znode that is there.
    fn remove(&mut self, path: &str) -> Node {
        let (parent, name) = self.parent(path);
        parent.children.remove(name);
        self.nodes.remove(path).expect("it is there")
    }

    /// The parent of a znode that is or was there, and the znode's name in it.
    fn parent<'a>(&mut self, path: &'a str) -> (&mut Node, &'a str) {
        let (parent, name) = split(path).expect("the root stays as it is");
        (self.nodes.get_mut(parent).expect("a parent outlives its children"), name)
    }
}

impl Node {
    fn new(znode: Znode) -> Self {
        Self { znode, children: BTreeSet::new(), births: 0 }
    }
}

/// A path's parent and name; `None` for the root.
pub(super) fn split(path: &str) -> Option<(&str, &str)> {
    match path.rsplit_once('/')? {
        (_, "") => None,
        ("", name) => Some(("/", name)),
        split => Some(split),
    }
}

/// Refuses what ZooKeeper refuses.
fn check_path(path: &str) -> Result<(), Error> {
    let valid = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('\0');
    match path.strip_prefix('/') {
        Some("") => Ok(()),
        Some(names) if names.split('/').all(valid) => Ok(()),
        _ => Err(Error::Other(format!("{path:?} is no path of a znode; such are like /a/b"))),
    }
}
