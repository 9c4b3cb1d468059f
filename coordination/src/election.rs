//! Who leads: candidates stand in line, the first one leads, and each watches only the one before it, so that an end
//! wakes its successor and nobody else.

use crate::{Change, Error, Session, State};
use tracing::debug;
use zk_schema::NodeName;
use zk_schema::tree::{StateRecord as _, Term, is_plausible, paths};

/// What is so wrong with a tree that nobody can lead there.
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
    /// Takes a place at the end of the line. `instance` tells this process from others of the same node.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn stand(session: S, node: NodeName, instance: &str) -> Result<Self, Error> {
        let prefix = format!("{}/{node}-{instance}-", paths::ELECTION);
        // An earlier attempt may have succeeded without an answer.
        let own = |line: &[(String, String)]| {
            line.iter().map(|(_, path)| path).find(|path| path.starts_with(&prefix)).cloned()
        };
        if let Some(path) = own(&line(&session).await?) {
            return Ok(Self { session, node, path });
        }
        let content = format!("{{\"node\":\"{node}\"}}").into_bytes();
        let path = session.create_sequential(&prefix, content).await?;
        Ok(Self { session, node, path })
    }

    /// Waits until this candidate is the first, or the session is no longer [connected](State::Connected), which is
    /// an error.
    ///
    /// # Errors
    /// If the store fails, or the candidate's znode is gone.
    pub async fn wait(&self) -> Result<(), Error> {
        let mut state = self.session.state();
        loop {
            let line = line(&self.session).await?;
            let place = line.iter().position(|(_, path)| *path == self.path);
            let place = place.ok_or_else(|| Error::NoNode(self.path.clone()))?;
            let Some(before) = place.checked_sub(1) else { return Ok(()) };
            let (there, gone) = self.session.watch(&line[before].1).await?;
            if there.is_none() {
                continue;
            }
            debug!(before = line[before].1, "waiting for the candidate before this one");
            tokio::select! {
                biased;
                _ = state.wait_for(|state| *state != State::Connected) => {
                    return Err(Error::Lost("the connection was lost while waiting to lead".to_owned()));
                }
                () = gone => {}
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
        let first = Change::Check { path: self.path.clone(), version: None };
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
            Change::Check { path: self.candidate.clone(), version: None },
        ];
        all.extend(changes);
        self.session.commit(all).await
    }

    /// Whether `error`, of a commit, says that the leadership is over.
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

/// The candidates in order: (number, path).
async fn line<S: Session>(session: &S) -> Result<Vec<(String, String)>, Error> {
    let names = session.children(paths::ELECTION).await?;
    let names = names.ok_or_else(|| Error::NoNode(paths::ELECTION.to_owned()))?;
    let mut line: Vec<(String, String)> = names
        .into_iter()
        .filter_map(|name| {
            let number = name.rsplit('-').next()?.to_owned();
            let is_number = number.len() == 10 && number.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| (number, format!("{}/{name}", paths::ELECTION)))
        })
        .collect();
    line.sort_unstable();
    Ok(line)
}
