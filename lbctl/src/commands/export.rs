//! `lbctl export`.

use crate::context::Context;
use crate::edit::{names, plan};
use crate::output::{self, Format};
use crate::tree::Tree;
use anyhow::{Result, bail};
use std::fmt::Write as _;
use std::process::ExitCode;
use zk_schema::DesiredFile;
use zk_schema::picture::Found;

/// The format of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Syntax {
    /// As in docs/cluster-file.md.
    Toml,
    /// The same in JSON.
    Json,
}

/// Options of `lbctl export`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "What it prints, `lbctl apply` takes: right away it changes nothing. Reals that register themselves are \
named in a comment only, since they come and go by themselves; flags (drains, maintenance) are not part of it. The seed \
is: keep the file as you would keep a key, if clients are strangers.

Examples:
  lbctl export > cluster.toml
  lbctl export --format json | jq '.vips | keys'"
)]
pub struct Options {
    /// Format of the file; TOML, unless -o json is given.
    #[arg(long, value_enum)]
    format: Option<Syntax>,
}

/// Prints the tree's VIPs and reals as a cluster file.
///
/// # Errors
/// If a record is broken, or ZooKeeper fails.
pub async fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    let tree = context.in_session(async |session| Ok(Tree::read(session).await?)).await?;
    let syntax = options.format.unwrap_or(match context.format() {
        Format::Text => Syntax::Toml,
        Format::Json => Syntax::Json,
    });
    output::write_file(&text(&tree, syntax)?)?;
    Ok(ExitCode::SUCCESS)
}

/// The tree's VIPs and reals as a file.
///
/// # Errors
/// If there is no cluster, or a record is broken.
pub fn text(tree: &Tree, syntax: Syntax) -> Result<String> {
    names::made(tree)?;
    let broken = tree.vips.iter().flat_map(|(name, found)| {
        let vip = found.vip.record.as_ref().err().map(|problem| format!("vip {name}: {problem}"));
        let real = move |(real, found): (&zk_schema::RealName, &Found<zk_schema::Real>)| {
            found.record.as_ref().err().map(|problem| format!("real {name}/{real}: {problem}"))
        };
        vip.into_iter().chain(found.reals.iter().filter_map(real))
    });
    let broken: Vec<String> = broken.collect();
    if !broken.is_empty() {
        bail!("the tree has broken records, which no file can hold; fix them first:\n{}", broken.join("\n"));
    }
    let Some(cluster) = tree.cluster.as_ref().and_then(Found::ok) else {
        bail!("the cluster's own record is broken; fix it first: see docs/znodes.md");
    };
    let mut file = DesiredFile {
        seed: Some(cluster.seed),
        table_size: Some(cluster.table_size),
        vips: plan::sound(tree),
    };
    let mut comments = String::new();
    for (name, state) in &mut file.vips {
        let Some(found) = tree.vips.get(name) else { continue };
        state.reals.retain(|real, _| {
            let is_own = found.reals.get(real).is_some_and(|real| real.znode.owner.is_some());
            if is_own {
                let _ = writeln!(comments, "# {name}/{real} registers itself.");
            }
            !is_own
        });
        let newer = !state.vip.extra.is_empty() || state.reals.values().any(|real| !real.extra.is_empty());
        if newer {
            let _ = writeln!(
                comments,
                "# {name} has fields of newer versions in the tree, which apply leaves there."
            );
        }
    }
    Ok(match syntax {
        Syntax::Toml => format!("{comments}{}", file.to_toml()?),
        Syntax::Json => format!("{}\n", serde_json::to_string_pretty(&file.to_json()?)?),
    })
}
