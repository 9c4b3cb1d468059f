//! Drover's own programs on the hosts of the [`testbed`], for the demo and the end-to-end tests.
//!
//! [`LbNode`] and [`Lbctl`] are the daemon and the operator's command line under test.
//! [`Site`] is a cluster: several nodes behind a front, an ensemble that they share their state by, and reals.
//! An [`Observer`] notes what its nodes have in their maps and where the router sends packets.
//! [`Deployment`] is a whole service: node, reals and [`Server`]s that say who they are, told by a [`Cluster`] file.
//!
//! [`store_suite`] is what every store of the cluster's state must pass, whatever is behind it.
//!
//! What the testbed offers is here by the same names, so that a test imports from one place.

pub mod access;
mod cluster;
mod deployment;
pub mod documented;
mod lb_node;
mod lbctl;
pub mod long;
mod nspawn;
mod observer;
mod operator;
mod site;
pub mod store_suite;

pub use cluster::{Cluster, Encapsulation, Family, Vip};
pub use deployment::Deployment;
pub use lb_node::{LbNode, Metrics, RealDaemon};
pub use lbctl::{Answer, Lbctl};
pub use nspawn::Booted;
pub use observer::{Observed, Observer, Sight, Table};
pub use operator::Operator;
pub use site::{PUBLISH, SERVICES, SUBSCRIBE, Settings, Site, desired};
pub use testbed::*;
