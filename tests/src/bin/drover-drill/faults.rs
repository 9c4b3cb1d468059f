//! What goes wrong in drills, each fault once: how it is brought about and made good, what both may cost, and what the
//! cluster is like meanwhile. A drill plays one of them, or several at once.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drover_tests::crowd::broker_name;
use rustix::process::Signal;

use crate::stage::{Stage, Step, VIPS, step};

/// How long `lbctl` may take to compare and write a whole tree.
const APPLY_LIMIT: Duration = Duration::from_secs(120);

/// Something that goes wrong and lasts until it is made good. Nodes, brokers and servers of ZooKeeper are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A broker is killed.
    BrokerKilled(usize),
    /// A node's daemon is killed. Its programs, its tables and its BIRD live.
    DaemonKilled(usize),
    /// A node's daemon is stopped as an operator does.
    DaemonStopped(usize),
    /// A node's daemon hangs: it does nothing and is not dead.
    DaemonHung(usize),
    /// A node is gone with its link.
    NodeLost(usize),
    /// A node is taken out of service.
    NodeDrained(usize),
    /// A node does not reach ZooKeeper.
    NodeCutOff(usize),
    /// A server of ZooKeeper is killed.
    ServerKilled(usize),
    /// A server of ZooKeeper does not reach its peers.
    ServerCutOff(usize),
    /// All servers of ZooKeeper are killed.
    ZookeeperDown,
    /// The tree's VIPs are deleted, one znode after the other.
    VipsDeleted,
    /// The whole tree is deleted, one znode after the other.
    TreeDeleted,
    /// The agent that registers a broker's host as a real is killed, and its session expires.
    AgentLost(usize),
}

/// What the cluster is like while faults last.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// The nodes that the router sends packets to.
    pub(crate) carriers: Vec<usize>,
    /// The nodes that have the newest decision in force.
    pub(crate) followers: Vec<usize>,
    /// The nodes whose daemon gives no sign of life, for which their guards, if there are any, withdraw them.
    pub(crate) silent: Vec<usize>,
    /// The nodes that do not reach ZooKeeper, and ask the others.
    pub(crate) cut_off: Vec<usize>,
    /// The broker that is in no table.
    pub(crate) dead_broker: Option<usize>,
    /// Whether there is a ZooKeeper, and a tree in it.
    pub(crate) decides: bool,
}

impl Fault {
    /// What happens when it begins, in words, and what that may cost.
    pub(crate) fn strikes(self, stage: &Stage) -> Step {
        let node = |node: usize| stage.site.node_name(node).to_owned();
        match self {
            Fault::BrokerKilled(broker) => {
                step(format!("{} is killed (SIGKILL)", broker_name(broker))).ends_broker(broker)
            }
            Fault::DaemonKilled(at) => {
                guarded(stage, step(format!("lb-node on {} is killed (SIGKILL)", node(at))))
            }
            Fault::DaemonStopped(at) => {
                step(format!("lb-node on {} is stopped (SIGTERM)", node(at))).may_move_routes()
            }
            Fault::DaemonHung(at) => guarded(stage, step(format!("lb-node on {} hangs (SIGSTOP)", node(at)))),
            Fault::NodeLost(at) => {
                step(format!("{} is gone: link down, BIRD and lb-node killed", node(at))).loses_node(at)
            }
            Fault::NodeDrained(at) => {
                step(format!("{0} is taken out of service: create {1}", node(at), flag(&node(at))))
                    .may_move_routes()
            }
            Fault::NodeCutOff(at) => {
                step(format!("{} is cut off from ZooKeeper", node(at))).may_move_routes()
            }
            Fault::ServerKilled(server) => step(format!("zk-{} is killed (SIGKILL)", server + 1)),
            Fault::ServerCutOff(server) => step(format!("zk-{} is cut off from its peers", server + 1)),
            Fault::ZookeeperDown => step("all three servers of ZooKeeper are killed (SIGKILL)"),
            Fault::VipsDeleted => step("/drover/vips is deleted, znode by znode"),
            Fault::TreeDeleted => step("/drover is deleted, znode by znode"),
            Fault::AgentLost(broker) => step(format!(
                "the agent that registers {} is killed (SIGKILL), and its session expires",
                broker_name(broker)
            )),
        }
    }

