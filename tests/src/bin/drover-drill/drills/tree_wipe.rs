//! The tree is deleted by accident, and restored from a file.

use std::time::Duration;

use anyhow::Result;

use super::{Drill, Options};
use crate::faults::Fault;
use crate::stage::{Scene, Stage};

/// With these, and what every drill has, there are 112 VIPs: some 1,300 records, more than `lbctl apply` writes at once.
const MORE_VIPS: u16 = 109;
/// Longer than anything is held for the sake of what may follow.
const A_WHILE: Duration = Duration::from_secs(15);

pub(super) const DRILL: Drill = Drill {
    name: "tree-wipe",
    about: "With 112 VIPs, /drover/vips is deleted znode by znode and restored by lbctl apply; then all of /drover, and \
            lbctl init: no client notices",
    done: "/drover/vips deleted and restored from a file by lbctl; then /drover",
    expected: "nothing breaks and nothing is lost: what vanishes all at once is held until it returns",
    scene: |_| Scene { more_vips: MORE_VIPS, ..Scene::default() },
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    wipe(stage, Fault::VipsDeleted)?;
    wipe(stage, Fault::TreeDeleted)
}

fn wipe(stage: &mut Stage, loss: Fault) -> Result<()> {
    let before = stage.digests()?;
    stage.play(
        loss.strikes(stage).hold(A_WHILE),
        |stage| loss.strike(stage),
        |stage| stage.steady_with(&[loss]),
    )?;
    stage.check_tables(&before)?;
    stage.play(
        loss.ends(stage),
        |stage| loss.end(stage),
        |stage| {
            stage.steady_with(&[])?;
            stage.check_tables(&before)?;
            stage.check_content()
        },
    )
}
