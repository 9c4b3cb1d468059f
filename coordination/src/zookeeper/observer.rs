//! Observers of the servers' answers, and of how long they take.

use std::fmt;
use std::time::Duration;

/// Is told of each operation of a session. It is called by tasks that must go on, and should return at once.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// An operation ended after `took`. It was `answered`, be it with a refusal, or there was no answer in time, or no
    /// connection.
    fn ended(&self, operation: Operation, took: Duration, answered: bool);
}

/// Kinds of operations, by what servers do for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Answered by the server that one is connected to.
    Read,
    /// Goes through the ensemble's leader and a quorum.
    Write,
    /// Waits until the server has all that was written before.
    Sync,
}

impl Operation {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
        }
    }
}
