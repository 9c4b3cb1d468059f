//! A node: everything put together, run, and shut down.
//!
//! There are two kinds. A standalone node goes by a file and decides itself; a node of a cluster goes by what the
//! leader decided, which an [`Agent`](crate::cluster::agent::Agent) learns. From the snapshot on they are the same.

mod base;
mod clustered;
mod keep;
mod probe_route;
mod pulse;
mod standalone;

use anyhow::Result;
use host::files::read_text;
use std::path::Path;
use std::time::Duration;
use zk_schema::{NodeFile, NodeOverrides};

pub use clustered::run_in_cluster;
pub use standalone::run_standalone;

/// Time between log lines about what keeps failing.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Reads and validates a node file, of which some settings may come from elsewhere.
pub(crate) fn read_node_file(path: &Path, instead: &NodeOverrides) -> Result<NodeFile> {
    Ok(NodeFile::parse_with(&read_text(path)?, &path.display().to_string(), instead)?)
}
