//! Names of VIPs, reals and nodes: the last component of their znode paths.
//!
//! A name is a DNS label in lower case (RFC 1123): 1 to 63 letters `a-z`, digits and hyphens, with a letter
//! or digit at both ends. So it is also safe as a znode, a file, a metric's label and a TOML key, and a dot
//! can join two names without ambiguity.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

/// Longest name, in bytes: that of a DNS label.
const MAX_LEN: usize = 63;

/// A text that cannot be a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is not a name: 1 to {MAX_LEN} lower-case letters, digits and hyphens, with a letter or digit at both ends",
    crate::problem::quoted(.text)
)]
pub struct NameError {
    text: String,
}

fn is_name(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let [first, .., last] = bytes else { return bytes.len() == 1 && alphanumeric(bytes[0]) };
    bytes.len() <= MAX_LEN
        && alphanumeric(*first)
        && alphanumeric(*last)
        && bytes.iter().all(|&b| alphanumeric(b) || b == b'-')
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name that no other is less than: where a range of names begins.
            #[must_use]
            pub fn least() -> Self {
                Self("0".to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                text.to_owned().try_into()
            }
        }

        impl TryFrom<&str> for $name {
            type Error = NameError;

            fn try_from(text: &str) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                if is_name(&text) { Ok(Self(text)) } else { Err(NameError { text }) }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        // Maps keyed by names can be asked with a plain `&str`.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A VIP's name.
    VipName
);
name!(
    /// A real's name, unique within its VIP.
    RealName
);
name!(
    /// A node's name, unique within the cluster.
    NodeName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_labels_in_lower_case_are_names() {
        let longest = "a".repeat(63);
        for text in ["a", "7", "lb-1", "a--b", "0x", longest.as_str()] {
            assert_eq!(text.parse::<VipName>().map(String::from), Ok(text.to_owned()));
            assert!(VipName::least() <= text.parse().unwrap());
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let too_long = "a".repeat(64);
        let bad =
            ["", "-", "-a", "a-", "A", "a.b", "a_b", "a/b", "ä", "a b", "a\n", ".", "..", too_long.as_str()];
        for text in bad {
            assert!(text.parse::<RealName>().is_err(), "{text:?} passed for a name");
        }
    }

    #[test]
    fn deserialisation_refuses_what_parsing_refuses() {
        assert!(serde_json::from_str::<NodeName>(r#""lb-1""#).is_ok());
        let error = serde_json::from_str::<NodeName>(r#""lb.1""#).unwrap_err().to_string();
        assert!(error.contains(r#""lb.1" is not a name"#), "{error}");
    }
}
