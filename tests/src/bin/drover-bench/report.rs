//! What people and scripts get to see.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Result;
use serde_json::{Value, json};

use crate::case::{self, Version};
use crate::conditions::{self, Conditions};
use crate::live::Live;
use crate::measure::Series;

/// Writes to stdout, as text or JSON, and of its progress to stderr.
pub(crate) struct Report {
    json: bool,
    rounds: u32,
    terminal: bool,
}

impl Report {
    pub(crate) fn new(json: bool, rounds: u32) -> Self {
        Self { json, rounds, terminal: io::stderr().is_terminal() }
    }

    /// Shows what is going on, where somebody may be watching.
    pub(crate) fn progress(&self, what: fmt::Arguments<'_>) {
        if self.terminal {
            eprint!("\r\x1b[2K{what}");
        }
    }

    fn progress_ends(&self) {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
    }

    pub(crate) fn conditions(&self, conditions: &Conditions) -> Result<()> {
        let Conditions { cpu_model, cpus, cpu, kernel, load, rounds, packets } = conditions;
        if self.json {
            return object(&json!({
                "bench": "dataplane", "case": "conditions", "cpu_model": cpu_model, "cpus": cpus, "cpu": cpu,
                "kernel": kernel, "load": load, "rounds": rounds, "packets": packets,
            }));
        }
        line(format_args!("CPU      {cpu_model}, number {cpu} of {cpus}"))?;
        line(format_args!("kernel   {kernel}"))?;
        line(format_args!("load     {load} before"))?;
        line(format_args!("rounds   {rounds} of {packets} packets a case"))
    }

    /// Says how busy the machine is at the end.
    pub(crate) fn conditions_after(&self) -> Result<()> {
        let load = conditions::load()?;
        if self.json {
            return object(&json!({ "bench": "dataplane", "case": "conditions-after", "load": load }));
        }
        line(format_args!(
            "\nload     {load} after; on a busy machine read `min`, which is what the program costs undisturbed"
        ))
    }

    /// Shows nanoseconds per packet.
    pub(crate) fn figures(&self, series: &[Series]) -> Result<()> {
        self.progress_ends();
        if series.is_empty() {
            return Ok(());
        }
        let width = series.iter().map(|series| series.case.name.len()).max().unwrap_or_default();
        if !self.json {
            line(format_args!("\nnanoseconds per packet, above an empty program in the same harness"))?;
            let titles = ["median", "min", "target"].map(|title| format!("{title:>7}")).concat();
            line(format_args!("{:width$}{titles}", "case"))?;
        }
        for version in [Version::V4, Version::V6] {
            let of_version = series.iter().filter(|series| series.case.scenario.version == version);
            let empty = of_version.flat_map(|series| series.empty.iter().copied()).collect();
            if let Some(empty) = Figures::of(empty) {
                self.empty(&format!("empty{}", case::number(version)), &empty, width)?;
            }
        }
        for series in series {
            self.series(series, width)?;
        }
        Ok(())
    }

    fn empty(&self, name: &str, empty: &Figures, width: usize) -> Result<()> {
        let Figures { median, min, parts } = empty;
        if self.json {
            // Named so that nobody takes it for a net figure.
            return object(&json!({
                "bench": "dataplane", "case": name, "gross_ns_median": median, "gross_ns_min": min, "parts": parts,
            }));
        }
        line(format_args!("{name:width$}{median:7.1}{min:7}         the harness itself; subtracted below"))
    }

    fn series(&self, series: &Series, width: usize) -> Result<()> {
        let case = &series.case;
        let figures = (Figures::of(series.gross.clone()), Figures::of(series.empty.clone()));
        let (Some(gross), Some(empty)) = figures else { return Ok(()) };
        let (median, min) = (gross.median - empty.median, i64::from(gross.min) - i64::from(empty.min));
        if self.json {
            return object(&json!({
                "bench": "dataplane", "case": case.name, "net_ns_median": median, "net_ns_min": min,
                "gross_ns_median": gross.median, "gross_ns_min": gross.min, "empty_ns_median": empty.median,
                "empty_ns_min": empty.min, "target_ns": case.target, "parts": gross.parts, "rounds": self.rounds,
            }));
        }
        let target = case.target.map(|target| target.to_string()).unwrap_or_default();
        let missed = case.target.is_some_and(|target| median > f64::from(target));
        let verdict = if missed { "  missed" } else { "" };
        line(format_args!("{:width$}{median:7.1}{min:7}{target:>7}{verdict}", case.name))
    }

    /// Shows packets per second.
    pub(crate) fn live(&self, results: &[Live]) -> Result<()> {
        self.progress_ends();
        if !self.json && !results.is_empty() {
            line(format_args!("\npackets per second through veth, sender and receiver on one CPU"))?;
        }
        for Live { name, sent, arrived, per_second } in results {
            let mut sorted = per_second.clone();
            sorted.sort_by(f64::total_cmp);
            let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else { continue };
            let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
            if self.json {
                object(&json!({
                    "bench": "dataplane", "case": name, "packets_per_second_median": median.round(),
                    "packets_per_second_min": least.round(), "packets_per_second_max": most.round(),
                    "packets_sent": sent, "packets_arrived": arrived, "rounds": per_second.len(),
                }))?;
            } else {
                line(format_args!(
                    "{name:30}{:7.2} M median, {:.2} min, {:.2} max; {arrived} of {sent} arrived",
                    median / 1e6,
                    least / 1e6,
                    most / 1e6
                ))?;
            }
        }
        Ok(())
    }
}

/// Of the parts that a case was measured in, in nanoseconds per packet.
struct Figures {
    median: f64,
    min: u32,
    parts: usize,
}

impl Figures {
    /// `None`: there are no values.
    fn of(mut values: Vec<u32>) -> Option<Self> {
        values.sort_unstable();
        let parts = values.len();
        let middle = (values.get(parts.checked_sub(1)? / 2)?, values.get(parts / 2)?);
        let median = (f64::from(*middle.0) + f64::from(*middle.1)) / 2.0;
        Some(Self { median, min: *values.first()?, parts })
    }
}

fn object(value: &Value) -> Result<()> {
    line(format_args!("{value}"))
}

/// Writes a line to stdout.
pub(crate) fn line(text: fmt::Arguments<'_>) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(())
}
