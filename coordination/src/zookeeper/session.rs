//! A session: its state, its watches, its operations.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{info, warn};
use zk_schema::tree::{Access, Stat, StateRecord as _, Znode, paths};
use zookeeper_client as zk;

use super::{Acl, Observer, Operation, access, error};
use crate::{Change, Error, Outcome, Session, State, Watch};

/// The most operations that a session has under way; more wait. The library itself would take any number.
const MOST_OPERATIONS: usize = 128;
/// The shortest time limit of an operation.
const MIN_LIMIT: Duration = Duration::from_secs(1);
/// The largest request in bytes. A server drops the connection at one of 1 MiB less a byte (its `jute.maxbuffer`), and
/// passes it on to the others in a somewhat larger form.
const MAX_REQUEST: usize = 1_000_000;
/// The most bytes that each part of a request takes beyond its path and data: lengths, version, flags, ACL.
const PART_OVERHEAD: usize = 80;

/// Bytes that an id in an ACL takes beyond its text.
const ID_OVERHEAD: usize = 12;

static EVERYBODY: [zk::Acl; 1] = [zk::Acl::new_const(zk::Permission::ALL, "world", "anyone")];

static CREATOR_AND_READERS: [zk::Acl; 2] = [
    zk::Acl::new_const(zk::Permission::ALL, "auth", ""),
    zk::Acl::new_const(zk::Permission::READ, "world", "anyone"),
];

/// A session with an ensemble of ZooKeeper servers.
#[derive(Clone, Debug)]
pub struct ZooKeeperSession(Arc<Handle>);

/// The part that all clones share. The client goes with it, which ends the session.
struct Handle {
    id: i64,
    life: Arc<Life>,
    permits: Arc<Semaphore>,
    /// Time limit of an operation.
    limit: Duration,
    acl: Acl,
    /// The rights, if the tree is closed.
    access: RwLock<Option<Arc<Access>>>,
    /// Bytes that the subtree's path adds to each path.
    chroot_length: usize,
    observer: Option<Arc<dyn Observer>>,
}

/// The client while the session lasts, and the state.
struct Life {
    client: Mutex<Option<zk::Client>>,
    state: watch::Sender<State>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = *self.life.state.borrow();
        formatter
            .debug_struct("Handle")
            .field("id", &format_args!("{:#x}", self.id))
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.life.release();
    }
}

impl Life {
    fn client(&self) -> Option<zk::Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets go of the client: the library closes the session as soon as it can.
    fn release(&self) -> Option<zk::Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Enters `state`, unless the session has ended.
    fn enter(&self, state: State) {
        self.state.send_if_modified(|current| {
            let changes = *current != State::Expired && *current != state;
            if changes {
                *current = state;
            }
            changes
        });
    }

    fn end(&self) {
        self.enter(State::Expired);
        self.release();
    }
}

impl ZooKeeperSession {
    /// Takes over a client that has just begun its session.
    pub(super) fn new(
        client: zk::Client,
        acl: Acl,
        chroot_length: usize,
        observer: Option<Arc<dyn Observer>>,
    ) -> Self {
        let id = client.session_id().0;
        let timeout = client.session_timeout();
        let watcher = client.state_watcher();
        let life = Arc::new(Life {
            client: Mutex::new(Some(client)),
            state: watch::Sender::new(match watcher.peek_state() {
                zk::SessionState::SyncConnected => State::Connected,
                _ => State::Disconnected,
            }),
        });
        tokio::spawn(follow(id, watcher, life.clone(), timeout));
        Self(Arc::new(Handle {
            id,
            life,
            permits: Arc::new(Semaphore::new(MOST_OPERATIONS)),
            limit: MIN_LIMIT.max(timeout * 2 / 3),
            acl,
            access: RwLock::default(),
            chroot_length,
            observer,
        }))
    }

    /// Reads whether the tree is closed, and to whom.
    pub(super) async fn learn_access(&self) -> Result<(), Error> {
        let path = paths::ACCESS;
        let record = self.read(&[path.to_owned()]).await?.into_iter().next().flatten();
        let access = match record {
            Some(znode) => Access::parse(&znode.data).map(Some).map_err(|error| {
                Error::Other(format!("{path}: {error}; an operator fixes that by closing the tree again"))
            })?,
            None if self.0.acl == Acl::Groups => {
                return Err(Error::Other(format!(
                    "{path}: no such znode, so the tree is open, and `acl = \"groups\"` asks for a closed one; close it \
                     first, or set `acl = \"open\"`"
                )));
            }
            None => None,
        };
        self.adopt(access);
        Ok(())
    }

