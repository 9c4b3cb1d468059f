//! A cluster: nodes behind a front of BIRD, an ensemble of ZooKeeper, and reals with services.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use zk_schema::tree::{Assignment, Head, Term, paths};
use zk_schema::{ClusterFile, Desired};

use crate::access::Member;
use crate::cluster::{Cluster, Family, Vip, replace};
use crate::deployment::services;
use crate::lb_node::{self, LbNode, RealDaemon};
use crate::operator::Operator;
use testbed::{Ensemble, Process, Protocol, Server, Service, Station, Topology, TopologyBuilder, wait_until};

/// The address of both services of [`Site::of_two_services`].
pub const SERVICES: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
/// The service `publish` of [`Site::of_two_services`].
pub const PUBLISH: SocketAddr = SocketAddr::new(SERVICES, 7000);
/// The service `subscribe` of [`Site::of_two_services`].
pub const SUBSCRIBE: SocketAddr = SocketAddr::new(SERVICES, 7001);

const LIMIT: Duration = Duration::from_secs(40);

/// Nodes of a cluster that balance its VIPs over the reals of a network. On each real runs an `S`: unless told otherwise
/// a server that echoes at every VIP.
#[derive(Debug)]
pub struct Site<S = Server> {
    /// `nodes[n]` runs on `net.nodes[n]`; `None` while it does not run.
    pub nodes: Vec<Option<LbNode>>,
    /// The nodes' guards, if they have any.
    pub guards: Vec<Process>,
    /// `reals[n]` runs on `net.reals[n]`.
    pub reals: Vec<RealDaemon>,
    /// `servers[n]` runs on `net.reals[n]`.
    pub servers: Vec<S>,
    /// Who reads and writes the tree by hand, on the router.
    pub operator: Operator,
    /// `zk-1` and so on.
    pub ensemble: Ensemble,
    /// VIPs and reals as they were written first.
    pub cluster: Cluster,
    /// What the nodes are told.
    settings: Settings,
    /// Where it all stands.
    pub net: Topology,
}

/// What nodes are told beyond what they must be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The nodes' session timeout.
    pub session_timeout: Duration,
    /// Lines of the `[cluster]` table.
    pub cluster: String,
    /// How many nodes, the last ones, do not run at first.
    pub late: usize,
    /// The `lb-node` that nodes and reals run; the one beside this program if it is not said.
    pub binary: Option<PathBuf>,
    /// Whether the tree is closed: see [`crate::access`].
    pub closed: bool,
    /// How long a node may give no sign of life until its guard withdraws it; without, none has a guard.
    pub withdraw_after: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        let cluster = "autonomy_after_ms = 10000\ndrain_wait_ms = 1000\nack_timeout_ms = 3000\n".to_owned();
        Self {
            session_timeout: Duration::from_secs(4),
            cluster,
            late: 0,
            binary: None,
            closed: false,
            withdraw_after: None,
        }
    }
}

impl Site {
    /// Starts three servers of ZooKeeper, writes the tree, starts everything else, and waits until every node announces
    /// every VIP. `topology` needs neither a front nor hosts for ZooKeeper. The reals echo.
    ///
    /// # Errors
    ///
    /// When something does not start.
    pub fn start(topology: TopologyBuilder, cluster: impl FnOnce(&Topology) -> Cluster) -> Result<Site> {
        Site::with(topology, cluster, &[], Settings::default())
    }

    /// Starts nodes that balance two services over three reals: `publish`, of UDP, over all of them, and `subscribe`, of
    /// TCP, over `real-2` and `real-3`. There are two clients.
    ///
    /// # Errors
    ///
    /// When something does not start.
    pub fn of_two_services(nodes: u8, settings: Settings) -> Result<Site> {
        const PACE: &str = "type = \"tcp\"\nport = 7001\ninterval_ms = 500\ntimeout_ms = 400\n\
                            healthy_threshold = 2\nunhealthy_threshold = 2";
        let services = |net: &Topology| {
            let publish = Vip::new("publish", PUBLISH).protocol(Protocol::Udp).health(PACE);
            let subscribe = Vip::new("subscribe", SUBSCRIBE).health(PACE);
            Cluster::new([
                publish.reals(&net.reals, Family::V4),
                subscribe.reals(&net.reals[1..], Family::V4),
            ])
        };
        Site::with(Topology::builder().clients(2).nodes(nodes).reals(3), services, &[], settings)
    }

