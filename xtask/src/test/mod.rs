//! `cargo xtask test`: every check there is, in the order of their cost.
//!
//! Tests that need root are integration tests with `required-features = ["e2e"]`, so that a plain `cargo test`
//! does not see them. Here that feature is on from the start, in every package that has it, so that linting,
//! unit tests and end-to-end tests share one build.

mod documents;
mod e2e;
mod edges;
mod lint;
mod manifests;
mod programs;
mod report;
mod units;

use crate::{
    fuzz,
    metadata::Metadata,
    process,
    setup::{self, Scope},
    workspace::Workspace,
};
use anyhow::Result;
use report::{Count, Report};
use std::process::ExitCode;

/// The cargo feature that stands before tests that need root.
const ROOT_FEATURE: &str = "e2e";
/// The one that stands besides before tests that only `--all` runs. It is on as well, so that they are always linted and built.
const LONG_FEATURE: &str = "long";

/// Runs every check: formatting, clippy, unit and property tests, the end-to-end tests that need root, and the fuzzers.
///
/// Brings the machine into place first (see `cargo xtask setup`). The end-to-end tests load BPF programs and
/// make network namespaces, and run several at a time; nothing they send leaves this machine. The last
/// line on stdout is `N passed, N failed`, where each lint check counts as one, and so does a build that fails. Exits with 0 only if something passed and nothing failed.
///
/// Without root, `--only lint` and `--only unit` work, as does plain `cargo test`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask test --only unit\n  \
    cargo xtask test --only e2e -- gue          the end-to-end tests with `gue` in their names\n  \
    cargo xtask test --only e2e -- --nocapture  with all they print\n  \
    cargo xtask test --all --only e2e -- systemd")]
pub(crate) struct Args {
    /// Run the long tests as well: units on a machine with a systemd of its own, images as a container engine runs them.
    /// And run the others in their long form: more simulated lives, a longer outage, a minute for each fuzzer.
    ///
    /// They take minutes and more, and bring tools and a small Debian (300 MB, see `cargo xtask setup --all`). One that this
    /// machine cannot run is skipped with its reason, and counted as such in the last line.
    #[arg(long)]
    all: bool,

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
    /// Kubernetes' manifests, systemd's units and alert rules: the part of `lint` that compiles nothing.
    Manifests,
    /// rustfmt, clippy with warnings denied, also for the BPF programs, Kubernetes' manifests and systemd's units.
    Lint,
    /// Unit, property and documentation tests: no root, no network beyond loopback.
    Unit,
    /// Tests that need root: the kernel's verifier, real packets between network namespaces.
    E2e,
    /// The fuzzers, each for some seconds (`cargo xtask fuzz` runs them for longer): needs root, too.
    Fuzz,
}

/// Seconds for each fuzzer.
const FUZZED: u32 = 5;
/// The same with `--all`.
const FUZZED_LONG: u32 = 60;

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let only_manifests = args.only == Some(Part::Manifests);
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let root_needed = wanted(Part::E2e) || wanted(Part::Fuzz);
    if root_needed {
        let what =
            "the end-to-end tests and fuzzers (all but `--only lint` and `--only unit`) load BPF programs";
        process::need_root(what)?;
    }
    let scope = match () {
        () if root_needed && args.all => Scope::All,
        () if root_needed => Scope::Run,
        () if wanted(Part::Lint) || only_manifests => Scope::Lint,
        () => Scope::Build,
    };
    setup::ensure(workspace, scope)?;

    let metadata = Metadata::read(workspace)?;
    let features =
        [ROOT_FEATURE, LONG_FEATURE].map(|feature| metadata.with_feature(feature)).concat().join(",");
    let mut report = Report::default();
    if wanted(Part::Lint) && args.tests.is_empty() {
        lint::run(workspace, &metadata, &features, &mut report)?;
    }
    if only_manifests {
        lint::manifests(workspace, &mut report)?;
    }
    let (unit, e2e) = (wanted(Part::Unit), wanted(Part::E2e));
    if unit || e2e {
        let programs = programs::build(workspace, &metadata, &features, args.all, &mut report)?;
        if unit {
            programs.run_without_root(&args.tests, &mut report)?;
            programs::documentation(workspace, &features, &args.tests, &mut report)?;
        }
        if e2e {
            let logs = workspace.target_dir().join("test-logs");
            e2e::run(&programs, &args.tests, &logs, &mut report)?;
        }
    }
    if wanted(Part::Fuzz) && args.tests.is_empty() {
        fuzz(workspace, if args.all { FUZZED_LONG } else { FUZZED }, &mut report)?;
    }
    Ok(report.finish())
}

/// Runs every fuzzer for a moment: a check each.
fn fuzz(workspace: &Workspace, seconds: u32, report: &mut Report) -> Result<()> {
    let started = report.start("building the fuzzers");
    let programs = match fuzz::build(workspace) {
        Ok(programs) => programs,
        Err(error) => {
            eprintln!("error: {error:#}");
            report.done("building the fuzzers", Count::one(false), started.elapsed());
            return Ok(());
        }
    };
    for target in fuzz::TARGETS {
        let name = format!("fuzz {target}");
        let started = report.start(&name);
        let outcome = fuzz::run(workspace, &programs, target, seconds)?;
        if let Some(finding) = &outcome.finding {
            eprintln!("found; to see it again: cargo xtask fuzz {target} --replay {finding}");
        }
        report.done(&name, Count::one(outcome.finding.is_none()), started.elapsed());
    }
    Ok(())
}
