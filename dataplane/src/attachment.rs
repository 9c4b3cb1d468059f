//! Whether a data plane's programs are on their interface: see [`Dataplane::look_after_attachment`].
//!
//! [`Dataplane::look_after_attachment`]: crate::Dataplane::look_after_attachment

/// State of the programs' attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Why packets do not meet the programs, if so.
    pub problem: Option<Lost>,
    /// How often a program that had been taken off was put back.
    pub restored: u64,
}

/// Why packets do not meet a node's programs.
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
