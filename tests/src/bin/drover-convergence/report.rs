//! What people and scripts get to see.

use std::fmt;
use std::io::{self, Write as _};

use anyhow::Result;
use drover_tests::machine::{self, Machine};
use serde_json::{Value, json};

use crate::figures::Figures;

/// Writes to stdout, as text or JSON, and of its progress to stderr.
pub(crate) struct Report {
    pub(crate) json: bool,
}

/// A figure that is not to exceed something.
pub(crate) struct Target {
    pub(crate) figure: &'static str,
    pub(crate) most: f64,
}

impl Report {
    /// Says what is going on.
    pub(crate) fn progress(&self, what: fmt::Arguments<'_>) {
        eprintln!("{what}");
    }

    pub(crate) fn conditions(&self, zookeeper: &str, servers: usize, sessions_ms: &[u64]) -> Result<()> {
        let Machine { cpu_model, cpus, kernel } = Machine::this()?;
        let load = machine::load()?;
        let optimised = !cfg!(debug_assertions);
        if self.json {
            return object(json!({
                "bench": "convergence", "case": "conditions", "cpu_model": cpu_model, "cpus": cpus, "kernel": kernel,
                "load": load, "zookeeper": zookeeper, "servers": servers, "sessions_ms": sessions_ms,
                "optimised": optimised,
            }));
        }
        let sessions = sessions_ms.iter().map(|ms| format!("{ms} ms")).collect::<Vec<_>>().join(", ");
        line(format_args!(
            "CPU        {cpu_model}, {cpus} of them for nodes, servers and this program together"
        ))?;
        line(format_args!("kernel     {kernel}"))?;
        line(format_args!("load       {load} before"))?;
        line(format_args!("ZooKeeper  {zookeeper}, {servers} servers on one host, ticks of 500 ms"))?;
        line(format_args!("sessions   {sessions}"))?;
        if !optimised {
            line(format_args!("build      without optimisation: figures say little"))?;
        }
        Ok(())
    }

    pub(crate) fn conditions_after(&self) -> Result<()> {
        let load = machine::load()?;
        if self.json {
            return object(json!({ "bench": "convergence", "case": "conditions-after", "load": load }));
        }
        line(format_args!("\nload       {load} after"))
    }

    /// Shows a case's figures.
    pub(crate) fn case(&self, name: &str, figures: &Figures, targets: &[Target]) -> Result<()> {
        if self.json {
            let mut members = figures.members();
            members.insert("bench".into(), "convergence".into());
            members.insert("case".into(), name.into());
            for target in targets {
                members.insert(target.name(), json!(target.most));
            }
            return object(Value::Object(members));
        }
        line(format_args!("\n{name}"))?;
        for (figure, value) in figures.all() {
            let target = targets.iter().find(|target| target.figure == figure);
            let verdict = match target {
                Some(target) if value > target.most => format!("   target {}: missed", target.most),
                Some(target) => format!("   target {}", target.most),
                None => String::new(),
            };
            line(format_args!("    {figure:26}{value:14}{verdict}"))?;
        }
        Ok(())
    }
}

impl Target {
    fn name(&self) -> String {
        format!("target_{}", self.figure)
    }
}

fn object(value: Value) -> Result<()> {
    line(format_args!("{value}"))
}

fn line(text: fmt::Arguments<'_>) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(())
}
