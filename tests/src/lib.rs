//! Hosts in network namespaces, and what the demo and the end-to-end tests run on them.
//!
//! A [`Lab`] owns everything that a run creates outside its own process: namespaces, processes in them, a folder
//! for files and logs, a folder in bpffs. All of it goes when the `Lab` is dropped, and whatever a crashed run left
//! behind goes when the next one begins.
//!
//! [`Topology`] lays out the network that most tests want: clients, a router, load balancer nodes and reals.
//! [`Broker`], [`Fleet`], [`LbNode`], [`Lbctl`] and [`Ensemble`] are what runs on it: mosquitto, MQTT clients, the daemon
//! and the operator's command line under test, ZooKeeper servers; [`Front`] is BIRD on the router and the nodes.
//! A [`crowd`](crowd::Crowd) is fleets at many brokers, and who of them is where.
//! [`Site`] is a cluster: several nodes behind a front, an ensemble that they share their state by, and reals.
//! An [`Observer`] notes what its nodes have in their maps and where the router sends packets.
//! [`Deployment`] is a whole service: node, reals and [`Server`]s that say who they are, told by a [`Cluster`] file.
//! Its clients are [`visit`]s (new flows), [`Held`] connections, [`Steady`] requests and [`bulk`] transfers.
//!
//! [`store_suite`] is what every store of the cluster's state must pass, whatever is behind it.

pub mod access;
mod bird;
mod broker;
pub mod bulk;
mod cluster;
pub mod crowd;
mod deployment;
pub mod documented;
mod ensemble;
mod fleet;
mod held;
mod host;
pub mod interrupt;
mod lab;
mod lb_node;
mod lbctl;
mod link;
pub mod long;
pub mod machine;
mod napi;
mod nspawn;
mod observer;
mod operator;
mod process;
mod server;
mod site;
mod steady;
pub mod store_suite;
mod topology;
mod visit;
mod wait;

pub use bird::{Bird, Front};
pub use broker::{Accepted, Broker, MQTT_PORT};
pub use cluster::{Cluster, Encapsulation, Family, Protocol, Vip};
pub use deployment::Deployment;
pub use ensemble::{Ensemble, EnsembleBuilder, ServerTls};
pub use fleet::{Fleet, Session, SessionState};
pub use held::{Connection, Held};
pub use host::{Host, HostCommand};
pub use lab::Lab;
pub use lb_node::{LbNode, Metrics, RealDaemon};
pub use lbctl::{Answer, Lbctl};
pub use link::{Bridge, Port, link};
pub use nspawn::Booted;
pub use observer::{Observed, Observer, Sight, Table};
pub use operator::Operator;
pub use process::{Finished, Process};
pub use server::{Server, Service};
pub use site::{PUBLISH, SERVICES, SUBSCRIBE, Settings, Site, desired};
pub use steady::{Record, Span, Steady};
pub use topology::{Segment, Station, Topology, TopologyBuilder};
pub use visit::{Visits, unspecified_like, visit};
pub use wait::wait_until;
