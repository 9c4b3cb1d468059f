//! A tree in this process, which behaves as ZooKeeper does, and a network to it that fails when told to.
//!
//! A [`MemoryStore`] stands for the ensemble; each [`MemoryClient`] for a process that uses it over a link of its own.
//! Links are cut, processes stopped, sessions expired and the whole ensemble stopped by a call; what follows from that
//! takes the time that it takes with ZooKeeper. Time is tokio's, there is no randomness, and nothing depends on the
//! order of hashes: under tokio's paused clock and on one thread, a run is the same each time.

mod noted;
mod server;
#[cfg(test)]
mod tests;
mod tree;

pub use noted::{Noted, crowd};

use self::server::{Kind, Server};
use crate::{Change, Error, Outcome, Session, State, Store, Watch};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use zk_schema::tree::{Stat, Znode};

/// An ensemble of servers in this process. Clones are the same ensemble.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

/// A process that uses a [`MemoryStore`] over a link of its own. Clones are the same process.
#[derive(Clone, Debug)]
pub struct MemoryClient {
    shared: Arc<Shared>,
    name: Arc<str>,
}

/// A change of the tree, as its servers made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When.
    pub at: Instant,
    /// By which client,
    pub client: String,
    /// and by which of its sessions.
    pub session: i64,
    /// Of which znode.
    pub path: String,
    /// Its content since then; `None`: it is gone.
    pub data: Option<Vec<u8>>,
}

/// A session of a [`MemoryClient`].
#[derive(Clone, Debug)]
pub struct MemorySession {
    handle: Arc<Handle>,
}

impl MemoryStore {
    /// An ensemble with an empty tree, no latency and sessions that time out after 6 s.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                server: Mutex::new(Server::new()),
                wake: Arc::new(Notify::new()),
                driver: Mutex::new(None),
            }),
        }
    }

    /// Sets how long after the last sign of life a session expires.
    #[must_use]
    pub fn with_session_timeout(self, timeout: Duration) -> Self {
        self.shared.with(|server, _| server.timeout = timeout);
        self
    }

    /// Sets how long after a cut a client notices it; 0.4 of the session's timeout if not set.
    #[must_use]
    pub fn with_notice_after(self, notice_after: Duration) -> Self {
        self.shared.with(|server, _| server.notice_after = Some(notice_after));
        self
    }

    /// The client of this name: the same one whenever it is asked for.
    #[must_use]
    pub fn client(&self, name: &str) -> MemoryClient {
        self.shared.with(|server, _| server.add_client(name));
        MemoryClient { shared: Arc::clone(&self.shared), name: name.into() }
    }

    /// Sets how long a message takes from here on, each way: an operation takes twice that, a watch's notification
    /// once.
    pub fn latency(&self, latency: Duration) {
        self.shared.with(|server, _| server.latency = latency);
    }

    /// Stops all servers, or has them run again. Sessions do not expire meanwhile on the servers' side, and have their
    /// full timeout afterwards; clients give theirs up as ever.
    pub fn outage(&self, outage: bool) {
        self.shared.with(|server, now| server.outage(outage, now));
    }

    /// Takes the right to read a znode from all clients, or gives it back: its content and the list of
    /// its children, for as long as it is the same znode. No watch tells of that, as with ZooKeeper.
    pub fn forbid(&self, path: &str, forbid: bool) {
        self.shared.with(|server, _| server.forbid(path, forbid));
    }

    /// Returns the number of transactions that clients have made. A commit counts once.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.shared.with(|server, _| server.writes)
    }

    /// All changes since this was called last, in the order in which they were made; none the first time, which begins
    /// the journal.
    pub fn journal(&self) -> Vec<Entry> {
        self.shared.with(|server, _| server.journal.replace(Vec::new()).unwrap_or_default())
    }

    /// All znodes by path, without the root.
    #[must_use]
    pub fn dump(&self) -> BTreeMap<String, Znode> {
        self.shared.with(|server, _| server.tree.dump())
    }

    /// Returns the number of watches that are set, have not fired, and that somebody still holds.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.shared.with(|server, _| server.watches())
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryClient {
    /// Cuts the link, or restores it. The client notices a cut some time later and its sessions are
    /// [disconnected](State::Disconnected); operations hang until then, and fail. A session's timeout after the cut,
    /// client and servers both take the session for expired, each by its own clock.
    pub fn partition(&self, cut: bool) {
        self.change(|client| client.cut = cut);
    }

    /// If `lose`, requests still arrive while the link is cut and only answers are lost: operations take effect and fail.
    pub fn lose_replies(&self, lose: bool) {
        self.change(|client| client.lose_replies = lose);
    }

    /// If `lose`, notifications of watches are lost from here on, and nothing else.
    pub fn lose_notifications(&self, lose: bool) {
        self.change(|client| client.lose_notifications = lose);
    }

    /// Stops the process, or has it run again: what it asks of the store waits, what the store tells it waits, and it
    /// looks at no clock. For some milliseconds after it runs again it believes what it believed.
    pub fn pause(&self, paused: bool) {
        self.change(|client| client.paused = paused);
    }

    /// Has the servers end its sessions now.
    pub fn expire_now(&self) {
        self.shared.with(|server, now| server.expire_all(&self.name, now));
    }

    fn change(&self, change: impl FnOnce(&mut server::Client)) {
        self.shared.with(|server, now| server.change(&self.name, now, change));
    }
}

