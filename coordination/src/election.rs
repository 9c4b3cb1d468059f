//! Who leads: candidates stand in line, the first one leads, and each watches only the one before it, so that an end
//! wakes its successor and nobody else.

use crate::pace::Spread;
use crate::{Change, Error, Session, Stat, State};
use std::time::Duration;
use tracing::debug;
use zk_schema::NodeName;
use zk_schema::tree::{Candidacy, StateRecord as _, Term, is_plausible, paths};

/// Candidates that one answer may hold.
const READ_AT_ONCE: usize = 100;

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
    /// If the store fails, or the candidate's znode is gone, or is none any more.
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

/// The version of a znode that nobody has written since it was created.
const AS_CREATED: i32 = 0;

/// The line of candidates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Candidates in order; the first one leads, or is about to.
    pub candidates: Vec<Place>,
    /// What stands there and is no candidate. Nobody waits for it.
    pub strays: Vec<Stray>,
}

/// A candidate's place in the line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Rises along the line.
    pub number: u64,
    /// Its znode.
    pub path: String,
    /// The session that it goes with.
    pub owner: i64,
    /// Whose it is; `None` where that may not be read.
    pub node: Option<NodeName>,
}

/// A znode in the line's parent that is no candidate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    /// Its path.
    pub path: String,
    /// Why it is none.
    pub why: &'static str,
}

impl Place {
    /// The place that a znode stands for: one that goes with a session, that has a number, that nobody has written
    /// since it was created, and whose record names the node that its own name begins with.
    ///
    /// All of that is settled when a znode is created, and its version tells when it is not any more. So all nodes see the
    /// same line as soon as they see the same znodes, also those that may not read one of them: `data` is `None` then.
    ///
    /// # Errors
    /// Why it is none.
    pub fn of(path: &str, stat: Stat, data: Option<&[u8]>) -> Result<Self, &'static str> {
        let (name, number) = paths::name(path).rsplit_once('-').ok_or("its name has no number")?;
        let is_number = number.len() == 10 && number.bytes().all(|byte| byte.is_ascii_digit());
        let number = number.parse().ok().filter(|_| is_number).ok_or("its name has no number")?;
        let owner = stat.owner.ok_or("it is persistent, so no node's session holds it")?;
        if stat.version != AS_CREATED {
            return Err("it was written after it was created");
        }
        let node = data.map(|data| Candidacy::parse(data).map_err(|_| "it holds no candidate's record"));
        let node = node.transpose()?.map(|record| record.node);
        let is_named = |node: &NodeName| {
            let instance = name.strip_prefix(node.as_str()).and_then(|rest| rest.strip_prefix('-'));
            instance.is_some_and(|instance| !instance.is_empty())
        };
        match node.as_ref().is_none_or(is_named) {
            true => Ok(Self { number, path: path.to_owned(), owner, node }),
            false => Err("it holds the record of another node than its name tells"),
        }
    }

    /// The process that it is of, if its node is known.
    #[must_use]
    pub fn instance(&self) -> Option<&str> {
        let name = paths::name(&self.path).rsplit_once('-')?.0;
        name.strip_prefix(self.node.as_ref()?.as_str())?.strip_prefix('-')
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_node_made_in_a_session_of_its_own_is_a_place_in_the_line() {
        let path = |name: &str| format!("{}/{name}", paths::ELECTION);
        let own = Stat { version: 0, owner: Some(7) };
        let record = br#"{"node":"lb-1","version":1}"#;
        let place = Place::of(&path("lb-1-9e81-0000000003"), own, Some(record)).unwrap();
        assert_eq!((place.number, place.owner, place.instance()), (3, 7, Some("9e81")));
        assert_eq!(place.node.unwrap().as_str(), "lb-1");
        // As software before this wrote it.
        assert!(Place::of(&path("lb-1-9e81-0000000003"), own, Some(br#"{"node":"lb-1"}"#)).is_ok());
        // Where it may not be read, all else is known, and the same to all nodes.
        assert!(Place::of(&path("lb-1-9e81-0000000003"), own, None).is_ok_and(|place| place.node.is_none()));
        let lasting = Stat { version: 0, owner: None };
        let written = Stat { version: 1, owner: Some(7) };
        for (name, stat, data) in [
            ("lb-1-9e81-0000000003", lasting, Some(&record[..])),
            ("lb-1-9e81-0000000003", lasting, None),
            ("lb-1-9e81-0000000003", written, Some(&record[..])),
            ("lb-1-9e81-0000000003", own, Some(b"")),
            ("lb-1-9e81-0000000003", own, Some(b"{\"node\":\"lb-2\"}")),
            ("lb-1-0000000003", own, Some(&record[..])),
            ("x-0000000000", own, Some(b"")),
            ("x-0000000000", own, Some(&record[..])),
            ("lb-1-9e81-3", own, Some(&record[..])),
            ("lb-1-9e81-000000000x", own, Some(&record[..])),
            ("lock", own, Some(&record[..])),
        ] {
            assert!(Place::of(&path(name), stat, data).is_err(), "{name} {stat:?} {data:?}");
        }
    }
}
