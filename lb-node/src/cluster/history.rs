//! The history of decisions in the tree: the last [`KEPT`] events, each written in one transaction with the
//! head that it tells of.
//!
//! Nobody decides by them, so nothing that is wrong with them stops a leader: what cannot be written is left out, what
//! cannot be deleted stays, and either is told once.

use coordination::{Change, Error, Session};
use host::clock::wall_ms;
use policy::leader::Publication;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, warn};
use zk_schema::NodeName;
use zk_schema::tree::{Event, StateRecord as _, paths};

/// Events that are kept.
pub const KEPT: usize = 300;
/// Events beyond which the oldest are deleted, several at once.
pub const MOST: usize = 320;
/// Deletions of one commit.
const AT_ONCE: usize = 100;
/// Time for which no event is written after one could not be.
const PAUSE: Duration = Duration::from_secs(60);
/// Time for which events are not listed again after the connection was lost over it: a list may be too long for it.
const LIST_AGAIN: Duration = Duration::from_secs(600);

/// The events in the tree, as far as one leader knows.
#[derive(Debug)]
pub(super) struct History {
    node: NodeName,
    epochs: BTreeSet<u64>,
    /// Events of epochs that are yet to come: somebody else's, and in the way.
    strays: BTreeSet<u64>,
    /// Events that could not be deleted.
    stuck: BTreeSet<u64>,
    /// Znodes that are no events.
    foreign: usize,
    paused_until: Option<Instant>,
}

/// The time at which a list of events was last lost. Outlives leaderships.
#[derive(Debug, Default)]
pub(super) struct ListLost(Option<Instant>);

impl History {
    /// As if there were no events.
    pub(super) const fn new(node: NodeName) -> Self {
        Self {
            node,
            epochs: BTreeSet::new(),
            strays: BTreeSet::new(),
            stuck: BTreeSet::new(),
            foreign: 0,
            paused_until: None,
        }
    }

    /// Learns which events there are, where `newest` is the greatest epoch that was ever written. Without an answer
    /// it goes by what it knows; what else there is stays until it is seen.
    pub(super) async fn look<S: Session>(&mut self, session: &S, newest: u64, lost: &mut ListLost) {
        if lost.0.is_some_and(|at| at.elapsed() < LIST_AGAIN) {
            return;
        }
        let names = match session.children(paths::EVENTS).await {
            Ok(names) => names.unwrap_or_default(),
            Err(error) => {
                warn!(%error, "{}: cannot be listed; nothing is deleted there for now", paths::EVENTS);
                lost.0 = Some(Instant::now());
                return;
            }
        };
        let all = names.len();
        let is_epoch = |name: &String| name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
        let epochs: BTreeSet<u64> =
            names.into_iter().filter(is_epoch).filter_map(|name| name.parse().ok()).collect();
        let foreign = all - epochs.len();
        if foreign > self.foreign {
            warn!(znodes = foreign, "{}: has znodes that are no events; they stay", paths::EVENTS);
        }
        self.foreign = foreign;
        let epochs = epochs.difference(&self.stuck).copied();
        (self.epochs, self.strays) = epochs.partition(|epoch| *epoch <= newest);
    }

    /// Returns what to write with the head, if anything.
    pub(super) fn change(&self, publication: &Publication) -> Option<Change> {
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let head = &publication.head;
        let event = Event {
            term: head.term,
            epoch: head.epoch,
            node: self.node.clone(),
            at_ms: wall_ms(),
            decisions: publication.decisions.clone(),
            extra: Default::default(),
        };
        let data = event.bytes().inspect_err(|error| warn!(%error, "the event cannot be written")).ok()?;
        let path = paths::event(head.epoch);
        let there = self.epochs.contains(&head.epoch) || self.strays.contains(&head.epoch);
        Some(match there {
            true => Change::Set { path, data, version: None },
            false => Change::Create { path, data, ephemeral: false },
        })
    }

    /// Takes note that the event of `epoch` has been written.
    pub(super) fn written(&mut self, epoch: u64) {
        self.strays.remove(&epoch);
        self.epochs.insert(epoch);
    }

    /// Returns whether an event is to blame for the failure of a commit.
    pub(super) fn is_to_blame(error: &Error) -> bool {
        let path = match error {
            Error::NoNode(path)
            | Error::Exists(path)
            | Error::BadVersion(path)
            | Error::NotEmpty(path)
            | Error::NoAuth(path) => path,
            Error::Lost(_) | Error::Expired | Error::AuthFailed(_) | Error::Other(_) => return false,
        };
        path.strip_prefix(paths::EVENTS).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Repairs what an event that could not be written failed for, as far as that is possible.
    pub(super) async fn repair<S: Session>(&mut self, session: &S, epoch: u64, error: &Error) {
        match error {
            Error::Exists(_) => drop(self.strays.insert(epoch)),
            Error::NoNode(_) => {
                self.strays.remove(&epoch);
                self.epochs.remove(&epoch);
                let path = paths::EVENTS.to_owned();
                let made =
                    session.commit(vec![Change::Create { path, data: Vec::new(), ephemeral: false }]).await;
                debug!(?made, "{}: was missing", paths::EVENTS);
            }
            _ => {}
        }
    }

    /// Writes no events for a while, since `error` cannot be repaired.
    pub(super) fn pause(&mut self, error: &Error) {
        if self.paused_until.is_none() {
            warn!(%error, "decisions are not written to /drover/events for a while");
        }
        self.paused_until = Some(Instant::now() + PAUSE);
    }

    /// Returns what to delete now, in one commit; empty: nothing.
    pub(super) fn superfluous(&self) -> Vec<Change> {
        let old = match self.epochs.len() {
            many if many > MOST => many - KEPT,
            _ => 0,
        };
        let epochs = self.strays.iter().chain(self.epochs.iter().take(old));
        let delete = |epoch: &u64| Change::Delete { path: paths::event(*epoch), version: None };
        epochs.take(AT_ONCE).map(delete).collect()
    }

    /// Takes note that `deleted` are gone.
    pub(super) fn deleted(&mut self, deleted: &[Change]) {
        deleted.iter().for_each(|change| self.forget(change.path()));
    }

    /// Takes note that deleting failed over one event, which somebody has deleted already, or holds on to.
    pub(super) fn not_deleted(&mut self, error: &Error) {
        if let Error::NoNode(path) | Error::NotEmpty(path) | Error::NoAuth(path) = error {
            if !matches!(error, Error::NoNode(_)) {
                warn!(%error, "an old event cannot be deleted, and stays");
                self.stuck.extend(paths::name(path).parse::<u64>());
            }
            self.forget(path);
        }
    }

    fn forget(&mut self, path: &str) {
        if let Ok(epoch) = paths::name(path).parse() {
            self.epochs.remove(&epoch);
            self.strays.remove(&epoch);
        }
    }
}

#[cfg(test)]
mod tests;
