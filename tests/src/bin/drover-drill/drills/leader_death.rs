//! The leader dies and comes back.

use anyhow::Result;

use super::{Drill, Options, plain};
use crate::faults::Fault;
use crate::stage::Stage;

pub(super) const DRILL: Drill = Drill {
    name: "leader-death",
    about: "The leader's daemon is killed: another leads by a greater term, and no client notices",
    done: "the leader's daemon killed (SIGKILL), started again",
    expected: "nothing breaks and nothing is lost: its data plane forwards without it",
    scene: plain,
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let (leader, term) = stage.site.leader()?;
    let death = Fault::DaemonKilled(leader);
    stage.play(
        death.strikes(stage),
        |stage| death.strike(stage),
        |stage| {
            stage.check_succession(leader, term)?;
            stage.steady_with(&[death])
        },
    )?;
    let led = stage.site.leader()?;
    stage.play(
        death.ends(stage),
        |stage| death.end(stage),
        |stage| {
            death.ended(stage)?;
            stage.steady_with(&[])?;
            let now = stage.site.leader()?;
            let seen = format!("{}, term {}", stage.site.node_name(now.0), now.1);
            stage.check("it follows whoever leads now", seen, now == led);
            Ok(())
        },
    )
}
