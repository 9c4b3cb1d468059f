//! `cargo xtask test`: every check there is, in the order of their cost.
//!
//! Tests that need root are integration tests with `required-features = ["e2e"]`, so that a plain `cargo test`
//! does not see them. Here that feature is on from the start, in every package that has it, so that linting,
//! unit tests and end-to-end tests share one build.

mod lint;
mod manifests;
mod programs;
mod report;
mod units;

use crate::{
    metadata::Metadata,
    process,
    setup::{self, Scope},
    workspace::Workspace,
};
use anyhow::Result;
use report::Report;
use std::process::ExitCode;

/// The cargo feature that stands before tests that need root.
const ROOT_FEATURE: &str = "e2e";

/// Runs every check: formatting, clippy, unit and property tests, and the end-to-end tests that need root.
///
/// Brings the machine into place first (see `cargo xtask setup`). The end-to-end tests load BPF programs and
/// make network namespaces, and run one after the other; nothing they send leaves this machine. The last
/// line on stdout is `N passed, N failed`, where each lint check counts as one, and so does a build that fails. Exits with 0 only if something passed and nothing failed.
///
/// Without root, `--only lint` and `--only unit` work, as does plain `cargo test`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask test --only unit\n  \
    cargo xtask test --only e2e -- gue          the end-to-end tests with `gue` in their names\n  \
    cargo xtask test --only e2e -- --nocapture  with all they print")]
pub(crate) struct Args {
    /// Run one part alone.
    #[arg(long)]
    only: Option<Part>,

    /// Handed to the test programs: a part of the names of the tests to run, or options such as `--nocapture`.
    /// Lint checks are left out then.
    #[arg(last = true)]
    tests: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// rustfmt, clippy with warnings denied, also for the BPF programs, Kubernetes' manifests and systemd's units.
    Lint,
    /// Unit, property and documentation tests: no root, no network beyond loopback.
    Unit,
    /// What needs root: the kernel's verifier, real packets between network namespaces.
    E2e,
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let root_needed = wanted(Part::E2e);
    if root_needed {
        let what = "the end-to-end tests (all but `--only lint` and `--only unit`) load BPF programs";
        process::need_root(what)?;
    }
    let scope = match () {
        () if root_needed => Scope::Run,
        () if wanted(Part::Lint) => Scope::Lint,
        () => Scope::Build,
    };
    setup::ensure(workspace, scope)?;

    let metadata = Metadata::read(workspace)?;
    let features = metadata.with_feature(ROOT_FEATURE).join(",");
    let mut report = Report::default();
    if wanted(Part::Lint) && args.tests.is_empty() {
        lint::run(workspace, &features, &mut report)?;
    }
    let (unit, e2e) = (wanted(Part::Unit), wanted(Part::E2e));
    if unit || e2e {
        let programs = programs::build(workspace, &metadata, &features, &mut report)?;
        if unit {
            programs.run_without_root(&args.tests, &mut report)?;
            programs::documentation(workspace, &features, &args.tests, &mut report)?;
        }
        if e2e {
            programs.run_with_root(&args.tests, &mut report)?;
        }
    }
    Ok(report.finish())
}
