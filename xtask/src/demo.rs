//! `cargo xtask demo`.

use crate::{
    artifacts, process,
    setup::{self, Scope},
    workspace::Workspace,
};
use anyhow::Result;
use std::process::ExitCode;

/// Shows Drover at work: MQTT clients reach mosquitto brokers through a VIP that an XDP program balances.
///
/// Lays out clients, a router, a balancer node and brokers in network namespaces of this machine, publishes and
/// subscribes through the VIP over IPv4 and IPv6, kills a broker, shows what happens, and cleans up. Exits with 0
/// only if everything it promises was seen. Needs root (network namespaces, BPF). Nothing leaves this machine.
///
/// Options are the demo's own: `cargo xtask demo -- --help` lists them; `--keep` leaves everything standing and
/// prints how to enter each host.
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
