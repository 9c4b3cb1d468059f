//! Znodes that a process keeps as long as it lives: always with its newest content, and its own.

use crate::pace::{Backoff, Spread};
use crate::{Change, Error, Session, State};
use std::time::Duration;
use tokio::sync::watch;
use tracing::debug;
use zk_schema::tree::Znode;

/// Pause after the first failure; doubled with each further one.
const AGAIN: Duration = Duration::from_millis(200);
/// The longest such pause.
const LONGEST_AGAIN: Duration = Duration::from_secs(5);
/// About how often the znode is looked at though nothing was told: a notification may be lost.
pub const REREAD: Duration = Duration::from_secs(45);

/// A znode to keep.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its path; the parent must be there.
    pub path: String,
    /// It vanishes with the session.
    pub ephemeral: bool,
    /// Its wanted content. `None`: an ephemeral znode is not to be there, any other is left alone.
    pub content: watch::Receiver<Option<Vec<u8>>>,
}

/// A reason why a znode cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A znode is there that is neither this session's nor a predecessor's.
    Occupied(Znode),
    /// The store fails.
    Failing(Error),
}

/// Keeps a znode until the session has expired. If another one is there, `is_own_predecessor` says whether it may be
/// replaced; otherwise it is waited for to vanish. What stands in the way is told to `obstacle`. The znode is looked at
/// whenever something is told of it, and about every [`REREAD`].
pub async fn keep<S: Session>(
    session: &S,
    mut kept: Kept,
    is_own_predecessor: impl Fn(&Znode) -> bool,
    obstacle: impl Fn(Option<Refusal>),
) {
    let mut state = session.state();
    let mut spread = Spread::of_session(session.id(), &kept.path);
    let mut pauses = Backoff::new(&kept.path, AGAIN, LONGEST_AGAIN);
    loop {
        if !State::wait_connected(&mut state).await {
            return;
        }
        let content = kept.content.borrow_and_update().clone();
        let watched = session.watch(&kept.path).await;
        let (there, changed) = match watched {
            Ok(watched) => watched,
            Err(Error::Expired) => return,
            Err(error) => {
                debug!(path = kept.path, %error, "cannot look at the znode");
                obstacle(Some(Refusal::Failing(error)));
                tokio::time::sleep(pauses.pause()).await;
                continue;
            }
        };
        let changes = match changes(session, &kept, there.as_ref(), content, &is_own_predecessor) {
            Ok(changes) => {
                if changes.is_empty() {
                    obstacle(None);
                }
                changes
            }
            Err(occupied) => {
                obstacle(Some(occupied));
                Vec::new()
            }
        };
        if changes.is_empty() {
            pauses.reset();
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep(spread.around(REREAD)) => {}
                changed = kept.content.changed() => if changed.is_err() { return },
            }
            continue;
        }
        match session.commit(changes).await {
            // The watch that this fires makes another round, which finds nothing to do.
            Ok(()) => obstacle(None),
            Err(Error::Expired) => return,
            Err(error) => {
                debug!(path = kept.path, %error, "cannot keep the znode");
                obstacle(Some(Refusal::Failing(error)));
                tokio::time::sleep(pauses.pause()).await;
            }
        }
    }
}

/// Returns the changes that make the znode as it is wanted.
fn changes<S: Session>(
    session: &S,
    kept: &Kept,
    there: Option<&Znode>,
    content: Option<Vec<u8>>,
    is_own_predecessor: &impl Fn(&Znode) -> bool,
) -> Result<Vec<Change>, Refusal> {
    let path = || kept.path.clone();
    let delete = |znode: &Znode| Change::Delete { path: path(), version: Some(znode.version) };
    let create = |data| Change::Create { path: path(), data, ephemeral: kept.ephemeral };
    let own = there.is_none_or(|znode| !kept.ephemeral || znode.owner == Some(session.id()));
    Ok(match (there, content) {
        (None, None) => Vec::new(),
        (None, Some(data)) => vec![create(data)],
        (Some(znode), None) if own && kept.ephemeral => vec![delete(znode)],
        (Some(znode), None) if !own && !is_own_predecessor(znode) => {
            return Err(Refusal::Occupied(znode.clone()));
        }
        (Some(_), None) => Vec::new(),
        (Some(znode), Some(data)) if own => match znode.data == data {
            true => Vec::new(),
            false => vec![Change::Set { path: path(), data, version: Some(znode.version) }],
        },
        // An ephemeral of a session before this one would vanish later, and take its place with it.
        (Some(znode), Some(data)) if is_own_predecessor(znode) => vec![delete(znode), create(data)],
        (Some(znode), Some(_)) => return Err(Refusal::Occupied(znode.clone())),
    })
}
