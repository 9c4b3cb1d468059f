//! A store that notes when its sessions write what is measured, and hands everything on.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use coordination::{Change, Error, Outcome, Session, State, Store, Watch};
use tokio::sync::watch;
use zk_schema::tree::{Assignment, Head, Stat, StateRecord as _, Vote, Znode, paths};

use crate::log::{Decision, Event, Log};

/// A store, or a session, of node number `node`.
#[derive(Clone, Debug)]
pub(crate) struct Observed<T> {
    pub(crate) inner: T,
    pub(crate) node: usize,
    pub(crate) log: Arc<Log>,
}

impl<S: Store> Store for Observed<S> {
    type Session = Observed<S::Session>;

    async fn connect(&self) -> Result<Self::Session, Error> {
        let inner = self.inner.connect().await?;
        Ok(Observed { inner, node: self.node, log: Arc::clone(&self.log) })
    }
}

impl<S: Session> Session for Observed<S> {
    fn id(&self) -> i64 {
        self.inner.id()
    }

    fn state(&self) -> watch::Receiver<State> {
        self.inner.state()
    }

    fn watch(&self, path: &str) -> impl Future<Output = Result<(Option<Znode>, Watch), Error>> + Send {
        self.inner.watch(path)
    }

    fn watch_children(
        &self,
        path: &str,
    ) -> impl Future<Output = Result<(Option<Vec<String>>, Watch), Error>> + Send {
        self.inner.watch_children(path)
    }

    fn children(&self, path: &str) -> impl Future<Output = Result<Option<Vec<String>>, Error>> + Send {
        self.inner.children(path)
    }

    fn read_each(&self, paths: &[String]) -> impl Future<Output = Result<Vec<Outcome>, Error>> + Send {
        self.inner.read_each(paths)
    }

    fn stat(&self, path: &str) -> impl Future<Output = Result<Option<Stat>, Error>> + Send {
        self.inner.stat(path)
    }

    fn sync(&self) -> impl Future<Output = Result<(), Error>> + Send {
        self.inner.sync()
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), Error> {
        let noted: Vec<(String, Vec<u8>)> = changes.iter().filter_map(content).collect();
        let began = Instant::now();
        self.inner.commit(changes).await?;
        self.note(&noted, began, Instant::now());
        Ok(())
    }

    fn create_sequential(
        &self,
        prefix: &str,
        data: Vec<u8>,
    ) -> impl Future<Output = Result<String, Error>> + Send {
        self.inner.create_sequential(prefix, data)
    }

    fn close(self) -> impl Future<Output = ()> + Send {
        self.inner.close()
    }
}

impl<S> Observed<S> {
    fn note(&self, written: &[(String, Vec<u8>)], began: Instant, acknowledged: Instant) {
        let node = self.node;
        let mut changed = Vec::new();
        let mut head = None;
        for (path, data) in written {
            if path == paths::ASSIGNMENTS {
                head = Head::parse(data).ok();
            } else if let Some(vip) = path.strip_prefix("/drover/assignments/") {
                let assignment = Assignment::parse(data).ok();
                changed.extend(vip.parse().ok().zip(assignment));
            } else if path.starts_with("/drover/health/") {
                if let Ok(vote) = Vote::parse(data) {
                    let down = vote.down.into_keys().collect();
                    self.log.note(Event::Voted { node, down, began });
                }
            } else if path.starts_with("/drover/nodes/") {
                self.log.note(Event::Registered { node, at: acknowledged });
            }
        }
        if !changed.is_empty() || head.is_some() {
            let decision = Decision { began, acknowledged, head, changed };
            self.log.note(Event::Decided(Box::new(decision)));
        }
    }
}

/// What a change writes, if that is measured.
fn content(change: &Change) -> Option<(String, Vec<u8>)> {
    let (Change::Create { path, data, .. } | Change::Set { path, data, .. }) = change else { return None };
    let measured = [paths::ASSIGNMENTS, paths::HEALTH, paths::NODES];
    measured.iter().any(|prefix| path.starts_with(prefix)).then(|| (path.clone(), data.clone()))
}
