//! A node is taken out of service, stopped, and put back.

use anyhow::Result;

use super::{Drill, Options, plain};
use crate::faults::Fault;
use crate::stage::{Stage, step};

pub(super) const DRILL: Drill = Drill {
    name: "node-drain",
    about: "A node is taken out of service by its maintenance flag, stopped (SIGTERM), started and put back: nothing is lost",
    done: "maintenance flag, SIGTERM, start, flag removed",
    expected: "nothing breaks and nothing is lost: the node forwards until nobody sends it anything",
    scene: plain,
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let (node, _) = stage.follower()?;
    let name = stage.site.node_name(node).to_owned();
    let (drain, stop) = (Fault::NodeDrained(node), Fault::DaemonStopped(node));
    stage.play(drain.strikes(stage), |stage| drain.strike(stage), |stage| stage.steady_with(&[drain]))?;
    // Out of service already, it moves no route when it goes, and none when it comes.
    stage.play(
        step(format!("its daemon is stopped (SIGTERM): lb-node on {name}")),
        |stage| stop.strike(stage),
        |stage| stage.steady_with(&[drain, stop]),
    )?;
    stage.play(
        step(format!("lb-node is started again on {name}, which stays out of service")),
        |stage| stop.end(stage),
        |stage| {
            stop.ended(stage)?;
            stage.steady_with(&[drain])
        },
    )?;
    stage.play(drain.ends(stage), |stage| drain.end(stage), |stage| stage.steady_with(&[]))
}
