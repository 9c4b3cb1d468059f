//! The command line.

use crate::commands;
use crate::context::{Context, Global};
use crate::{output, reference};
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
    /// Make a cluster: its record in ZooKeeper.
    Init(commands::init::Options),
    /// Make the tree's VIPs and reals be as a file says, after showing what differs.
    Apply(commands::apply::Options),
    /// Print the tree's VIPs and reals as a file.
    Export(commands::export::Options),
    /// Look at VIPs and change them.
    #[command(subcommand)]
    Vip(commands::vip::Command),
    /// Look at reals and change them; drain and disable them.
    #[command(subcommand)]
    Real(commands::real::Command),
    /// Look at nodes, take them out of service and back.
    #[command(subcommand)]
    Node(commands::node::Command),
    /// Let the leader change nothing, whatever is edited or dies.
    Freeze(commands::ops::Freeze),
    /// Let the leader change things again.
    Unfreeze(commands::ops::Unfreeze),
    /// Let happen what the leader holds since it looks like an accident.
    Confirm(commands::ops::Confirm),
    /// Let the leader hold again what looks like an accident.
    Unconfirm(commands::ops::Unconfirm),
    /// Show how the cluster is, on one screen: leader, nodes, VIPs, reals, and what needs attention.
    Status(commands::status::Options),
    /// Watch the cluster on a live screen.
    Top(commands::top::Options),
    /// Show what was decided, when, and why.
    History(commands::history::Options),
    /// Tell where a client's connection goes: slot and real.
    Lookup(commands::lookup::Options),
    /// Find out what keeps a node from working, and how to fix it.
    Doctor(commands::doctor::Options),

    /// Write samples of a VIP's packets, from one node or all, to a pcapng file.
    Capture(commands::capture::Options),

    /// Print a script that completes lbctl's words in a shell.
    Completions(commands::completions::Options),

    /// Print the reference of docs/lbctl.md: for `cargo xtask reference`.
    #[command(hide = true)]
    Reference,
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    /// In words that say what to fix.
    pub async fn execute(self) -> Result<ExitCode> {
        let context = Context::new(self.global);
        context.start_log();
        match self.command {
            Command::Init(options) => commands::init::run(&context, &options).await,
            Command::Apply(options) => commands::apply::run(&context, &options).await,
            Command::Export(options) => commands::export::run(&context, &options).await,
            Command::Vip(command) => commands::vip::run(&context, command).await,
            Command::Real(command) => commands::real::run(&context, command).await,
            Command::Node(command) => commands::node::run(&context, command).await,
            Command::Freeze(options) => commands::ops::freeze(&context, &options).await,
            Command::Unfreeze(options) => commands::ops::unfreeze(&context, &options).await,
            Command::Confirm(options) => commands::ops::confirm(&context, &options).await,
            Command::Unconfirm(options) => commands::ops::unconfirm(&context, &options).await,
            Command::Status(options) => commands::status::run(&context, &options).await,
            Command::Top(options) => commands::top::run(&context, &options).await,
            Command::History(options) => commands::history::run(&context, &options).await,
            Command::Lookup(options) => commands::lookup::run(&context, &options).await,
            Command::Doctor(options) => commands::doctor::run(&options, &context).await,
            Command::Capture(options) => commands::capture::run(&options, &context).await,
            Command::Completions(options) => commands::completions::run(&options, &mut Self::command()),
            Command::Reference => {
                output::write(reference::markdown(&Self::command()).as_bytes())?;
                Ok(ExitCode::SUCCESS)
            }
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
