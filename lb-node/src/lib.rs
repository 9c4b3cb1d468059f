//! The Drover daemon. Everything meets here and nowhere else: desired state comes from a
//! `coordination` store, `health` adds verdicts, `policy` turns both into weights, `compile` into a
//! [`program::Program`], and `dataplane` into BPF maps.

mod bpffs;
pub mod capture;
pub mod dataplane;
pub mod health;
pub mod nexthop;
pub mod program;
pub mod real;
