//! The tree: where each record stands, and the records that nodes and the leader write.
//!
//! Operators write [`Cluster`](crate::Cluster), [`Vip`](crate::Vip), [`Real`](crate::Real) and [`Flag`]s; the rest
//! is written by nodes: what a node is ([`Member`]), finds ([`Vote`]) and has in force ([`Applied`]), and what the
//! leader decided ([`Term`], [`Assignment`], [`Head`]).

mod access;
mod contents;
mod decided;
mod line;
pub mod paths;
mod registration;
mod state;
mod znode;

pub use access::{Access, AccessId, AccessIdError};
pub use contents::Contents;
pub use decided::{Decided, Raw};
pub use line::{AS_CREATED, Line, Place, Stray};
pub use registration::{ExtraTooLarge, MAX_EXTRA_BYTES, Registrant, bound};
pub use state::{
    Adoption, Applied, Assignment, Candidacy, Decision, Entry, Event, Finding, Flag, Head, Load, MAX_ORDER,
    MAX_ORDER_STEP, MAX_STATE_BYTES, Member, Mode, Past, Replaced, StateRecord, Target, Term, Vote,
    is_plausible, machine,
};
pub use znode::{Stat, Znode};

/// Version of the records' schema, in each record's field `version`.
///
/// A record without the field is of version 1. A newer record than this is refused: what it means is not known
/// here. What an older one lacks has its default.
pub const SCHEMA_VERSION: u32 = 1;
