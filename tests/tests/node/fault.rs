//! A core task that panics ends its process, and forwarding goes on.
//!
//! There is no way to make the daemon panic from outside. So the process is this test's own program: it runs the daemon's
//! command line as `lb-node` does, under a log that panics at a message of the task that is to fail.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use drover_tests::{Cluster, Deployment, Family, LbNode, Process, Protocol, Topology, Vip, desired, visit};
use lb_node::cli::Cli;
use lb_node::cluster::cache::Cache;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use zk_schema::to_json;
use zk_schema::tree::{Assignment, Decided, Head, StateRecord as _};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const PORT: u16 = 7000;
const LIMIT: Duration = Duration::from_secs(20);
/// The message at which the process panics, and the daemon's arguments, a line each.
const PANICS_AT: &str = "DROVER_PANICS_AT";
const ARGUMENTS: &str = "DROVER_ARGUMENTS";

/// Panics in whichever task logs this message.
struct PanicsAt(String);

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl<S: Subscriber> Layer<S> for PanicsAt {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        assert!(message.0 != self.0, "at \"{}\"", self.0);
    }
}

/// The process that the other tests start. Among the tests, where nobody says what it is to do, it is none.
#[test]
#[expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "it ends as `lb-node` does, with its exit code"
)]
fn daemon() {
    let (Ok(panics_at), Ok(arguments)) = (env::var(PANICS_AT), env::var(ARGUMENTS)) else { return };
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(LevelFilter::INFO).with(log).with(PanicsAt(panics_at)).init();
    let cli = Cli::parse_from(["lb-node"].into_iter().chain(arguments.lines()));
    let outcome = Runtime::new().unwrap().block_on(cli.execute());
    // As `lb-node` says it.
    if let Err(error) = &outcome {
        eprintln!("lb-node: {error:#}");
    }
    std::process::exit(i32::from(outcome.is_err()));
}

fn deploy() -> Deployment {
    let net = Topology::builder().reals(2).build().unwrap();
    let vip = Vip::new("tcp", SocketAddr::new(VIP, PORT)).health("type = \"tcp\"\ninterval_ms = 200");
    let vip = vip.reals(&net.reals, Family::V4);
    Deployment::start(net, Cluster::new([vip])).unwrap()
}

fn start(all: &Deployment, panics_at: &str, arguments: &[&str]) -> Process {
    let host = &all.station().host;
    let bpffs = host.bpffs().to_str().unwrap();
    let arguments = [arguments, &["--bpffs", bpffs]].concat().join("\n");
    let command = host.command("env").arg(format!("{PANICS_AT}={panics_at}"));
    let command = command.arg(format!("{ARGUMENTS}={arguments}")).arg(env::current_exe().unwrap());
    command.args(["--exact", "fault::daemon", "--nocapture"]).spawn().unwrap()
}

/// The process ends by itself, and says why. Tasks that live by the one that panicked end with it, so `task` may be one of
/// several that are told.
fn ends(mut process: Process, panics_at: &str, task: &[&str]) {
    let status = process.wait(LIMIT).unwrap();
    let log = process.log().unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    let told = |task: &&str| log.contains(&format!("lb-node: the task \"{task}\" has "));
    assert!(log.contains(&format!("at \"{panics_at}\"")) && task.iter().any(told), "{log}");
    assert!(log.contains("which is a fault of this program: it ends"), "{log}");
}

/// What clients see goes on as before.
fn is_served(all: &Deployment) {
    let at = SocketAddr::new(VIP, PORT);
    let visits = visit(&all.client().host, Protocol::Tcp, at, 30, b"hello", Duration::from_secs(10)).unwrap();
    assert_eq!((visits.servers(), &visits.failed), (vec!["real-1", "real-2"], &Vec::new()));
}

#[test]
fn a_core_task_that_panics_ends_a_node_that_stands_alone() {
    let mut all = deploy();
    all.node.process().terminate(LIMIT).unwrap();
    let file = all.cluster.write(all.station()).unwrap();
    let arguments = ["run", "--standalone", file.to_str().unwrap()];
    ends(start(&all, "applied", &arguments), "applied", &["control loop", "health checks"]);
    is_served(&all);
    // Reals that hold slots are up from the start, and nothing is said of them.
    LbNode::detach(all.station()).unwrap();
    ends(start(&all, "real is up", &arguments), "real is up", &["health checks"]);
}

/// What a node keeps of its leader's decisions, as if one had decided what is served now.
fn decided(all: &Deployment) -> Decided {
    let mut assignments = BTreeMap::new();
    let mut vips = BTreeMap::new();
    for (name, state) in desired(&all.cluster, &all.net).unwrap().vips {
        let record = |json: Vec<u8>| serde_json::from_slice::<Value>(&json).unwrap();
        let reals = state.reals.iter();
        let reals: BTreeMap<_, _> = reals.map(|(real, it)| (real, record(to_json(it).unwrap()))).collect();
        let weights: BTreeMap<_, _> = state.reals.iter().map(|(real, it)| (real, it.weight)).collect();
        let assignment = json!({
            "term": 1, "epoch": 1, "since": 1, "why": "a test", "vip": record(to_json(&state.vip).unwrap()),
            "reals": reals, "weights": weights,
        });
        let assignment = Assignment::parse(assignment.to_string().as_bytes()).unwrap();
        let digest = Assignment::digest(&assignment.bytes().unwrap());
        vips.insert(name.clone(), json!({"epoch": 1, "digest": digest}));
        assignments.insert(name, Arc::new(assignment));
    }
    let cluster: Value = serde_json::from_slice(&to_json(&zk_schema::Cluster::default()).unwrap()).unwrap();
    let head =
        json!({"term": 1, "epoch": 1, "targets": 1, "nodes": ["lb-1"], "cluster": cluster, "vips": vips});
    Decided::written(Head::parse(head.to_string().as_bytes()).unwrap(), assignments).unwrap()
}

#[test]
fn a_core_task_that_panics_ends_a_node_of_a_cluster() {
    let mut all = deploy();
    all.node.process().terminate(LIMIT).unwrap();
    let (station, directory) = (all.station(), all.station().host.dir());
    let state = directory.join("state");
    let text = format!(
        "[node]\nname = \"lb-1\"\ninterface = \"{}\"\n[zookeeper]\nservers = \"127.0.0.1:1\"\n[cluster]\nstate_dir = \
         \"{}\"\n[front]\ndriver = \"none\"\n",
        station.interface,
        state.display()
    );
    let file = directory.join("fault.toml");
    fs::write(&file, text).unwrap();
    let arguments = ["run", "--config", file.to_str().unwrap()];
    // Before the first decision.
    let unlinked = "no ZooKeeper; what is in force stays";
    ends(start(&all, unlinked, &arguments), unlinked, &["agent"]);
    is_served(&all);
    // With one, which it kept.
    Cache::new(&state, &"lb-1".parse().unwrap()).store(&decided(&all)).unwrap();
    ends(start(&all, "applied", &arguments), "applied", &["control loop", "health checks"]);
    is_served(&all);
}
