//! Formatting, clippy, and what the product is deployed with.

use super::report::{Count, Report};
use super::{documents, edges, manifests, units};
use crate::setup::cargo_deny;
use crate::{metadata::Metadata, process, workspace::Workspace};
use anyhow::{Result, ensure};

pub(super) fn run(
    workspace: &Workspace,
    metadata: &Metadata,
    features: &str,
    report: &mut Report,
) -> Result<()> {
    tell(report, "crates depend on each other as they may", || edges::problems(workspace, metadata))?;
    tell(report, "files named by CONTRIBUTING.md", || documents::problems(workspace))?;

    let mut deny = process::command(cargo_deny::program(workspace));
    deny.args(["--locked", "check", "bans", "licenses", "sources"]).current_dir(&workspace.root);
    report.check("cargo deny: bans, licences, sources", &mut deny)?;

    let mut fmt = process::cargo(workspace);
    report.check("rustfmt", fmt.args(["fmt", "--all", "--check"]))?;

    let mut clippy = process::cargo(workspace);
    clippy.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--keep-going",
        "--features",
        features,
        "--",
        "-D",
        "warnings",
    ]);
    report.check("clippy", &mut clippy)?;

    let mut clippy_bpf = process::cargo(workspace);
    clippy_bpf
        .args(["clippy", "--package", "lb-ebpf", "--bins", "--no-default-features", "--features", "bpf"])
        .args(["-Z", "build-std=core", "--target", "bpfel-unknown-none"])
        // A folder of its own: RUSTC_BOOTSTRAP makes build scripts of the host's dependencies run again.
        .arg("--target-dir")
        .arg(workspace.target_dir().join("bpf-lint"))
        .args(["--", "-D", "warnings"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH));
    report.check("clippy of the BPF programs", &mut clippy_bpf)?;

    self::manifests(workspace, report)
}

/// A check of our own: passes if `problems` finds none, else prints them.
fn tell(report: &mut Report, name: &str, problems: impl FnOnce() -> Result<Vec<String>>) -> Result<()> {
    let started = report.start(name);
    let problems = problems()?;
    problems.iter().for_each(|problem| eprintln!("error: {problem}"));
    report.done(name, Count::one(problems.is_empty()), started.elapsed());
    Ok(())
}

/// Checks manifests, units and alert rules: what the product is deployed with.
pub(super) fn manifests(workspace: &Workspace, report: &mut Report) -> Result<()> {
    manifests::run(workspace, report)?;
    units::run(workspace, report)?;
    alerts(workspace, report)
}

/// The alert rules: that Prometheus takes them, and what makes them fire.
fn alerts(workspace: &Workspace, report: &mut Report) -> Result<()> {
    const MISSING: &str =
        "the alert rules cannot be checked without promtool: `cargo xtask setup` installs it";
    ensure!(process::find_program("promtool").is_some(), MISSING);
    let folder = workspace.root.join("monitoring/prometheus");
    let mut check = process::command("promtool");
    report.check("alert rules", check.args(["check", "rules"]).arg(folder.join("alerts.yaml")))?;
    let mut test = process::command("promtool");
    report
        .check("tests of the alert rules", test.args(["test", "rules"]).arg(folder.join("alerts_test.yaml")))
}
