//! The cases.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use drover_tests::{Ensemble, Host, interrupt};
use lb_node::cluster::probers::probers;
use lb_node::compile::{TableCache, compile};
use lb_node::policy::{Exclusions, adopt};
use tokio::time::{Instant, sleep};
use zk_schema::NodeName;
use zk_schema::tree::Target;

use crate::figures::Figures;
use crate::world::{Dead, Node, Operator, SESSION, desired, name, real_name, store, until, vip_name};

/// Pause between rounds, so that nothing of the last is measured with the next.
const PAUSE: Duration = Duration::from_millis(150);

/// Where it is measured.
pub(crate) struct Bench<'a> {
    pub(crate) host: &'a Host,
    pub(crate) ensemble: &'a Ensemble,
}

impl Bench<'_> {
    /// A cluster of these nodes that has settled, and its operator.
    async fn cluster(&self, nodes: u16, vips: u8, reals: u8, dead: &Dead) -> Result<(Vec<Node>, Operator)> {
        let servers = self.ensemble.connect_string();
        let operator = Operator::new(&store(&servers)?, &desired(vips, reals)).await?;
        let tables = TableCache::default();
        let started: Result<Vec<Node>> = (1..=nodes)
            .map(|node| Ok(Node::start(&store(&servers)?, &format!("lb-{node}"), dead, Some(&tables))))
            .collect();
        let nodes = started?;
        settled(&nodes).await?;
        Ok((nodes, operator))
    }

    /// From the leader's write to applied on all nodes, for changes of a weight.
    pub(crate) fn apply(&self, nodes: u16, rounds: u32) -> Result<Figures> {
        self.run(async || {
            let (nodes, operator) = self.cluster(nodes, 2, 10, &Dead::default()).await?;
            let mut writes = Vec::new();
            let mut edits = Vec::new();
            for round in 0..rounds {
                interrupt::check()?;
                let weight = if round % 2 == 0 { 50 } else { 100 };
                let edited = Instant::now();
                operator.set_weight(1, 1, weight).await?;
                let (vip, real) = (vip_name(1), real_name(1, 1));
                until("the weight on all nodes", async || {
                    nodes.iter().all(|node| node.weight(&vip, &real) == Some(weight)).then_some(())
                })
                .await?;
                edits.push(edited.elapsed());
                for written in nodes.iter().flat_map(|node| node.written_since(edited)) {
                    let last = until("the last node", async || last_applied(&nodes, written.epoch)).await?;
                    writes.push(last.duration_since(written.begun));
                }
                sleep(PAUSE).await;
            }
            let mut figures = Figures::default();
            figures.spread("", &writes);
            figures.spread("edit_to_in_force", &edits);
            operator.leave().await;
            stop(nodes).await;
            Ok(figures)
        })
    }

    /// From a broker's death to the last node's new table.
    pub(crate) fn broker_death(&self, nodes: u16, rounds: u32) -> Result<Figures> {
        self.run(async || {
            let dead = Dead::default();
            let (nodes, operator) = self.cluster(nodes, 2, 10, &dead).await?;
            let (vip, real) = (vip_name(1), real_name(1, 1));
            let names = nodes.iter().map(|node| node.inner.learnt.clone());
            ensure!(names.len() == nodes.len(), "every node is there");
            let target = Target { vip: vip.clone(), real: real.clone() };
            let (mut all, mut probing, mut rest) = (Vec::new(), Vec::new(), Vec::new());
            for round in 0..rounds {
                interrupt::check()?;
                nodes.iter().for_each(Node::forget_findings);
                // Deaths fall anywhere between two probes.
                sleep(Duration::from_millis(u64::from(round * 137 % 500))).await;
                let died = Instant::now();
                dead.set(&real, true);
                let gone =
                    async || nodes.iter().all(|node| node.weight(&vip, &real) == Some(0)).then_some(());
                until("all tables without the real", gone).await?;
                let end = Instant::now();
                let head =
                    nodes[0].inner.learnt.followed.borrow().decided.clone().context("a head is in force")?;
                let chosen: Vec<&NodeName> = probers(&head.head.nodes, &target);
                let votes = nodes
                    .iter()
                    .enumerate()
                    .filter(|(place, _)| chosen.contains(&&name::<NodeName>(&format!("lb-{}", place + 1))));
                let mut votes: Vec<Instant> =
                    votes.filter_map(|(_, node)| node.found_down_at(&real)).collect();
                votes.sort_unstable();
                // More than half decide.
                let deciding = votes.get(chosen.len() / 2).copied().context("a majority has voted")?;
                all.push(end.duration_since(died));
                probing.push(deciding.duration_since(died));
                rest.push(end.duration_since(deciding));
                dead.set(&real, false);
                let back =
                    async || nodes.iter().all(|node| node.weight(&vip, &real) == Some(100)).then_some(());
                until("the real back in all tables", back).await?;
                sleep(PAUSE).await;
            }
            let mut figures = Figures::default();
            figures.spread("", &all);
            figures.spread("probing", &probing);
            figures.spread("rest", &rest);
            operator.leave().await;
            stop(nodes).await;
            Ok(figures)
        })
    }

    /// From a leader's death (kill -9) to the first decision of its successor.
    pub(crate) fn leader_failover(&self, nodes: u16, rounds: u32) -> Result<Figures> {
        let servers = self.ensemble.connect_string();
        self.run(async || {
            let operator = Operator::new(&store(&servers)?, &desired(2, 10)).await?;
            let tables = TableCache::default();
            let mut took = Vec::new();
            for _ in 0..rounds {
                interrupt::check()?;
                // A process of its own: nothing less can die without a word.
                let own = std::env::current_exe().context("cannot tell where this program is")?;
                let mut victim = tokio::process::Command::new(own);
                let victim = victim.args(["--victim", &servers]).stdout(Stdio::piped()).kill_on_drop(true);
                let mut victim = victim.spawn().context("cannot start a leader")?;
                let stdout = victim.stdout.take().context("a leader's words")?.into_owned_fd()?;
                let mut words = String::new();
                tokio::task::spawn_blocking(move || {
                    BufReader::new(std::fs::File::from(stdout)).read_line(&mut words).map(|_| words)
                })
                .await
                .context("the reader ended")?
                .context("the leader said nothing")?;

                let dead = Dead::default();
                let others: Result<Vec<Node>> = (2..=nodes)
                    .map(|node| {
                        Ok(Node::start(&store(&servers)?, &format!("lb-{node}"), &dead, Some(&tables)))
                    })
                    .collect();
                let others = others?;
                until("all nodes", async || {
                    let there = operator.nodes().await.unwrap_or_default();
                    (there.len() >= usize::from(nodes)).then_some(())
                })
                .await?;
                sleep(Duration::from_secs(1)).await;
                let died = Instant::now();
                victim.kill().await.context("cannot kill the leader")?;
                let written = until("a successor's first decision", async || {
                    others.iter().find_map(|node| node.written_since(died).first().copied())
                })
                .await?;
                took.push(written.done.duration_since(died));
                stop(others).await;
            }
            let mut figures = Figures::default();
            figures.spread("", &took);
            figures.set("session_timeout_ms", SESSION.as_secs_f64() * 1e3);
            operator.leave().await;
            Ok(figures)
        })
    }

    /// From the start of a node to its being there, with everything in force.
    pub(crate) fn join(&self, rounds: u32) -> Result<Figures> {
        self.run(async || {
            let dead = Dead::default();
            let (nodes, operator) = self.cluster(3, 100, 10, &dead).await?;
            let servers = self.ensemble.connect_string();
            let (mut all, mut in_force, mut building) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..rounds {
                interrupt::check()?;
                let started = Instant::now();
                let node = Node::start(&store(&servers)?, "lb-new", &dead, None);
                let mut report = node.inner.report.clone();
                report.wait_for(|report| report.order.is_some()).await.context("the node ended")?;
                in_force.push(started.elapsed());
                until("the node in the tree", async || {
                    operator.nodes().await.unwrap_or_default().contains("lb-new").then_some(())
                })
                .await?;
                all.push(started.elapsed());
                let decided = node.inner.learnt.followed.borrow().decided.clone().context("it knows")?;
                let begun = Instant::now();
                let assignment = adopt(&decided, &Exclusions::default());
                compile(&decided.desired(), &assignment, None).context("what is in force compiles")?;
                building.push(begun.elapsed());
                node.inner.stop().await;
                until("the node gone", async || {
                    (!operator.nodes().await.unwrap_or_default().contains("lb-new")).then_some(())
                })
                .await?;
                sleep(PAUSE).await;
            }
            let mut figures = Figures::default();
            figures.spread("", &all);
            figures.spread("in_force", &in_force);
            figures.spread("building_tables", &building);
            operator.leave().await;
            stop(nodes).await;
            Ok(figures)
        })
    }

    /// What ZooKeeper holds for a cluster of some size.
    pub(crate) fn footprint(&self, nodes: u16) -> Result<Figures> {
        let before = self.held()?;
        let nodes = self.run(async || {
            let (nodes, operator) = self.cluster(nodes, 100, 10, &Dead::default()).await?;
            sleep(Duration::from_secs(2)).await;
            let held = tokio::task::block_in_place(|| self.held())?;
            operator.leave().await;
            stop(nodes).await;
            Ok(held)
        })?;
        let mut figures = Figures::default();
        figures.set("znodes_count", nodes.znodes - before.znodes);
        figures.set("data_bytes", nodes.bytes - before.bytes);
        figures.set("watches_count", nodes.watches - before.watches);
        figures.set("largest_server_rss_bytes", nodes.rss);
        Ok(figures)
    }

    fn held(&self) -> Result<Held> {
        let mut held = Held::default();
        for server in 0..self.ensemble.len() {
            let told = self.ensemble.ask(server, "mntr")?;
            let value = |key: &str| {
                let line = told.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<f64>().ok());
                line.with_context(|| format!("mntr does not tell {key}"))
            };
            // Every server has all znodes, but each only its own clients' watches.
            held.znodes = held.znodes.max(value("zk_znode_count")?);
            held.bytes = held.bytes.max(value("zk_approximate_data_size")?);
            held.watches += value("zk_watch_count")?;
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.ensemble.pid(server)?))?;
            let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
            let rss: f64 = rss.context("a process has a resident size")?.trim().parse()?;
            held.rss = held.rss.max(rss * 1024.0);
        }
        Ok(held)
    }

    fn run<T: Send>(&self, case: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
        self.host.block_on(case)?
    }
}

#[derive(Default)]
struct Held {
    znodes: f64,
    bytes: f64,
    watches: f64,
    rss: f64,
}

/// Waits until one leads and has settled, and all have the same in force.
async fn settled(nodes: &[Node]) -> Result<()> {
    until("a settled cluster", async || {
        let newest = nodes.iter().filter_map(|node| {
            let followed = node.inner.learnt.followed.borrow();
            let head = &followed.decided.as_ref()?.head;
            let has_weights =
                followed.decided.as_ref()?.assignments.values().all(|vip| !vip.weights.is_empty());
            (!head.settling && head.nodes.len() == nodes.len() && has_weights && !head.vips.is_empty())
                .then_some(head.epoch)
        });
        let newest = newest.max()?;
        nodes.iter().all(|node| node.applied_at(newest).is_some()).then_some(())
    })
    .await
}

/// When the last node had `epoch` in force; `None` while one has not.
fn last_applied(nodes: &[Node], epoch: u64) -> Option<Instant> {
    let times: Option<Vec<Instant>> = nodes.iter().map(|node| node.applied_at(epoch)).collect();
    times?.into_iter().max()
}

async fn stop(nodes: Vec<Node>) {
    for node in nodes {
        node.inner.stop().await;
    }
}
