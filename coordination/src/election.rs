//! The election of a leader. Candidates stand in line, and the first one leads. Each watches only the one before it, so
//! that its end wakes its successor and nobody else.

use crate::pace::Spread;
use crate::{Change, Error, Session, State};
use std::time::Duration;
use tracing::debug;
use zk_schema::NodeName;
use zk_schema::tree::{
    AS_CREATED, Candidacy, Line, Place, Stat, StateRecord as _, Stray, Term, is_plausible, paths,
};

/// Candidates that one answer may hold.
const READ_AT_ONCE: usize = 100;

/// A fault of the tree for which nobody can lead there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElectionError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
    /// The record of terms cannot be read.
    #[error("{path}: {0}; if it was edited by hand, `delete` it: the next leader goes on from the assignments", path = paths::LEADER)]
    Term(String),
}

/// A place in the line of candidates.
#[derive(Debug)]
pub struct Candidate<S> {
    session: S,
    node: NodeName,
    path: String,
}

/// A leadership: what every write of it is fenced by.
#[derive(Clone, Debug)]
pub struct Leadership<S> {
    session: S,
    candidate: String,
    term: u64,
    /// Version of the znode of terms since this leadership began.
    version: i32,
    predecessor: Option<Term>,
}

impl<S: Session> Candidate<S> {
    /// Takes a place at the end of the line, or keeps the one that this session has there. `instance` tells this process
    /// from others of the same node; what an earlier session of it left in the line is deleted: the servers would, some
    /// time later, and a leadership by it would end then.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn stand(session: S, node: NodeName, instance: &str) -> Result<Self, Error> {
        let prefix = format!("{}/{node}-{instance}-", paths::ELECTION);
        let Line { candidates, strays } = line(&session).await?;
        // An earlier attempt may have succeeded without an answer.
        let is_own = |place: &&Place| place.path.starts_with(&prefix) && place.owner == session.id();
        let own = candidates.iter().find(is_own).map(|place| place.path.clone());
        let there =
            candidates.into_iter().map(|place| place.path).chain(strays.into_iter().map(|stray| stray.path));
        for path in there.filter(|path| path.starts_with(&prefix) && own.as_ref() != Some(path)) {
            debug!(path, "deleting an earlier place in the line");
            match session.commit(vec![Change::Delete { path, version: None }]).await {
                Ok(()) => {}
                Err(error) if error.is_of_one_znode() => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(path) = own {
            return Ok(Self { session, node, path });
        }
        let content = Candidacy { node: node.clone(), extra: Default::default() };
        let content = content.bytes().map_err(|error| Error::Other(format!("{prefix}: {error}")))?;
        let path = session.create_sequential(&prefix, content).await?;
        Ok(Self { session, node, path })
    }

    /// Waits until this candidate is the first, or the session is no longer [connected](State::Connected), which is
    /// an error. The line is read again when the candidate before this one goes, and about every `reread`, since a
    /// notification may be lost.
    ///
    /// # Errors
    /// If the store fails, or the candidate's znode is gone, or no longer counts.
    pub async fn wait(&self, reread: Duration) -> Result<(), Error> {
        let mut state = self.session.state();
        let mut spread = Spread::of_session(self.session.id(), &self.path);
        loop {
            let line = line(&self.session).await?.candidates;
            let place = line.iter().position(|place| place.path == self.path);
            let place = place.ok_or_else(|| Error::NoNode(self.path.clone()))?;
            let Some(before) = place.checked_sub(1) else { return Ok(()) };
            let before = &line[before].path;
            let (there, gone) = match self.session.watch(before).await {
                Ok((there, gone)) => (there.is_some(), Some(gone)),
                // It is looked at again.
                Err(Error::NoAuth(_)) => (true, None),
                Err(error) => return Err(error),
            };
            if !there {
                continue;
            }
            debug!(before, "waiting for the candidate before this one");
            let gone = async {
                match gone {
                    Some(gone) => gone.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = state.wait_for(|state| *state != State::Connected) => {
                    return Err(Error::Lost("the connection was lost while waiting to lead".to_owned()));
                }
                () = gone => {}
                () = tokio::time::sleep(spread.around(reread)) => {}
            }
        }
    }

    /// Begins a leadership, whose term is greater than any before it and than `beyond`. To be called by the first in line.
    ///
    /// # Errors
    /// If the store fails, or somebody else has begun one in the meantime.
    pub async fn lead(&self, beyond: u64, since: u64) -> Result<Leadership<S>, ElectionError> {
        self.session.sync().await?;
        let read = self.session.read(&[paths::LEADER.to_owned()]).await?;
        let current = read.into_iter().next().flatten();
        let predecessor = current.as_ref().map(|znode| Term::parse(&znode.data)).transpose();
        let predecessor = predecessor.map_err(|error| ElectionError::Term(error.to_string()))?;
        // A number that no counting leads to was made up: what others have in force says where to go on.
        let predecessor = predecessor.filter(|predecessor| is_plausible((predecessor.term, 0)));
        let last = predecessor.as_ref().map_or(0, |predecessor| predecessor.term);
        let used_up = || ElectionError::Term("the numbers of terms are used up".to_owned());
        let term = last.max(beyond).checked_add(1).ok_or_else(used_up)?;
        let record = Term { node: self.node.clone(), term, since };
        let data = record.bytes().map_err(|error| ElectionError::Term(error.to_string()))?;
        let path = paths::LEADER.to_owned();
        let change = match &current {
            Some(znode) => Change::Set { path, data, version: Some(znode.version) },
            None => Change::Create { path, data, ephemeral: false },
        };
        let first = Change::Check { path: self.path.clone(), version: Some(AS_CREATED) };
        self.session.commit(vec![first, change]).await?;
        Ok(Leadership {
            session: self.session.clone(),
            candidate: self.path.clone(),
            term: record.term,
            version: current.map_or(0, |znode| znode.version + 1),
            predecessor,
        })
    }

    /// Leaves the line; somebody else may lead.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn leave(self) -> Result<(), Error> {
        match self.session.commit(vec![Change::Delete { path: self.path, version: None }]).await {
            Err(Error::NoNode(_)) => Ok(()),
            other => other,
        }
    }

    /// The candidate's znode.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl<S: Session> Leadership<S> {
    /// The number of the leadership.
    #[must_use]
    pub const fn term(&self) -> u64 {
        self.term
    }

    /// The leadership before this one, if there was one.
    #[must_use]
    pub const fn predecessor(&self) -> Option<&Term> {
        self.predecessor.as_ref()
    }

    /// Commits `changes` if, and only if, this leadership lasts: nobody has begun another one, and its candidate is there.
    ///
    /// # Errors
    /// If the store fails. [`Error::BadVersion`] or [`Error::NoNode`] of [`paths::LEADER`] or of the candidate: the
    /// leadership is over.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<(), Error> {
        let mut all = vec![
            Change::Check { path: paths::LEADER.to_owned(), version: Some(self.version) },
            Change::Check { path: self.candidate.clone(), version: Some(AS_CREATED) },
        ];
        all.extend(changes);
        self.session.commit(all).await
    }

