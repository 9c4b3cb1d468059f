//! The promises of a store: a session with a tree of znodes.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{oneshot, watch};
use zk_schema::tree::{Stat, Znode};

/// A place that sessions can be had from: an ensemble of servers.
pub trait Store: Clone + Send + Sync + 'static {
    /// Its sessions.
    type Session: Session;

    /// Begins a session. Tries for as long as a session would last, no longer.
    ///
    /// # Errors
    /// If no server can be reached, or they refuse.
    fn connect(&self) -> impl Future<Output = Result<Self::Session, Error>> + Send;
}

/// A session: a view of the tree that never goes back, and the owner of ephemeral znodes, which vanish with it.
///
/// Clones are the same session. It ends by [`close`](Self::close), by expiry, or some time after the last clone is
/// dropped.
///
/// Each operation ends within some seconds, come what may. One that ends in [`Error::Lost`] may have taken effect or
/// may do so later, up to a session's timeout; whoever writes makes sure by versions that a late write cannot harm.
/// While the session is not [connected](State::Connected), operations fail at once and reach no server.
pub trait Session: Clone + Send + Sync + 'static {
    /// The session's number, which ephemeral znodes name their owner by. Never 0.
    fn id(&self) -> i64;

    /// The session's state, always current. After [`State::Expired`] it never changes again.
    fn state(&self) -> watch::Receiver<State>;

    /// A znode, or `None` where there is none, and a watch that fires when that changes: created, written, deleted.
    ///
    /// # Errors
    /// See [`Error`].
    fn watch(&self, path: &str) -> impl Future<Output = Result<(Option<Znode>, Watch), Error>> + Send;

    /// The names of a znode's children in order, or `None` where there is no such znode, and a watch that fires when
    /// a child comes or goes, or the znode does.
    ///
    /// # Errors
    /// See [`Error`].
    fn watch_children(
        &self,
        path: &str,
    ) -> impl Future<Output = Result<(Option<Vec<String>>, Watch), Error>> + Send;

    /// The names of a znode's children in order, or `None` where there is no such znode.
    ///
    /// # Errors
    /// See [`Error`].
    fn children(&self, path: &str) -> impl Future<Output = Result<Option<Vec<String>>, Error>> + Send;

    /// Several znodes as they are at one moment, in the order of `paths`, or why one of them cannot be read: that is
    /// its own, and the others are read all the same.
    ///
    /// # Errors
    /// See [`Error`]: why none could be read.
    fn read_each(&self, paths: &[String]) -> impl Future<Output = Result<Vec<Outcome>, Error>> + Send;

    /// Several znodes as they are at one moment, in the order of `paths`: all of them or none. Where a single znode must
    /// not stand in the way of the others, see [`read_each`](Self::read_each).
    ///
    /// # Errors
    /// See [`Error`].
    fn read(&self, paths: &[String]) -> impl Future<Output = Result<Vec<Option<Znode>>, Error>> + Send {
        async move { self.read_each(paths).await?.into_iter().collect() }
    }

    /// Returns what is known of a znode without the right to read it; `None` if there is none.
    ///
    /// # Errors
    /// See [`Error`].
    fn stat(&self, path: &str) -> impl Future<Output = Result<Option<Stat>, Error>> + Send;

    /// Waits until this session's server has all that was written before the call by anybody.
    ///
    /// # Errors
    /// See [`Error`].
    fn sync(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// All changes, or none.
    ///
    /// # Errors
    /// See [`Error`]; one that a change is to blame for names its path, that of the first such change.
    fn commit(&self, changes: Vec<Change>) -> impl Future<Output = Result<(), Error>> + Send;

    /// Creates an ephemeral znode whose name is `prefix` and a number of ten digits greater than that of all before it
    /// in the same parent. Returns its path.
    ///
    /// # Errors
    /// See [`Error`]. After [`Error::Lost`] it may be there: `prefix` should be one by which it can be recognised.
    fn create_sequential(
        &self,
        prefix: &str,
        data: Vec<u8>,
    ) -> impl Future<Output = Result<String, Error>> + Send;

    /// Ends the session now: its ephemeral znodes vanish before this returns, if a server can be reached within some
    /// seconds.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// A session's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A server answers.
    Connected,
    /// No server answers. The session's ephemeral znodes may be there, or not.
    Disconnected,
    /// The session has ended; its ephemeral znodes are gone or soon will be. Another one is to be begun.
    Expired,
}

