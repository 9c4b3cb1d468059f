//! The tree, as a person sees it with `zkCli.sh`.

use anyhow::{Context, Result};
use drover_tests::Operator;
use serde_json::Value;
use zk_schema::tree::paths;

use crate::report::Report;

/// Prints the names below a znode.
pub(crate) fn list(operator: &Operator, path: &str, report: &Report) -> Result<()> {
    let mut names = operator.children(path)?;
    names.sort_unstable();
    report.line(format_args!("ls {path}"));
    report.line(format_args!("  [{}]", names.join(", ")));
    Ok(())
}

/// Prints these fields of a record, in this order, and that there are more.
pub(crate) fn record(operator: &Operator, path: &str, fields: &[&str], report: &Report) -> Result<()> {
    let text = operator.get(path)?.with_context(|| format!("{path}: no such znode"))?;
    let record: Value = serde_json::from_str(&text).with_context(|| format!("{path}: not JSON: {text}"))?;
    let object = record.as_object().with_context(|| format!("{path}: not an object"))?;
    let shown: Vec<String> = fields
        .iter()
        .filter_map(|field| object.get(*field).map(|value| format!("\"{field}\":{value}")))
        .collect();
    let more = if shown.len() < object.len() { ",…" } else { "" };
    report.line(format_args!("get {path}"));
    report.line(format_args!("  {{{}{more}}}", shown.join(",")));
    Ok(())
}

/// What operators wrote and what is in force: the paths, and each with its record, as one text to compare.
pub(crate) fn lasting(operator: &Operator) -> Result<Vec<(String, String)>> {
    let mut pending: Vec<String> = [paths::CLUSTER, paths::VIPS, paths::OPS].map(str::to_owned).into();
    let mut found = Vec::new();
    while let Some(path) = pending.pop() {
        if path != paths::CLUSTER {
            let below = operator.children(&path)?;
            pending.extend(below.into_iter().map(|name| format!("{path}/{name}")));
        }
        let record = operator.get(&path)?.with_context(|| format!("{path}: no such znode"))?;
        found.push((path, record));
    }
    found.sort_unstable();
    Ok(found)
}