    /// Returns whether `error`, of a commit, means that the leadership is over.
    #[must_use]
    pub fn is_over(&self, error: &Error) -> bool {
        match error {
            Error::BadVersion(path) | Error::NoNode(path) => path == paths::LEADER || *path == self.candidate,
            Error::Expired => true,
            _ => false,
        }
    }

    /// The znode of this leadership's place in the line.
    #[must_use]
    pub fn candidate(&self) -> &str {
        &self.candidate
    }
}

/// The line as it is now.
///
/// # Errors
/// If the store fails, or there is no line.
pub async fn line<S: Session>(session: &S) -> Result<Line, Error> {
    let names = session.children(paths::ELECTION).await?;
    let names = names.ok_or_else(|| Error::NoNode(paths::ELECTION.to_owned()))?;
    let paths: Vec<String> = names.iter().map(|name| format!("{}/{name}", paths::ELECTION)).collect();
    let mut line = Line::default();
    for paths in paths.chunks(READ_AT_ONCE) {
        for (path, outcome) in paths.iter().zip(session.read_each(paths).await?) {
            let place = match outcome {
                Ok(Some(znode)) => Place::of(path, Stat::from(&znode), Some(&znode.data)),
                Ok(None) => continue,
                Err(_) => match session.stat(path).await? {
                    Some(stat) => Place::of(path, stat, None),
                    None => continue,
                },
            };
            match place {
                Ok(place) => line.candidates.push(place),
                Err(why) => line.strays.push(Stray { path: path.clone(), why }),
            }
        }
    }
    line.candidates.sort_unstable();
    Ok(line)
}
