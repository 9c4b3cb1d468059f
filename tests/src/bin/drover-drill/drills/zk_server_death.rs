//! ZooKeeper loses its leading server.

use anyhow::Result;

use super::{Drill, Options, plain};
use crate::faults::Fault;
use crate::stage::Stage;

pub(super) const DRILL: Drill = Drill {
    name: "zk-server-death",
    about: "ZooKeeper's leading server is killed and started again: no client notices, and no table changes",
    done: "ZooKeeper's leading server killed (SIGKILL), started again",
    expected: "nothing breaks and nothing is lost: what is in force needs no ZooKeeper",
    scene: plain,
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let death = Fault::ServerKilled(stage.site.ensemble.leader()?);
    let before = stage.digests()?;
    stage.play(
        death.strikes(stage),
        |stage| death.strike(stage),
        |stage| {
            let next = stage.site.ensemble.leader()?;
            stage.note(format_args!("zk-{} leads the servers", next + 1));
            stage.steady_with(&[death])?;
            stage.check_tables(&before)
        },
    )?;
    stage.play(
        death.ends(stage),
        |stage| death.end(stage),
        |stage| {
            death.ended(stage)?;
            stage.steady_with(&[])?;
            stage.check_tables(&before)
        },
    )
}
