//! The command line.

use crate::{capture, guard, node};
use anyhow::{Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use dataplane::probe_route;
use host::bpffs;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tracing_subscriber::EnvFilter;
use zk_schema::{ClusterFile, FrontDriver, Node, NodeFile, NodeName, NodeOverrides, Vip, is_interface_name};

/// Balances long-lived connections over many servers, in XDP.
///
/// `lb-node run` makes this machine a load-balancer node: packets for a VIP that arrive on its front interface are
/// sent on to one of the VIP's reals, chosen by a consistent hash, and answers go from the real to the client directly.
/// `lb-node real` makes a machine a real: it takes the tunnels' headers off and gives it the VIP.
#[derive(Debug, Parser)]
#[command(
    name = "lb-node",
    version,
    after_help = "Examples:
  lb-node check cluster.toml                     is the file right?
  lb-node run --standalone cluster.toml          serve what it says
  lb-node real --interface eth0 --vip 198.51.100.10 --from 10.0.0.0/24
                                                 on each server
  lb-node detach --interface eth0                stop forwarding, leave nothing behind

The log goes to standard error; RUST_LOG=debug (or info,lb_node=debug,...) shows more."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Format of log lines.
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a load-balancer node.
    ///
    /// A node of a cluster (--config) serves what the cluster's leader decides on; SIGTERM withdraws its VIPs from the
    /// front, waits for packets to find other ways, and ends it.
    ///
    /// A standalone node follows its cluster file: an edit (or SIGHUP) takes effect without touching other connections, and
    /// one that is wrong is refused whole, with what is wrong by line, while the last good state stays in force.
    ///
    /// When the process ends, however it ends, packets are forwarded as before, and the next `lb-node run` takes over
    /// without losing one. `lb-node detach` ends that.
    ///
    /// The file's `admin` address (127.0.0.1:9940 by default) answers /livez, /healthz, /readyz, /announced, /status,
    /// /metrics and /capture.
    #[command(after_help = "Examples:
  lb-node run --config /etc/drover/node.toml     one of several nodes
  lb-node run --standalone /etc/drover/cluster.toml
  kill -HUP $(pidof lb-node)                     read the file again now
  curl -s 127.0.0.1:9940/readyz                  what is missing, if anything
  curl -s 127.0.0.1:9940/status | jq .vips       who gets connections, and why")]
    Run(Run),

    /// Withdraw a node's VIPs when its daemon gives no sign of life.
    ///
    /// Runs beside `lb-node run --config`, with the same file. When the daemon has been silent for longer than
    /// `withdraw_after_ms` of the table [front], the guard withdraws everything that the daemon announced by BIRD. The daemon
    /// announces again itself when it is back. Losing ZooKeeper is no reason: a daemon that is cut off lives.
    ///
    /// Needs BIRD's control socket and the directory of `bird_file`, and no capability.
    Guard(Guard),

    /// Check a cluster file or a node file, and print what it says.
    ///
    /// A file with a table [zookeeper] is a node file, that of a node in a cluster; any other is the cluster file of a
    /// node that stands alone.
    ///
    /// Lists everything that is wrong, with line, field and what is allowed, and then exits with code 1. Needs no rights
    /// and touches nothing.
    Check {
        /// The file (its fields are described in docs/cluster-file.md and docs/node-file.md).
        #[arg(value_name = "FILE")]
        file: PathBuf,

        #[command(flatten)]
        instead: Instead,
    },

    /// Run the agent of a real: decapsulate what nodes send, and own the VIPs.
    ///
    /// When the process ends, program and VIPs stay. `lb-node detach` removes them.
    ///
    /// In a cluster the agent can have the host in the tree as a real of VIPs (--register), as long as it runs: SIGTERM
    /// takes the host out at once, a crash when the agent's session has expired, unless it is started again before.
    /// Addresses of VIPs and nodes come from the tree then, and stay as they are without it.
    ///
    /// The `admin` address answers /healthz, /readyz, /status and /metrics.
    #[command(after_help = "Examples:
  lb-node real --interface eth0 --vip 198.51.100.10 --vip 2001:db8::10 \\
               --from 10.0.0.0/24 --from 2001:db8:1::/64
  lb-node real --interface eth0 --register mqtt --zookeeper zk-1:2181,zk-2:2181,zk-3:2181")]
    Real(Box<agent::Options>),

    /// Remove programs, pins and all else that `run` and `real` left on an interface.
    ///
    /// Forwarding, or decapsulation, ends at once. Refused while the daemon runs: stop it first.
    Detach(Detach),

    /// Write samples of forwarded packets to a pcapng file.
    Capture(capture::Options),
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    what: What,

    #[command(flatten)]
    instead: Instead,

    /// Directory on a BPF file system that keeps programs and tables while no process runs.
    #[arg(long, value_name = "DIRECTORY", default_value = bpffs::DEFAULT)]
    bpffs: PathBuf,
}

