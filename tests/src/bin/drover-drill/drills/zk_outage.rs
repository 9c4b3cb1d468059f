//! All of ZooKeeper is away for a time, and a broker dies meanwhile.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;
use drover_tests::crowd::broker_name;
use serde_json::Value;

use super::{Drill, Options, current};
use crate::stage::{AUTONOMY_AFTER, Stage, step};

const VICTIM: usize = 2;

pub(super) const DRILL: Drill = Drill {
    name: "zk-outage",
    about: "All of ZooKeeper is down for a minute, and a broker dies meanwhile: only its connections break, each node leaves \
            it out by itself, and nothing flaps when ZooKeeper is back",
    done: "all of ZooKeeper down, a broker killed half-way (SIGKILL), ZooKeeper back",
    expected: "the connections that the dead broker held break, and no other; new ones are refused until nodes that judge by \
               themselves notice; no VIP is withdrawn",
    binary: current,
    play,
};

fn play(stage: &mut Stage, options: &Options) -> Result<()> {
    let all = stage.all();
    let victim = broker_name(VICTIM);
    let begun = Instant::now();
    stage.facts.push(("outage_s", options.outage.as_secs().into()));
    let half = (options.outage / 2).max(AUTONOMY_AFTER);
    stage.play(
        // Long enough for nodes to judge by themselves.
        step("all three servers of ZooKeeper are killed (SIGKILL)").hold(half),
        |stage| (0..stage.site.ensemble.len()).try_for_each(|server| stage.site.ensemble.kill(server)),
        |stage| {
            stage.wait("every node to notice", |stage| {
                let noticed = |status: &Value| status["cluster"]["connected"] == false;
                Ok(stage.statuses().filter(|all| all.iter().all(noticed)).map(|_| ()))
            })?;
            stage.carried_by(&all)
        },
    )?;
    stage.play(
        step(format!("{victim} is killed (SIGKILL), and no leader is there to say so")).ends_broker(VICTIM),
        |stage| stage.site.servers[VICTIM].process().kill(),
        |stage| {
            stage.wait_disconnected(VICTIM)?;
            stage.wait("every node to leave the broker out by itself", |stage| {
                let left_out = |status: &Value| {
                    let vips = status["vips"].as_object();
                    vips.is_some_and(|vips| !vips.is_empty() && vips.values().all(|vip| !has(vip, &victim)))
                };
                Ok(stage.statuses().filter(|all| all.iter().all(left_out)).map(|_| ()))
            })?;
            stage.carried_by(&all)
        },
    )?;
    stage.watch(options.outage.saturating_sub(begun.elapsed()))?;
    stage.play(
        step("ZooKeeper is started again: all three servers"),
        |stage| (0..stage.site.ensemble.len()).try_for_each(|server| stage.site.ensemble.restart(server)),
        |stage| {
            (0..stage.site.ensemble.len()).try_for_each(|server| stage.site.ensemble.wait_serving(server))?;
            stage.connected()?;
            stage.calm(&all, Some(VICTIM))
        },
    )?;
    let whole: BTreeSet<String> = (0..stage.site.servers.len()).map(broker_name).collect();
    let rest: BTreeSet<String> = whole.iter().filter(|broker| **broker != victim).cloned().collect();
    let observed = stage.observer.so_far();
    let flapped = all.iter().map(|node| stage.site.node_name(*node)).find(|node| {
        let had: Vec<BTreeSet<String>> =
            observed.tables(node, "mqtt").into_iter().map(|(reals, _)| reals).collect();
        had != [whole.clone(), rest.clone()]
    });
    let seen = flapped.map(|node| format!("{node} had {:?}", observed.tables(node, "mqtt")));
    let kept = seen.is_none();
    let seen = seen.unwrap_or_else(|| format!("each node changed its tables once, to leave out {victim}"));
    stage.check_after("nothing flapped over the whole time", seen, kept);
    Ok(())
}

/// Whether a VIP's table has a broker in it.
fn has(vip: &Value, broker: &str) -> bool {
    vip["reals"][broker]["weight"].as_u64().is_some_and(|weight| weight > 0)
}