    /// As [`Site::start`], with more services on each real, and other settings.
    ///
    /// # Errors
    ///
    /// When something does not start.
    pub fn with(
        topology: TopologyBuilder,
        cluster: impl FnOnce(&Topology) -> Cluster,
        more: &[Service],
        settings: Settings,
    ) -> Result<Site> {
        Site::serving(topology, cluster, settings, |cluster, station| {
            Server::start(&station.host, services(cluster, more))
        })
    }
}

impl<S> Site<S> {
    /// As [`Site::start`], with other settings, and with what `serve` starts on each real.
    ///
    /// # Errors
    ///
    /// When something does not start.
    pub fn serving(
        topology: TopologyBuilder,
        cluster: impl FnOnce(&Topology) -> Cluster,
        settings: Settings,
        serve: impl Fn(&Cluster, &Station) -> Result<S>,
    ) -> Result<Site<S>> {
        let net = topology.bird_front().zookeepers(3).build()?;
        let cluster = cluster(&net);
        let places: Vec<_> =
            net.zookeepers.iter().map(|station| (station.host.clone(), IpAddr::from(station.v4))).collect();
        let ensemble = Ensemble::start(&places)?;
        let operator = match settings.closed {
            true => Operator::of_closed_tree(&net.router, &ensemble.connect_string())?,
            false => Operator::new(&net.router, &ensemble.connect_string())?,
        };
        operator.write(&desired(&cluster, &net)?)?;

        let vips = cluster.addresses();
        let mut reals = Vec::new();
        let mut servers = Vec::new();
        for station in &net.reals {
            reals.push(RealDaemon::start_from(&settings.binary()?, station, &vips, &net.nodes)?);
            servers.push(serve(&cluster, station)?);
        }
        let nodes = net.nodes.iter().map(|_| None).collect();
        let mut site =
            Site { nodes, guards: Vec::new(), reals, servers, operator, ensemble, cluster, settings, net };
        let first: Vec<usize> = (0..site.nodes.len().saturating_sub(site.settings.late)).collect();
        for node in &first {
            site.launch(*node)?;
        }
        if site.settings.withdraw_after.is_some() {
            let guards = first.iter().map(|node| LbNode::guard(&site.net.nodes[*node]));
            site.guards = guards.collect::<Result<_>>()?;
        }
        site.wait_for_carriers(&first)?;
        Ok(site)
    }

    /// Starts a node, which must not run, and does not wait until it is ready.
    ///
    /// # Errors
    ///
    /// When its file cannot be written, or the binary is missing.
    pub fn launch(&mut self, node: usize) -> Result<()> {
        let name = self.net.nodes[node].host.name().to_owned();
        self.launch_as(node, &name)
    }

