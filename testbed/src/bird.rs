//! BIRD on the router and on the nodes: the front by which a site's routers learn of the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, setpriority_process};
use serde_json::Value;

use crate::host::Host;
use crate::process::Process;
use crate::station::Station;
use crate::wait::wait_until;

const START_LIMIT: Duration = Duration::from_secs(10);
/// BGP waits some seconds before it calls again where nobody answered.
const SESSION_LIMIT: Duration = Duration::from_secs(30);

const ROUTER_AS: u32 = 65_000;
/// All nodes are one AS, so that the router finds their paths equally long.
const NODE_AS: u32 = 65_001;

/// A dead host is noticed within a second, and a busy machine is not taken for a dead one.
const BFD: &str = "protocol bfd {\n    \
                   interface \"*\" { min rx interval 100 ms; min tx interval 100 ms; multiplier 8; };\n}\n";

/// What all BGP sessions have in common. Without `graceful restart off` routes could outlive their announcer.
const SESSION: &str = "bfd on;\n    graceful restart off;\n    connect delay time 1;\n    connect retry time 1;\n    \
                       error wait time 1, 2;\n";

/// A BIRD on a host.
#[derive(Debug)]
pub struct Bird {
    host: Host,
    config: PathBuf,
    socket: PathBuf,
    process: Process,
}

impl Bird {
    /// Starts BIRD with this configuration and waits until it is up.
    ///
    /// # Errors
    ///
    /// When it does not come up in 10 s, as with a configuration that it refuses; with its output.
    pub fn start(host: &Host, config: &str) -> Result<Bird> {
        let (path, socket) = (host.dir().join("bird.conf"), host.dir().join("bird.ctl"));
        fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
        let process = launch(host, &path, &socket)?;
        Ok(Bird { host: host.clone(), config: path, socket, process })
    }

    /// Starts it again after its end, on its configuration as it is now.
    ///
    /// # Errors
    ///
    /// As [`Bird::start`], and when it still runs.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(!self.process.is_running()?, "{} still runs", self.process.name());
        self.process = launch(&self.host, &self.config, &self.socket)?;
        Ok(())
    }

    /// The process, to kill or to signal.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its control socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it answers to a command, as `birdc` shows it.
    ///
    /// # Errors
    ///
    /// When nobody answers.
    pub fn ask(&self, command: &str) -> Result<String> {
        let birdc = self.host.command("birdc").arg("-s").arg(&self.socket);
        birdc.args(command.split_whitespace()).run()
    }

    /// How many of its BGP sessions are established.
    fn established(&self) -> Result<usize> {
        let protocols = self.ask("show protocols")?;
        Ok(protocols.lines().filter(|line| line.trim_end().ends_with("Established")).count())
    }
}

fn launch(host: &Host, config: &Path, socket: &Path) -> Result<Process> {
    // In the foreground, so that it ends with its handle; the log goes to standard error.
    let mut process = host.command("bird").arg("-f").arg("-c").arg(config).arg("-s").arg(socket).spawn()?;
    process.wait_for_line("Started", START_LIMIT)?;
    // In the lab all hosts share one machine's processors; a real router's BFD need not wait for other hosts' work.
    // Where that is not allowed, the lab works too as long as the machine is not too busy.
    let pid = i32::try_from(process.pid()).ok().and_then(Pid::from_raw);
    let _ = setpriority_process(pid, -10);
    Ok(process)
}

/// BIRD on the router and on every node of a [`Topology`](crate::Topology), with BGP and BFD between them: the router has
/// equal-cost paths to all nodes that announce a VIP.
#[derive(Debug)]
pub struct Front {
    /// The router's.
    pub router: Bird,
    /// The nodes', in their order.
    pub nodes: Vec<Bird>,
    node_hosts: Vec<Host>,
    routes: Routes,
}

/// The router's routes to VIPs, as its kernel has them.
#[derive(Clone, Debug)]
pub struct Routes {
    router: Host,
    /// Whose an address is, among the nodes.
    owners: BTreeMap<IpAddr, String>,
}

impl Front {
    pub(crate) fn start(router: &Host, stations: &[Station]) -> Result<Front> {
        let mut owners = BTreeMap::new();
        for station in stations {
            for address in addresses(station)? {
                owners.insert(address, station.host.name().to_owned());
            }
        }
        let nodes = stations.iter().map(|station| Bird::start(&station.host, &node_config(station)));
        let nodes = nodes.collect::<Result<_>>()?;
        let front = Front {
            router: Bird::start(router, &router_config(stations))?,
            nodes,
            node_hosts: stations.iter().map(|station| station.host.clone()).collect(),
            routes: Routes { router: router.clone(), owners },
        };
        wait_until("all BGP sessions of the router", SESSION_LIMIT, || {
            Ok((front.router.established()? == 2 * stations.len()).then_some(()))
        })
        .with_context(|| front.router.ask("show protocols all").unwrap_or_default())?;
        Ok(front)
    }

    /// The file that the BIRD of a node, counted from 0, includes, and its control socket: what the `bird` driver
    /// of that node needs.
    #[must_use]
    pub fn driver_paths(&self, node: usize) -> (PathBuf, PathBuf) {
        (included(&self.node_hosts[node]).join("bird.conf"), self.nodes[node].socket.clone())
    }

    /// The `[front]` table of a node's file, for a node counted from 0.
    #[must_use]
    pub fn node_file_table(&self, node: usize) -> String {
        let (file, socket) = self.driver_paths(node);
        format!(
            "[front]\ndriver = \"bird\"\nbird_file = {:?}\nbird_socket = {:?}\n",
            file.display().to_string(),
            socket.display().to_string()
        )
    }

