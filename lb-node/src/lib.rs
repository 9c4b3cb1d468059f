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
pub mod real;
pub mod standalone;
mod standing;
pub mod status;
pub mod tree_metrics;
mod wanted;

/// The BPF object of a real's decapsulation (`drover-real` of `lb-ebpf`), for who runs it without the agent.
pub static DECAPSULATION: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/drover-real"));

#[cfg(test)]
mod testing;
