//! The machine that Drover's programs run on, and their life on it.
//!
//! - The kernel: [`bpffs`] and [`attached`] (pins), [`netlink`] and [`interface`] (the network), [`identity`] (which
//!   boot of which machine), [`clock`].
//! - The process: [`signals`] end it, [`supervisor`] ends it when a core task does, [`notify`] reports to the service
//!   manager, [`process_metrics`] to Prometheus, [`log_limit`] bounds its log, [`files`] reads its configuration.
//!
//! This crate knows nothing of VIPs, reals or ZooKeeper, and loads no BPF programs.

pub mod attached;
pub mod bpffs;
pub mod clock;
pub mod files;
pub mod identity;
pub mod interface;
pub mod log_limit;
pub mod netlink;
pub mod notify;
pub mod process_metrics;
pub mod signals;
pub mod supervisor;