    /// Brings it about.
    pub(crate) fn strike(self, stage: &mut Stage) -> Result<()> {
        match self {
            Fault::BrokerKilled(broker) => stage.site.servers[broker].process().kill(),
            Fault::DaemonKilled(node) => stage.site.kill(node),
            Fault::DaemonStopped(node) => stage.site.terminate(node),
            Fault::DaemonHung(node) => stage.site.node(node)?.process().signal(Signal::STOP),
            Fault::NodeLost(node) => stage.site.destroy(node),
            Fault::NodeDrained(node) => {
                let flag = flag(stage.site.node_name(node));
                stage.site.operator.put(&flag, r#"{"by":"a drill","why":"to see what it costs"}"#)
            }
            Fault::NodeCutOff(node) => part_node(stage, node, true),
            Fault::ServerKilled(server) => stage.site.ensemble.kill(server),
            Fault::ServerCutOff(server) => part_server(stage, server, true),
            Fault::ZookeeperDown => {
                (0..stage.site.ensemble.len()).try_for_each(|server| stage.site.ensemble.kill(server))
            }
            Fault::VipsDeleted => delete(stage, "/drover/vips"),
            Fault::TreeDeleted => delete(stage, "/drover"),
            Fault::AgentLost(broker) => stage.site.reals[broker].process().kill(),
        }
    }

    /// Waits for what it brings about by and by.
    pub(crate) fn struck(self, stage: &mut Stage) -> Result<()> {
        match self {
            Fault::BrokerKilled(broker) => stage.wait_disconnected(broker),
            Fault::NodeCutOff(node) | Fault::NodeLost(node) | Fault::DaemonHung(node) => {
                let member = format!("/drover/nodes/{}", stage.site.node_name(node));
                stage.wait_gone(&member)
            }
            Fault::AgentLost(broker) => stage.wait_gone(&registration(broker)),
            _ => Ok(()),
        }
    }

    /// What happens when it is made good, in words, and what that may cost.
    pub(crate) fn ends(self, stage: &Stage) -> Step {
        let node = |node: usize| stage.site.node_name(node).to_owned();
        match self {
            // Those who came while it was away, on slots that it gets back, are cut: the FAQ says so.
            Fault::BrokerKilled(broker) => {
                step(format!("{} is started again", broker_name(broker))).may_refuse()
            }
            Fault::DaemonKilled(at) => {
                guarded(stage, step(format!("lb-node is started again on {}", node(at))))
            }
            Fault::DaemonStopped(at) => {
                step(format!("lb-node is started again on {}", node(at))).may_move_routes()
            }
            Fault::DaemonHung(at) => {
                guarded(stage, step(format!("lb-node on {} goes on (SIGCONT)", node(at))))
            }
            Fault::NodeLost(at) => step(format!("{} is switched on again", node(at))).may_move_routes(),
            Fault::NodeDrained(at) => {
                step(format!("{0} is put back: delete {1}", node(at), flag(&node(at)))).may_move_routes()
            }
            Fault::NodeCutOff(at) => step(format!("{} reaches ZooKeeper again", node(at))).may_move_routes(),
            Fault::ServerKilled(server) => step(format!("zk-{} is started again", server + 1)),
            Fault::ServerCutOff(server) => step(format!("zk-{} reaches its peers again", server + 1)),
            Fault::ZookeeperDown => step("ZooKeeper is started again: all three servers"),
            Fault::VipsDeleted => step("the VIPs are restored: lbctl apply"),
            Fault::TreeDeleted => step("the tree is restored: lbctl init --seed, lbctl apply"),
            Fault::AgentLost(broker) => {
                step(format!("the agent that registers {} is started again", broker_name(broker)))
            }
        }
    }

    /// Makes it good.
    pub(crate) fn end(self, stage: &mut Stage) -> Result<()> {
        match self {
            Fault::BrokerKilled(broker) => stage.site.servers[broker].restart(),
            Fault::DaemonKilled(node) | Fault::DaemonStopped(node) => stage.site.launch(node),
            Fault::DaemonHung(node) => stage.site.node(node)?.process().signal(Signal::CONT),
            Fault::NodeLost(node) => stage.site.revive(node),
            Fault::NodeDrained(node) => {
                let flag = flag(stage.site.node_name(node));
                stage.site.operator.delete(&flag)
            }
            Fault::NodeCutOff(node) => part_node(stage, node, false),
            Fault::ServerKilled(server) => stage.site.ensemble.restart(server),
            Fault::ServerCutOff(server) => part_server(stage, server, false),
            Fault::ZookeeperDown => {
                (0..stage.site.ensemble.len()).try_for_each(|server| stage.site.ensemble.restart(server))
            }
            Fault::VipsDeleted => apply(stage),
            Fault::TreeDeleted => {
                let backup = fs::read_to_string(backup(stage))?;
                let seed = backup.lines().find_map(|line| line.strip_prefix("seed = "));
                let seed = seed.context("the exported file names the seed")?.trim_matches('"').to_owned();
                lbctl(stage, &["init", "--seed", &seed])?;
                apply(stage)
            }
            Fault::AgentLost(broker) => stage.site.start_agent(broker, &broker_name(broker), &VIPS),
        }
    }

    /// Waits for what making it good brings about by and by.
    pub(crate) fn ended(self, stage: &mut Stage) -> Result<()> {
        match self {
            Fault::DaemonKilled(node)
            | Fault::DaemonStopped(node)
            | Fault::DaemonHung(node)
            | Fault::NodeLost(node) => stage.site.node(node)?.wait_ready(),
            Fault::ServerKilled(server) | Fault::ServerCutOff(server) => {
                stage.site.ensemble.wait_serving(server)
            }
            Fault::ZookeeperDown => {
                (0..stage.site.ensemble.len()).try_for_each(|server| stage.site.ensemble.wait_serving(server))
            }
            _ => Ok(()),
        }
    }

    /// Whether it costs nothing only as long as it is made good soon.
    pub(crate) fn is_urgent(self) -> bool {
        // The leader lets a real go half a minute after its registration.
        matches!(self, Fault::AgentLost(_))
    }

    /// What is different while it lasts.
    pub(crate) fn change(self, state: &mut State) {
        let drop = |nodes: &mut Vec<usize>, node: usize| nodes.retain(|other| *other != node);
        match self {
            Fault::BrokerKilled(broker) => state.dead_broker = Some(broker),
            Fault::DaemonStopped(node) | Fault::NodeLost(node) => {
                drop(&mut state.carriers, node);
                drop(&mut state.followers, node);
            }
            Fault::NodeDrained(node) => drop(&mut state.carriers, node),
            Fault::NodeCutOff(node) => {
                drop(&mut state.followers, node);
                state.cut_off.push(node);
            }
            Fault::DaemonKilled(node) | Fault::DaemonHung(node) => {
                drop(&mut state.followers, node);
                state.silent.push(node);
            }
            Fault::ZookeeperDown | Fault::TreeDeleted => state.decides = false,
            Fault::ServerKilled(_) | Fault::ServerCutOff(_) | Fault::VipsDeleted | Fault::AgentLost(_) => {}
        }
    }
}

/// What a step costs where a guard withdraws the node, and the node announces itself again.
fn guarded(stage: &Stage, step: Step) -> Step {
    if stage.guarded() { step.may_move_routes() } else { step }
}

/// A node's maintenance flag.
fn flag(node: &str) -> String {
    format!("/drover/ops/maintenance/{node}")
}

/// A record that an agent keeps.
pub(crate) fn registration(broker: usize) -> String {
    format!("/drover/vips/{}/reals/{}", VIPS[0], broker_name(broker))
}

fn part_node(stage: &Stage, node: usize, parted: bool) -> Result<()> {
    let net = &stage.site.net;
    net.zookeepers.iter().try_for_each(|server| net.part(&net.nodes[node], server, parted))
}

/// Its clients reach it all the time.
fn part_server(stage: &Stage, server: usize, parted: bool) -> Result<()> {
    let net = &stage.site.net;
    let mut peers = net.zookeepers.iter().enumerate().filter(|(peer, _)| *peer != server);
    peers.try_for_each(|(_, peer)| net.part(&net.zookeepers[server], peer, parted))
}

/// Deletes a part of the tree, of which there is a file.
fn delete(stage: &mut Stage, path: &str) -> Result<()> {
    fs::write(backup(stage), lbctl(stage, &["export"])?)?;
    let deleted = stage.site.operator.delete_all(path)?;
    stage.note(format_args!("{deleted} znodes are deleted"));
    Ok(())
}

fn apply(stage: &mut Stage) -> Result<()> {
    let file = backup(stage).display().to_string();
    let told = lbctl(stage, &["apply", "-f", &file, "--yes"])?;
    let last = told.lines().last().unwrap_or("lbctl apply says nothing");
    stage.note(last);
    Ok(())
}

/// What `lbctl export` wrote before something was deleted.
fn backup(stage: &Stage) -> PathBuf {
    stage.site.net.router.dir().join("exported.toml")
}

/// What `lbctl` prints, which must end well.
fn lbctl(stage: &Stage, words: &[&str]) -> Result<String> {
    let answer = stage.lbctl().limit(APPLY_LIMIT).run(words)?;
    ensure!(
        answer.code == 0,
        "`lbctl {}` ended with {}: {}{}",
        words.join(" "),
        answer.code,
        answer.stdout,
        answer.stderr
    );
    Ok(answer.stdout)
}
