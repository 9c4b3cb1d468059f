//! One node that reads its cluster from a file: clients, a router, the node, three brokers.

mod act;
mod stage;

use anyhow::Result;
use drover_tests::interrupt;

use crate::report::Report;
use stage::Stage;

/// Sets the stage, plays, and leaves everything standing if `keep` says so. Promises are judged in `report`.
pub(crate) fn play(keep: bool, report: &mut Report) -> Result<()> {
    let mut stage = Stage::set(report)?;
    let outcome = act::perform(&mut stage, report);
    if keep && !interrupt::requested() {
        stage.keep(report)?;
    }
    outcome
}