impl Store for MemoryClient {
    type Session = MemorySession;

    async fn connect(&self) -> Result<MemorySession, Error> {
        self.shared.start();
        let mut reachable = self.shared.with(|server, _| server.reachable(&self.name));
        let (timeout, latency) = self.shared.with(|server, _| (server.timeout, server.latency));
        let until = Instant::now() + timeout;
        loop {
            if timeout_at(until, reachable.wait_for(|reachable| *reachable)).await.is_err() {
                return Err(Error::Lost(format!("{} is cut off", self.name)));
            }
            if !latency.is_zero() {
                sleep(latency * 2).await;
            }
            if let Some((id, state)) = self.shared.with(|server, _| server.begin(&self.name)) {
                let (shared, client) = (Arc::clone(&self.shared), Arc::clone(&self.name));
                return Ok(MemorySession { handle: Arc::new(Handle { shared, client, id, state }) });
            }
        }
    }
}

impl MemorySession {
    /// Has the servers do something, and waits for their answer.
    async fn call<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Server, i64, Instant) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, answer) = oneshot::channel();
        let request: server::Request = Box::new(move |server, id, now| {
            let result = if server.alive(id) { operation(server, id, now) } else { Err(Error::Expired) };
            Box::new(move || drop(sender.send(result)))
        });
        self.handle.shared.with(|server, now| server.request(self.handle.id, now, request))?;
        let lost = |_| Error::Lost(format!("the connection of {} broke", self.handle.client));
        answer.await.map_err(lost)?
    }
}

impl Session for MemorySession {
    fn id(&self) -> i64 {
        self.handle.id
    }

    fn state(&self) -> watch::Receiver<State> {
        self.handle.state.subscribe()
    }

    async fn watch(&self, path: &str) -> Result<(Option<Znode>, Watch), Error> {
        let path = path.to_owned();
        self.call(move |server, id, _| {
            let znode = server.tree.znode(&path)?;
            server.may_read(&path)?;
            let (sender, watch) = Watch::new();
            server.watch(id, Kind::Znode, &path, sender);
            Ok((znode, watch))
        })
        .await
    }

    async fn watch_children(&self, path: &str) -> Result<(Option<Vec<String>>, Watch), Error> {
        let path = path.to_owned();
        self.call(move |server, id, _| {
            let children = server.tree.children(&path)?;
            server.may_read(&path)?;
            let (sender, watch) = Watch::new();
            server.watch(id, Kind::Children, &path, sender);
            Ok((children, watch))
        })
        .await
    }

