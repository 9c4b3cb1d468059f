//! Health checks: is a real able to take new connections?
//!
//! | module | what it is | I/O |
//! |---|---|---|
//! | [`probe`] | one probe: TCP, HTTP(S) or MQTT, one timeout for all of it | sockets |
//! | [`state`] | outcomes in, [`State`] out, with thresholds | none |
//! | [`schedule`] | which target is probed when; holds the states | none: time and seed are arguments |
//! | [`scheduler`] | the task that drives the three above and publishes [`Verdicts`] | clock, channels |
//! | [`metrics`] | counters of probes for Prometheus | none |
//!
//! A probe tells a fault of the real (refused, timed out, wrong answer) from a fault of this node
//! (no route, no ports or descriptors left, no permission to mark). Only the former counts against
//! the real: see [`state::Outcome`].

pub mod metrics;
pub mod probe;
pub mod schedule;
pub mod scheduler;
pub mod state;

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
    /// The address that a probe connects to: the VIP's through the tunnel, the real's own directly.
    pub connect: SocketAddr,
    /// SO_MARK of the probe's socket, by which the egress program finds the real to encapsulate to.
    /// `None` for direct probes. A tunnel probe without a mark would test no real in particular: it is
    /// not sent, and its outcome is inconclusive.
    pub mark: Option<u32>,
    /// The check.
    pub check: HealthCheck,
}

impl Target {
    /// The target's identity, which its state outlives changes of the other fields by.
    #[must_use]
    pub fn key(&self) -> Key {
        (self.vip.clone(), self.real.clone())
    }
}

/// Identity of a target.
pub type Key = (VipName, RealName);

/// The state of a real.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// State.
    pub state: State,
    /// This node has lost sight of the real: its last `unhealthy_threshold` probes or more were inconclusive, so `state`
    /// is only the last one known. That is a fault of the node, and a reason for an alarm.
    pub blind: bool,
    /// The time at which `state` began.
    pub since: SystemTime,
    /// The last probe's outcome in words, e.g. `connection refused` or `CONNACK: not authorized`.
    pub reason: String,
}

/// Verdicts by (VIP, real).
pub type Verdicts = BTreeMap<Key, Verdict>;
