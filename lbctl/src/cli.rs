//! What can be typed.

use crate::commands;
use crate::context::{Context, Global};
use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};
use std::process::ExitCode;

/// Looks after a Drover cluster.
///
/// Everything that a cluster agrees on stands in ZooKeeper: operators write what they want (VIPs, reals, flags), an elected
/// leader decides, and every node follows. `lbctl` writes and reads there, so it works from any machine that reaches
/// ZooKeeper.
///
/// It looks for ZooKeeper in --zookeeper, else in the file of --config, else in /etc/drover/lbctl.toml or
/// /etc/drover/node.toml, whichever is there.
#[derive(Debug, Parser)]
#[command(name = "lbctl", version)]
pub struct Cli {
    #[command(flatten)]
    global: Global,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how the cluster is, on one screen: leader, nodes, VIPs, reals, and what needs attention.
    Status(commands::status::Options),
    /// Watch the cluster on a live screen.
    Top(commands::top::Options),
    /// Show what was decided, when, and why.
    History(commands::history::Options),
    /// Tell where a client's connection goes: slot and real.
    Lookup(commands::lookup::Options),
    /// Print a script that completes lbctl's words in a shell.
    Completions(commands::completions::Options),
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    /// In words that say what to mend.
    pub async fn execute(self) -> Result<ExitCode> {
        let context = Context::new(self.global);
        context.start_log();
        match self.command {
            Command::Status(options) => commands::status::run(&context, &options).await,
            Command::Top(options) => commands::top::run(&context, &options).await,
            Command::History(options) => commands::history::run(&context, &options).await,
            Command::Lookup(options) => commands::lookup::run(&context, &options).await,
            Command::Completions(options) => commands::completions::run(&options, &mut Self::command()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }
}
