//! The agent that registers a real comes and goes, while its broker lives.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use drover_tests::crowd::broker_name;

use super::{Drill, Options};
use crate::faults::{Fault, registration};
use crate::stage::{LIMIT, Scene, Stage, VIPS, step};

/// The broker whose host is a real by its agent alone.
const REGISTERED: usize = 2;
/// How often the agent dies and is back at once, as under a service manager.
const RESTARTS: usize = 3;
/// How often it stays away until its session has expired.
const EXPIRIES: usize = 2;
/// How long it stays away then.
const AWAY: Duration = Duration::from_secs(3);

/// A goodbye's effect on a busy machine. It takes half a minute to give up an agent that says none.
const AT_ONCE: Duration = Duration::from_secs(10);

pub(super) const DRILL: Drill = Drill {
    name: "registry-flap",
    about: "The agent that registers a real is killed and started again, and its session expires, while its broker lives: no \
            client notices. Then it says goodbye: the real leaves at once",
    done: "an agent killed (SIGKILL) and started five times; then stopped (SIGTERM) and started",
    expected: "nothing breaks and nothing is lost while probes find the broker up; after a goodbye its connections break, and \
               no other",
    scene: |_| Scene { registered: Some(REGISTERED), ..Scene::default() },
    play,
};

fn play(stage: &mut Stage, _: &Options) -> Result<()> {
    let name = broker_name(REGISTERED);
    let before = stage.digests()?;
    for _ in 0..RESTARTS {
        stage.play(
            step(format!("the agent that registers {name} is killed (SIGKILL) and started again at once")),
            |stage| {
                stage.site.reals[REGISTERED].process().kill()?;
                stage.site.start_agent(REGISTERED, &name, &VIPS)
            },
            |stage| stage.steady_with(&[]),
        )?;
    }
    for _ in 0..EXPIRIES {
        let loss = Fault::AgentLost(REGISTERED);
        stage.play(
            loss.strikes(stage).hold(AWAY),
            |stage| loss.strike(stage),
            |stage| {
                loss.struck(stage)?;
                stage.steady_with(&[loss])
            },
        )?;
        stage.play(
            loss.ends(stage),
            |stage| loss.end(stage),
            |stage| {
                stage.steady_with(&[])?;
                stage.check_tables(&before)
            },
        )?;
    }
    let observed = stage.observer.so_far();
    let kept = |node: &usize| {
        let tables: Vec<BTreeSet<String>> = observed
            .tables(stage.site.node_name(*node), VIPS[0])
            .into_iter()
            .map(|(reals, _)| reals)
            .collect();
        tables.len() == 1
    };
    let all = stage.all().iter().all(kept);
    let seen = if all { "no table changed" } else { "tables changed" };
    stage.check_after(format!("{name} was in every table all the time"), seen, all);

    stage.play(
        step(format!("the agent that registers {name} says goodbye (SIGTERM)")).ends_broker(REGISTERED),
        |stage| stage.site.reals[REGISTERED].process().terminate(LIMIT).map(drop),
        |stage| {
            stage.wait_gone(&registration(REGISTERED))?;
            stage.wait_disconnected(REGISTERED)?;
            stage.calm(&stage.all(), Some(REGISTERED))?;
            stage.check_over_within(&format!("{name} leaves every table"), AT_ONCE);
            Ok(())
        },
    )?;
    // As after a broker's death: those who came while it was away, on slots that it gets back, are cut.
    stage.play(
        step(format!("the agent that registers {name} is started again")).may_refuse(),
        |stage| stage.site.start_agent(REGISTERED, &name, &VIPS),
        |stage| {
            stage.steady_with(&[])?;
            stage.check_tables(&before)
        },
    )
}
