//! A broker dies and comes back.

use anyhow::Result;

use super::{Drill, Options, plain};
use crate::faults::Fault;
use crate::stage::Stage;

/// Any will do.
const VICTIM: usize = 1;

pub(super) const DRILL: Drill = Drill {
    name: "broker-death",
    about: "A broker is killed and comes back: only its own connections break, and new ones go to the others at once",
    done: "one of three brokers killed (SIGKILL), started again",
    expected: "the connections that the dead broker held break, and no other; new ones are refused until its death is noticed",
    scene: plain,
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let before = stage.digests()?;
    let death = Fault::BrokerKilled(VICTIM);
    stage.play(
        death.strikes(stage),
        |stage| death.strike(stage),
        |stage| {
            death.struck(stage)?;
            stage.steady_with(&[death])
        },
    )?;
    stage.play(
        death.ends(stage),
        |stage| death.end(stage),
        |stage| {
            stage.steady_with(&[])?;
            stage.check_tables(&before)
        },
    )
}