#[derive(Debug, Args)]
struct Guard {
    /// The node file that the daemon runs by.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    #[command(flatten)]
    instead: Instead,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Node file of a node of a cluster, which shares its state with others through ZooKeeper.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Cluster file of a node that shares its state with no other.
    #[arg(long, value_name = "FILE")]
    standalone: Option<PathBuf>,
}

/// Settings that differ from node to node, so that many can share one node file.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Instead of what the node file says in [node]")]
struct Instead {
    /// The node's name, unique in the cluster.
    #[arg(long, value_name = "NAME")]
    name: Option<NodeName>,

    /// Interface that clients' packets arrive on.
    #[arg(long, value_name = "NAME", value_parser = parse_interface)]
    interface: Option<String>,

    /// Address and port of the admin pages.
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
}

impl From<Instead> for NodeOverrides {
    fn from(Instead { name, interface, admin }: Instead) -> Self {
        Self { name, interface, admin }
    }
}

#[derive(Debug, Args)]
struct Detach {
    /// The interface.
    #[arg(long, value_name = "NAME")]
    interface: String,

    /// Directory on a BPF file system that the daemon was started with.
    #[arg(long, value_name = "DIRECTORY", default_value = bpffs::DEFAULT)]
    bpffs: PathBuf,
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    /// In words that say what to fix.
    pub async fn execute(self) -> Result<()> {
        start_log(self.log_format);
        match self.command {
            Command::Run(Run { what: What { config, standalone }, instead, bpffs }) => {
                let instead = NodeOverrides::from(instead);
                match (config, standalone) {
                    (Some(file), _) => node::run_in_cluster(&file, &instead, &bpffs).await,
                    (None, Some(file)) => {
                        only_in_node_files(&instead)?;
                        node::run_standalone(&file, &bpffs).await
                    }
                    (None, None) => bail!("name a node file (--config) or a cluster file (--standalone)"),
                }
            }
            Command::Guard(Guard { config, instead }) => guard::run(&config, &instead.into()).await,
            Command::Check { file, instead } => {
                print!("{}", check(&file, &instead.into())?);
                Ok(())
            }
            Command::Real(options) => agent::run(*options).await,
            Command::Detach(detach) => detach.execute().await,
            Command::Capture(options) => {
                let seen = capture::run(options).await?;
                tracing::info!(packets = seen, "capture ended");
                Ok(())
            }
        }
    }
}

