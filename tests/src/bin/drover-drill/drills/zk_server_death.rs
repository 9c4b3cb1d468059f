//! ZooKeeper loses its leading server.

use anyhow::Result;

use super::{Drill, Options, current};
use crate::stage::{Stage, step};

pub(super) const DRILL: Drill = Drill {
    name: "zk-server-death",
    about: "ZooKeeper's leading server is killed and started again: no client notices, and no table changes",
    done: "ZooKeeper's leading server killed (SIGKILL), started again",
    expected: "nothing breaks and nothing is lost: what is in force needs no ZooKeeper",
    binary: current,
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let all = stage.all();
    let victim = stage.site.ensemble.leader()?;
    let before = stage.digests()?;
    stage.play(
        step(format!("zk-{}, which leads the servers of ZooKeeper, is killed (SIGKILL)", victim + 1)),
        |stage| stage.site.ensemble.kill(victim),
        |stage| {
            let next = stage.site.ensemble.leader()?;
            stage.note(format_args!("zk-{} leads the servers", next + 1));
            stage.connected()?;
            stage.calm(&all, None)?;
            stage.check_tables(&before)
        },
    )?;
    stage.play(
        step(format!("zk-{} is started again", victim + 1)),
        |stage| stage.site.ensemble.restart(victim),
        |stage| {
            stage.site.ensemble.wait_serving(victim)?;
            stage.connected()?;
            stage.calm(&all, None)?;
            stage.check_tables(&before)
        },
    )
}
