//! The state that nodes share: a [`Store`] gives [`Session`]s with a tree of znodes, as ZooKeeper defines them.
//!
//! Two backends promise the same and pass one suite of tests: [`zookeeper`] and [`memory`]. All that is built upon
//! them (following, election, presence) is written once, for any store.
//!
//! Knows the records of `zk-schema`; knows nothing of packets.

pub mod access;
pub mod election;
pub mod follow;
pub mod memory;
mod mirror;
pub mod pace;
pub mod presence;
mod session;
pub mod setup;
mod snapshots;
pub mod zookeeper;

pub use mirror::{Mirror, Pattern};
pub use session::{Change, Error, Outcome, Session, State, Store, Watch};
pub use snapshots::{Snapshot, Snapshots};
