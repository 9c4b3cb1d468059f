//! `cargo xtask setup`: from a bare Debian-like machine to one that builds, tests and runs Drover.
//!
//! A [`Step`] knows whether it is done, how to get it done, and how a person would do it by hand.

mod bpf_linker;
mod bpffs;
pub(crate) mod cargo_deny;
mod debian;
mod debian_root;
pub(crate) mod kubectl;
pub(crate) mod kubernetes_validate;
mod packages;
mod rust_src;
mod toolchain;

use crate::{process, workspace::Workspace};
use anyhow::{Result, bail};
use bpf_linker::BpfLinker;
use bpffs::Bpffs;
use cargo_deny::CargoDeny;
use debian_root::DebianRoot;
use kubectl::Kubectl;
use kubernetes_validate::KubernetesValidate;
use packages::Packages;
use rust_src::RustSrc;
use std::{process::ExitCode, time::Instant};
use toolchain::Toolchain;

/// Brings this machine to where everything builds, runs and can be tested.
///
/// Installs missing Debian packages (apt-get, needs root), the standard library's sources for the pinned compiler,
/// bpf-linker and cargo-deny (built once, about two minutes each) and the checkers of manifests into target/tools, and
/// mounts bpffs at /sys/fs/bpf. Does only what is missing, so that a second run takes no time. Never enables or starts a service. Where it lacks the rights or
/// the package manager, it says what to install by hand.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; list what is missing, and exit with 1 if anything is.
    #[arg(long)]
    check: bool,

    /// Also what `cargo xtask test --all` needs: container tools, and a small Debian in target/debian (300 MB).
    #[arg(long)]
    all: bool,
}

/// The part of the machine's setup that a command needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// Compiling, and tests without root: never needs root itself.
    Build,
    /// Also what the lint's checks of dependencies and manifests take.
    Lint,
    /// Also what runs in network namespaces: brokers, clients, packet parsers, bpffs.
    Run,
    /// Also what long tests run in: containers, and machines with a systemd of their own.
    All,
}

/// One thing that a machine needs.
trait Step {
    /// Its name, in a few words.
    fn name(&self) -> String;

    /// Returns what is missing, or `None` when there is nothing to do.
    fn missing(&self) -> Result<Option<String>>;

    /// Gets it done. `label` starts each line of progress.
    fn install(&self, label: &str) -> Result<()>;

    /// The commands to do it by hand, when `install` cannot.
    fn by_hand(&self) -> String;
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let toolchain = Toolchain::detect(workspace)?;
    let scope = if args.all { Scope::All } else { Scope::Run };
    let steps = steps(workspace, &toolchain, scope);
    if args.check { check(&steps) } else { install(&steps, true).map(|()| ExitCode::SUCCESS) }
}

/// Does what `scope` still lacks; silent when that is nothing.
///
/// # Errors
///
/// If a step fails. The others have been tried all the same, and the error tells of each failure what to do.
pub(crate) fn ensure(workspace: &Workspace, scope: Scope) -> Result<()> {
    let toolchain = Toolchain::detect(workspace)?;
    install(&steps(workspace, &toolchain, scope), false)
}

fn steps<'a>(workspace: &'a Workspace, toolchain: &'a Toolchain, scope: Scope) -> Vec<Box<dyn Step + 'a>> {
    let mut steps: Vec<Box<dyn Step>> =
        vec![Box::new(RustSrc { workspace, toolchain }), Box::new(BpfLinker { workspace, toolchain })];
    if scope != Scope::Build {
        steps.push(Box::new(CargoDeny { workspace }));
        steps.push(Box::new(Kubectl { workspace }));
        steps.push(Box::new(KubernetesValidate { workspace }));
    }
    if scope >= Scope::Run {
        // The packages first: they may bring a linker that building bpf-linker needs.
        steps.insert(0, Box::new(Packages { workspace, scope }));
        steps.push(Box::new(Bpffs));
    }
    if scope == Scope::All {
        steps.push(Box::new(DebianRoot { workspace }));
    }
    steps
}

fn check(steps: &[Box<dyn Step + '_>]) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for step in steps {
        match step.missing()? {
            None => eprintln!("setup: {}: ok", step.name()),
            Some(missing) => {
                eprintln!("setup: {}: missing: {missing}", step.name());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn install(steps: &[Box<dyn Step + '_>], tell_all: bool) -> Result<()> {
    let mut failures = Vec::new();
    for step in steps {
        let label = format!("setup: {}", step.name());
        let outcome = step.missing().and_then(|missing| {
            let Some(missing) = missing else { return Ok(None) };
            eprintln!("{label}: missing: {missing}");
            let started = Instant::now();
            step.install(&label)?;
            // What the step believes it did is looked at again: a tool that runs is the proof, not an exit code.
            match step.missing()? {
                None => Ok(Some(started.elapsed())),
                Some(missing) => bail!("still missing after installing it: {missing}"),
            }
        });
        match outcome {
            Ok(None) if tell_all => eprintln!("{label}: ok"),
            Ok(None) => {}
            Ok(Some(took)) => {
                eprintln!("{label}: done in {}", process::human(took))
            }
            Err(error) => {
                eprintln!("{label}: failed");
                failures.push(format!("{}: {error:#}\n  by hand: {}", step.name(), step.by_hand()));
            }
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("the machine is not ready.\n\n{}\n\nThen run `cargo xtask setup` again.", failures.join("\n\n"))
}
