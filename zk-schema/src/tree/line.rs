//! The line of candidates for leadership, as znodes below [`paths::ELECTION`].

use super::{Candidacy, Stat, StateRecord as _, paths};
use crate::NodeName;

/// The version of a znode that nobody has written since it was created.
pub const AS_CREATED: i32 = 0;

/// The line of candidates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Candidates in order; the first one leads, or is about to.
    pub candidates: Vec<Place>,
    /// Znodes that stand there and are no candidates. Nobody waits for them.
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
    /// The node whose place it is; `None` if that may not be read.
    pub node: Option<NodeName>,
}

/// A znode in the line's parent that is no candidate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    /// Its path.
    pub path: String,
    /// The reason why it is no candidate.
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
    /// The reason why it is no candidate.
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
