//! Reals in a list, a line each.

use crate::edit::effect::drained;
use crate::paint::Sheet;
use crate::tree::Tree;
use host::clock::wall;
use serde::Serialize;
use std::net::IpAddr;
use zk_schema::picture::Found;
use zk_schema::tree::Target;
use zk_schema::{Real, RealName, VipName};

/// A real in a list.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    /// `VIP/REAL`.
    pub(super) name: String,
    pub(super) address: Option<IpAddr>,
    /// The weight in its record.
    pub(super) weight: Option<u16>,
    /// The weight in the table in force; null: it has no slots.
    pub(super) in_table: Option<u16>,
    /// The writer of its record: `operator`, or `agent`, its own.
    pub(super) by: &'static str,
    /// By whom and why it is drained or disabled.
    pub(super) out: Option<String>,
    /// Its record's problem.
    pub(super) broken: Option<String>,
}

impl Line {
    pub(crate) fn of(tree: &Tree, vip: &VipName, real: &RealName, found: &Found<Real>) -> Self {
        let target = Target { vip: vip.clone(), real: real.clone() };
        Self {
            name: target.to_string(),
            address: found.ok().map(|real| real.address),
            weight: found.ok().map(|real| real.weight),
            in_table: tree.assignment(vip).and_then(|assignment| assignment.weights.get(real).copied()),
            by: if found.znode.owner.is_some() { "agent" } else { "operator" },
            out: drained(tree, &target, wall()),
            broken: found.record.as_ref().err().cloned(),
        }
    }
}

/// Reals as a table.
pub(crate) fn table(lines: &[Line], indent: usize) -> String {
    let mut table = Sheet::plain(["REAL", "ADDRESS", "WEIGHT", "IN TABLE", "BY", "REMARK"]);
    let number = |number: Option<u16>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    for line in lines {
        let remarks: Vec<String> = line.broken.iter().chain(&line.out).cloned().collect();
        table.cells([
            line.name.clone(),
            line.address.map_or_else(|| "-".to_owned(), |address| address.to_string()),
            number(line.weight),
            number(line.in_table),
            line.by.to_owned(),
            remarks.join("; "),
        ]);
    }
    if lines.is_empty() { String::new() } else { table.text(indent) }
}
