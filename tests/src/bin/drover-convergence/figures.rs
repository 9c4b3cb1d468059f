//! What was measured, for people and for machines.

use std::fmt::{self, Write as _};
use std::fs;
use std::io::{Write as _, stderr, stdout};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value};

/// Figures of a case, each with a name that ends in its unit.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(String, f64)>);

impl Figures {
    pub(crate) fn set(&mut self, name: &str, value: f64) {
        self.0.push((name.to_owned(), value));
    }

    /// Median, 99th percentile and maximum of durations, in milliseconds.
    pub(crate) fn spread(&mut self, name: &str, durations: &[Duration]) {
        let mut sorted: Vec<f64> = durations.iter().map(|duration| duration.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let name =
            |what: &str| if name.is_empty() { format!("{what}_ms") } else { format!("{name}_{what}_ms") };
        self.set(&name("p50"), percentile(&sorted, 50));
        self.set(&name("p99"), percentile(&sorted, 99));
        self.set(&name("max"), sorted.last().copied().unwrap_or(f64::NAN));
    }
}

/// The smallest value that `percent` of the values do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(place).copied().unwrap_or(f64::NAN)
}

/// Where figures go.
pub(crate) struct Report {
    json: bool,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    #[expect(clippy::unused_self, reason = "progress is a part of the report")]
    pub(crate) fn progress(&self, message: fmt::Arguments<'_>) {
        let _ = writeln!(stderr(), "{message}");
    }

    pub(crate) fn conditions(&mut self, rounds: u32) -> Result<()> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let model = model.map_or("unknown", |(_, model)| model);
        let session = super::world::SESSION.as_secs_f64();
        if self.json {
            let object = serde_json::json!({
                "bench": "convergence", "conditions": true, "cpu": model, "cpus": cpus, "load": load()?,
                "rounds": rounds, "session_timeout_s": session,
            });
            return line(&object.to_string());
        }
        line(&format!(
            "{cpus} CPUs ({model}), load {}; three ZooKeeper servers on one host, sessions of {session} s; {rounds} rounds",
            load()?
        ))
    }

    pub(crate) fn figures(&mut self, case: &str, figures: &Figures) -> Result<()> {
        if self.json {
            let mut object = Map::new();
            object.insert("bench".into(), "convergence".into());
            object.insert("case".into(), case.into());
            for (name, value) in &figures.0 {
                let rounded = (value * 1000.0).round() / 1000.0;
                object.insert(name.clone(), Value::from(rounded));
            }
            return line(&Value::Object(object).to_string());
        }
        let mut text = format!("{case:<36}");
        for (name, value) in &figures.0 {
            let _ = write!(text, "  {name} {value:.1}");
        }
        line(&text)
    }

    pub(crate) fn end(&mut self) -> Result<()> {
        if self.json { Ok(()) } else { line(&format!("load afterwards {}", load()?)) }
    }
}

fn load() -> Result<String> {
    let line = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    Ok(line.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}

fn line(text: &str) -> Result<()> {
    writeln!(stdout(), "{text}").context("cannot write to stdout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (50.0, 99.0));
        assert_eq!((percentile(&values[..1], 50), percentile(&values[..1], 99)), (1.0, 1.0));
        assert_eq!(percentile(&values[..3], 99), 3.0);
    }
}
