//! Formatting, clippy, and what the product is deployed with.

use super::{manifests, report::Report, units};
use crate::{process, workspace::Workspace};
use anyhow::Result;

pub(super) fn run(workspace: &Workspace, features: &str, report: &mut Report) -> Result<()> {
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

    manifests::run(workspace, report)?;
    units::run(workspace, report)
}
