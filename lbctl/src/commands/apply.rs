//! `lbctl apply`.

use crate::context::Context;
use crate::edit::plan;
use crate::edit::run::{self, Ask};
use crate::edit::step::Remark;
use crate::edit::{self, Edit, Plan};
use crate::tree::Tree;
use anyhow::{Result, anyhow, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use zk_schema::DesiredFile;
use zk_schema::picture::Found;
use zk_schema::tree::{Target, paths};

/// Options of `lbctl apply`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Only VIPs and reals of the file are written; a table [node], as a standalone node's file has it, is \
ignored. What is in the tree and not in the file stays, unless --prune is given. Nothing is written if anything about \
the file is wrong, nor if somebody else changed what is to be written since it was compared.

Examples:
  lbctl apply -f cluster.toml --dry-run     show what would change
  lbctl apply -f cluster.toml               show, ask, write
  lbctl apply -f cluster.toml --yes --wait  for scripts: fail unless it is in force in 30 s
  lbctl apply -f cluster.toml --prune       also delete what the file does not have"
)]
pub struct Options {
    /// Cluster file in TOML (docs/cluster-file.md), or the same in JSON; - for standard input.
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,

    /// Delete VIPs and reals that the file does not have. Reals that register themselves stay.
    #[arg(long)]
    prune: bool,

    #[command(flatten)]
    edit: run::Editing,
}

/// Compares the file with the tree, and writes what differs.
///
/// # Errors
/// If the file is wrong, does not go with the tree, or nobody consents.
pub async fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    let file = read(&options.file)?;
    context
        .in_session(async |session| {
            let tree = Tree::read(session).await?;
            let plan = plan(&tree, &file, options.prune, host::clock::wall())?;
            run::run(session, &tree, &plan, (context.format(), &options.edit, Ask::Always)).await
        })
        .await
}

/// Reads a file in TOML or JSON.
fn read(path: &Path) -> Result<DesiredFile> {
    let (name, text) = super::file_or_stdin(path)?;
    parse(&text, &name)
}

fn parse(text: &str, name: &str) -> Result<DesiredFile> {
    // No TOML begins with a brace.
    if !text.trim_start().starts_with('{') {
        return Ok(DesiredFile::parse(text, name)?);
    }
    let object = serde_json::from_str(text).map_err(|error| anyhow!("{name}: not JSON: {error}"))?;
    DesiredFile::from_json(&object).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(|problem| format!("{name}: {problem}")).collect();
        anyhow!("{}", lines.join("\n"))
    })
}

/// Returns the plan that makes the tree say what the file says.
///
/// # Errors
/// If the file does not go with the tree.
pub fn plan(tree: &Tree, file: &DesiredFile, prune: bool, now: u64) -> Result<Plan> {
    edit::names::made(tree)?;
    check_cluster(tree, file)?;
    let mut edits = Vec::new();
    for (name, state) in &file.vips {
        edits.push(Edit::PutVip(name.clone(), state.vip.clone()));
        for (real, record) in &state.reals {
            edits.push(Edit::PutReal(Target { vip: name.clone(), real: real.clone() }, record.clone()));
        }
    }
    let (mut vips, mut reals) = (Vec::new(), Vec::new());
    for (name, found) in &tree.vips {
        let Some(wanted) = file.vips.get(name) else {
            vips.push(name.clone());
            continue;
        };
        let others = found.reals.iter().filter(|(real, _)| !wanted.reals.contains_key(*real));
        let by_hand = others.filter(|(_, found)| prune || found.znode.owner.is_none());
        reals.extend(by_hand.map(|(real, _)| Target { vip: name.clone(), real: real.clone() }));
    }
    let left: Vec<String> = vips
        .iter()
        .map(|vip| format!("vip {vip}"))
        .chain(reals.iter().map(|target| format!("real {target}")))
        .collect();
    if prune {
        // What goes may hold an address that something new is to have.
        let gone = vips.into_iter().map(Edit::RemoveVip).chain(reals.into_iter().map(Edit::RemoveReal));
        edits.splice(0..0, gone);
    }
    let mut plan = plan::plan(tree, edits, now)?;
    if !prune && !left.is_empty() {
        let text = format!("not in the file, and left as they are without --prune: {}", left.join(", "));
        plan.remarks.insert(0, Remark::note(text));
    }
    Ok(plan)
}

/// Checks that what cannot change stays as it is.
fn check_cluster(tree: &Tree, file: &DesiredFile) -> Result<()> {
    let Some(cluster) = tree.cluster.as_ref().and_then(Found::ok) else {
        bail!("{} is broken; fix it first: see docs/znodes.md", paths::CLUSTER);
    };
    let mut differing = Vec::new();
    if let Some(seed) = file.seed.filter(|seed| *seed != cluster.seed) {
        differing.push(format!("seed is {seed} in the file and {} in the tree", cluster.seed));
    }
    if let Some(size) = file.table_size.filter(|size| *size != cluster.table_size) {
        differing.push(format!("table_size is {size} in the file and {} in the tree", cluster.table_size));
    }
    if !differing.is_empty() {
        bail!(
            "[cluster]: {}. apply does not change that, since every connection would move: take what the tree has into \
             the file, or leave [cluster] out of it\nNothing was written.",
            differing.join("; ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
