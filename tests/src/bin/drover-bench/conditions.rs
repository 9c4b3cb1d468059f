//! The circumstances of a measurement, without which its figures say nothing.

use anyhow::{Context as _, Result};
use drover_tests::machine::Machine;
pub(crate) use drover_tests::machine::load;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where and how it is measured.
pub(crate) struct Conditions {
    pub(crate) cpu_model: String,
    pub(crate) cpus: usize,
    pub(crate) cpu: usize,
    pub(crate) kernel: String,
    pub(crate) load: String,
    pub(crate) rounds: u32,
    pub(crate) packets: u32,
}

impl Conditions {
    pub(crate) fn read(cpu: usize, rounds: u32, packets: u32) -> Result<Self> {
        let Machine { cpu_model, cpus, kernel } = Machine::this()?;
        Ok(Self { cpu_model, cpus, cpu, kernel, load: load()?, rounds, packets })
    }
}

/// Keeps this process on one CPU, the last one if none is named, and returns its number.
pub(crate) fn pin(cpu: Option<usize>) -> Result<usize> {
    let allowed = sched_getaffinity(None).context("cannot learn which CPUs this process may use")?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|&cpu| allowed.is_set(cpu)).context("no CPU may be used")?;
    let cpu = cpu.unwrap_or(last);
    let mut only = CpuSet::new();
    if cpu < CpuSet::MAX_CPU {
        only.set(cpu);
    }
    sched_setaffinity(None, &only)
        .with_context(|| format!("CPU {cpu} cannot be used (the last is {last})"))?;
    Ok(cpu)
}
