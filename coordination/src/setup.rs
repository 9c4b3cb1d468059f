//! Making a tree, and writing operators' records into it.

use crate::{Change, Error, Outcome, Session};
use std::collections::BTreeSet;
use tracing::debug;
use zk_schema::tree::paths;
use zk_schema::{Cluster, Desired, RecordError, to_json};

/// Changes that go into one commit.
const AT_ONCE: usize = 200;

/// The reason why a tree cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
    /// A record is wrong.
    #[error("{path}: {error}")]
    Record {
        /// The path that it was for.
        path: String,
        /// The fault.
        error: RecordError,
    },
}

/// Makes what is missing of the tree's skeleton, as far as this session may: in a closed tree, a part of it is the
/// operators', and whoever needs that part tells what is missing. Returns whether there is a tree at all: the cluster's
/// record, which it does not make.
///
/// # Errors
/// If the store fails.
pub async fn ensure_skeleton<S: Session>(session: &S) -> Result<bool, Error> {
    let wanted: Vec<String> = paths::SKELETON.iter().map(|path| (*path).to_owned()).collect();
    // What may not be read is there.
    let there = session.read_each(&wanted).await?;
    let is_missing = |outcome: &Outcome| matches!(outcome, Ok(None));
    if there.first().is_none_or(is_missing) {
        return Ok(false);
    }
    for (path, _) in wanted.into_iter().zip(there).filter(|(_, outcome)| is_missing(outcome)) {
        match session.commit(vec![Change::Create { path, data: Vec::new(), ephemeral: false }]).await {
            Ok(()) => {}
            Err(error) if error.is_of_one_znode() => debug!(%error, "a part of the tree is missing"),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Makes a tree with this record; where there is one already, nothing is changed. Returns whether it was made.
///
/// # Errors
/// If the record is wrong, or the store fails.
pub async fn init<S: Session>(session: &S, cluster: &Cluster) -> Result<bool, SetupError> {
    let data = record(paths::CLUSTER, cluster)?;
    let create = Change::Create { path: paths::CLUSTER.to_owned(), data, ephemeral: false };
    let made = match session.commit(vec![create]).await {
        Ok(()) => true,
        Err(Error::Exists(_)) => false,
        Err(error) => return Err(error.into()),
    };
    ensure_skeleton(session).await?;
    Ok(made)
}

/// Writes VIPs and reals as they are in `desired`, and deletes those that are not. Records that are the same already
/// are not touched. A VIP comes and goes whole.
///
/// # Errors
/// If a record is wrong, in which case nothing is written, or the store fails.
pub async fn write_desired<S: Session>(session: &S, desired: &Desired) -> Result<(), SetupError> {
    let mut wanted = Vec::new();
    for (name, state) in &desired.vips {
        wanted.push((paths::vip(name), record(&paths::vip(name), &state.vip)?));
        wanted.push((paths::reals(name), Vec::new()));
        for (real, state) in &state.reals {
            let path = paths::real(name, real);
            let data = record(&path, state)?;
            wanted.push((path, data));
        }
    }
    let paths_wanted: Vec<String> = wanted.iter().map(|(path, _)| path.clone()).collect();
    let mut there = Vec::new();
    for paths in paths_wanted.chunks(AT_ONCE) {
        there.extend(session.read(paths).await?);
    }
    let all: BTreeSet<&String> = paths_wanted.iter().collect();
    let is_wanted = |path: &String| all.contains(path);
    let mut changes = Vec::new();
    for name in session.children(paths::VIPS).await?.unwrap_or_default() {
        let vip = format!("{}/{name}", paths::VIPS);
        let reals = format!("{vip}/reals");
        let children = session.children(&reals).await?;
        let has_reals = children.is_some();
        let children = children.unwrap_or_default().into_iter().map(|real| format!("{reals}/{real}"));
        let gone = children.filter(|path| !is_wanted(path));
        changes.extend(gone.map(|path| Change::Delete { path, version: None }));
        if !is_wanted(&vip) {
            if has_reals {
                changes.push(Change::Delete { path: reals, version: None });
            }
            changes.push(Change::Delete { path: vip, version: None });
        }
    }
    for ((path, data), there) in wanted.into_iter().zip(there) {
        match there {
            None => changes.push(Change::Create { path, data, ephemeral: false }),
            Some(znode) if znode.data != data => {
                changes.push(Change::Set { path, data, version: Some(znode.version) });
            }
            Some(_) => {}
        }
    }
    for changes in changes.chunks(AT_ONCE) {
        session.commit(changes.to_vec()).await?;
    }
    Ok(())
}

fn record<T: zk_schema::Record>(path: &str, record: &T) -> Result<Vec<u8>, SetupError> {
    to_json(record).map_err(|error| SetupError::Record { path: path.to_owned(), error })
}
