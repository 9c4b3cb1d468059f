//! Next hops and the probes' route against a real kernel: hosts are the testbed's.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod lab;
mod nexthop;
mod probe_route;
