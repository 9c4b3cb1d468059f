//! Next hops and the probes' route against a real kernel: hosts are network namespaces without names.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod lab;
mod nexthop;
mod probe_route;