    /// Has what is created from now on have these rights; returns those before.
    pub(super) fn adopt(&self, access: Option<Access>) -> Option<Access> {
        let mut current = self.0.access.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, access.map(Arc::new)).map(Arc::unwrap_or_clone)
    }

    pub(super) fn access(&self) -> Option<Arc<Access>> {
        self.0.access.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The ACL of a znode and whether it is ephemeral; `None` if there is none.
    pub(super) async fn acl_of(&self, path: &str) -> Result<Option<(Vec<zk::Acl>, bool)>, Error> {
        let owned = path.to_owned();
        match self
            .perform(Operation::Read, path, |client| async move { client.get_acl(&owned).await })
            .await?
        {
            Ok((acl, stat)) => Ok(Some((acl, stat.ephemeral_owner != 0))),
            Err(zk::Error::NoNode) => Ok(None),
            Err(error) => Err(self.refusal(path, error)),
        }
    }

    pub(super) async fn set_acl(&self, path: &str, acl: Vec<zk::Acl>) -> Result<(), Error> {
        let owned = path.to_owned();
        let done =
            self.perform(
                Operation::Write,
                path,
                |client| async move { client.set_acl(&owned, &acl, None).await },
            );
        done.await?.map(drop).map_err(|error| self.refusal(path, error))
    }

    /// Whom the servers know this session as: scheme and user.
    pub(super) async fn users(&self) -> Result<Vec<(String, String)>, Error> {
        let answer = self
            .perform(Operation::Read, "users", |client| async move { client.list_auth_users().await })
            .await?;
        let users = answer.map_err(|error| self.refusal("/", error))?;
        Ok(users.iter().map(|user| (user.scheme().to_owned(), user.user().to_owned())).collect())
    }

    /// Returns whether there is such a znode.
    pub(super) async fn exists(&self, path: &str) -> Result<bool, Error> {
        Ok(self.checked(path).await?.is_some())
    }

    /// Returns what servers tell of a znode without the right to read it.
    async fn checked(&self, path: &str) -> Result<Option<zk::Stat>, Error> {
        let owned = path.to_owned();
        let found = self
            .perform(Operation::Read, path, |client| async move { client.check_stat(&owned).await })
            .await?;
        found.map_err(|error| self.refusal(path, error))
    }

    /// Returns the time at which a znode was created, by the clock of the server that led then; `None`: no such znode.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn created_at(&self, path: &str) -> Result<Option<SystemTime>, Error> {
        let stat = self.checked(path).await?;
        let since_1970 = |stat: zk::Stat| u64::try_from(stat.ctime).map(Duration::from_millis);
        Ok(stat.and_then(|stat| UNIX_EPOCH.checked_add(since_1970(stat).ok()?)))
    }

    /// The client, if a server can be asked now.
    fn connected(&self) -> Result<zk::Client, Error> {
        let life = &self.0.life;
        let state = *life.state.borrow();
        match (state, life.client()) {
            (State::Expired, _) | (_, None) => Err(Error::Expired),
            // The library may know of a lost connection a moment before us.
            (State::Connected, Some(client)) if client.state() == zk::SessionState::SyncConnected => {
                Ok(client)
            }
            _ => Err(Error::Lost("not connected to a server".to_owned())),
        }
    }

    /// Lets the library do one operation, which is about `what`, and tells the observer how that went.
    async fn perform<F>(
        &self,
        kind: Operation,
        what: &str,
        operation: impl FnOnce(zk::Client) -> F,
    ) -> Result<F::Output, Error>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let began = Instant::now();
        let outcome = self.attempt(what, operation).await;
        if let Some(observer) = &self.0.observer {
            observer.ended(kind, began.elapsed(), outcome.is_ok());
        }
        outcome
    }

    /// Lets the library do one operation, which is about `what`.
    ///
    /// The library knows no time limits, queues what is asked of it while disconnected, and goes on with an operation
    /// that nobody waits for any more. So each runs in a task that holds its permit until the library is done with it,
    /// and whoever asked waits for no longer than the limit, and only as long as the connection stands.
    async fn attempt<F>(
        &self,
        what: &str,
        operation: impl FnOnce(zk::Client) -> F,
    ) -> Result<F::Output, Error>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let limit = self.0.limit;
        let late = || Error::Lost(format!("{what}: no answer in {limit:?}"));
        let deadline = Instant::now() + limit;
        let mut state = self.0.life.state.subscribe();
        self.connected()?;
        let permit =
            timeout_at(deadline, self.0.permits.clone().acquire_owned()).await.map_err(|_| late())?;
        let permit = permit.map_err(|_| Error::Expired)?;
        // Some time may have passed.
        let client = self.connected()?;
        let operation = operation(client);
        let mut ended = self.0.life.state.subscribe();
        let mut task = tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                biased;
                output = operation => Some(output),
                _ = ended.wait_for(|state| *state == State::Expired) => None,
            }
        });
        tokio::select! {
            biased;
            done = &mut task => match done {
                Ok(Some(output)) => Ok(output),
                Ok(None) => Err(Error::Expired),
                // The library has panicked: nothing can be expected of this session any more.
                Err(_) => {
                    self.0.life.end();
                    Err(Error::Expired)
                }
            },
            _ = state.wait_for(|state| *state != State::Connected) => Err(self.connected().err().unwrap_or_else(|| {
                Error::Lost(format!("{what}: the connection broke"))
            })),
            () = sleep_until(deadline) => Err(late()),
        }
    }

    /// The error of an operation that came back.
    fn refusal(&self, path: &str, refusal: zk::Error) -> Error {
        if error::is_breakdown(&refusal) {
            warn!(session = format_args!("{:#x}", self.0.id), error = %refusal, "the ZooKeeper client broke down");
            self.0.life.end();
        }
        error::of_operation(path, refusal)
    }

    /// Returns a watch that fires with `watcher`, or when the state changes from what `state` has seen. It costs a task
    /// until then, or until nobody waits any more; the servers are then told to forget it.
    fn watch_for(watcher: zk::OneshotWatcher, mut state: watch::Receiver<State>) -> Watch {
        let (mut fire, watch) = Watch::new();
        tokio::spawn(async move {
            tokio::select! {
                _ = watcher.changed() => {}
                // The library restores one-shot watches after a reconnect, but a fresh look is the better answer: it
                // also heals what a watch could have missed.
                _ = state.changed() => {}
                () = fire.closed() => {}
            }
            drop(fire);
        });
        watch
    }

    /// A receiver that has seen the state as it is now.
    fn state_seen(&self) -> watch::Receiver<State> {
        self.0.life.state.subscribe()
    }

    /// The ACL of a znode that this session creates.
    fn acl_for(&self, path: &str, ephemeral: bool) -> Cow<'static, [zk::Acl]> {
        if let Some(access) = self.governing(path) {
            return access::acl(&access, path, ephemeral).into();
        }
        match self.0.acl {
            Acl::Open | Acl::Groups => Cow::Borrowed(&EVERYBODY),
            Acl::Creator => Cow::Borrowed(&CREATOR_AND_READERS),
        }
    }

    /// Bytes that each part of a request takes beyond its path and data.
    fn overhead(&self) -> usize {
        let ids = self.access().map_or(0, |access| {
            let all = access.operators.iter().chain(&access.nodes).chain(&access.agents);
            all.map(|id| ID_OVERHEAD + id.scheme().len() + id.id().len()).sum()
        });
        PART_OVERHEAD + ids
    }

    /// Refuses a request that a server would answer by dropping the connection.
    fn check_size<'a>(&self, parts: impl Iterator<Item = (&'a str, usize)>) -> Result<(), Error> {
        let overhead = self.overhead();
        let mut bytes = 0;
        let mut largest = ("", 0);
        for (path, data) in parts {
            bytes += overhead + self.0.chroot_length + path.len() + data;
            if data >= largest.1 {
                largest = (path, data);
            }
        }
        if bytes <= MAX_REQUEST {
            return Ok(());
        }
        let (path, data) = largest;
        Err(Error::Other(format!(
            "{path}: {bytes} bytes in one request, {data} of them the content of this znode; ZooKeeper takes some \
             {MAX_REQUEST}. Write less at once"
        )))
    }
}

