//! All of it together: a network, one node, reals with echo services, and a cluster file.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::lb_node::{LbNode, RealDaemon};
use testbed::{Server, Service, Station, Topology, wait_until};

const APPLY_LIMIT: Duration = Duration::from_secs(10);

/// A node that balances the VIPs of a cluster over the reals of a network, each of which echoes at every VIP.
#[derive(Debug)]
pub struct Deployment {
    /// The daemon on the network's first node.
    pub node: LbNode,
    /// `reals[n]` runs on `net.reals[n]`.
    pub reals: Vec<RealDaemon>,
    /// `servers[n]` runs on `net.reals[n]`.
    pub servers: Vec<Server>,
    /// What the node was told.
    pub cluster: Cluster,
    /// Where it all stands.
    pub net: Topology,
}

impl Deployment {
    /// Starts everything, and waits until the node is ready.
    ///
    /// # Errors
    ///
    /// When something does not start.
    pub fn start(net: Topology, cluster: Cluster) -> Result<Deployment> {
        Deployment::with_services(net, cluster, &[])
    }

    /// As [`Deployment::start`], with more services on each real.
    ///
    /// # Errors
    ///
    /// When something does not start.
    pub fn with_services(net: Topology, cluster: Cluster, more: &[Service]) -> Result<Deployment> {
        let vips = cluster.addresses();
        for vip in &vips {
            net.route_vip(*vip)?;
        }
        let services = services(&cluster, more);
        let mut reals = Vec::new();
        let mut servers = Vec::new();
        for station in &net.reals {
            reals.push(RealDaemon::start(station, &vips, &net.nodes)?);
            servers.push(Server::start(&station.host, services.iter().copied())?);
        }
        let file = cluster.write(&net.nodes[0])?;
        let node = LbNode::start(&net.nodes[0], &file)?;
        Ok(Deployment { node, reals, servers, cluster, net })
    }

    /// The first client.
    #[must_use]
    pub fn client(&self) -> &Station {
        &self.net.clients[0]
    }

    /// Where the node's daemon runs.
    #[must_use]
    pub fn station(&self) -> &Station {
        &self.net.nodes[0]
    }

    /// Writes the cluster file anew, with a change of weights or reals, and waits until it is in force.
    ///
    /// # Errors
    ///
    /// When that takes longer than 10 s.
    pub fn apply(&mut self) -> Result<()> {
        let before = self.epoch()?;
        self.cluster.write(&self.net.nodes[0])?;
        wait_until("the edited cluster file to be in force", APPLY_LIMIT, || {
            Ok((self.epoch()? > before).then_some(()))
        })
    }

    /// The number of the assignment in force.
    ///
    /// # Errors
    ///
    /// When the node does not say.
    pub fn epoch(&self) -> Result<f64> {
        self.node.metrics()?.sum("drover_epoch", &[]).context("the node does not tell its epoch")
    }

    /// Starts the node's daemon again, which must have ended, on the same file.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub fn restart_node(&mut self) -> Result<()> {
        let file = self.cluster.write(&self.net.nodes[0])?;
        self.node = LbNode::start(&self.net.nodes[0], &file)?;
        Ok(())
    }

    /// Starts a real's daemon again, which must have ended.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub fn restart_real(&mut self, number: usize) -> Result<()> {
        let vips = self.cluster.addresses();
        self.reals[number] = RealDaemon::start(&self.net.reals[number], &vips, &self.net.nodes)
            .with_context(|| format!("restarting the daemon of real {number}"))?;
        Ok(())
    }

    /// Starts a real's servers again, after they have been closed.
    ///
    /// # Errors
    ///
    /// When an address cannot be bound.
    pub fn restart_server(&mut self, number: usize, more: &[Service]) -> Result<()> {
        let server = Server::start(&self.net.reals[number].host, services(&self.cluster, more))?;
        self.servers[number] = server;
        Ok(())
    }
}

/// The echo service of each VIP, unless another one is asked for at its port, and those asked for.
pub(crate) fn services(cluster: &Cluster, more: &[Service]) -> Vec<Service> {
    let mut services: Vec<Service> = more.to_vec();
    for vip in &cluster.vips {
        let service = Service::echo(vip.protocol, vip.at);
        if !services.iter().any(|other| other.collides(service)) {
            services.push(service);
        }
    }
    services
}
