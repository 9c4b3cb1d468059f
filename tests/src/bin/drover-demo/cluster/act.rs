//! What happens to the cluster, and what is looked at: what clients and brokers see, what the nodes have in their maps,
//! where the router sends packets, and what stands in the tree.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use drover_tests::crowd::{Crowd, Survivors, Waves, broker_name, shown_shares};
use drover_tests::{Broker, LbNode, interrupt, wait_until};
use serde_json::Value;
use zk_schema::tree::paths;

use crate::broker_death::{Death, SHOW};
use crate::clients;
use crate::cluster::stage::Stage;
use crate::cluster::tree;
use crate::report::Report;

/// Long-lived connections of each client to each VIP.
const HELD: usize = 15;
/// How long anything may take that the cluster does by itself.
const LIMIT: Duration = Duration::from_secs(40);
/// The broker that dies: the one that both VIPs share.
const VICTIM: usize = 1;

/// Plays it all. Errors are for what keeps the demo from going on; a promise not kept is a finding.
pub(crate) fn perform(stage: &mut Stage, report: &mut Report) -> Result<()> {
    show_the_tree(stage, report)?;
    let mut crowd = hold_connections(stage, report)?;
    let mut waves = Waves::new(stage.some_ways());
    let killed = kill_the_leader(stage, report, &crowd, &mut waves)?;
    bring_the_node_back(stage, report, &crowd, killed)?;
    kill_a_broker(stage, report, &mut crowd, &mut waves)?;
    kill_a_zookeeper_server(stage, report, &crowd, &mut waves)?;
    kill_a_node(stage, report, &crowd, &mut waves)
}

fn show_the_tree(stage: &Stage, report: &mut Report) -> Result<()> {
    report.step("What the nodes agree on stands in ZooKeeper, for anyone to read with zkCli.sh (an excerpt)");
    let (leader, term) = stage.site.leader()?;
    let (epoch, _) = stage.agreed(None)?;
    let operator = &stage.site.operator;
    let node = stage.site.node_name(leader);
    let list = |path: &str| tree::list(operator, path, report);
    let record = |path: &str, fields: &[&str]| tree::record(operator, path, fields, report);
    list(paths::NODES)?;
    record(paths::LEADER, &["node", "term", "since", "version"])?;
    list(paths::VIPS)?;
    record(&format!("{}/publish", paths::VIPS), &["address", "port", "protocol", "encapsulation"])?;
    list(&format!("{}/publish/reals", paths::VIPS))?;
    record(paths::ASSIGNMENTS, &["term", "epoch", "vips", "nodes"])?;
    record(&format!("{}/publish", paths::ASSIGNMENTS), &["term", "epoch", "weights", "why"])?;
    record(&format!("{}/{node}", paths::HEALTH), &["down", "unknown", "suspect"])?;
    record(&format!("{}/{node}", paths::APPLIED), &["term", "epoch", "digest", "mode"])?;
    report.note(format_args!("{node} leads, term {term}; all nodes have epoch {epoch} in their maps"));
    Ok(())
}

fn hold_connections(stage: &mut Stage, report: &mut Report) -> Result<Crowd> {
    let ways = stage.all_ways();
    let total = HELD * ways.len();
    report.step(format_args!("{total} MQTT clients connect to the two VIPs, and stay"));
    let before = connections_by_node(stage)?;
    let mut crowd = Crowd::default();
    crowd.connect(&ways, HELD, "demo")?;
    report.note("who is where, by the brokers' own logs:");
    let brokers = &stage.site.servers;
    let shares = clients::show(&crowd, brokers, report)?;

    report.note("which node sent new connections where, by its own counters:");
    let after = connections_by_node(stage)?;
    let head: String = (0..brokers.len()).map(|broker| format!("{:>19}", broker_name(broker))).collect();
    report.line(format_args!("{:9}{head}{:>27}", "", "sum"));
    let mut carried = Vec::new();
    for (node, (after, before)) in after.iter().zip(&before).enumerate() {
        let counts: Vec<u64> =
            after.iter().zip(before).map(|(now, then)| now.saturating_sub(*then)).collect();
        let cells: String = counts.iter().map(|count| format!("{count:>19}")).collect();
        let sum: u64 = counts.iter().sum();
        report.line(format_args!("{:9}{cells}{sum:>27}", stage.site.node_name(node)));
        carried.push(sum);
    }

    let alive = crowd.alive().len();
    report.finding(
        "every client gets its messages back, over both VIPs",
        format_args!("{alive} of {total} clients"),
        alive == total,
    );
    report.finding(
        "every broker gets its share",
        shown_shares(&shares),
        shares.iter().all(|share| *share > 0) && shares.iter().sum::<usize>() == total,
    );
    let shown: Vec<String> = carried
        .iter()
        .enumerate()
        .map(|(node, sum)| format!("{} {sum}", stage.site.node_name(node)))
        .collect();
    report.finding("every node carries its share", shown.join(", "), carried.iter().all(|sum| *sum > 0));
    Ok(crowd)
}

