//! What is measured, and how.

use policy::desk::Desk;
use policy::leader::{Leader, PATTERNS, Published, View};
use policy::local::{self, VipAssignment};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use coordination::{Mirror, Pattern, Session as _, Store as _};
use dataplane::compile::compile;
use health::Key;
use zk_schema::Picture;
use zk_schema::tree::{Assignment, Target, paths};
use zk_schema::{Desired, RealName, VipName, to_json};

use crate::figures::{Figures, Samples};
use crate::log::{Event, Order, Seen};
use crate::stage::{Death, LIMIT, Stage};

/// Nodes that probe a real, at most.
const PROBERS: usize = 5;

/// Weight changes, one real's record edited at a time.
pub(crate) fn apply(stage: &Stage, desired: &Desired, rounds: usize) -> Result<Figures> {
    let (vip, state) = desired.vips.iter().next().context("no VIP")?;
    let real_names: Vec<&RealName> = state.reals.keys().collect();
    let (mut apply, mut known, mut commit) = (Samples::default(), Samples::default(), Samples::default());
    let (mut announce, mut edit) = (Samples::default(), Samples::default());
    for round in 0..rounds {
        stage.wait_quiet()?;
        stage.log.begin();
        let real = real_names[round % real_names.len()];
        let mut record = state.reals[real].clone();
        record.weight = if (round / real_names.len()).is_multiple_of(2) { 90 } else { 100 };
        let data = to_json(&record)?;
        let edited = Instant::now();
        stage.edit(paths::real(vip, real), data)?;
        let weight = Some(&record.weight);
        let done = stage.log.wait("a weight to be in force everywhere", LIMIT, |seen| {
            let announced = seen.decision(|assignment| {
                assignment.next.as_ref().is_some_and(|next| next.weights.get(real) == weight)
            })?;
            let promoted = seen.decision(|assignment| assignment.weights.get(real) == weight)?;
            let order = promoted.0;
            Some([
                (announced.1.began, seen.applied_by_all(announced.0)?),
                (promoted.1.began, promoted.1.acknowledged),
                (promoted.1.began, seen.known_by_all(order)?),
                (promoted.1.began, seen.applied_by_all(order)?),
                (edited, seen.applied_by_all(order)?),
            ])
        })?;
        for (samples, (from, to)) in
            [&mut announce, &mut commit, &mut known, &mut apply, &mut edit].into_iter().zip(done)
        {
            samples.push(to - from);
        }
    }
    let mut figures = Figures::new();
    figures.both("", &apply).both("known_", &known).both("commit_", &commit);
    figures.both("announce_", &announce).both("edit_", &edit).count("rounds", rounds);
    Ok(figures)
}

/// A real's death, noticed by the nodes' probes.
pub(crate) fn broker_death(
    stage: &Stage,
    desired: &Desired,
    nodes: usize,
    death: Death,
    rounds: usize,
) -> Result<Figures> {
    let (vip, state) = desired.vips.iter().next().context("no VIP")?;
    let interval = state.vip.health.as_ref().map_or(0, |check| check.interval_ms);
    let real_names: Vec<&RealName> = state.reals.keys().collect();
    let majority = nodes.min(PROBERS) / 2 + 1;
    let (mut all, mut probing, mut rest) = (Samples::default(), Samples::default(), Samples::default());
    for round in 0..rounds {
        stage.dead.clear();
        stage.wait_quiet()?;
        // At another moment between two probes each time.
        let part = u32::try_from(round * 619 % 1000)?;
        thread::sleep(Duration::from_millis(interval.into()) * part / 1000);
        stage.log.begin();
        let real = real_names[round % real_names.len()];
        let target = Target { vip: vip.clone(), real: real.clone() };
        let key: Key = (vip.clone(), real.clone());
        let died = Instant::now();
        stage.dead.insert(key, death);
        let (decided, done) = stage.log.wait("a dead real to be in no table", LIMIT, |seen| {
            let (order, _) = seen.decision(|assignment| !assignment.weights.contains_key(real))?;
            Some((deciding_vote(seen, &target, majority)?, seen.applied_by_all(order)?))
        })?;
        all.push(done - died);
        probing.push(decided - died);
        rest.push(done - decided);
    }
    stage.dead.clear();
    let mut figures = Figures::new();
    figures.both("", &all).both("probing_", &probing).both("rest_", &rest).count("rounds", rounds);
    Ok(figures)
}

/// When the vote was sent that made those against `target` a majority.
fn deciding_vote(seen: &Seen, target: &Target, majority: usize) -> Option<Instant> {
    let mut first: BTreeMap<usize, Instant> = BTreeMap::new();
    for event in &seen.events {
        if let Event::Voted { node, down, began } = event
            && down.contains(target)
        {
            first.entry(*node).or_insert(*began);
        }
    }
    let mut moments: Vec<Instant> = first.into_values().collect();
    moments.sort_unstable();
    moments.get(majority - 1).copied()
}

/// How a leader ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As by `kill -9`.
    Crash,
    /// As by SIGTERM.
    Stop,
}

