//! `cargo xtask bench`.

use crate::{
    process,
    setup::{self, Scope},
    workspace::Workspace,
};
use anyhow::{Result, ensure};
use clap::Subcommand;
use std::process::ExitCode;

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
    let (options, scope, program): (_, _, &[&str]) = match &args.bench {
        Bench::Dataplane(options) => {
            (options, Scope::Run, &["--package", "drover-tests", "--bin", "drover-bench"])
        }
        Bench::Table(options) => {
            (options, Scope::Build, &["--package", "slot-table", "--example", "table-bench"])
        }
    };
    if scope == Scope::Run {
        ensure!(process::is_root(), "measuring the loaded program needs root: run this with sudo");
    }
    setup::ensure(workspace, scope)?;
    let mut cargo = process::cargo(workspace);
    cargo.args(["run", "--release"]).args(program).arg("--");
    if options.json {
        cargo.arg("--json");
    }
    process::exit_code(cargo.args(&options.options))
}
