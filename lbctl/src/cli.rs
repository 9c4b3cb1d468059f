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
    /// Find out what keeps a node from working, and how to mend it.
    Doctor(commands::doctor::Options),

    /// Write samples of a VIP's packets, from one node or all, to a pcapng file.
    Capture(commands::capture::Options),

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
            Command::Doctor(options) => commands::doctor::run(&options, &context).await,
            Command::Capture(options) => commands::capture::run(&options, &context).await,
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
