//! The state of a data plane's attachment to its interface: see [`Dataplane::look_after_attachment`].
//!
//! [`Dataplane::look_after_attachment`]: crate::Dataplane::look_after_attachment

/// State of the programs' attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// The reason why packets do not meet the programs, if they do not.
    pub problem: Option<Lost>,
    /// The number of times that a program which had been taken off was put back.
    pub restored: u64,
}

/// The reason why packets do not meet a node's programs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The interface is gone, or another one has its name. Addresses, routes and next hops were learnt for the one that
    /// was there, so only a new process can go on.
    #[error("{0}")]
    Interface(String),
    /// A program was taken off and could not be put back yet; it is tried again.
    #[error("{0}")]
    Program(String),
}
