//! What people and scripts get to see.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Result;
use serde_json::{Value, json};

use crate::conditions::{self, Conditions};
use crate::live::Live;
use crate::measure::Series;

/// Writes to stdout, as text or JSON, and of its progress to stderr.
pub(crate) struct Report {
    json: bool,
    terminal: bool,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, terminal: io::stderr().is_terminal() }
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
        line(format_args!("\nload     {load} after"))
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
            let titles = ["median", "min", "max", "target", ""].map(|title| format!("{title:>7}")).concat();
            line(format_args!("{:width$}{titles}", "case"))?;
        }
        for version in [4, 6] {
            let of_version =
                series.iter().filter(|series| crate::case::number(series.case.scenario.version) == version);
            let empty: Vec<i64> =
                of_version.flat_map(|series| series.empty.iter().copied().map(i64::from)).collect();
            let Some(all) = Figures::of(&empty) else { continue };
            if self.json {
                // Named so that nobody takes it for a net figure.
                object(&json!({
                    "bench": "dataplane", "case": format!("empty{version}"), "gross_ns_median": all.median,
                    "gross_ns_min": all.min, "gross_ns_max": all.max,
                }))?;
            } else {
                let case = format!("empty{version}");
                line(format_args!(
                    "{case:width$}{:7.1}{:7}{:7}         the harness itself; subtracted below",
                    all.median, all.min, all.max
                ))?;
            }
        }
        for series in series {
            let Some(net) = Figures::of(&series.net()) else { continue };
            self.series(series, &net, width)?;
        }
        Ok(())
    }

    fn series(&self, series: &Series, net: &Figures, width: usize) -> Result<()> {
        let case = &series.case;
        let widen = |values: &[u32]| values.iter().copied().map(i64::from).collect::<Vec<_>>();
        let (gross, empty) = (Figures::of(&widen(&series.gross)), Figures::of(&widen(&series.empty)));
        if self.json {
            return object(&json!({
                "bench": "dataplane", "case": case.name, "net_ns_median": net.median, "net_ns_min": net.min,
                "net_ns_max": net.max, "gross_ns_median": gross.map(|figures| figures.median),
                "empty_ns_median": empty.map(|figures| figures.median), "target_ns": case.target,
                "rounds": series.gross.len(),
            }));
        }
        let target = case.target.map(|target| target.to_string()).unwrap_or_default();
        let missed = case.target.is_some_and(|target| net.median > f64::from(target));
        let verdict = if missed { "  missed" } else { "" };
        line(format_args!(
            "{:width$}{:7.1}{:7}{:7}{target:>7}{verdict}",
            case.name, net.median, net.min, net.max
        ))
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

struct Figures {
    median: f64,
    min: i64,
    max: i64,
}

impl Figures {
    /// `None`: there are no values.
    fn of(values: &[i64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        let middle = sorted.get((sorted.len().checked_sub(1)?) / 2)? + sorted.get(sorted.len() / 2)?;
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds, far below 2^52")]
        let median = middle as f64 / 2.0;
        Some(Self { median, min: *sorted.first()?, max: *sorted.last()? })
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
