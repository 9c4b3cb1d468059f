//! Some cannot reach ZooKeeper, or each other, and others can.

use anyhow::Result;

use super::{Drill, Options, current};
use crate::stage::{Stage, step};

pub(super) const DRILL: Drill = Drill {
    name: "zk-partition",
    about: "A node, then the leader, then ZooKeeper's leading server are cut off by the network while others are not: no \
            client notices, another leads, and healed all have the same tables",
    done: "a node cut off from ZooKeeper; the leader; a ZooKeeper server from its peers",
    expected: "nothing breaks and nothing is lost: who is cut off keeps what is in force, and goes on to carry packets",
    binary: current,
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let (follower, leader) = stage.follower()?;
    let (_, term) = stage.site.leader()?;
    cut_node(stage, follower, None)?;
    cut_node(stage, leader, Some(term))?;
    cut_server(stage)
}

/// Cuts a node off from all of ZooKeeper, and heals that. It leads by this term, if it does.
fn cut_node(stage: &mut Stage, node: usize, leads: Option<u64>) -> Result<()> {
    let all = stage.all();
    let others = stage.others(node);
    let name = stage.site.node_name(node).to_owned();
    let before = stage.digests()?;
    let role = if leads.is_some() { ", which leads," } else { "" };
    stage.play(
        step(format!("{name}{role} is cut off from ZooKeeper")),
        |stage| part_node(stage, node, true),
        |stage| {
            if let Some(term) = leads {
                let (next, now) = stage.wait_leader(term)?;
                let seen = format!("{}, term {now} after {term}", stage.site.node_name(next));
                stage.check("another node leads, by a greater term", seen, next != node && now > term);
            }
            let member = format!("/drover/nodes/{name}");
            stage.wait("the tree to lose it", |stage| {
                Ok(stage.site.operator.get(&member)?.is_none().then_some(()))
            })?;
            stage.calm_among(&others, &all, None)
        },
    )?;
    stage.play(
        step(format!("{name} reaches ZooKeeper again")),
        |stage| part_node(stage, node, false),
        |stage| {
            stage.connected()?;
            stage.calm(&all, None)?;
            stage.check_tables(&before)
        },
    )
}

fn part_node(stage: &Stage, node: usize, parted: bool) -> Result<()> {
    let net = &stage.site.net;
    net.zookeepers.iter().try_for_each(|server| net.part(&net.nodes[node], server, parted))
}

/// Cuts ZooKeeper's leading server off from its peers, not from its clients, and heals that.
fn cut_server(stage: &mut Stage) -> Result<()> {
    let all = stage.all();
    let server = stage.site.ensemble.leader()?;
    let before = stage.digests()?;
    let part = |stage: &mut Stage, parted: bool| {
        let net = &stage.site.net;
        let mut peers = net.zookeepers.iter().enumerate().filter(|(peer, _)| *peer != server);
        peers.try_for_each(|(_, peer)| net.part(&net.zookeepers[server], peer, parted))
    };
    stage.play(
        step(format!(
            "zk-{}, which leads the servers of ZooKeeper, is cut off from the other two",
            server + 1
        )),
        |stage| part(stage, true),
        |stage| {
            let next = stage.wait("another server of ZooKeeper to lead", |stage| {
                let leads = |peer: &usize| {
                    *peer != server
                        && stage
                            .site
                            .ensemble
                            .ask(*peer, "srvr")
                            .is_ok_and(|told| told.contains("Mode: leader"))
                };
                Ok((0..stage.site.ensemble.len()).find(leads))
            })?;
            stage.note(format_args!("zk-{} leads the servers", next + 1));
            stage.connected()?;
            stage.calm(&all, None)
        },
    )?;
    stage.play(
        step(format!("zk-{} reaches its peers again", server + 1)),
        |stage| part(stage, false),
        |stage| {
            stage.site.ensemble.wait_serving(server)?;
            stage.connected()?;
            stage.calm(&all, None)?;
            stage.check_tables(&before)
        },
    )
}
