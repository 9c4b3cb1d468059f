//! The records that nodes, agents and operators share: JSON in znodes, TOML in a cluster file.
//!
//! serde and validation only; no I/O, no async.

pub mod names;
pub mod records;

pub use names::{NodeName, RealName, VipName};
pub use records::*;
