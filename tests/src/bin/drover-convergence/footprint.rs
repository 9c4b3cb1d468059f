//! What the ensemble holds.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use drover_tests::Ensemble;
use zk_schema::tree::StateRecord as _;

use crate::figures::Figures;
use crate::stage::Stage;

/// What an ensemble holds at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    znodes: usize,
    data_bytes: usize,
    /// Of all servers together: each holds those of its own sessions.
    watches: usize,
}

impl Held {
    /// What it holds now.
    pub(crate) fn now(ensemble: &Ensemble) -> Result<Self> {
        let leader = ensemble.leader()?;
        let answer = ensemble.ask(leader, "mntr")?;
        let (znodes, data_bytes) =
            (value(&answer, "zk_znode_count")?, value(&answer, "zk_approximate_data_size")?);
        let mut watches = 0;
        for index in 0..ensemble.len() {
            watches += value(&ensemble.ask(index, "mntr")?, "zk_watch_count")?;
        }
        Ok(Self { znodes, data_bytes, watches })
    }
}

/// What a quiet cluster adds to what the ensemble held `before`.
pub(crate) fn measure(stage: &Stage, ensemble: &mut Ensemble, before: Held) -> Result<Figures> {
    stage.wait_quiet()?;
    let now = Held::now(ensemble)?;
    let mut resident = 0;
    for index in 0..ensemble.len() {
        resident = resident.max(resident_bytes(ensemble.process(index)?.pid())?);
    }
    let (head, assignment) = stage.log.look(|seen| {
        let head = seen.head.as_ref().and_then(|head| head.bytes().ok()).map_or(0, |bytes| bytes.len());
        let assignments = seen.assignments.values().filter_map(|assignment| assignment.bytes().ok());
        (head, assignments.map(|bytes| bytes.len()).max().unwrap_or(0))
    });
    let mut figures = Figures::new();
    figures.count("znodes", now.znodes.saturating_sub(before.znodes));
    figures.count("data_bytes", now.data_bytes.saturating_sub(before.data_bytes));
    figures.count("watches", now.watches.saturating_sub(before.watches));
    figures.count("head_bytes", head).count("largest_assignment_bytes", assignment);
    figures.count("server_resident_bytes", resident);
    Ok(figures)
}

/// What servers are, in words.
pub(crate) fn version(ensemble: &Ensemble) -> Result<String> {
    let answer = ensemble.ask(0, "srvr")?;
    let line = answer.lines().find_map(|line| line.strip_prefix("Zookeeper version: "));
    let version =
        line.and_then(|line| line.split([',', '-']).next()).context("the server tells no version")?;
    Ok(version.to_owned())
}

fn value(answer: &str, key: &str) -> Result<usize> {
    let line = answer.lines().find_map(|line| line.strip_prefix(key));
    let value = line.with_context(|| format!("the server tells no {key}"))?;
    value.trim().parse().with_context(|| format!("the server tells a {key} of \"{value}\""))
}

fn resident_bytes(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: usize = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("{path} tells no VmRSS"))?;
    Ok(kib * 1024)
}

/// How long the servers' figures may lag: they count sessions' watches until those are gone.
pub(crate) const LAG: Duration = Duration::from_secs(2);