impl Session for ZooKeeperSession {
    fn id(&self) -> i64 {
        self.0.id
    }

    fn state(&self) -> watch::Receiver<State> {
        self.0.life.state.subscribe()
    }

    async fn watch(&self, path: &str) -> Result<(Option<Znode>, Watch), Error> {
        let (owned, state) = (path.to_owned(), self.state_seen());
        let answer = self.perform(Operation::Read, path, |client| async move {
            loop {
                match client.get_and_watch_data(&owned).await {
                    Ok((data, stat, watcher)) => return Ok((Some(znode(data, &stat)), watcher)),
                    Err(zk::Error::NoNode) => {}
                    Err(error) => return Err(error),
                }
                // Unless it has been created in the meantime, this watch is for its creation.
                if let (None, watcher) = client.check_and_watch_stat(&owned).await? {
                    return Ok((None, watcher));
                }
            }
        });
        let (znode, watcher) = answer.await?.map_err(|error| self.refusal(path, error))?;
        Ok((znode, Self::watch_for(watcher, state)))
    }

    async fn watch_children(&self, path: &str) -> Result<(Option<Vec<String>>, Watch), Error> {
        let (owned, state) = (path.to_owned(), self.state_seen());
        let answer = self.perform(Operation::Read, path, |client| async move {
            loop {
                match client.list_and_watch_children(&owned).await {
                    Ok((children, watcher)) => return Ok((Some(in_order(children)), watcher)),
                    Err(zk::Error::NoNode) => {}
                    Err(error) => return Err(error),
                }
                if let (None, watcher) = client.check_and_watch_stat(&owned).await? {
                    return Ok((None, watcher));
                }
            }
        });
        let (children, watcher) = answer.await?.map_err(|error| self.refusal(path, error))?;
        Ok((children, Self::watch_for(watcher, state)))
    }

