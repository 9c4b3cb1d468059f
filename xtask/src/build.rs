//! `cargo xtask build`.

use crate::{
    process,
    setup::{self, Scope},
    workspace::Workspace,
};
use anyhow::Result;
use std::process::ExitCode;

/// Builds everything in the release profile, BPF programs included.
///
/// Brings the build tools into place first (see `cargo xtask setup`); needs no root. The daemon is then
/// target/release/lb-node, with the BPF programs inside it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Handed to `cargo build` (for instance `-p lb-node`).
    #[arg(last = true)]
    cargo: Vec<String>,
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    setup::ensure(workspace, Scope::Build)?;
    let mut cargo = process::cargo(workspace);
    process::check(cargo.args(["build", "--workspace", "--release"]).args(&args.cargo))?;
    Ok(ExitCode::SUCCESS)
}