/// Kills the leader's daemon. Returns which node that was.
fn kill_the_leader(
    stage: &mut Stage,
    report: &mut Report,
    crowd: &Crowd,
    waves: &mut Waves,
) -> Result<usize> {
    let (leader, old_term) = stage.site.leader()?;
    let name = stage.site.node_name(leader).to_owned();
    report.step(format_args!("The leader's daemon is killed (SIGKILL): lb-node on {name}"));
    let watched = Watched::begin(stage, crowd)?;
    stage.site.kill(leader)?;
    let killed = Instant::now();
    let wave = waves.send(&stage.site.servers, SHOW)?;
    report.note(format_args!("without a leader, {}", wave.shown()));
    let (next, term) = stage.site.leader()?;
    let after = killed.elapsed();
    report.finding(
        "another node leads, by a greater term",
        format_args!(
            "{}, term {term} after {old_term}, {:.1} s after the kill",
            stage.site.node_name(next),
            after.as_secs_f64()
        ),
        next != leader && term > old_term,
    );
    report.finding(
        format_args!("meanwhile {name}'s packets flow, and new clients are served"),
        format_args!("{} of {}; {} changes of routes", wave.served(), wave.size(), watched.changes(stage)?),
        wave.failed() == 0 && watched.changes(stage)? == 0,
    );
    watched.finding("leader killed", stage, crowd, report)?;
    Ok(leader)
}

fn bring_the_node_back(stage: &mut Stage, report: &mut Report, crowd: &Crowd, node: usize) -> Result<()> {
    let name = stage.site.node_name(node).to_owned();
    report.step(format_args!("lb-node is started again on {name}"));
    let (leader, term) = stage.site.leader()?;
    let watched = Watched::begin(stage, crowd)?;
    let started = Instant::now();
    stage.site.launch(node)?;
    stage.site.node(node)?.wait_ready()?;
    let (epoch, _) = stage.agreed(None)?;
    let all = stage.site.running();
    stage.site.wait_for_carriers(&all)?;
    let after = started.elapsed();
    let now = stage.site.leader()?;
    report.finding(
        format_args!("{name} is one of three again, and follows"),
        format_args!(
            "after {:.1} s at epoch {epoch}; {} leads still, term {}",
            after.as_secs_f64(),
            stage.site.node_name(now.0),
            now.1
        ),
        now == (leader, term),
    );
    report.note(format_args!("{} changes of routes", watched.changes(stage)?));
    watched.finding(&format!("{name} back"), stage, crowd, report)
}

