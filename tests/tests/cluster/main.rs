//! Clusters of real parts: nodes behind a front, ZooKeeper, reals, and operators with `lbctl`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod access;
mod agreement;
mod capture;
mod doctor;
mod edits;
mod lbctl_edit;
mod lbctl_views;
mod leader;
mod metrics;
mod nodes;
mod registration;
mod restart;
mod zookeeper;

use std::time::Duration;

/// Requests a second of a client whose losses are counted.
const RATE: u32 = 500;
/// Flows that it spreads them over.
const FLOWS: u16 = 64;
/// Requests before and after each event: a second's worth.
const SOME: usize = 500;
/// For what takes seconds, on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);
/// The reals of the VIP `publish`.
const REALS: &[&str] = &["real-1", "real-2", "real-3"];
/// The reals of the VIP `subscribe`.
const OTHERS: &[&str] = &["real-2", "real-3"];