impl Detach {
    /// Undoes what can be undone, whatever else cannot.
    async fn execute(self) -> Result<()> {
        let mut failures = Vec::new();
        match dataplane::detach(&self.interface, &self.bpffs) {
            Ok(true) => tracing::info!(interface = self.interface, "load balancing has ended"),
            Ok(false) => {}
            Err(error) => failures.push(format!("{:#}", anyhow::Error::from(error))),
        }
        // A daemon that still runs needs the route.
        if failures.is_empty()
            && let Err(error) = probe_route::remove().await
        {
            failures.push(error.to_string());
        }
        if let Err(error) = agent::detach(&self.interface, &self.bpffs).await {
            failures.push(format!("{error:#}"));
        }
        if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only if there is a log already, as in tests.
    let _ = match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

/// Parses the name of a network interface.
fn parse_interface(name: &str) -> Result<String> {
    ensure!(is_interface_name(name), "not the name of a network interface (`ip link` lists them)");
    Ok(name.to_owned())
}

/// A cluster file belongs to one node, so all of that node is in it.
fn only_in_node_files(instead: &NodeOverrides) -> Result<()> {
    if *instead != NodeOverrides::default() {
        bail!(
            "--name, --interface and --admin go with a node file; write them into the cluster file's [node]"
        );
    }
    Ok(())
}

/// Checks a file of either kind, and says what is in it.
fn check(path: &Path, instead: &NodeOverrides) -> Result<String> {
    let text = host::files::read_text(path)?;
    let name = path.display().to_string();
    if NodeFile::is_meant_by(&text) {
        Ok(node_summary(&NodeFile::parse_with(&text, &name, instead)?))
    } else {
        only_in_node_files(instead)?;
        Ok(summary(&ClusterFile::parse(&text, &name)?))
    }
}

/// The node itself in a line.
fn node_line(node: &Node) -> String {
    format!("node {} on {} (XDP {}), admin on {}\n", node.name, node.interface, node.xdp_mode, node.admin)
}

/// A node file in a few lines.
fn node_summary(file: &NodeFile) -> String {
    let NodeFile { node, zookeeper, front, cluster } = file;
    let mut text = node_line(node);
    let transport = if zookeeper.tls_ca.is_some() { "TLS" } else { "no TLS" };
    let user = match &zookeeper.credentials_file {
        Some(file) => format!("credentials of {} by {}", file.display(), zookeeper.auth),
        None => "no credentials".to_owned(),
    };
    let _ = writeln!(
        text,
        "ZooKeeper at {}, session timeout {} ms, {transport}, {user}, {} access to what it creates",
        zookeeper.servers, zookeeper.session_timeout_ms, zookeeper.acl
    );
    let _ = match front.driver {
        FrontDriver::None => writeln!(text, "front: announced by nobody"),
        FrontDriver::Bird => writeln!(
            text,
            "front: announced after {} ms by the BIRD at {}, which includes {}; withdrawn after {} ms without a sign of life",
            front.announce_hold_ms,
            front.bird_socket.display(),
            front.bird_file.display(),
            front.withdraw_after_ms
        ),
    };
    let _ = writeln!(
        text,
        "state in {}; on its own after {} ms; {} ms between withdrawing and stopping; {} ms for acknowledgements; \
         peers at UDP port {}",
        cluster.state_dir.display(),
        cluster.autonomy_after_ms,
        cluster.drain_wait_ms,
        cluster.ack_timeout_ms,
        cluster.peer_port
    );
    text
}

/// A cluster file in a few lines.
fn summary(file: &ClusterFile) -> String {
    let mut text = node_line(&file.node);
    for (name, state) in &file.desired.vips {
        let (vip, reals) = (&state.vip, &state.reals);
        let check = vip.health.as_ref().map_or("no health check".to_owned(), |check| {
            let kind = match check.kind {
                zk_schema::CheckKind::Tcp => "tcp",
                zk_schema::CheckKind::Http(_) => "http",
                zk_schema::CheckKind::Https(_) => "https",
                zk_schema::CheckKind::Mqtt(_) => "mqtt",
            };
            format!("{kind} check every {} ms by {}", check.interval_ms, check.path)
        });
        let drained = reals.values().filter(|real| real.weight == 0).count();
        let drained = if drained == 0 { String::new() } else { format!(", {drained} of them drained") };
        let _ = writeln!(
            text,
            "VIP {name}: {} {} by {}, {check}, {} reals{drained}",
            vip.protocol,
            service(vip),
            vip.encapsulation,
            reals.len()
        );
        let total: u64 = reals.values().map(|real| u64::from(real.weight)).sum();
        for (real_name, real) in reals {
            let share = u64::from(real.weight) * 1000 / total.max(1);
            let _ = writeln!(
                text,
                "  {real_name}: {} weight {} ({}.{} %)",
                real.address,
                real.weight,
                share / 10,
                share % 10
            );
        }
    }
    text
}

/// The VIP's address and port.
fn service(vip: &Vip) -> String {
    match (vip.address, vip.port) {
        (address, 0) => format!("{address}, all ports"),
        (address, port) => std::net::SocketAddr::new(address, port).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checked_vip, desired, name};
    use clap::CommandFactory as _;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_needs_a_cluster_file_and_has_defaults_for_the_rest() {
        let cli = Cli::try_parse_from(["lb-node", "run", "--standalone", "c.toml"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("{cli:?}") };
        assert_eq!(run.bpffs, PathBuf::from("/sys/fs/bpf/drover"));
        let error = Cli::try_parse_from(["lb-node", "run"]).unwrap_err().to_string();
        assert!(error.contains("--standalone <FILE>"), "{error}");
    }

    #[test]
    fn the_log_format_may_stand_anywhere() {
        for words in
            [["--log-format", "json", "check", "c.toml"], ["check", "c.toml", "--log-format", "json"]]
        {
            let cli = Cli::try_parse_from(std::iter::once("lb-node").chain(words)).unwrap();
            assert_eq!(cli.log_format, LogFormat::Json);
        }
    }

    #[test]
    fn the_summary_names_vips_reals_and_shares() {
        let mut desired = desired([("mqtt", checked_vip(&[("a", 100), ("b", 50), ("c", 0)]))]);
        desired.vips.get_mut("mqtt").unwrap().vip.address = "2001:db8::1".parse().unwrap();
        let text = summary(&ClusterFile { node: Node::new(name("lb-1"), "eth0"), desired });
        assert_eq!(
            text,
            "node lb-1 on eth0 (XDP auto), admin on 127.0.0.1:9940\n\
             VIP mqtt: tcp [2001:db8::1]:1883 by gue, tcp check every 2000 ms by tunnel, 3 reals, 1 of them drained\n  \
             a: 10.0.2.1 weight 100 (66.6 %)\n  \
             b: 10.0.2.2 weight 50 (33.3 %)\n  \
             c: 10.0.2.3 weight 0 (0.0 %)\n"
        );
    }

    #[test]
    fn check_tells_a_node_file_from_a_cluster_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.toml");
        let checked = |text: &str| {
            std::fs::write(&path, text).unwrap();
            check(&path, &NodeOverrides::default())
        };
        let node = "[node]\nname = \"lb-1\"\ninterface = \"eth0\"\n";
        let cluster_file = checked(node).unwrap();
        assert_eq!(cluster_file, "node lb-1 on eth0 (XDP auto), admin on 127.0.0.1:9940\n");

        let zookeeper = "[zookeeper]\nservers = \"zk-1:2181,zk-2:2181/site-a\"\n";
        let front = "[front]\ndriver = \"bird\"\n";
        assert_eq!(
            checked(&[node, zookeeper, front].concat()).unwrap(),
            "node lb-1 on eth0 (XDP auto), admin on 127.0.0.1:9940\n\
             ZooKeeper at zk-1:2181,zk-2:2181/site-a, session timeout 6000 ms, no TLS, no credentials, open access to \
             what it creates\n\
             front: announced after 1000 ms by the BIRD at /run/bird/bird.ctl, which includes /run/drover/bird.conf; \
             withdrawn after 10000 ms without a sign of life\n\
             state in /var/lib/drover; on its own after 10000 ms; 5000 ms between withdrawing and stopping; 3000 ms \
             for acknowledgements; peers at UDP port 9942\n"
        );

        let refusal = checked(&[node, "[zookeeper]\n"].concat()).unwrap_err().to_string();
        assert!(refusal.contains("file.toml:4:2: zookeeper.servers: missing"), "{refusal}");
    }

    #[test]
    fn one_node_file_serves_many_nodes_and_a_cluster_file_only_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        std::fs::write(&path, "[zookeeper]\nservers = \"zk-1:2181\"\n").unwrap();
        let file = path.to_str().unwrap();
        let checked = |words: &[&str]| {
            let words = [&["lb-node", "check", file], words].concat();
            let Command::Check { instead, .. } = Cli::try_parse_from(words).unwrap().command else {
                panic!()
            };
            check(&path, &instead.into())
        };
        let summary =
            checked(&["--name", "lb-2", "--interface", "eth1", "--admin", "127.0.0.1:9941"]).unwrap();
        assert!(summary.starts_with("node lb-2 on eth1 (XDP auto), admin on 127.0.0.1:9941\n"), "{summary}");
        let refusal = checked(&["--name", "lb-2"]).unwrap_err().to_string();
        assert!(refusal.contains("node.interface: missing"), "{refusal}");

        std::fs::write(&path, "[node]\nname = \"lb-1\"\ninterface = \"eth0\"\n").unwrap();
        let refusal = checked(&["--name", "lb-2"]).unwrap_err().to_string();
        assert!(refusal.contains("cluster file"), "{refusal}");
        assert!(Cli::try_parse_from(["lb-node", "check", file, "--interface", "../x"]).is_err());
    }
}