fn kill_a_broker(stage: &mut Stage, report: &mut Report, crowd: &mut Crowd, waves: &mut Waves) -> Result<()> {
    let victim = broker_name(VICTIM);
    report.step(format_args!("{victim}, which both VIPs share, is killed (SIGKILL)"));
    wait_until("the leader to have settled", LIMIT, || Ok((!stage.site.head()?.settling).then_some(())))?;
    report.note("a new leader removes nothing until all can have voted: it may now");
    let (old_epoch, old_digests) = stage.agreed(None)?;
    let death = Death::of(VICTIM, &mut stage.site.servers, crowd, report)?;
    let (epoch, digests) = stage.agreed(Some(VICTIM))?;
    let after = death.time.elapsed();
    report.note(format_args!("digests of the tables in every node's maps: {}", digests.join(", ")));
    report.finding(
        format_args!("all nodes take {victim} out, and have the same tables"),
        format_args!("{:.1} s after the kill, epoch {epoch} after {old_epoch}", after.as_secs_f64()),
        epoch > old_epoch && stage.site.running().len() == stage.site.nodes.len(),
    );
    let wave = waves.send(&stage.site.servers, SHOW)?;
    report.note(wave.shown());
    report.finding(
        "from then on all new clients go to the others",
        format_args!("{} of {}", wave.served(), wave.size()),
        wave.failed() == 0 && wave.shares()[VICTIM] == 0,
    );
    death.check_doomed(crowd, report)?;
    death.check_survivors(crowd, &stage.site.servers, "out", report)?;

    report.step(format_args!("{victim} is started again"));
    let host = stage.site.net.reals[VICTIM].host.clone();
    let back = death.undo(&host, &mut stage.site.servers, waves, report)?;
    let (epoch, digests) = stage.agreed(None)?;
    report.finding(
        "all nodes have the tables again that they had before",
        format_args!("{}, epoch {epoch}", digests.join(", ")),
        digests == old_digests,
    );
    death.check_share(back, &stage.site.servers, waves, report)?;
    death.check_survivors(crowd, &stage.site.servers, "back", report)?;
    // In the place of those who lost their broker.
    crowd.connect(&stage.some_ways(), HELD, "demo-again")
}

fn kill_a_zookeeper_server(
    stage: &mut Stage,
    report: &mut Report,
    crowd: &Crowd,
    waves: &mut Waves,
) -> Result<()> {
    let leading = stage.site.ensemble.leader()?;
    let name = |server: usize| format!("zk-{}", server + 1);
    report.step(format_args!("{}, which leads the servers of ZooKeeper, is killed (SIGKILL)", name(leading)));
    let (_, digests) = stage.agreed(None)?;
    let before = tree::lasting(&stage.site.operator)?;
    let watched = Watched::begin(stage, crowd)?;
    stage.site.ensemble.kill(leading)?;
    let killed = Instant::now();
    let wave = waves.send(&stage.site.servers, SHOW)?;
    report.note(wave.shown());
    let next = stage.site.ensemble.leader()?;
    report.note(format_args!(
        "{} leads the servers after {:.1} s",
        name(next),
        killed.elapsed().as_secs_f64()
    ));
    wait_until("all nodes to have ZooKeeper again", LIMIT, || {
        let connected = |node: &LbNode| node.status().is_ok_and(|status| is_connected(&status));
        Ok(stage.site.nodes.iter().flatten().all(connected).then_some(()))
    })?;
    let (leader, term) = stage.site.leader()?;
    let (epoch, now) = stage.agreed(None)?;
    report.note(format_args!(
        "all nodes have ZooKeeper again after {:.1} s; {} leads the cluster, term {term}, epoch {epoch}",
        killed.elapsed().as_secs_f64(),
        stage.site.node_name(leader)
    ));
    let lasting = tree::lasting(&stage.site.operator)?;
    report.finding(
        "a server of ZooKeeper killed: the tree is what it was",
        format_args!("{} records of VIPs, brokers and flags", lasting.len()),
        lasting == before,
    );
    report.finding(
        "no node withdraws, and all keep their tables",
        format_args!("{} changes of routes; {}", watched.changes(stage)?, now.join(", ")),
        watched.changes(stage)? == 0 && now == digests,
    );
    report.finding(
        "new clients are served without it",
        format_args!("{} of {}", wave.served(), wave.size()),
        wave.failed() == 0,
    );
    watched.finding("ZooKeeper server killed", stage, crowd, report)?;
    stage.site.ensemble.restart(leading)?;
    stage.site.ensemble.wait_serving(leading)?;
    report.note(format_args!("{} is back", name(leading)));
    Ok(())
}

