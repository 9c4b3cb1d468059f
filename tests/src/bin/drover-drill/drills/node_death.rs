//! A node's daemon dies, then the whole node.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;

use super::{Drill, Options, plain};
use crate::faults::Fault;
use crate::stage::Stage;

/// Long enough to see that a dead daemon's packets flow on.
const A_WHILE: Duration = Duration::from_secs(1);

pub(super) const DRILL: Drill = Drill {
    name: "node-death",
    about: "A node's daemon is killed, which costs nothing; then the whole node is gone, which costs packets in flight but \
            no connection",
    done: "a node's daemon killed and started; then the node: link down, BIRD and daemon killed",
    expected: "no connection breaks; packets that were on their way to the node when it went may be lost",
    scene: plain,
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let all = stage.all();
    let (victim, _) = stage.follower()?;
    let others = stage.others(victim);
    let death = Fault::DaemonKilled(victim);
    stage.play(
        death.strikes(stage).hold(A_WHILE),
        |stage| death.strike(stage),
        |stage| stage.carried_by(&all),
    )?;
    stage.play(
        death.ends(stage),
        |stage| death.end(stage),
        |stage| {
            death.ended(stage)?;
            stage.steady_with(&[])
        },
    )?;
    let loss = Fault::NodeLost(victim);
    stage.play(
        loss.strikes(stage),
        |stage| loss.strike(stage),
        |stage| {
            stage.carried_by(&others)?;
            let left: BTreeSet<String> =
                others.iter().map(|node| stage.site.node_name(*node).to_owned()).collect();
            stage.wait("the leader to count the nodes that are left", |stage| {
                let counted: BTreeSet<String> =
                    stage.site.head()?.nodes.iter().map(ToString::to_string).collect();
                Ok((counted == left).then_some(()))
            })?;
            stage.steady_with(&[loss])
        },
    )
}