    async fn children(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        let owned = path.to_owned();
        match self
            .perform(Operation::Read, path, |client| async move { client.list_children(&owned).await })
            .await?
        {
            Ok(children) => Ok(Some(in_order(children))),
            Err(zk::Error::NoNode) => Ok(None),
            Err(error) => Err(self.refusal(path, error)),
        }
    }

    /// One request whatever the number of paths, as only that is one moment. The answer may be larger than what a
    /// request may be: neither the servers nor this client put a bound to it.
    async fn read_each(&self, paths: &[String]) -> Result<Vec<Outcome>, Error> {
        self.check_size(paths.iter().map(|path| (path.as_str(), 0)))?;
        let Some(first) = paths.first() else {
            return self.connected().map(|_| Vec::new());
        };
        let owned = paths.to_vec();
        let answer = self.perform(Operation::Read, first, |client| async move {
            let mut reader = client.new_multi_reader();
            for (index, path) in owned.iter().enumerate() {
                reader.add_get_data(path).map_err(|error| (index, error))?;
            }
            reader.commit().await.map_err(|error| (0, error))
        });
        let refusal = |(index, error): (usize, zk::Error)| self.refusal(&paths[index], error);
        let results = answer.await?.map_err(refusal)?;
        if results.len() != paths.len() {
            return Err(Error::Other(format!("{first}: {} answers to {} reads", results.len(), paths.len())));
        }
        let outcomes = results.into_iter().enumerate().map(|(index, result)| match result {
            zk::MultiReadResult::Data { data, stat } => Ok(Ok(Some(znode(data, &stat)))),
            zk::MultiReadResult::Error { err: zk::Error::NoNode } => Ok(Ok(None)),
            zk::MultiReadResult::Error { err } => match refusal((index, err)) {
                error if error.is_of_one_znode() => Ok(Err(error)),
                error => Err(error),
            },
            other => Err(Error::Other(format!("{}: not an answer to a read: {other:?}", paths[index]))),
        });
        outcomes.collect()
    }

    async fn stat(&self, path: &str) -> Result<Option<Stat>, Error> {
        Ok(self.checked(path).await?.map(|stat| Stat { version: stat.version, owner: owner(&stat) }))
    }

    /// Through the leader, which must have a quorum; a server that is cut off from it lets this end in
    /// [`Error::Lost`].
    async fn sync(&self) -> Result<(), Error> {
        let answer =
            self.perform(Operation::Sync, "sync", |client| async move { client.sync("/").await }).await?;
        answer.map_err(|error| self.refusal("/", error))
    }

    /// At most some 1,000,000 bytes.
    async fn commit(&self, changes: Vec<Change>) -> Result<(), Error> {
        self.check_size(changes.iter().map(|change| (change.path(), content(change).len())))?;
        let Some(first) = changes.first().map(|change| change.path().to_owned()) else {
            return self.connected().map(|_| ());
        };
        let paths: Vec<String> = changes.iter().map(|change| change.path().to_owned()).collect();
        let acls: Vec<_> = changes
            .iter()
            .map(|change| match change {
                Change::Create { path, ephemeral, .. } => self.acl_for(path, *ephemeral),
                _ => Cow::Borrowed(&[][..]),
            })
            .collect();
        let answer = self.perform(Operation::Write, &first, |client| async move {
            let mut writer = client.new_multi_writer();
            for (index, (change, acl)) in changes.iter().zip(&acls).enumerate() {
                let added = match change {
                    // Version -1 asks only that there is such a znode.
                    Change::Check { path, version } => writer.add_check_version(path, version.unwrap_or(-1)),
                    Change::Create { path, data, ephemeral } => {
                        let mode =
                            if *ephemeral { zk::CreateMode::Ephemeral } else { zk::CreateMode::Persistent };
                        writer.add_create(path, data, &mode.with_acls(zk::Acls::new(acl)))
                    }
                    Change::Set { path, data, version } => writer.add_set_data(path, data, *version),
                    Change::Delete { path, version } => writer.add_delete(path, *version),
                };
                added.map_err(|source| zk::MultiWriteError::OperationFailed { index, source })?;
            }
            writer.commit().await.map(|_| ())
        });
        answer.await?.map_err(|error| match error {
            zk::MultiWriteError::RequestFailed { source } => self.refusal(&first, source),
            zk::MultiWriteError::OperationFailed { index, source } => {
                self.refusal(paths.get(index).unwrap_or(&first), source)
            }
        })
    }

