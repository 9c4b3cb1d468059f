//! A node's daemon dies, then hangs, then does not reach ZooKeeper, while its BIRD goes on to announce.

use std::time::Duration;

use anyhow::Result;

use super::{Drill, Options};
use crate::faults::Fault;
use crate::stage::{Scene, Stage};

/// Whose death the stuck node does not learn of.
const VICTIM: usize = 1;
/// How long a node may go without following until it is withdrawn.
const WITHDRAW_AFTER: Duration = Duration::from_secs(6);
/// How long a node may take to notice that ZooKeeper does not answer.
const NOTICED: Duration = Duration::from_secs(4);
/// What a busy machine may take for the rest: a look of the guard's or a question to the others, BIRD's answer, and BGP.
const SLACK: Duration = Duration::from_secs(4);

pub(super) const DRILL: Drill = Drill {
    name: "stuck-node",
    about: "A node's daemon is killed, then hangs, then is cut off from ZooKeeper alone, while its BIRD lives and a broker \
            dies: the node is known not to follow, and is withdrawn in time, by its guard or by the other nodes' word",
    done: "a node's daemon killed, a broker killed, both started; the same with a daemon that hangs (SIGSTOP), and with one \
           that is cut off from ZooKeeper",
    expected: "the connections that the dead broker held break, and no other; new ones are refused no longer than until the \
               node is withdrawn",
    scene: |_| Scene { withdraw_after: Some(WITHDRAW_AFTER), ..Scene::default() },
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let (node, _) = stage.follower()?;
    let silent = WITHDRAW_AFTER + SLACK;
    stick(stage, Fault::DaemonKilled(node), node, silent)?;
    stick(stage, Fault::DaemonHung(node), node, silent)?;
    stick(stage, Fault::NodeCutOff(node), node, NOTICED + silent)
}

/// A node that does not follow while a broker dies, and is withdrawn within `limit`.
fn stick(stage: &mut Stage, fault: Fault, node: usize, limit: Duration) -> Result<()> {
    let before = stage.digests()?;
    let death = Fault::BrokerKilled(VICTIM);
    stage.play(
        fault.strikes(stage).and(death.strikes(stage)),
        |stage| {
            fault.strike(stage)?;
            death.strike(stage)
        },
        |stage| {
            death.struck(stage)?;
            stage.check_withdrawn(node, limit)?;
            fault.struck(stage)?;
            stage.check_known(node)?;
            stage.steady_with(&[fault, death])
        },
    )?;
    stage.check_refused_until(limit);
    stage.play(death.ends(stage), |stage| death.end(stage), |stage| stage.steady_with(&[fault]))?;
    stage.play(
        fault.ends(stage),
        |stage| fault.end(stage),
        |stage| {
            fault.ended(stage)?;
            stage.steady_with(&[])?;
            stage.check_tables(&before)?;
            stage.check_content()
        },
    )?;
    stage.refill()
}
