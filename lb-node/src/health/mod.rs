//! Health checks: probes, the state machine that judges their outcomes, and the scheduler.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;
use zk_schema::{HealthCheck, RealName, VipName};

/// A real as a prober sees it: one per (VIP, real).
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// VIP's name.
    pub vip: VipName,
    /// Real's name.
    pub real: RealName,
    /// Where a probe connects: the VIP's address through the tunnel, the real's own directly.
    pub connect: SocketAddr,
    /// SO_MARK of the probe's socket, by which the egress program finds the real to encapsulate to.
    /// `None` for direct probes.
    pub mark: Option<u32>,
    /// The check.
    pub check: HealthCheck,
}

/// What is known of a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not probed yet, or only inconclusively.
    Unknown,
    /// Takes connections.
    Up,
    /// Does not.
    Down,
}

/// A judgement with its reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// State.
    pub state: State,
    /// When it came about.
    pub since: SystemTime,
    /// The last probe's outcome in words, e.g. `connection refused` or `CONNACK: not authorized`.
    pub reason: String,
}

/// Verdicts by (VIP, real).
pub type Verdicts = BTreeMap<(VipName, RealName), Verdict>;