    async fn children(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        let path = path.to_owned();
        self.call(move |server, _, _| {
            let children = server.tree.children(&path)?;
            server.may_read(&path).map(|()| children)
        })
        .await
    }

    async fn read_each(&self, paths: &[String]) -> Result<Vec<Outcome>, Error> {
        let paths = paths.to_owned();
        let read = |server: &Server, path: &str| {
            let znode = server.tree.znode(path)?;
            server.may_read(path).map(|()| znode)
        };
        self.call(move |server, _, _| Ok(paths.iter().map(|path| read(server, path)).collect())).await
    }

    async fn stat(&self, path: &str) -> Result<Option<Stat>, Error> {
        let path = path.to_owned();
        self.call(move |server, _, _| Ok(server.tree.znode(&path)?.as_ref().map(Stat::from))).await
    }

    async fn sync(&self) -> Result<(), Error> {
        self.call(|_, _, _| Ok(())).await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), Error> {
        self.call(move |server, id, now| {
            let steps = server.tree.commit(id, changes)?;
            server.writes += 1;
            server.fire(id, &steps, now);
            Ok(())
        })
        .await
    }

    async fn create_sequential(&self, prefix: &str, data: Vec<u8>) -> Result<String, Error> {
        let prefix = prefix.to_owned();
        self.call(move |server, id, now| {
            let (path, steps) = server.tree.create_sequential(id, &prefix, data)?;
            server.writes += 1;
            server.fire(id, &steps, now);
            Ok(path)
        })
        .await
    }

    async fn close(self) {
        let mut state = self.state();
        // A client that is cut off comes back or gives the session up; either ends this wait.
        let _ = state.wait_for(|state| *state != State::Disconnected).await;
        let ended = self.call(|server, id, now| {
            server.end_at_server(id, now);
            Ok(())
        });
        let _ = ended.await;
        self.handle.shared.with(|server, now| server.end_at_client(self.handle.id, now));
    }
}

/// The part that the clones of a session share.
struct Handle {
    shared: Arc<Shared>,
    client: Arc<str>,
    id: i64,
    state: Arc<watch::Sender<State>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.with(|server, now| server.end_at_client(self.id, now));
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("client", &self.client).field("id", &self.id).finish()
    }
}

/// The part that all handles of an ensemble share.
struct Shared {
    server: Mutex<Server>,
    /// Tells the driver to look at its clock anew.
    wake: Arc<Notify>,
    driver: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    /// Does what is due, then this, then what is due because of it.
    fn with<T>(&self, work: impl FnOnce(&mut Server, Instant) -> T) -> T {
        let mut server = lock(&self.server);
        let now = Instant::now();
        server.run(now);
        let result = work(&mut server, now);
        let next = server.run(now);
        if next.is_some_and(|next| server.wakes.is_none_or(|wakes| next < wakes)) {
            server.wakes = next;
            self.wake.notify_one();
        }
        result
    }

    /// Starts the task that does what is due when nobody calls, unless it runs.
    fn start(self: &Arc<Self>) {
        let mut driver = lock(&self.driver);
        if driver.as_ref().is_none_or(JoinHandle::is_finished) {
            *driver = Some(tokio::spawn(drive(Arc::downgrade(self), Arc::clone(&self.wake))));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Does what is due at its time, for as long as somebody holds the store.
async fn drive(shared: Weak<Shared>, wake: Arc<Notify>) {
    loop {
        let Some(next) = shared.upgrade().map(|shared| {
            let mut server = lock(&shared.server);
            server.wakes = server.run(Instant::now());
            server.wakes
        }) else {
            return;
        };
        match next {
            // Whether time passed or it was woken: what is due is looked at again.
            Some(next) => drop(timeout_at(next, wake.notified()).await),
            None => wake.notified().await,
        }
    }
}

/// Nothing here panics half way through a change; what another thread's panic left is in order.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
