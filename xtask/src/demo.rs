//! `cargo xtask demo`.

use crate::{
    artifacts, process,
    setup::{self, Scope},
    workspace::Workspace,
};
use anyhow::Result;
use std::process::ExitCode;

/// Shows Drover at work: MQTT clients reach mosquitto brokers through VIPs that three nodes balance.
///
/// Lays out clients, a router with BIRD and ECMP, three nodes, three servers of ZooKeeper and three brokers in network
/// namespaces of this machine; then kills the leader, a broker, a server of ZooKeeper and a whole node, one after the
/// other, shows what happens, and cleans up. Exits with 0 only if everything it promises was seen. Needs root (network
/// namespaces, BPF). Nothing leaves this machine.
///
/// Options are the demo's own: `cargo xtask demo -- --help` lists them; `--keep` leaves everything standing and
/// prints how to enter each host, `--standalone` shows one node without ZooKeeper.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Options of the demo, such as `--keep`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    demo: Vec<String>,
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    process::need_root("the demo makes network namespaces and loads BPF programs")?;
    setup::ensure(workspace, Scope::Run)?;
    let demo = artifacts::binary(workspace, "drover-demo", &[])?;
    process::exit_code(process::command(demo).args(&args.demo).current_dir(&workspace.root))
}
