//! Some cannot reach ZooKeeper, or each other, and others can.

use anyhow::Result;

use super::{Drill, Options, plain};
use crate::faults::Fault;
use crate::stage::Stage;

pub(super) const DRILL: Drill = Drill {
    name: "zk-partition",
    about: "A node, then the leader, then ZooKeeper's leading server are cut off by the network while others are not: no \
            client notices, another leads, and healed all have the same tables",
    done: "a node cut off from ZooKeeper; the leader; a ZooKeeper server from its peers",
    expected: "nothing breaks and nothing is lost: a node that is cut off keeps what is in force, until it learns from the \
               others that they went on, and withdraws",
    scene: plain,
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let (follower, leader) = stage.follower()?;
    let (_, term) = stage.site.leader()?;
    part(stage, Fault::NodeCutOff(follower), |_| Ok(()))?;
    part(stage, Fault::NodeCutOff(leader), |stage| stage.check_succession(leader, term))?;
    let server = stage.site.ensemble.leader()?;
    part(stage, Fault::ServerCutOff(server), |stage| {
        let next = stage.wait("another server of ZooKeeper to lead", |stage| {
            let leads = |peer: &usize| {
                let told = stage.site.ensemble.ask(*peer, "srvr");
                *peer != server && told.is_ok_and(|told| told.contains("Mode: leader"))
            };
            Ok((0..stage.site.ensemble.len()).find(leads))
        })?;
        stage.note(format_args!("zk-{} leads the servers", next + 1));
        Ok(())
    })
}

/// Cuts something off, and heals that. Another takes its place if it led, which `succession` checks.
fn part(stage: &mut Stage, cut: Fault, succession: impl FnOnce(&mut Stage) -> Result<()>) -> Result<()> {
    let before = stage.digests()?;
    stage.play(
        cut.strikes(stage),
        |stage| cut.strike(stage),
        |stage| {
            succession(stage)?;
            cut.struck(stage)?;
            stage.steady_with(&[cut])
        },
    )?;
    stage.play(
        cut.ends(stage),
        |stage| cut.end(stage),
        |stage| {
            cut.ended(stage)?;
            stage.steady_with(&[])?;
            stage.check_tables(&before)
        },
    )
}
