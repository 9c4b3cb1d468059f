//! What a machine is, and how busy: the circumstances without which a measurement says nothing.

use std::fs;

use anyhow::{Context as _, Result};

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its processor, in words.
    pub cpu_model: String,
    /// Its processors' number.
    pub cpus: usize,
    /// Its kernel's release.
    pub kernel: String,
}

impl Machine {
    /// This machine.
    ///
    /// # Errors
    ///
    /// When /proc cannot be read.
    pub fn this() -> Result<Machine> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let value = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let number = |key| value(key).unwrap_or_else(|| "?".into());
        let cpu_model = format!(
            "{} (family {}, model {}, {} MHz)",
            value("model name").unwrap_or_else(|| "unknown".into()),
            number("cpu family"),
            number("model\t"),
            number("cpu MHz")
        );
        let release =
            fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
        let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        Ok(Machine { cpu_model, cpus, kernel: release.trim().to_owned() })
    }
}

/// This machine's load averages of 1, 5 and 15 minutes.
///
/// # Errors
///
/// When /proc cannot be read.
pub fn load() -> Result<String> {
    let line = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    Ok(line.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}
