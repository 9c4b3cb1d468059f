//! A node's daemon dies, then the whole node.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;

use super::{Drill, Options, current};
use crate::stage::{Stage, step};

/// Long enough to see that a dead daemon's packets flow on.
const A_WHILE: Duration = Duration::from_secs(1);

pub(super) const DRILL: Drill = Drill {
    name: "node-death",
    about: "A node's daemon is killed, which costs nothing; then the whole node is gone, which costs packets in flight but \
            no connection",
    done: "a node's daemon killed and started; then the node: link down, BIRD and daemon killed",
    expected: "no connection breaks; packets that were on their way to the node when it went may be lost",
    binary: current,
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let all = stage.all();
    let (victim, _) = stage.follower()?;
    let name = stage.site.node_name(victim).to_owned();
    let others = stage.others(victim);
    stage.play(
        step(format!("the daemon alone is killed (SIGKILL): lb-node on {name}")).hold(A_WHILE),
        |stage| stage.site.kill(victim),
        |stage| stage.carried_by(&all),
    )?;
    stage.play(
        step(format!("the daemon is started again on {name}")),
        |stage| stage.site.launch(victim),
        |stage| {
            stage.site.node(victim)?.wait_ready()?;
            stage.calm(&all, None)
        },
    )?;
    stage.play(
        step(format!("{name} is gone: link down, BIRD and lb-node killed"))
            .may_lose_in_flight()
            .may_move_routes(),
        |stage| stage.site.destroy(victim),
        |stage| {
            stage.carried_by(&others)?;
            let left: BTreeSet<String> =
                others.iter().map(|node| stage.site.node_name(*node).to_owned()).collect();
            stage.wait("the leader to count the nodes that are left", |stage| {
                let counted: BTreeSet<String> =
                    stage.site.head()?.nodes.iter().map(ToString::to_string).collect();
                Ok((counted == left).then_some(()))
            })?;
            stage.calm(&others, None)
        },
    )
}