/// The leader ends; until another leads, has published, and all others have that.
pub(crate) fn leader_failover(stage: &mut Stage, ending: Ending, rounds: usize) -> Result<Figures> {
    let (mut leads, mut published, mut applied) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..rounds {
        stage.wait_quiet()?;
        let leader = stage.leader()?;
        let before: Order = stage.log.look(|seen| seen.head.as_ref().map_or((0, 0), |head| head.order()));
        stage.log.begin();
        let ended = Instant::now();
        match ending {
            Ending::Crash => stage.crash(leader)?,
            Ending::Stop => stage.stop(leader)?,
        }
        let done = stage.log.wait("another leader's decision to be in force everywhere", LIMIT, |seen| {
            let leads = seen.events.iter().find_map(|event| match event {
                Event::Leads { node, term: Some(_), at } if *node != leader => Some(*at),
                _ => None,
            })?;
            let (order, decision) = seen.decisions().find_map(|decision| {
                let order = decision.head.as_ref()?.order();
                (order.0 > before.0).then_some((order, decision))
            })?;
            Some([leads, decision.acknowledged, seen.applied_by_all(order)?])
        })?;
        for (samples, at) in [&mut leads, &mut published, &mut applied].into_iter().zip(done) {
            samples.push(at - ended);
        }
        stage.start(leader)?;
    }
    let mut figures = Figures::new();
    figures.both("", &published).both("leads_", &leads).both("applied_", &applied).count("rounds", rounds);
    Ok(figures)
}

/// A node that comes anew to a cluster of some size.
pub(crate) fn join(stage: &mut Stage, newcomer: usize, rounds: usize) -> Result<Figures> {
    let (mut ready, mut known, mut applied) = (Samples::default(), Samples::default(), Samples::default());
    let mut tables = Samples::default();
    let (desired, assignment) = in_force(stage)?;
    for _ in 0..rounds {
        stage.wait_quiet()?;
        stage.log.begin();
        let started = Instant::now();
        stage.start(newcomer)?;
        let done = stage.log.wait("a new node to be ready", LIMIT, |seen| {
            let mut moments = [None; 3];
            for event in &seen.events {
                let (place, at) = match event {
                    Event::Knows { node, at, .. } if *node == newcomer => (0, *at),
                    Event::Applied { node, at, .. } if *node == newcomer => (1, *at),
                    Event::Registered { node, at } if *node == newcomer => (2, *at),
                    _ => continue,
                };
                moments[place].get_or_insert(at);
            }
            Some([moments[0]?, moments[1]?, moments[2]?])
        })?;
        for (samples, at) in [&mut known, &mut applied, &mut ready].into_iter().zip(done) {
            samples.push(at - started);
        }
        stage.wait_quiet()?;
        stage.stop(newcomer)?;
        let began = Instant::now();
        let weights = |vip: &VipName| assignment.vips.get(vip).map(|assigned| &assigned.weights);
        compile(&desired, assignment.epoch, weights, None)?;
        tables.push(began.elapsed());
    }
    let mut figures = Figures::new();
    figures.both("", &ready).both("known_", &known).both("applied_", &applied);
    figures.both("tables_", &tables).count("rounds", rounds);
    Ok(figures)
}

/// What is in force, as a node's data plane would get it.
fn in_force(stage: &Stage) -> Result<(Desired, local::Assignment)> {
    stage.log.look(|seen| {
        let head = seen.head.as_ref().context("there is no head")?;
        let mut desired = Desired { cluster: head.cluster.clone(), vips: BTreeMap::new() };
        let mut vips: BTreeMap<VipName, VipAssignment> = BTreeMap::new();
        for (name, Assignment { vip, reals, weights, .. }) in &seen.assignments {
            let state = zk_schema::VipState { vip: vip.clone(), reals: reals.clone() };
            desired.vips.insert(name.clone(), state);
            vips.insert(name.clone(), VipAssignment { weights: weights.clone(), ..Default::default() });
        }
        Ok((desired, local::Assignment { epoch: head.epoch, vips }))
    })
}

/// What a leader's look at the tree costs when nothing is to be done.
pub(crate) fn decide(stage: &Stage, rounds: usize) -> Result<Figures> {
    stage.wait_quiet()?;
    let store = stage.store()?;
    let contents = stage.block_on(async move || -> Result<_> {
        let session = store.connect().await?;
        let patterns = PATTERNS.iter().map(|pattern| Pattern::new(pattern)).collect();
        let mirror = Mirror::new(session.clone(), patterns, LIMIT);
        let mut contents = mirror.contents();
        let first = contents.wait_for(|contents| contents.complete).await.context("the session ended")?;
        let first = Arc::clone(&first);
        session.close().await;
        Ok(first)
    })??;
    let leader =
        Leader::new(u64::MAX / 2, stage.leader_settings(), Published::parse(&contents), 0, Duration::ZERO);
    let mut desk = Desk::new(leader, Arc::clone(&contents), Default::default(), 0, Duration::ZERO);
    let later = Duration::from_secs(3600);
    let (mut parse, mut decide) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        let began = Instant::now();
        std::hint::black_box(View::of(&Picture::parse(&contents), 0));
        let parsed = Instant::now();
        desk.look(&contents, 0, later);
        let publication = desk.decide(later)?;
        parse.push(parsed - began);
        decide.push(parsed.elapsed());
        if let Some(publication) = publication {
            desk.published(publication, later);
        }
    }
    let mut figures = Figures::new();
    figures.both("parse_", &parse).both("", &decide).count("rounds", rounds);
    figures.count("znodes", contents.len());
    Ok(figures)
}
