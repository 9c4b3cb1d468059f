//! The leader dies and comes back.

use anyhow::Result;

use super::{Drill, Options, current};
use crate::stage::{Stage, step};

pub(super) const DRILL: Drill = Drill {
    name: "leader-death",
    about: "The leader's daemon is killed: another leads by a greater term, and no client notices",
    done: "the leader's daemon killed (SIGKILL), started again",
    expected: "nothing breaks and nothing is lost: its data plane forwards without it",
    binary: current,
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let all = stage.all();
    let (leader, term) = stage.site.leader()?;
    let name = stage.site.node_name(leader).to_owned();
    stage.play(
        step(format!("the leader's daemon is killed (SIGKILL): lb-node on {name}")),
        |stage| stage.site.kill(leader),
        |stage| {
            let (next, now) = stage.wait_leader(term)?;
            let seen = format!("{}, term {now} after {term}", stage.site.node_name(next));
            stage.check("another node leads, by a greater term", seen, next != leader && now > term);
            stage.calm(&all, None)
        },
    )?;
    let led = stage.site.leader()?;
    stage.play(
        step(format!("lb-node is started again on {name}")),
        |stage| stage.site.launch(leader),
        |stage| {
            stage.site.node(leader)?.wait_ready()?;
            stage.calm(&all, None)?;
            let now = stage.site.leader()?;
            let seen = format!("{}, term {}", stage.site.node_name(now.0), now.1);
            stage.check("it follows whoever leads now", seen, now == led);
            Ok(())
        },
    )
}
