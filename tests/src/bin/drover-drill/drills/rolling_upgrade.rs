//! Every daemon is replaced by a newer one under traffic.

use anyhow::Result;

use super::{Drill, Options};
use crate::stage::{Scene, Stage, step};

pub(super) const DRILL: Drill = Drill {
    name: "rolling-upgrade",
    about: "Every node and every real's daemon in turn goes from an old lb-node to the new one, which takes over what is pinned \
            in the kernel: nothing is lost",
    done: "each daemon stopped or killed as old, started as new",
    expected: "nothing breaks and nothing is lost: programs and tables stay in the kernel, and are replaced atomically",
    scene: |options| Scene { binary: options.old.clone(), ..Scene::default() },
    play,
};

/// Maps that differ in size from those of a node that is not told, so that they must be migrated.
const OTHER_CAPACITY: &str = "[node.capacity]\nvips = 64\nreals = 1024\ntables = 32\n";

fn play(stage: &mut Stage, options: &Options) -> Result<()> {
    let told = |text: &Option<String>, otherwise: &str| text.clone().unwrap_or_else(|| otherwise.to_owned());
    let new = told(&options.new_version, "the lb-node beside this program");
    let old = match &options.old {
        Some(file) => told(&options.old_version, &file.display().to_string()),
        None => format!("{new}, with maps of the default size"),
    };
    let new = if options.old.is_some() {
        new
    } else {
        format!("{new}, with smaller maps (no older lb-node is at hand)")
    };
    stage.note(format_args!("old: {old}"));
    stage.note(format_args!("new: {new}"));
    stage.facts.push(("old", old.into()));
    stage.facts.push(("new", new.into()));
    stage.site.set_binary(None);
    if options.old.is_none() {
        stage.site.cluster.node_settings = OTHER_CAPACITY.to_owned();
    }

    // The leader last, as an operator does, and not gently: so both ways of going are seen, and of a leader the harder one.
    let (leader, _) = stage.site.leader()?;
    let mut order = stage.others(leader);
    order.push(leader);
    for (turn, node) in order.into_iter().enumerate() {
        upgrade_node(stage, node, turn % 2 == 0)?;
    }
    for real in 0..stage.site.reals.len() {
        let name = stage.site.net.reals[real].host.name().to_owned();
        let all = stage.all();
        stage.play(
            step(format!("{name}: the real's daemon is killed as old (SIGKILL) and started as new")),
            |stage| stage.site.restart_real(real),
            |stage| stage.calm(&all, None),
        )?;
    }
    Ok(())
}

fn upgrade_node(stage: &mut Stage, node: usize, kill: bool) -> Result<()> {
    let all = stage.all();
    let before = stage.digests()?;
    let name = stage.site.node_name(node).to_owned();
    let (_, term) = stage.site.leader()?;
    let what = if kill { "killed (SIGKILL)" } else { "stopped (SIGTERM)" };
    let upgrade = step(format!("{name} is {what} as old and started as new"));
    stage.play(
        // One that is killed is never withdrawn, and takes over under full traffic.
        if kill { upgrade } else { upgrade.may_move_routes() },
        |stage| {
            if kill {
                stage.site.kill(node)?;
            } else {
                stage.site.terminate(node)?;
            }
            stage.site.launch(node)
        },
        |stage| {
            stage.site.node(node)?.wait_ready()?;
            stage.connected(&all)?;
            stage.wait_leader(term.saturating_sub(1))?;
            stage.calm(&all, None)?;
            stage.check_tables(&before)
        },
    )
}