    async fn create_sequential(&self, prefix: &str, data: Vec<u8>) -> Result<String, Error> {
        self.check_size([(prefix, data.len())].into_iter())?;
        let (owned, acl) = (prefix.to_owned(), self.acl_for(prefix, true));
        let create = |client: zk::Client| async move {
            let options = zk::CreateMode::EphemeralSequential.with_acls(zk::Acls::new(&acl));
            client.create(&owned, &data, &options).await
        };
        let answer = self.perform(Operation::Write, prefix, create).await?;
        let (_, sequence) = answer.map_err(|error| self.refusal(prefix, error))?;
        Ok(format!("{prefix}{sequence}"))
    }

    async fn close(self) {
        let life = &self.0.life;
        let client = life.release();
        life.enter(State::Expired);
        let Some(client) = client else { return };
        let mut watcher = client.state_watcher();
        drop(client);
        let closed = async {
            while !watcher.peek_state().is_terminated() {
                watcher.changed().await;
            }
        };
        if timeout(self.0.limit, closed).await.is_err() {
            warn!(
                session = format_args!("{:#x}", self.0.id),
                "no ZooKeeper server can be told that this session ends; its ephemeral znodes stay until it expires"
            );
        }
    }
}

/// Follows the library's idea of the session's state, and ends the session when it must be over.
///
/// It must be over when there has been no connection for a whole timeout: the servers last heard of the session before
/// the connection was lost, so they have expired it (unless they were without a quorum all the while, in which case
/// nobody has taken over from it). Less would end sessions that could still be kept. More would leave the judgement to
/// the library, which waits for 1.4 timeouts since the last answer, and for ever under some circumstances.
async fn follow(id: i64, mut watcher: zk::StateWatcher, life: Arc<Life>, timeout: Duration) {
    let session = format_args!("{id:#x}").to_string();
    let mut ended = life.state.subscribe();
    let mut deadline = (*life.state.borrow() != State::Connected).then(|| Instant::now() + timeout);
    loop {
        let state = tokio::select! {
            _ = ended.wait_for(|state| *state == State::Expired) => return,
            state = watcher.changed() => Some(state),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => None,
        };
        match state {
            Some(zk::SessionState::SyncConnected) => {
                // Between two looks a connection may have come and gone: whoever watches must look again.
                life.enter(State::Disconnected);
                life.enter(State::Connected);
                deadline = None;
                info!(session, "connected to ZooKeeper again");
            }
            Some(zk::SessionState::Disconnected | zk::SessionState::ConnectedReadOnly) => {
                life.enter(State::Disconnected);
                deadline.get_or_insert_with(|| Instant::now() + timeout);
                warn!(session, "disconnected from ZooKeeper");
            }
            Some(
                over @ (zk::SessionState::Expired | zk::SessionState::AuthFailed | zk::SessionState::Closed),
            ) => {
                life.end();
                info!(session, state = %over, "the ZooKeeper session has ended");
                return;
            }
            None => {
                life.end();
                warn!(session, "no ZooKeeper server for {timeout:?}: the session has expired");
                return;
            }
        }
    }
}

fn znode(data: Vec<u8>, stat: &zk::Stat) -> Znode {
    Znode { data, version: stat.version, created: stat.czxid, modified: stat.mzxid, owner: owner(stat) }
}

fn owner(stat: &zk::Stat) -> Option<i64> {
    Some(stat.ephemeral_owner).filter(|owner| *owner != 0)
}

fn in_order(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

fn content(change: &Change) -> &[u8] {
    match change {
        Change::Create { data, .. } | Change::Set { data, .. } => data,
        Change::Check { .. } | Change::Delete { .. } => &[],
    }
}