    /// The names of the nodes that the router sends a VIP's packets to, as its kernel has it.
    ///
    /// # Errors
    ///
    /// When a next hop is not a node's address.
    pub fn carriers(&self, vip: IpAddr) -> Result<BTreeSet<String>> {
        self.routes.carriers(vip)
    }

    /// The router's routes, to be looked at on another thread.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Waits until the router sends a VIP's packets to these nodes, counted from 0, and to no others. Returns how
    /// long that took.
    ///
    /// # Errors
    ///
    /// When it does not in `limit`.
    pub fn wait_for_carriers(&self, vip: IpAddr, nodes: &[usize], limit: Duration) -> Result<Duration> {
        let expected: BTreeSet<String> =
            nodes.iter().map(|&node| self.node_hosts[node].name().to_owned()).collect();
        let start = Instant::now();
        wait_until(format_args!("{vip} to be routed to {expected:?}"), limit, || {
            Ok((self.carriers(vip)? == expected).then_some(()))
        })
        .with_context(|| format!("the router has it at {:?}", self.carriers(vip)))?;
        Ok(start.elapsed())
    }
}

impl Routes {
    /// As [`Front::carriers`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn carriers(&self, vip: IpAddr) -> Result<BTreeSet<String>> {
        let (family, length) = if vip.is_ipv4() { ("-4", 32) } else { ("-6", 128) };
        let routes = self.router.ip(&format!("-j {family} route show {vip}/{length}"))?;
        let parsed: Value = serde_json::from_str(&routes).context("not JSON from `ip`")?;
        let mut gateways = Vec::new();
        collect_gateways(&parsed, &mut gateways);
        gateways
            .into_iter()
            .map(|gateway| {
                let owner = gateway.parse().ok().and_then(|address: IpAddr| self.owners.get(&address));
                owner.cloned().with_context(|| format!("{gateway} is no node's address: {routes}"))
            })
            .collect()
    }
}

/// Where a node's part of BIRD's configuration is.
fn included(host: &Host) -> PathBuf {
    host.dir().join("announced")
}

fn router_config(stations: &[Station]) -> String {
    let mut config = format!(
        "log stderr all;\n\
         router id 10.255.255.1;\n\
         protocol device {{ scan time 1; }}\n\
         protocol kernel {{ merge paths on; ipv4 {{ export where source = RTS_BGP; }}; }}\n\
         protocol kernel {{ merge paths on; ipv6 {{ export where source = RTS_BGP; }}; }}\n\
         {BFD}\
         template bgp node {{\n    local as {ROUTER_AS};\n    passive;\n    {SESSION}}}\n"
    );
    for (number, Station { v4, v6, .. }) in (1..).zip(stations) {
        for (family, address) in [("ipv4", IpAddr::from(*v4)), ("ipv6", IpAddr::from(*v6))] {
            let _ = write!(
                config,
                "protocol bgp node_{number}_{family} from node {{\n    neighbor {address} as {NODE_AS};\n    \
                 {family} {{ import all; export none; }};\n}}\n"
            );
        }
    }
    config
}

/// What docs/node-file.md tells an operator to write.
fn node_config(station: &Station) -> String {
    let mut config = format!(
        "log stderr all;\n\
         router id {};\n\
         include \"{}*/bird.conf\";\n\
         protocol device {{ scan time 1; }}\n\
         protocol kernel {{ ipv4 {{ export where proto != \"drover_v4\"; }}; }}\n\
         protocol kernel {{ ipv6 {{ export where proto != \"drover_v6\"; }}; }}\n\
         {BFD}",
        station.v4,
        included(&station.host).display()
    );
    let sessions =
        [("v4", "ipv4", IpAddr::from(station.gateway_v4)), ("v6", "ipv6", IpAddr::from(station.gateway_v6))];
    for (name, family, router) in sessions {
        let _ = write!(
            config,
            "protocol bgp router_{name} {{\n    local as {NODE_AS};\n    neighbor {router} as {ROUTER_AS};\n    \
             {SESSION}    {family} {{ import none; export where proto = \"drover_{name}\"; }};\n}}\n"
        );
    }
    config
}

/// All addresses of a station, link-local ones too: BGP names these as next hops for IPv6.
fn addresses(station: &Station) -> Result<Vec<IpAddr>> {
    let listing = station.host.ip(&format!("-j address show dev {}", station.interface))?;
    let listing: Value = serde_json::from_str(&listing).context("not JSON from `ip`")?;
    let infos = listing.as_array().into_iter().flatten().filter_map(|link| link["addr_info"].as_array());
    let addresses = infos.flatten().filter_map(|info| info["local"].as_str()?.parse().ok());
    Ok(addresses.collect())
}

/// The gateways in what `ip -j route` prints: one of a route, or one of each next hop.
fn collect_gateways<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Array(elements) => elements.iter().for_each(|element| collect_gateways(element, found)),
        Value::Object(fields) => {
            found.extend(fields.get("gateway").and_then(Value::as_str));
            if let Some(hops) = fields.get("nexthops") {
                collect_gateways(hops, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_found_in_routes_with_one_and_with_several_next_hops() {
        let gateways = |json: &str| {
            let value = serde_json::from_str(json).unwrap();
            let mut found = Vec::new();
            collect_gateways(&value, &mut found);
            found.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(gateways("[]"), Vec::<String>::new());
        assert_eq!(gateways(r#"[{"dst":"198.51.100.10","gateway":"10.2.1.2","dev":"n1"}]"#), ["10.2.1.2"]);
        let several =
            r#"[{"dst":"198.51.100.10","nexthops":[{"gateway":"10.2.1.2"},{"gateway":"fe80::1"}]}]"#;
        assert_eq!(gateways(several), ["10.2.1.2", "fe80::1"]);
    }
}
