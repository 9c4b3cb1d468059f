//! Hosts in network namespaces, and what tests and demos run on them.
//!
//! A [`Lab`] owns everything that a run creates outside its own process: namespaces, processes in them, a folder
//! for files and logs, a folder in bpffs. All of it goes when the `Lab` is dropped, and whatever a crashed run left
//! behind goes when the next one begins. Labs do not see each other, so tests run several at a time.
//!
//! [`Topology`] lays out the network that most tests want: clients, a router, load balancer nodes and reals.
//! [`Broker`], [`Fleet`] and [`Ensemble`] are what runs on it: mosquitto, MQTT clients, ZooKeeper servers; [`Front`] is BIRD
//! on the router and the nodes. A [`crowd`](crowd::Crowd) is fleets at many brokers, and who of them is where.
//! Clients are [`visit`]s (new flows), [`Held`] connections, [`Steady`] requests and [`bulk`] transfers of [`Server`]s that
//! say who they are.
//!
//! Nothing here knows Drover: tests of every crate of the workspace may use it. What runs Drover's own programs is in
//! `drover-tests`.

mod bird;
mod broker;
pub mod bulk;
pub mod crowd;
mod ensemble;
mod fleet;
mod held;
mod host;
pub mod interrupt;
mod lab;
mod link;
pub mod machine;
mod napi;
mod process;
mod server;
mod station;
mod steady;
mod topology;
mod visit;
mod wait;

pub use bird::{Bird, Front, Routes};
pub use broker::{Accepted, Broker, MQTT_PORT};
pub use ensemble::{Ensemble, EnsembleBuilder, ServerTls};
pub use fleet::{Fleet, Session, SessionState};
pub use held::{Connection, Held};
pub use host::{Host, HostCommand};
pub use lab::Lab;
pub use link::{Bridge, Port, link};
pub use process::{Finished, Process};
pub use server::{Protocol, Server, Service};
pub use station::Station;
pub use steady::{Record, Span, Steady};
pub use topology::{Segment, Topology, TopologyBuilder};
pub use visit::{Visits, unspecified_like, visit};
pub use wait::wait_until;