    /// As [`Site::launch`], by another name than the host's.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn launch_as(&mut self, node: usize, name: &str) -> Result<()> {
        ensure!(self.nodes[node].is_none(), "node {node} runs already");
        let station = &self.net.nodes[node];
        let front = self.net.front.as_ref().context("the network has a front")?;
        let mut text = format!(
            "[node]\nname = \"{name}\"\ninterface = \"{}\"\n{}\n",
            station.interface, self.cluster.node_settings
        );
        let _ = writeln!(
            text,
            "[zookeeper]\nservers = \"{}\"\nsession_timeout_ms = {}\n",
            self.ensemble.connect_string(),
            self.settings.session_timeout.as_millis()
        );
        if self.settings.closed {
            let credentials = Member::Node.credentials(station.host.dir())?;
            let _ = writeln!(text, "credentials_file = {:?}\nacl = \"groups\"\n", credentials.display());
        }
        let _ = writeln!(text, "{}", front.node_file_table(node).trim_end());
        if let Some(limit) = self.settings.withdraw_after {
            let _ = writeln!(text, "withdraw_after_ms = {}", limit.as_millis());
        }
        let state = station.host.dir().join("state");
        let _ = writeln!(text, "[cluster]\nstate_dir = {:?}\n{}", state.display(), self.settings.cluster);
        let file = station.host.dir().join("node.toml");
        replace(&file, &text)?;
        self.nodes[node] = Some(LbNode::launch_from(&self.settings.binary()?, station, &file)?);
        Ok(())
    }

    /// From now on nodes and reals are started from this binary, or from the one beside this program.
    pub fn set_binary(&mut self, binary: Option<PathBuf>) {
        self.settings.binary = binary;
    }

    /// Kills a real's daemon and starts it again. Its data plane takes packets on meanwhile.
    ///
    /// # Errors
    ///
    /// When it does not run, or does not become ready.
    pub fn restart_real(&mut self, real: usize) -> Result<()> {
        self.reals[real].process().kill()?;
        let (station, vips) = (&self.net.reals[real], self.cluster.addresses());
        self.reals[real] = RealDaemon::start_from(&self.settings.binary()?, station, &vips, &self.net.nodes)?;
        Ok(())
    }

    /// Lets the agent of a real register it for these VIPs by this name, from now on. What ran there ends first, and must
    /// not be a registration.
    ///
    /// # Errors
    ///
    /// When the agent does not become ready.
    pub fn register_real(&mut self, real: usize, name: &str, vips: &[&str]) -> Result<()> {
        self.reals[real].process().terminate(LIMIT)?;
        self.start_agent(real, name, vips)
    }

    /// Starts the agent that registers a real for these VIPs by this name, where it has ended.
    ///
    /// # Errors
    ///
    /// When it runs, or does not become ready.
    pub fn start_agent(&mut self, real: usize, name: &str, vips: &[&str]) -> Result<()> {
        ensure!(!self.reals[real].process().is_running()?, "the agent of {name} runs already");
        let zookeeper = self.ensemble.connect_string();
        self.reals[real] = RealDaemon::register_as(name, &self.net.reals[real], vips, &zookeeper)?;
        Ok(())
    }

    /// Starts a node that was [destroyed](Site::destroy): as a host that boots, it has its disk and nothing in its kernel.
    ///
    /// # Errors
    ///
    /// When it runs, or something does not start.
    pub fn revive(&mut self, node: usize) -> Result<()> {
        let station = &self.net.nodes[node];
        LbNode::detach(station)?;
        fs::create_dir_all(station.host.bpffs()).context("cannot make a folder in bpffs")?;
        self.net.set_link(station, true)?;
        let front = self.net.front.as_mut().context("the network has a front")?;
        // What a daemon wrote for BIRD stood in memory.
        let written = front.driver_paths(node).0;
        match fs::remove_file(&written) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", written.display()));
            }
            _ => front.nodes[node].restart()?,
        }
        self.launch(node)
    }

    /// Ends a node as when its host loses power: link down, BIRD and daemon killed. Nothing says goodbye.
    ///
    /// # Errors
    ///
    /// When its daemon or its BIRD does not run.
    pub fn destroy(&mut self, node: usize) -> Result<()> {
        self.net.set_link(&self.net.nodes[node], false)?;
        let front = self.net.front.as_mut().context("the network has a front")?;
        front.nodes[node].process().kill()?;
        self.kill(node)
    }

    /// The nodes whose daemon runs, counted from 0.
    #[must_use]
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&node| self.nodes[node].is_some()).collect()
    }

    /// What a node, counted from 0, is called.
    #[must_use]
    pub fn node_name(&self, node: usize) -> &str {
        self.net.nodes[node].host.name()
    }

    /// A node that runs.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn node(&mut self, node: usize) -> Result<&mut LbNode> {
        self.nodes[node].as_mut().with_context(|| format!("node {node} does not run"))
    }

    /// Kills a node's daemon. Its data plane forwards on.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        let mut killed = self.nodes[node].take().with_context(|| format!("node {node} does not run"))?;
        killed.process().kill()
    }

    /// Stops a node's daemon as an operator does (SIGTERM), and waits for its end.
    ///
    /// # Errors
    ///
    /// When it does not run, or does not end well in time.
    pub fn terminate(&mut self, node: usize) -> Result<()> {
        let mut ended = self.nodes[node].take().with_context(|| format!("node {node} does not run"))?;
        let status = ended.process().terminate(LIMIT)?;
        ensure!(status.success(), "node {node} ended with {status}:\n{}", ended.process().log()?);
        Ok(())
    }

    /// Gives a real of a VIP another weight, as an operator does: in its record, by hand.
    ///
    /// # Errors
    ///
    /// When there is no such record.
    pub fn set_weight(&self, vip: &str, real: &str, weight: u32) -> Result<()> {
        let path = paths::real(&vip.parse()?, &real.parse()?);
        let text = self.operator.get(&path)?.with_context(|| format!("{path}: no such znode"))?;
        let mut record: Value = serde_json::from_str(&text).with_context(|| path.clone())?;
        record["weight"] = weight.into();
        self.operator.put(&path, &record.to_string())
    }

    /// Waits until the tree has these weights in force for a VIP, with nothing announced, and every node that runs has
    /// them too.
    ///
    /// # Errors
    ///
    /// When that takes too long.
    pub fn wait_for_weights(&self, vip: &str, expected: &[(&str, u16)]) -> Result<()> {
        wait_until(format_args!("{vip} to have the weights {expected:?}"), LIMIT, || {
            let assignment = self.assignment(vip)?;
            let is_so = assignment.next.is_none()
                && assignment.weights.len() == expected.len()
                && assignment
                    .weights
                    .iter()
                    .all(|(real, weight)| expected.contains(&(real.as_str(), *weight)));
            Ok(is_so.then_some(()))
        })
        .with_context(|| self.report())?;
        let reals: Vec<&str> = expected.iter().map(|(real, _)| *real).collect();
        self.wait_agreed(&[(vip, &reals)])
    }

    /// Waits until the leader, new at first, removes again what is to be removed.
    ///
    /// # Errors
    ///
    /// When that takes too long.
    pub fn wait_settled(&self) -> Result<()> {
        wait_until("the leader to have settled", LIMIT, || {
            // What stands there at first is its predecessor's head.
            let (head, term) = (self.head()?, self.operator.record::<Term>(paths::LEADER)?);
            let is_own = term.is_some_and(|term| term.term == head.term);
            Ok((is_own && !head.settling).then_some(()))
        })
    }

    /// Waits until the router sends every VIP's packets to these nodes and no others.
    ///
    /// # Errors
    ///
    /// When it does not in time; with what the nodes have to say.
    pub fn wait_for_carriers(&self, nodes: &[usize]) -> Result<()> {
        let front = self.net.front.as_ref().context("the network has a front")?;
        for vip in self.cluster.addresses() {
            front.wait_for_carriers(vip, nodes, LIMIT).with_context(|| self.report())?;
        }
        Ok(())
    }

    /// What every node says of itself, for failures.
    #[must_use]
    pub fn report(&self) -> String {
        let mut report = String::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let said = match node.as_ref().map(LbNode::status) {
                None => "does not run".to_owned(),
                Some(Ok(status)) => format!("{:#}", shortened(status)),
                Some(Err(error)) => format!("{error:#}"),
            };
            let _ = writeln!(report, "node {}: {said}", number + 1);
        }
        report
    }

    /// The head in the tree.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn head(&self) -> Result<Head> {
        self.operator.record(paths::ASSIGNMENTS)?.context("there is no head yet")
    }

    /// A VIP's assignment in the tree.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn assignment(&self, vip: &str) -> Result<Assignment> {
        let path = paths::assignment(&vip.parse()?);
        self.operator.record(&path)?.with_context(|| format!("{path}: no such znode"))
    }

    /// The node that leads, counted from 0, and its term.
    ///
    /// # Errors
    ///
    /// When nobody leads in time.
    pub fn leader(&self) -> Result<(usize, u64)> {
        wait_until("one node to lead", LIMIT, || {
            let Some(term) = self.operator.record::<Term>(paths::LEADER)? else { return Ok(None) };
            let place = self.net.nodes.iter().position(|station| station.host.name() == term.node.as_str());
            let place = place.context("the leader is no node of this site")?;
            let Some(node) = &self.nodes[place] else { return Ok(None) };
            let leading = node.status().is_ok_and(|status| status["cluster"]["leading"] == term.term);
            Ok(leading.then_some((place, term.term)))
        })
        .with_context(|| self.report())
    }

    /// The tables of the nodes that run, by VIP: the epoch and the digest of what is in each node's maps.
    ///
    /// # Errors
    ///
    /// When a node does not answer.
    pub fn tables(&self) -> Result<BTreeMap<String, Vec<(u64, String)>>> {
        let mut tables: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
        for node in self.nodes.iter().flatten() {
            let status = node.status()?;
            for (vip, state) in status["vips"].as_object().context("/status has no VIPs")? {
                let epoch = state["epoch"].as_u64().context("a VIP without an epoch")?;
                let digest = state["table_digest"].as_str().unwrap_or("none").to_owned();
                tables.entry(vip.clone()).or_default().push((epoch, digest));
            }
        }
        Ok(tables)
    }

    /// Waits until every node that runs has the tree's head in force, no two differ, and each VIP's table holds the reals
    /// that `expected` names for it.
    ///
    /// # Errors
    ///
    /// When that takes too long.
    pub fn wait_agreed(&self, expected: &[(&str, &[&str])]) -> Result<()> {
        self.wait_agreed_among(&self.running(), expected)
    }

    /// As [`Site::wait_agreed`], of these nodes, which must run.
    ///
    /// # Errors
    ///
    /// When that takes too long.
    pub fn wait_agreed_among(&self, nodes: &[usize], expected: &[(&str, &[&str])]) -> Result<()> {
        wait_until(format_args!("the nodes to agree on {expected:?}"), LIMIT, || {
            let head = self.head()?;
            let mut digests: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for node in nodes.iter().filter_map(|node| self.nodes[*node].as_ref()) {
                // One that starts does not answer yet.
                let Ok(status) = node.status() else { return Ok(None) };
                if status["epoch"] != head.epoch || status["term"] != head.term {
                    return Ok(None);
                }
                for (vip, reals) in expected {
                    if in_table(&status["vips"][vip]) != reals.iter().copied().collect() {
                        return Ok(None);
                    }
                }
                for (vip, state) in status["vips"].as_object().into_iter().flatten() {
                    let table = format!("{} {}", state["epoch"], state["table_digest"]);
                    digests.entry(vip.clone()).or_default().insert(table);
                }
            }
            Ok(digests.values().all(|tables| tables.len() == 1).then_some(()))
        })
        .with_context(|| self.report())
    }
}

