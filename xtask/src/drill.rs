//! `cargo xtask drill`.

use crate::{
    artifacts,
    old::Old,
    process,
    setup::{self, Scope},
    workspace::Workspace,
};
use anyhow::{Context as _, Result};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Plays failover drills: parts of a cluster die, are cut off, drained, upgraded, while MQTT clients watch.
///
/// `cargo xtask drill --list` tells each drill in a sentence; `drill all` plays them all and ends with a table. A drill
/// lays out three nodes behind BIRD and ECMP, three servers of ZooKeeper and three brokers in network namespaces of this
/// machine, prints a timeline and a verdict, and cleans up. Exits with 0 only if every promise was kept. Needs root
/// (network namespaces, BPF). docs/drills.md says what each does and how it is judged.
///
/// `rolling-upgrade` begins with an older lb-node: `--old`, or the newest commit whose program differs from this work
/// tree's, which is built for it under target/ once.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The drill, or `all`.
    #[arg(value_name = "DRILL", required_unless_present = "list")]
    drill: Option<String>,

    /// One JSON object a drill on stdout; the timeline goes to stderr.
    #[arg(long)]
    json: bool,

    /// Say what each drill does, and do nothing else.
    #[arg(long)]
    list: bool,

    /// Seconds for which zk-outage keeps ZooKeeper down.
    #[arg(long, value_name = "SECONDS")]
    outage_seconds: Option<u64>,

    /// Seed from which two-at-once draws its pairs of faults, to play the same ones again.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// Number of pairs of faults that two-at-once plays.
    #[arg(long, value_name = "NUMBER")]
    pairs: Option<u32>,

    /// The lb-node that rolling-upgrade begins with.
    #[arg(long, value_name = "FILE")]
    old: Option<PathBuf>,
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if !args.list {
        process::need_root("drills make network namespaces and load BPF programs")?;
    }
    setup::ensure(workspace, if args.list { Scope::Build } else { Scope::Run })?;
    let program = artifacts::binary(workspace, "drover-drill", &[])?;
    let mut drill = process::command(&program);
    drill.args(&args.drill).current_dir(&workspace.root);
    for (flag, given) in [("--json", args.json), ("--list", args.list)] {
        if given {
            drill.arg(flag);
        }
    }
    let pairs = args.pairs.map(u64::from);
    for (flag, given) in
        [("--outage-seconds", args.outage_seconds), ("--seed", args.seed), ("--pairs", pairs)]
    {
        if let Some(number) = given {
            drill.arg(flag).arg(number.to_string());
        }
    }
    let upgrades = !args.list && matches!(args.drill.as_deref(), Some("rolling-upgrade" | "all"));
    if upgrades {
        let old = match &args.old {
            Some(file) => Old::given(&absolute(file)?),
            None => Old::built(workspace),
        };
        drill.args(old.arguments());
    }
    process::exit_code(&mut drill)
}

fn absolute(file: &Path) -> Result<PathBuf> {
    file.canonicalize().with_context(|| format!("--old: there is no {}", file.display()))
}
