//! A broker dies and comes back.

use anyhow::Result;
use drover_tests::Broker;

use super::{Drill, Options, current};
use crate::stage::{Stage, step};

/// Any will do.
const VICTIM: usize = 1;

pub(super) const DRILL: Drill = Drill {
    name: "broker-death",
    about: "A broker is killed and comes back: only its own connections break, and new ones go to the others at once",
    done: "one of three brokers killed (SIGKILL), started again",
    expected: "the connections that the dead broker held break, and no other; new ones are refused until its death is noticed",
    binary: current,
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let all = stage.all();
    let before = stage.digests()?;
    stage.play(
        step("broker-2 is killed (SIGKILL)").ends_broker(VICTIM),
        |stage| stage.site.servers[VICTIM].process().kill(),
        |stage| {
            stage.wait_disconnected(VICTIM)?;
            stage.calm(&all, Some(VICTIM))
        },
    )?;
    // Those who came while it was away, on slots that it gets back, are cut: the README says so.
    stage.play(
        step("broker-2 is started again").may_refuse(),
        |stage| {
            stage.site.servers[VICTIM] = Broker::start(&stage.site.net.reals[VICTIM].host)?;
            Ok(())
        },
        |stage| {
            stage.calm(&all, None)?;
            stage.check_tables(&before)
        },
    )
}
