//! A node's connection to the tree, as it stands.

use tokio::time::Instant;

/// A node's connection to the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// True if a server answers.
    pub connected: bool,
    /// Since when.
    pub since: Instant,
    /// The reason why not, if there is one.
    pub problem: Option<String>,
    /// Sessions so far.
    pub sessions: u64,
}