fn kill_a_node(stage: &mut Stage, report: &mut Report, crowd: &Crowd, waves: &mut Waves) -> Result<()> {
    let (leader, _) = stage.site.leader()?;
    let victim =
        stage.site.running().into_iter().find(|node| *node != leader).context("a node that follows")?;
    let name = stage.site.node_name(victim).to_owned();
    report.step(format_args!("{name} is gone as a whole: link down, BIRD and lb-node killed"));
    let watched = Watched::begin(stage, crowd)?;
    let carried = packets(stage.site.node(victim)?)?;
    crowd.settle()?;
    let carried = packets(stage.site.node(victim)?)? - carried;
    report.note(format_args!("of the last round of messages {carried} packets went through it"));
    let gone = Instant::now();
    stage.site.destroy(victim)?;
    let rest = stage.site.running();
    stage.site.wait_for_carriers(&rest)?;
    let moved = gone.elapsed();
    let wave = waves.send(&stage.site.servers, SHOW)?;
    report.note(wave.shown());
    report.finding(
        "the router sends all packets to the other nodes",
        format_args!(
            "{:.0} ms after, by {} changes of routes; {} of {} new clients served",
            moved.as_secs_f64() * 1e3,
            watched.changes(stage)?,
            wave.served(),
            wave.size()
        ),
        // The changes prove that the promises of no changes could have been broken.
        wave.failed() == 0 && watched.changes(stage)? > 0,
    );
    watched.finding(&format!("{name} gone"), stage, crowd, report)?;
    let noticed = wait_until("the leader to count two nodes", LIMIT, || {
        let left: BTreeSet<String> = stage.site.head()?.nodes.iter().map(ToString::to_string).collect();
        let expected = rest.iter().map(|node| stage.site.node_name(*node).to_owned()).collect();
        Ok((left == expected).then_some(()))
    });
    interrupt::check()?;
    report.finding(
        format_args!("the leader divides the probing among those left, without {name}"),
        format_args!("{:.1} s after", gone.elapsed().as_secs_f64()),
        noticed.is_ok(),
    );
    Ok(())
}

/// What must not change while something is done to the cluster.
struct Watched {
    survivors: Survivors,
    route_changes: usize,
}

impl Watched {
    fn begin(stage: &Stage, crowd: &Crowd) -> Result<Watched> {
        let survivors = Survivors::all(crowd, &stage.site.servers)?;
        let _ = crowd.take_slowest();
        Ok(Watched { survivors, route_changes: stage.route_changes()? })
    }

    /// How often the routes to VIPs have changed since the beginning.
    fn changes(&self, stage: &Stage) -> Result<usize> {
        Ok(stage.route_changes()? - self.route_changes)
    }

    /// No connection has broken; `after` says what has happened.
    fn finding(&self, after: &str, stage: &Stage, crowd: &Crowd, report: &mut Report) -> Result<()> {
        let brokers: &[Broker] = &stage.site.servers;
        let same = clients::count(&self.survivors, crowd, brokers, report)?;
        report.finding(
            format_args!("{after}: no connection breaks"),
            format_args!(
                "{same} of {} held; the slowest message took {:.0} ms",
                self.survivors.len(),
                crowd.take_slowest().as_secs_f64() * 1e3
            ),
            same == self.survivors.len() && same > 0,
        );
        Ok(())
    }
}

/// Whether a node has a session with ZooKeeper.
fn is_connected(status: &Value) -> bool {
    status["cluster"]["connected"] == true
}

/// New connections that each node has sent to each broker so far.
fn connections_by_node(stage: &Stage) -> Result<Vec<Vec<u64>>> {
    stage
        .site
        .nodes
        .iter()
        .flatten()
        .map(|node| {
            let metrics = node.metrics()?;
            let count = |broker| {
                let name = broker_name(broker);
                metrics.sum("drover_real_new_connections_total", &[("real", &name)]).unwrap_or_default()
            };
            Ok((0..stage.site.servers.len()).map(|broker| whole(count(broker))).collect())
        })
        .collect()
}

/// Packets that a node has sent to brokers so far.
fn packets(node: &LbNode) -> Result<u64> {
    Ok(whole(node.metrics()?.sum("drover_real_packets_total", &[]).unwrap_or_default()))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter, written as a float")]
fn whole(counter: f64) -> u64 {
    counter as u64
}
