//! Closing a tree, and keeping it closed.

use std::collections::VecDeque;

use zk_schema::Cluster;
use zk_schema::tree::{Access, StateRecord as _, paths};
use zookeeper_client as zk;

use super::ZooKeeperSession;
use crate::access::{Rights, governs, rights};
use crate::setup::{self, SetupError};
use crate::{Change, Error, Session as _};

/// The most walks over the tree until one finds nothing to close: others create znodes meanwhile.
const WALKS: usize = 5;

/// The ACL that the znode at `path` is to have.
pub(super) fn acl(access: &Access, path: &str, ephemeral: bool) -> Vec<zk::Acl> {
    let entry = |(id, rights): (Option<zk_schema::tree::AccessId>, Rights)| {
        let id = match id {
            Some(id) => zk::AuthId::new(id.scheme(), id.id()),
            None => zk::AuthId::anyone(),
        };
        zk::Acl::new(permission(rights), id)
    };
    rights(access, path, ephemeral).into_iter().map(entry).collect()
}

fn permission(rights: Rights) -> zk::Permission {
    let pairs = [
        (Rights::READ, zk::Permission::READ),
        (Rights::WRITE, zk::Permission::WRITE),
        (Rights::CREATE, zk::Permission::CREATE),
        (Rights::DELETE, zk::Permission::DELETE),
        (Rights::ADMIN, zk::Permission::ADMIN),
    ];
    let given = pairs.into_iter().filter(|(right, _)| rights.has(*right));
    given.fold(zk::Permission::NONE, |all, (_, permission)| all | permission)
}

impl ZooKeeperSession {
    /// Makes a tree that is closed from its first znode on; where there is one already, closes it. Returns `None` if it
    /// was made, else the paths of znodes that had other rights. The session must be an operator's.
    ///
    /// ```no_run
    /// use coordination::zookeeper::{Login, Options, ZooKeeper};
    /// use coordination::{Store as _, access};
    /// use zk_schema::tree::Access;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let login = Login { user: "operator".into(), password: "…".into() };
    /// let closed = Access {
    ///     operators: [access::digest(&login.user, &login.password)?].into(),
    ///     nodes: [access::digest("node", "…")?].into(),
    ///     agents: [access::digest("real", "…")?].into(),
    ///     ..Access::default()
    /// };
    /// let options = Options { digest: Some(login), ..Options::new("zk-1:2181,zk-2:2181,zk-3:2181") };
    /// let session = ZooKeeper::new(options)?.connect().await?;
    /// session.init_secured(&zk_schema::Cluster::default(), &closed).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`secure`](Self::secure), and if the cluster's record is wrong.
    pub async fn init_secured(
        &self,
        cluster: &Cluster,
        access: &Access,
    ) -> Result<Option<Vec<String>>, SetupError> {
        self.check_member(access).await?;
        let before = self.adopt(Some(access.clone()));
        let made = async {
            let made = setup::init(self, cluster).await?;
            let closed = self.secure(access).await?;
            Ok((!made).then_some(closed))
        };
        made.await.inspect_err(|_| drop(self.adopt(before)))
    }

