//! `lbctl doctor`: what keeps the node on this host from working, and the fix of each.
//!
//! It looks, and changes nothing: beyond its own echoes to reals it makes one ephemeral znode for a moment.

mod bird;
mod clock;
mod interface;
mod kernel;
mod node;
mod probe;
mod reals;
mod report;
mod zookeeper;

use crate::context::Context;
use crate::output;
use crate::tree::Tree;
use anyhow::{Context as _, Result, bail};
use host::netlink::Netlink;
use interface::Wanted;
use reals::Server;
use report::{Finding, Level, Report};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use zk_schema::picture::Found;
use zk_schema::tree::Target;
use zk_schema::{FrontDriver, NodeName, NodeOverrides, Protocol, Real, Vip, VipName};

/// A node's file, unless told otherwise.
const NODE_FILE: &str = "/etc/drover/node.toml";
/// Time that the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// The exit code when it could not run at all.
const NOT_RUN: u8 = 2;

/// Options of `lbctl doctor`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Run it as root on the node's host, before the first start as well as afterwards. It takes some seconds.

It looks at the kernel and its rights, the BPF file system, the interface, the way and the largest packet to each real, each server of \
ZooKeeper, the tree, the clock, the node file and what it names, BIRD, and the daemon. It changes nothing: it sends echoes to the reals, \
and makes one ephemeral znode for a moment, by which it compares clocks.

Each check has an id; docs/lbctl.md lists all of them. What is a WARNING works, but not as well as it could, or not for long.

The exit code is 0 without a fault, 1 with one, 2 if it could not look at all.

Examples:
  lbctl doctor                                   the node of /etc/drover/node.toml
  lbctl doctor --config node.toml
  lbctl doctor --name lb-node-0 --bpffs /run/bpffs/drover    in a pod: what lb-node has on its command line
  lbctl doctor --interface eth0                  a host that has no node file yet
  lbctl doctor -o json | jq '.checks[] | select(.level == \"fault\")'"
)]
pub struct Options {
    /// Front interface, instead of the node file's.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,

    /// Name of the node, instead of the node file's.
    #[arg(long)]
    name: Option<NodeName>,

    /// Address of the admin pages, instead of the node file's.
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,

    /// Directory on a BPF file system that lb-node is started with.
    #[arg(long, value_name = "DIRECTORY", default_value = host::bpffs::DEFAULT)]
    bpffs: PathBuf,
}

/// Looks at everything, and prints what was found. The exit code is 0 without a fault, else 1, and 2 if nothing could be
/// looked at.
///
/// # Errors
/// If the result cannot be written.
pub async fn run(options: &Options, context: &Context) -> Result<ExitCode> {
    match examine(options, context).await {
        Ok(report) => {
            output::print(context.format(), &report)?;
            Ok(report.exit_code())
        }
        Err(error) => {
            output::say(&format!("lbctl: {error:#}\n"));
            Ok(ExitCode::from(NOT_RUN))
        }
    }
}

