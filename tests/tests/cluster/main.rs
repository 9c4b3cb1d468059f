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
