//! The rights in a closed tree: the record at [`paths::ACCESS`](super::paths::ACCESS).

use super::StateRecord;
use crate::records::Extra;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Whom ZooKeeper knows a member of a group by, written `<scheme>:<id>`.
///
/// | scheme | id |
/// |---|---|
/// | `digest` | `user:` and the Base64 of the SHA-1 of `user:password` |
/// | `sasl` | the user |
/// | `x509` | the subject of the client's certificate, as `CN=lb-1,O=Example` |
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccessId {
    scheme: String,
    id: String,
}

impl AccessId {
    /// An id of one of the schemes above.
    ///
    /// # Errors
    /// If it is none.
    pub fn new(scheme: &str, id: &str) -> Result<Self, AccessIdError> {
        let refuse = |why| Err(AccessIdError { text: format!("{scheme}:{id}"), why });
        if id.is_empty() || id.chars().any(char::is_control) {
            return refuse("an id is not empty, and has no control characters");
        }
        match scheme {
            "digest" => match id.split_once(':') {
                // 20 bytes in Base64.
                Some((user, hash)) if !user.is_empty() && hash.len() == 28 && hash.ends_with('=') => {}
                _ => return refuse("a digest is user:hash, with the hash and not the password"),
            },
            "sasl" | "x509" => {}
            _ => return refuse("the scheme is none of digest, sasl, x509"),
        }
        Ok(Self { scheme: scheme.to_owned(), id: id.to_owned() })
    }

    /// The scheme.
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The id within the scheme.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The user that a server names when it is asked who a session is: without a digest's hash.
    #[must_use]
    pub fn user(&self) -> &str {
        match self.scheme.as_str() {
            "digest" => self.id.split(':').next().unwrap_or_default(),
            _ => &self.id,
        }
    }
}

/// A text that is no [`AccessId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not an id of ZooKeeper: {why}", crate::problem::quoted(.text))]
pub struct AccessIdError {
    text: String,
    why: &'static str,
}

impl fmt::Display for AccessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.scheme, self.id)
    }
}

impl FromStr for AccessId {
    type Err = AccessIdError;

    fn from_str(text: &str) -> Result<Self, AccessIdError> {
        let (scheme, id) = text.split_once(':').unwrap_or((text, ""));
        Self::new(scheme, id)
    }
}

impl Serialize for AccessId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AccessId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The members of each group. The rights of a group follow from the paths, and are not written anywhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Access {
    /// Those who write VIPs, reals and flags, and may change who may do what.
    pub operators: BTreeSet<AccessId>,
    /// Nodes, which write what they find, have in force, and decide.
    pub nodes: BTreeSet<AccessId>,
    /// Agents of reals, which register them. None: no real registers itself.
    #[serde(default)]
    pub agents: BTreeSet<AccessId>,
    /// Set if everybody may read the tree, the seed of the hash included; else the three groups.
    #[serde(default)]
    pub world_reads: bool,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub extra: Extra,
}

impl StateRecord for Access {}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "jxYUaRmyBvAk1wKzIbKVpGPyKD0=";

    #[test]
    fn ids_are_read_as_they_are_written() {
        for text in [format!("digest:anna:{HASH}"), "sasl:anna".into(), "x509:CN=lb-1,O=Example".into()] {
            let id: AccessId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
        }
        assert_eq!(format!("digest:anna:{HASH}").parse::<AccessId>().unwrap().user(), "anna");
        assert_eq!("x509:CN=a:b".parse::<AccessId>().unwrap().user(), "CN=a:b");
    }

    #[test]
    fn what_is_no_id_is_refused_and_a_password_is_taken_for_none() {
        for text in [
            "",
            "anna",
            "digest:anna",
            "digest:anna:swordfish",
            "sasl:",
            "world:anyone",
            "auth:",
            "ip:10.0.0.1",
        ] {
            assert!(text.parse::<AccessId>().is_err(), "{text}");
        }
        assert!(AccessId::new("digest", &format!(":{HASH}")).is_err());
    }

    #[test]
    fn the_record_is_read_as_it_is_written_and_closed_unless_it_says_otherwise() {
        let record = br#"{"operators":["sasl:op"],"nodes":["x509:CN=a","x509:CN=b"],"later":1}"#;
        let access = Access::parse(record).unwrap();
        assert!(!access.world_reads && access.agents.is_empty());
        assert_eq!(Access::parse(&access.bytes().unwrap()).unwrap(), access);
        assert!(Access::parse(br#"{"operators":["op"],"nodes":[]}"#).is_err());
    }
}