impl State {
    /// Waits until a server answers. `false`: the session has ended, and none will.
    pub async fn wait_connected(state: &mut watch::Receiver<State>) -> bool {
        let settled = state.wait_for(|state| *state != State::Disconnected).await;
        settled.is_ok_and(|state| *state == State::Connected)
    }
}

/// The result of [one of several](Session::read_each) reads: the znode, `None`, or the reason why it cannot be read.
pub type Outcome = Result<Option<Znode>, Error>;

/// One change of a [commit](Session::commit).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// There must be such a znode, of this version if one is given.
    Check {
        /// Path.
        path: String,
        /// Version.
        version: Option<i32>,
    },
    /// Creates a znode, which must not be there; its parent must.
    Create {
        /// Path.
        path: String,
        /// Content.
        data: Vec<u8>,
        /// It vanishes with the session.
        ephemeral: bool,
    },
    /// Writes a znode, which must be there, of this version if one is given.
    Set {
        /// Path.
        path: String,
        /// Content.
        data: Vec<u8>,
        /// Version.
        version: Option<i32>,
    },
    /// Deletes a znode, which must be there, of this version if one is given, and have no children.
    Delete {
        /// Path.
        path: String,
        /// Version.
        version: Option<i32>,
    },
}

impl Change {
    /// The path that it is about.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Check { path, .. }
            | Self::Create { path, .. }
            | Self::Set { path, .. }
            | Self::Delete { path, .. } => path,
        }
    }
}

/// The error of an operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No server answers, or not in time. The operation may have taken effect.
    #[error("no answer from ZooKeeper: {0}")]
    Lost(String),
    /// The session has ended.
    #[error("the ZooKeeper session has expired")]
    Expired,
    /// There is no such znode.
    #[error("{0}: no such znode")]
    NoNode(String),
    /// There is such a znode already.
    #[error("{0}: the znode exists already")]
    Exists(String),
    /// The znode has another version than it should have.
    #[error("{0}: the znode has been written by somebody else")]
    BadVersion(String),
    /// The znode has children.
    #[error("{0}: the znode has children")]
    NotEmpty(String),
    /// The session may not do that.
    #[error(
        "{0}: this session has no right to do that. In a closed tree, operators, nodes and reals' agents each write their \
         own part, with credentials of their own: check those that are set here (credentials_file, tls_cert), and with \
         `getAcl {0}` as an operator who may"
    )]
    NoAuth(String),
    /// The servers refuse the credentials.
    #[error("ZooKeeper refuses this node's credentials: {0}")]
    AuthFailed(String),
    /// Another failure; trying again is of no use.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// Returns whether the same may succeed later, in the same session.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    /// Returns whether one znode alone is to blame, so that others can still be read and written.
    #[must_use]
    pub const fn is_of_one_znode(&self) -> bool {
        !matches!(self, Self::Lost(_) | Self::Expired | Self::AuthFailed(_))
    }

    /// In a few words why what was to be read cannot be, without its path.
    #[must_use]
    pub fn unreadable(&self) -> String {
        match self {
            Self::NoAuth(path) => format!("cannot be read, for lack of the right to: see `getAcl {path}`"),
            other => format!("cannot be read: {other}"),
        }
    }
}

/// Becomes ready once, when what is watched has changed, or may have: the session's end counts too, and so may a lost
/// connection. Whoever waits reads again.
#[derive(Debug)]
pub struct Watch(oneshot::Receiver<()>);

impl Watch {
    /// A watch, and what fires it: sending on it, or dropping it.
    #[must_use]
    pub fn new() -> (oneshot::Sender<()>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }
}

impl Future for Watch {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(context).map(|_| ())
    }
}
