//! All of ZooKeeper is away for a time, and a broker dies meanwhile.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;
use drover_tests::crowd::broker_name;

use super::{Drill, Options, plain};
use crate::faults::Fault;
use crate::stage::{AUTONOMY_AFTER, Stage};

const VICTIM: usize = 2;

pub(super) const DRILL: Drill = Drill {
    name: "zk-outage",
    about: "All of ZooKeeper is down for a minute, and a broker dies meanwhile: only its connections break, each node leaves \
            it out by itself, and nothing flaps when ZooKeeper is back",
    done: "all of ZooKeeper down, a broker killed half-way (SIGKILL), ZooKeeper back",
    expected: "the connections that the dead broker held break, and no other; new ones are refused until nodes that judge by \
               themselves notice; no VIP is withdrawn",
    scene: plain,
    play,
};

fn play(stage: &mut Stage, options: &Options) -> Result<()> {
    let all = stage.all();
    let victim = broker_name(VICTIM);
    let begun = Instant::now();
    stage.facts.push(("outage_s", options.outage.as_secs().into()));
    let half = (options.outage / 2).max(AUTONOMY_AFTER);
    let (outage, death) = (Fault::ZookeeperDown, Fault::BrokerKilled(VICTIM));
    stage.play(
        // Long enough for nodes to judge by themselves.
        outage.strikes(stage).hold(half),
        |stage| outage.strike(stage),
        |stage| stage.steady_with(&[outage]),
    )?;
    stage.play(
        death.strikes(stage),
        |stage| death.strike(stage),
        |stage| {
            death.struck(stage)?;
            stage.steady_with(&[outage, death])
        },
    )?;
    stage.watch(options.outage.saturating_sub(begun.elapsed()))?;
    stage.play(
        outage.ends(stage),
        |stage| outage.end(stage),
        |stage| {
            outage.ended(stage)?;
            stage.steady_with(&[death])
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
