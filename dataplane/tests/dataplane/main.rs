//! The load-balancing program and the user space that fills its maps: packet by packet through
//! `BPF_PROG_TEST_RUN`, judged by expectations written down here and by an independent parser (scapy).
//!
//! Needs root. Every test has network and mount namespaces of its own, which end with its thread.
#![allow(
    clippy::unwrap_used,
    reason = "a test may unwrap: a panic with the place of the failure is what it wants"
)]

mod admission;
mod apply;
mod attachment;
mod bench;
mod dissect;
mod encapsulation;
mod forwarding_host;
mod fragments;
mod headers;
mod icmp;
mod judge;
mod macs;
mod malformed;
mod packet;
mod pass;
mod probes;
mod selection;
mod takeover;
mod too_big;
mod ways;
