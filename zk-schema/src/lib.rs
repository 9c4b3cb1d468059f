//! The records that nodes, agents and operators share: JSON in znodes, TOML in a cluster file.
//!
//! serde and validation only; no I/O, no async.
//!
//! - [`from_json`] and [`to_json`] read and write one znode's record; fields they do not know are kept.
//! - [`ClusterFile::parse`] reads the file of a standalone node, [`NodeFile::parse`] that of a node in a cluster,
//!   [`DesiredFile::parse`] the VIPs and reals in the former, [`RealFile::parse`] the file of a real that registers
//!   itself; there an unknown field is a mistake.
//! - All list everything that is wrong, each [`Problem`] with its field, value and allowed range, and all
//!   follow one description of the records (`decode`) and one set of rules (`validate`).

mod allowed;
mod cluster_file;
mod decode;
mod desired_file;
mod fields;
mod file;
mod hash;
mod json;
mod kernel;
mod mac;
mod named_files;
pub mod names;
mod node_file;
mod operator_file;
pub mod picture;
mod problem;
mod reader;
pub mod records;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tree;
mod validate;

pub use cluster_file::ClusterFile;
pub use desired_file::DesiredFile;
pub use file::{FileErrors, FileProblem};
pub use hash::fnv1a;
pub use json::{MAX_RECORD_BYTES, Record, RecordError, from_json, to_json};
pub use kernel::{OLDEST_KERNEL, kernel_version};
pub use mac::{MacAddress, MacError};
pub use names::{NameError, NodeName, RealName, VipName};
pub use node_file::{
    ClusterSettings, FrontDriver, FrontSettings, NodeFile, NodeOverrides, RealFile, ZookeeperAcl,
    ZookeeperAuth, ZookeeperSettings,
};
pub use operator_file::{AdminAccess, OperatorFile};
pub use picture::Picture;
pub use problem::{FieldPath, Problem, Problems, nearest};
pub use records::*;
pub use validate::is_interface_name;
