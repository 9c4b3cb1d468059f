//! The Drover daemon. Everything meets here and nowhere else: desired state comes from a
//! `coordination` store, `health` adds verdicts, `policy` turns both into weights, and `dataplane` into a
//! [`Program`](dataplane::program::Program) and BPF maps.

pub mod admin;
mod announced;
mod attachment;
pub mod capture;
pub mod cli;
pub mod cluster;
pub mod control;
pub mod front;
pub mod guard;
pub mod metrics;
pub mod node;
pub mod standalone;
mod standing;
pub mod status;
pub mod tree_metrics;
mod wanted;

#[cfg(test)]
mod testing;
