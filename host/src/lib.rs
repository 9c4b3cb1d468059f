//! What Drover's programs need of the machine they run on: the BPF file system, the service manager, `/proc`, and the
//! tasks and log lines of a process that must not die or flood in silence.
//!
//! Nothing here knows of VIPs, reals or ZooKeeper, and nothing loads BPF programs.

pub mod attached;
pub mod bpffs;
pub mod files;
pub mod identity;
pub mod interface;
pub mod log_limit;
pub mod netlink;
pub mod notify;
pub mod process_metrics;
pub mod signals;
pub mod supervisor;
