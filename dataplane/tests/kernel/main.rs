//! Next hops and the probes' route against a real kernel: hosts are network namespaces without names.

mod lab;
mod nexthop;
mod probe_route;
