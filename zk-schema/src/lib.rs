//! The records that nodes, agents and operators share: JSON in znodes, TOML in a cluster file.
//!
//! serde and validation only; no I/O, no async.
//!
//! - [`from_json`] and [`to_json`] read and write one znode's record; fields they do not know are kept.
//! - [`ClusterFile::parse`] reads the file of a standalone node; there an unknown field is a mistake.
//! - Both list everything that is wrong, each [`Problem`] with its field, value and allowed range, and both
//!   follow one description of the records (`decode`) and one set of rules (`validate`).

mod cluster_file;
mod decode;
mod json;
pub mod names;
mod problem;
pub mod records;
pub mod tree;
mod validate;

pub use cluster_file::{ClusterFile, ClusterFileError, FileProblem};
pub use json::{MAX_RECORD_BYTES, Record, RecordError, from_json, to_json};
pub use names::{NameError, NodeName, RealName, VipName};
pub use problem::{FieldPath, Problem, Problems};
pub use records::*;