    /// Closes the tree: writes `access` and gives every znode its rights. Returns the paths of those that had others.
    ///
    /// Sessions that began before do not know of it: they have only the rights of their credentials from now on, and
    /// what they create themselves is as open as before. So nodes and agents get their credentials first, are started
    /// again after this, and then this is done once more.
    ///
    /// # Errors
    /// If a group is empty that must not be, the session is not an operator's, there is no tree, or the store fails. What
    /// was closed by then stays closed, and this can be done again.
    pub async fn secure(&self, access: &Access) -> Result<Vec<String>, SetupError> {
        self.check_member(access).await?;
        if !self.exists(paths::CLUSTER).await? {
            return Err(Error::NoNode(paths::CLUSTER.to_owned()).into());
        }
        let data =
            access.bytes().map_err(|error| SetupError::Record { path: paths::ACCESS.to_owned(), error })?;
        let before = self.adopt(Some(access.clone()));
        let created = Change::Create { path: paths::ACCESS.to_owned(), data: data.clone(), ephemeral: false };
        let change = match self.commit(vec![created]).await {
            Err(Error::Exists(_)) => {
                let path = paths::ACCESS.to_owned();
                self.commit(vec![Change::Set { path, data: data.clone(), version: None }]).await
            }
            other => other,
        };
        // Whether the session has the rights that it is about to ask for: a wrong password shows here, before anything
        // else is closed.
        let path = paths::ACCESS.to_owned();
        let proof = match change {
            Ok(()) => self.commit(vec![Change::Set { path, data, version: None }]).await,
            error => error,
        };
        if let Err(error) = proof {
            if matches!(error, Error::NoAuth(_)) && before.is_none() {
                let path = paths::ACCESS.to_owned();
                let _ = self.commit(vec![Change::Delete { path, version: None }]).await;
            }
            self.adopt(before);
            return Err(error.into());
        }
        let mut closed = Vec::new();
        for _ in 0..WALKS {
            let open = self.open_znodes(access).await?;
            if open.is_empty() {
                break;
            }
            for (path, acl) in open {
                match self.set_acl(&path, acl).await {
                    Ok(()) => closed.push(path),
                    Err(Error::NoNode(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        closed.sort();
        closed.dedup();
        Ok(closed)
    }

    /// The paths of the znodes whose rights are not those that `access` gives them, such as of VIPs that somebody
    /// created with zkCli.sh and no ACL: everybody may write them.
    ///
    /// # Errors
    /// If the session is not an operator's, or the store fails.
    pub async fn audit(&self, access: &Access) -> Result<Vec<String>, Error> {
        Ok(self.open_znodes(access).await?.into_iter().map(|(path, _)| path).collect())
    }

    /// Znodes with other rights than they are to have, and those. Parents first.
    async fn open_znodes(&self, access: &Access) -> Result<Vec<(String, Vec<zk::Acl>)>, Error> {
        let mut open = Vec::new();
        let mut left = VecDeque::from([paths::CLUSTER.to_owned()]);
        while let Some(path) = left.pop_front() {
            let Some((found, ephemeral)) = self.acl_of(&path).await? else { continue };
            let wanted = acl(access, &path, ephemeral);
            if !same(&found, &wanted) {
                open.push((path.clone(), wanted));
            }
            let children = self.children(&path).await?.unwrap_or_default();
            left.extend(children.into_iter().map(|child| format!("{path}/{child}")));
        }
        Ok(open)
    }

    /// Refuses what would lock the session out of the tree.
    async fn check_member(&self, access: &Access) -> Result<(), Error> {
        if access.operators.is_empty() || access.nodes.is_empty() {
            return Err(Error::Other(
                "a closed tree needs operators and nodes: name at least one id of each".to_owned(),
            ));
        }
        let users = self.users().await?;
        let is_operator = access
            .operators
            .iter()
            .any(|id| users.iter().any(|(scheme, user)| scheme == id.scheme() && user == id.user()));
        if is_operator {
            return Ok(());
        }
        let users: Vec<String> = users.into_iter().map(|(scheme, user)| format!("{scheme}:{user}")).collect();
        Err(Error::Other(format!(
            "this session would lock itself out: ZooKeeper knows it as {}, which is not one of the operators that are \
             named; connect with an operator's credentials",
            users.join(" and ")
        )))
    }

    /// The ACL of sessions that create `path`, where the tree is closed.
    pub(super) fn governing(&self, path: &str) -> Option<std::sync::Arc<Access>> {
        self.access().filter(|_| governs(path))
    }
}

/// Returns whether two ACLs give the same rights, in whatever order.
fn same(found: &[zk::Acl], wanted: &[zk::Acl]) -> bool {
    found.len() == wanted.len() && wanted.iter().all(|entry| found.contains(entry))
}