impl Settings {
    fn binary(&self) -> Result<PathBuf> {
        self.binary.clone().map_or_else(lb_node::binary, Ok)
    }
}

/// What a node says of itself, with a line for each VIP where there are many.
fn shortened(mut status: Value) -> Value {
    const MANY: usize = 8;
    let Some(vips) = status["vips"].as_object_mut().filter(|vips| vips.len() > MANY) else { return status };
    for vip in vips.values_mut() {
        let reals: Vec<String> = in_table(vip).into_iter().map(str::to_owned).collect();
        let short = format!("epoch {}, table {} of {}", vip["epoch"], vip["table_digest"], reals.join(", "));
        *vip = short.into();
    }
    status
}

/// The reals in a VIP's table, by what a node says of the VIP.
fn in_table(vip: &Value) -> BTreeSet<&str> {
    let reals = vip["reals"].as_object().into_iter().flatten();
    let in_table = reals.filter(|(_, real)| real["weight"].as_u64().is_some_and(|weight| weight > 0));
    in_table.map(|(real, _)| real.as_str()).collect()
}

/// The cluster's VIPs and reals as records.
///
/// # Errors
///
/// When they are not valid.
pub fn desired(cluster: &Cluster, net: &Topology) -> Result<Desired> {
    let station = net.nodes.first().context("a site has nodes")?;
    Ok(ClusterFile::parse(&cluster.text(station), "cluster.toml")?.desired)
}
