//! The circumstances of a measurement, without which its figures say nothing.

use std::fs;

use anyhow::{Context as _, Result};
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
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let value = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let number = |key| value(key).unwrap_or_else(|| "?".into());
        let model = format!(
            "{} (family {}, model {}, {} MHz)",
            value("model name").unwrap_or_else(|| "unknown".into()),
            number("cpu family"),
            number("model\t"),
            number("cpu MHz")
        );
        let release =
            fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
        Ok(Self {
            cpu_model: model,
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            cpu,
            kernel: release.trim().to_owned(),
            load: load()?,
            rounds,
            packets,
        })
    }
}

/// Load averages of 1, 5 and 15 minutes.
pub(crate) fn load() -> Result<String> {
    let line = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    Ok(line.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
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
