//! `cargo xtask`: the commands with which Drover is set up, built, tested, shown and measured.
//!
//! Progress and everything cargo says go to stderr; stdout carries results only (test output and its
//! summary, the lines of a benchmark), so that it can be piped.
#![allow(clippy::print_stderr, reason = "a command-line front talks to people on stderr")]

mod artifacts;
mod bench;
mod build;
mod demo;
mod drill;
mod fuzz;
mod metadata;
mod old;
mod process;
mod reference;
mod setup;
mod test;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use workspace::Workspace;

/// Drover's developer commands.
///
/// Start with `cargo xtask demo` (a cluster of XDP balancers serves MQTT clients while its parts die, in network
/// namespaces of this machine) or `cargo xtask test`. Both first bring the machine to where they can run, as `setup` does.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    Build(build::Args),
    Test(test::Args),
    Demo(demo::Args),
    Drill(drill::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Reference(reference::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = Workspace::locate().and_then(|workspace| match cli.command {
        Command::Setup(args) => setup::command(&workspace, &args),
        Command::Build(args) => build::command(&workspace, &args),
        Command::Test(args) => test::command(&workspace, &args),
        Command::Demo(args) => demo::command(&workspace, &args),
        Command::Drill(args) => drill::command(&workspace, &args),
        Command::Bench(args) => bench::command(&workspace, &args),
        Command::Fuzz(args) => fuzz::command(&workspace, &args),
        Command::Reference(args) => reference::command(&workspace, &args),
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