async fn examine(options: &Options, context: &Context) -> Result<Report> {
    let path = context.config().map_or_else(|| PathBuf::from(NODE_FILE), Path::to_owned);
    let mut findings = Vec::new();
    let told = if context.config().is_some() || path.exists() {
        let instead = NodeOverrides {
            name: options.name.clone(),
            interface: options.interface.clone(),
            admin: options.admin,
        };
        let (finding, told) = node::file(&path, &instead);
        findings.push(finding);
        told
    } else if options.interface.is_some() {
        findings.push(Finding::skipped("node.file", format!("there is no {}", path.display())));
        None
    } else {
        bail!("which node? There is no {NODE_FILE}: name its file by --config, or an --interface");
    };
    let interface =
        options.interface.clone().or_else(|| told.as_ref().map(|told| told.node.interface.clone()));
    let netlink = Netlink::open()?;
    let (links, addresses) =
        interface::picture(&netlink).await.context("the kernel does not tell of its network")?;

    let daemon = kernel::daemon();
    findings.extend(kernel::kernel());
    findings.push(kernel::capabilities(daemon.as_ref()));
    findings.push(clock::synchronised());
    if let Some(interface) = &interface {
        let names: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
        let pinned = kernel::bpffs(&options.bpffs, interface, daemon.is_some(), &names);
        let is_bpffs = pinned.iter().all(|finding| finding.level != Level::Fault);
        findings.extend(pinned);
        let node = told.as_ref().map(|told| &told.node);
        let sources = node.map_or_else(Vec::new, |node| {
            let v4 = node.source_v4.map(IpAddr::from);
            v4.into_iter().chain(node.source_v6.map(IpAddr::from)).collect()
        });
        let xdp_mode = node.map_or_else(Default::default, |node| node.xdp_mode);
        let bpffs = is_bpffs.then_some(options.bpffs.as_path());
        let wanted = Wanted { interface, bpffs, xdp_mode, sources };
        findings.extend(interface::interface(&wanted, &links, &addresses));
    }
    let Some(told) = told else {
        let why = "the node file is not there, or not valid";
        let rest =
            ["node.state_dir", "node.admin", "zookeeper.quorum", "tree.made", "real.route", "bird.socket"];
        findings.extend(rest.map(|check| Finding::skipped(check, why)));
        return Ok(Report::new(findings));
    };
    findings.extend(node::secrets(&told));
    if let Some(cluster) = &told.cluster {
        findings.push(node::state_dir(&cluster.state_dir));
    }
    let process = daemon.as_ref().map(|daemon| daemon.pid);
    let by_daemon = node::daemon(&told.node, PATIENCE, process);
    let by_bird = async {
        match &told.front {
            Some(front) if front.driver == FrontDriver::Bird => {
                bird::bird(&front.bird_socket, &front.bird_file).await
            }
            _ => Vec::new(),
        }
    };
    let by_zookeeper = async {
        match &told.zookeeper {
            Some(settings) => Some(zookeeper::zookeeper(settings, &told.node.name, process.is_some()).await),
            None => None,
        }
    };
    let (by_daemon, by_bird, by_zookeeper) = tokio::join!(by_daemon, by_bird, by_zookeeper);
    findings.extend(by_daemon);
    findings.extend(by_bird);
    let services = match by_zookeeper {
        Some(outcome) => {
            findings.extend(outcome.findings);
            outcome.tree.as_ref().map(services)
        }
        None => told.desired.as_ref().map(|desired| {
            let service = |(name, state): (&VipName, &zk_schema::VipState)| {
                (name.clone(), (state.vip.clone(), state.reals.clone()))
            };
            desired.vips.iter().map(service).collect()
        }),
    };
    match services {
        Some(services) => {
            let vips = services.iter().map(|(name, (vip, _))| (name.clone(), vip.address)).collect();
            findings.extend(interface::own_vips(&vips, &links, &addresses));
            findings.extend(reals::reals(&servers(&services), &netlink, &links, told.node.gue_port).await);
        }
        None => {
            let rest = ["vip.local", "real.route"];
            findings.extend(
                rest.map(|check| Finding::skipped(check, "VIPs and reals are not known without the tree")),
            );
        }
    }
    Ok(Report::new(findings))
}

/// VIPs with their reals.
type Services = BTreeMap<VipName, (Vip, BTreeMap<zk_schema::RealName, Real>)>;

/// Returns what operators want; where a record is wrong, what is in force.
fn services(tree: &Tree) -> Services {
    let mut services = Services::new();
    for (name, found) in &tree.vips {
        let assignment = tree.assignment(name);
        let vip = found.vip.ok().or(assignment.map(|assignment| &assignment.vip));
        let Some(vip) = vip.cloned() else { continue };
        let reals =
            found.reals.iter().filter_map(|(real, found)| Some((real.clone(), Found::ok(found)?.clone())));
        services.insert(name.clone(), (vip, reals.collect()));
    }
    services
}

/// Reals by address: one may serve several VIPs.
fn servers(services: &Services) -> BTreeMap<IpAddr, Server> {
    let mut servers = BTreeMap::<IpAddr, Server>::new();
    for (name, (vip, reals)) in services {
        for (real, state) in reals {
            let server = servers.entry(state.address).or_insert_with(|| Server {
                targets: Vec::new(),
                encapsulations: Vec::new(),
                port: None,
            });
            server.targets.push(Target { vip: name.clone(), real: real.clone() });
            if !server.encapsulations.contains(&vip.encapsulation) {
                server.encapsulations.push(vip.encapsulation);
            }
            let checked = vip.health.as_ref().and_then(|check| check.port);
            let served = (vip.protocol == Protocol::Tcp && vip.port != 0).then_some(vip.port);
            server.port = server.port.or(checked).or(served);
        }
    }
    servers
}
