//! Reads the tree again and again. What more there is to show, such as rates from nodes' admin pages, would join a
//! [`Sample`] here.

use crate::commands::history::{Wanted, events};
use crate::commands::status::read;
use crate::context::Context;
use crate::overview::{Overview, Shares};
use anyhow::Result;
use coordination::zookeeper::ZooKeeperSession;
use coordination::{Error, Session};
use host::clock::wall_ms;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use zk_schema::tree::Event;

/// Decisions that are kept for the tail.
const DECISIONS: usize = 50;

/// A finding, and its time.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// The cluster as it was seen last.
    pub(super) overview: Arc<Overview>,
    /// The last decisions, the oldest first.
    pub(super) events: Arc<[Event]>,
    /// Its time, in milliseconds since 1970.
    pub(super) at_ms: u64,
    /// Set while the tree cannot be read.
    pub(super) away: Option<Away>,
}

/// The tree cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Away {
    /// Since when, in milliseconds since 1970.
    pub(super) since_ms: u64,
    /// Why.
    pub(super) why: String,
}

/// Looks at the tree.
pub(super) struct Watcher {
    context: Context,
    servers: String,
    session: Option<ZooKeeperSession>,
    shares: Shares,
    events: Vec<Event>,
    newest: Option<u64>,
    sample: Sample,
}

impl Watcher {
    /// Looks for the first time.
    pub(super) async fn start(context: Context, servers: String) -> Result<Self> {
        let session = context.connect().await?;
        let mut shares = Shares::default();
        let overview = Arc::new(read(&session, &servers, &mut shares).await?);
        let sample = Sample { overview, events: Arc::default(), at_ms: wall_ms(), away: None };
        let mut watcher = Self {
            context,
            servers,
            session: Some(session),
            shares,
            events: Vec::new(),
            newest: None,
            sample,
        };
        watcher.look().await?;
        Ok(watcher)
    }

    /// The last finding.
    pub(super) fn sample(&self) -> Sample {
        self.sample.clone()
    }

    /// Looks every `interval` until `stopped`, and puts what it finds into `samples`.
    pub(super) async fn watch(
        mut self,
        interval: Duration,
        samples: watch::Sender<Sample>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        loop {
            let step = async {
                tokio::time::sleep(interval).await;
                if let Err(error) = self.look().await {
                    let why = format!("{error:#}");
                    match &mut self.sample.away {
                        Some(away) => away.why = why,
                        away @ None => *away = Some(Away { since_ms: wall_ms(), why }),
                    }
                    // A session that has merely lost its connection finds another server by itself.
                    if error.downcast_ref::<Error>().is_none_or(|error| !error.is_lost()) {
                        self.session = None;
                    }
                }
            };
            tokio::select! {
                () = step => drop(samples.send_replace(self.sample.clone())),
                _ = &mut stopped => break,
            }
        }
        if let Some(session) = self.session {
            session.close().await;
        }
    }

    async fn look(&mut self) -> Result<()> {
        let session = match &self.session {
            Some(session) => session.clone(),
            None => self.session.insert(self.context.connect().await?).clone(),
        };
        let overview = read(&session, &self.servers, &mut self.shares).await?;
        let (events, newest) = events(&session, self.newest, DECISIONS, &Wanted::default()).await?;
        self.newest = newest;
        self.events.extend(events);
        let surplus = self.events.len().saturating_sub(DECISIONS);
        self.events.drain(..surplus);
        self.sample = Sample {
            overview: Arc::new(overview),
            events: self.events.as_slice().into(),
            at_ms: wall_ms(),
            away: None,
        };
        Ok(())
    }
}
