//! The inputs and outputs of the control loop.

use super::report::Report;
use crate::status::Status;
use coordination::Snapshot;
use dataplane::attachment::Attachment;
use dataplane::nexthop::{NextHops, Wanted};
use health::{Target, Verdicts};
use policy::local::Exclusions;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;
use zk_schema::tree::Mode;

/// The loop's inputs. A channel whose sender is gone keeps its last value.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Desired state.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The probes' findings.
    pub verdicts: watch::Receiver<Arc<Verdicts>>,
    /// The ways to reals.
    pub next_hops: watch::Receiver<Arc<NextHops>>,
    /// The standing of this node to the tree. It matters only where a leader decides.
    pub mode: watch::Receiver<Mode>,
    /// Tells whether packets meet the programs.
    pub attachment: watch::Receiver<Attachment>,
}

/// The loop's outputs.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// The targets to probe. Each target's mark is in force when it is published.
    pub targets: watch::Sender<Arc<Vec<Target>>>,
    /// Addresses that next hops are wanted for.
    pub wanted: watch::Sender<Wanted>,
    /// The status, for people and metrics.
    pub status: watch::Sender<Arc<Status>>,
    /// The report to other nodes.
    pub report: watch::Sender<Arc<Report>>,
    /// The time of the loop's last turn; `None` before the first. It does every second, unless it hangs.
    pub turned: watch::Sender<Option<Instant>>,
    /// The reals that the node leaves out by its own judgement, to be kept over a restart.
    pub exclusions: watch::Sender<Exclusions>,
}
