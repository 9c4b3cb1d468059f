//! An operator at a ZooKeeper client: reads and writes znodes by hand.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use coordination::zookeeper::{Options, ZooKeeper, ZooKeeperSession};
use coordination::{Change, Session as _, Store as _, setup};
use tokio::runtime::Builder;
use zk_schema::Desired;
use zk_schema::tree::StateRecord;

use crate::access::{self, Member};
use testbed::Host;

const SESSION: Duration = Duration::from_secs(6);
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(500);

type Job = Box<dyn FnOnce(&tokio::runtime::Runtime, &ZooKeeper, &mut Option<ZooKeeperSession>) + Send>;

/// A client of an ensemble that lives on a host. Where an operation fails since the ensemble is away for a moment, it is
/// tried again for some ten seconds.
#[derive(Debug)]
pub struct Operator {
    closed: bool,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Operator {
    /// An operator on `host`, at the ensemble that `servers` names. Connects when it is needed.
    ///
    /// # Errors
    ///
    /// When the host cannot be entered.
    pub fn new(host: &Host, servers: &str) -> Result<Operator> {
        Operator::with(host, Options::new(servers), false)
    }

    /// An operator who closes the tree when it is made.
    ///
    /// # Errors
    ///
    /// When the host cannot be entered.
    pub fn of_closed_tree(host: &Host, servers: &str) -> Result<Operator> {
        let options = Options { digest: Some(Member::Operator.login()), ..Options::new(servers) };
        Operator::with(host, options, true)
    }

    fn with(host: &Host, mut options: Options, closed: bool) -> Result<Operator> {
        options.session_timeout = SESSION;
        let store = ZooKeeper::new(options)?;
        let (jobs, work) = mpsc::channel::<Job>();
        let host = host.clone();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("operator".to_owned()).spawn(move || {
            if host.enter_this_thread().is_err() {
                return;
            }
            let mut session = None;
            while let Ok(job) = work.recv() {
                job(&runtime, &store, &mut session);
            }
            if let Some(session) = session {
                runtime.block_on(session.close());
            }
        })?;
        Ok(Operator { closed, jobs: Some(jobs), thread: Some(thread) })
    }

    /// Does something in a session, again with a new one if it fails.
    fn run<T: Send + 'static>(
        &self,
        act: impl AsyncFn(&ZooKeeperSession) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = mpsc::channel();
        let job: Job = Box::new(move |runtime, store, session| {
            let outcome = runtime.block_on(async {
                let mut last = anyhow!("nothing was tried");
                for _ in 0..ATTEMPTS {
                    if session.is_none() {
                        *session = store.connect().await.ok();
                    }
                    if let Some(current) = session {
                        match act(current).await {
                            Ok(value) => return Ok(value),
                            Err(error) => last = error,
                        }
                        let is_lost = last
                            .downcast_ref::<coordination::Error>()
                            .is_none_or(|error| error.is_lost() || *error == coordination::Error::Expired);
                        if !is_lost {
                            return Err(last);
                        }
                        *session = None;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(last)
            });
            let _ = answer.send(outcome);
        });
        self.jobs
            .as_ref()
            .context("the operator has left")?
            .send(job)
            .ok()
            .context("the operator has left")?;
        answered.recv().context("the operator has left")?
    }

    /// Makes the tree, if there is none, and writes VIPs and reals; others are deleted.
    ///
    /// # Errors
    ///
    /// When the ensemble is away for long, or a record is wrong.
    pub fn write(&self, desired: &Desired) -> Result<()> {
        let (desired, closed) = (desired.clone(), self.closed);
        self.run(async move |session| {
            match closed {
                true => drop(session.init_secured(&desired.cluster, &access::closed()).await?),
                false => drop(setup::init(session, &desired.cluster).await?),
            }
            Ok(setup::write_desired(session, &desired).await?)
        })
    }

    /// A znode's content; `None` where there is none.
    ///
    /// # Errors
    ///
    /// When the ensemble is away for long.
    pub fn get(&self, path: &str) -> Result<Option<String>> {
        let path = path.to_owned();
        self.run(async move |session| {
            session.sync().await?;
            let found = session.read(std::slice::from_ref(&path)).await?.into_iter().next().flatten();
            Ok(found.map(|znode| String::from_utf8_lossy(&znode.data).into_owned()))
        })
    }

    /// How often a znode has been written; `None` where there is none.
    ///
    /// # Errors
    ///
    /// When the ensemble is away for long.
    pub fn version(&self, path: &str) -> Result<Option<i32>> {
        let path = path.to_owned();
        self.run(async move |session| {
            session.sync().await?;
            let found = session.read(std::slice::from_ref(&path)).await?.into_iter().next().flatten();
            Ok(found.map(|znode| znode.version))
        })
    }

    /// A record; `None` where there is none.
    ///
    /// # Errors
    ///
    /// When the ensemble is away for long, or the znode is no such record.
    pub fn record<T: StateRecord>(&self, path: &str) -> Result<Option<T>> {
        let text = self.get(path)?.filter(|text| !text.is_empty());
        text.map(|text| T::parse(text.as_bytes()).with_context(|| path.to_owned())).transpose()
    }

    /// The names of a znode's children; none where there is no such znode.
    ///
    /// # Errors
    ///
    /// When the ensemble is away for long.
    pub fn children(&self, path: &str) -> Result<Vec<String>> {
        let path = path.to_owned();
        self.run(async move |session| {
            session.sync().await?;
            Ok(session.children(&path).await?.unwrap_or_default())
        })
    }

    /// Writes a znode, whether or not it is there.
    ///
    /// # Errors
    ///
    /// When the ensemble is away for long, or the parent is missing.
    pub fn put(&self, path: &str, content: &str) -> Result<()> {
        let (path, data) = (path.to_owned(), content.as_bytes().to_vec());
        self.run(async move |session| {
            let there = session.read(std::slice::from_ref(&path)).await?.into_iter().next().flatten();
            let (path, data) = (path.clone(), data.clone());
            let change = match there {
                Some(_) => Change::Set { path, data, version: None },
                None => Change::Create { path, data, ephemeral: false },
            };
            Ok(session.commit(vec![change]).await?)
        })
    }

    /// Deletes a znode, which must have no children; one that is not there is deleted already.
    ///
    /// # Errors
    ///
    /// When the ensemble is away for long, or it has children.
    pub fn delete(&self, path: &str) -> Result<()> {
        let path = path.to_owned();
        self.run(async move |session| {
            match session.commit(vec![Change::Delete { path: path.clone(), version: None }]).await {
                Ok(()) | Err(coordination::Error::NoNode(_)) => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Deletes a znode and all below it, one znode after the other and the deepest first, as `deleteall` of zkCli.sh
    /// does. What appears below it meanwhile makes it start over, a few times; what others make anew all the time stays, as
    /// it does there. Returns how many it deleted.
    ///
    /// # Errors
    ///
    /// When the ensemble is away for long.
    pub fn delete_all(&self, path: &str) -> Result<usize> {
        let root = path.to_owned();
        self.run(async move |session| {
            let mut deleted = 0;
            for _ in 0..ATTEMPTS {
                let tree = below(session, &root).await?;
                if tree.is_empty() {
                    return Ok(deleted);
                }
                for path in tree.into_iter().rev() {
                    match session.commit(vec![Change::Delete { path, version: None }]).await {
                        Ok(()) => deleted += 1,
                        Err(coordination::Error::NoNode(_) | coordination::Error::NotEmpty(_)) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Ok(deleted)
        })
    }
}

/// A znode and all below it, level by level; nothing where it is not there.
async fn below(session: &ZooKeeperSession, root: &str) -> Result<Vec<String>> {
    let Some(mut level) = session.children(root).await?.map(|_| vec![root.to_owned()]) else {
        return Ok(Vec::new());
    };
    let mut tree = Vec::new();
    while !level.is_empty() {
        let mut next = Vec::new();
        for path in &level {
            let children = session.children(path).await?.unwrap_or_default();
            next.extend(children.into_iter().map(|child| format!("{path}/{child}")));
        }
        tree.append(&mut level);
        level = next;
    }
    Ok(tree)
}

impl Drop for Operator {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
