//! A node is taken out of service, stopped, and put back.

use anyhow::Result;

use super::{Drill, Options, current};
use crate::stage::{Stage, step};

pub(super) const DRILL: Drill = Drill {
    name: "node-drain",
    about: "A node is taken out of service by its maintenance flag, stopped (SIGTERM), started and put back: nothing is lost",
    done: "maintenance flag, SIGTERM, start, flag removed",
    expected: "nothing breaks and nothing is lost: the node forwards until nobody sends it anything",
    binary: current,
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let all = stage.all();
    let (node, _) = stage.follower()?;
    let name = stage.site.node_name(node).to_owned();
    let others = stage.others(node);
    let flag = format!("/drover/ops/maintenance/{name}");
    stage.play(
        step(format!("{name} is taken out of service: create {flag}")).may_move_routes(),
        |stage| stage.site.operator.put(&flag, r#"{"by":"a drill","why":"to see what it costs"}"#),
        |stage| stage.calm(&others, None),
    )?;
    stage.play(
        step(format!("its daemon is stopped (SIGTERM): lb-node on {name}")),
        |stage| stage.site.terminate(node),
        |stage| stage.calm(&others, None),
    )?;
    stage.play(
        step(format!("lb-node is started again on {name}, which stays out of service")),
        |stage| stage.site.launch(node),
        |stage| {
            stage.site.node(node)?.wait_ready()?;
            stage.calm(&others, None)
        },
    )?;
    stage.play(
        step(format!("{name} is put back: delete {flag}")).may_move_routes(),
        |stage| stage.site.operator.delete(&flag),
        |stage| stage.calm(&all, None),
    )
}
