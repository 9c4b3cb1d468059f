//! `cargo xtask bench`.

use crate::{
    artifacts,
    metadata::Metadata,
    process,
    setup::{self, Scope},
    workspace::Workspace,
};
use anyhow::{Context as _, Result};
use clap::Subcommand;
use std::process::{Command, ExitCode};

/// Measures Drover on this machine.
///
/// Builds in the release profile first. With `--json`, stdout carries one JSON object a line and nothing else.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Nanoseconds per packet of the loaded XDP program, and packets per second through veth; needs root.
    ///
    /// The kernel runs the program on prepared packets (BPF_PROG_TEST_RUN); an empty program is measured alike and
    /// subtracted. `cargo xtask bench dataplane -- --help` lists the options of the measuring program.
    Dataplane(Options),
    /// Time until a cluster agrees: up to 64 nodes without packets on three ZooKeeper servers; needs root, takes many minutes.
    ///
    /// Weight changes, dead reals, leaders that end, nodes that join, and what ZooKeeper holds. `cargo xtask bench
    /// convergence -- --help` lists the options of the measuring program.
    Convergence(Options),
    /// Cost of a leader's turn, idle and with one change, for up to 100 VIPs of 1,000 reals at 64 nodes; needs no root.
    ///
    /// `cargo xtask bench leader -- --help` lists the cases.
    Leader(Options),
    /// Time to build a slot table, and how many slots change owner when reals come and go; needs no root.
    ///
    /// `cargo xtask bench table -- --help` lists the options of the measuring program.
    Table(Options),
}

#[derive(clap::Args)]
struct Options {
    /// One JSON object a line on stdout instead of a table for people.
    #[arg(long)]
    json: bool,

    /// Handed to the measuring program.
    #[arg(last = true)]
    options: Vec<String>,
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    match &args.bench {
        Bench::Dataplane(options) => {
            process::need_root("this loads BPF programs")?;
            setup::ensure(workspace, Scope::Run)?;
            let program = artifacts::binary(workspace, "drover-bench", &["--release"])?;
            options.run(process::command(program).current_dir(&workspace.root))
        }
        Bench::Convergence(options) => {
            process::need_root("this makes a network namespace")?;
            setup::ensure(workspace, Scope::Run)?;
            let program = artifacts::binary(workspace, "drover-convergence", &["--release"])?;
            options.run(process::command(program).current_dir(&workspace.root))
        }
        // These two need neither the BPF build nor what `setup` installs.
        Bench::Leader(options) => options.run(&mut run_alone(workspace, "policy", "leader-bench")?),
        Bench::Table(options) => options.run(&mut run_alone(workspace, "slot-table", "table-bench")?),
    }
}

/// Runs a program after building its package and nothing else.
fn run_alone(workspace: &Workspace, package: &str, program: &str) -> Result<Command> {
    let metadata = Metadata::read(workspace)?;
    let kind = metadata.kind(package, program);
    let kind = kind.with_context(|| format!("the package {package} has no program `{program}`"))?;
    let mut cargo = process::cargo(workspace);
    cargo.args(["run", "--release", "--package", package, &format!("--{kind}"), program, "--"]);
    Ok(cargo)
}

impl Options {
    fn run(&self, program: &mut Command) -> Result<ExitCode> {
        if self.json {
            program.arg("--json");
        }
        process::exit_code(program.args(&self.options))
    }
}
