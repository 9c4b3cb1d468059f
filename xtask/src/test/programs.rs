//! Building the test programs once, and running those that need no root.

use super::{
    LONG_FEATURE, ROOT_FEATURE,
    report::{Count, Report},
};
use crate::{
    artifacts::{self, Artifact},
    metadata::Metadata,
    process,
    workspace::Workspace,
};
use anyhow::{Context as _, Result};
use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// Set for tests that have a long form when that is wanted.
const LONG_FORM: &str = "DROVER_LONG";
/// The name of test programs whose tests need the machine to themselves.
const ALONE: &str = "alone";
/// A test program that prints nothing for so long hangs, and is ended: a report late is better than none.
const SILENCE: Duration = Duration::from_secs(10 * 60);

/// The programs that hold the tests, and the binaries that tests start.
pub(super) struct Programs {
    tests: Vec<TestProgram>,
    /// `CARGO_BIN_EXE_<name>` for each binary of the workspace, as `cargo test` sets it.
    binaries: Vec<(OsString, PathBuf)>,
    /// Whether tests are told to take the time of their long form.
    all: bool,
}

pub(super) struct TestProgram {
    /// `lb-node (lib)`, `drover-tests (test paths)`.
    pub(super) name: String,
    package: String,
    /// The folder that `cargo test` would run it in.
    folder: PathBuf,
    executable: PathBuf,
    needs_root: bool,
    /// Only for `--all`.
    is_long: bool,
    /// Its tests have the machine to themselves.
    pub(super) is_alone: bool,
}

/// Builds every test program and every binary in one go, with the feature of the tests that need root.
///
/// A build that fails counts as one failure, and leaves nothing to run.
pub(super) fn build(
    workspace: &Workspace,
    metadata: &Metadata,
    features: &str,
    all: bool,
    report: &mut Report,
) -> Result<Programs> {
    const NAME: &str = "build of the tests and the BPF programs";
    let started = report.start(NAME);
    let arguments = ["--workspace", "--bins", "--tests", "--features", features];
    let artifacts = artifacts::build(workspace, &arguments)?;
    // A build that succeeds proves nothing yet.
    let failed = usize::from(artifacts.is_none());
    report.done(NAME, Count { failed, ..Count::default() }, started.elapsed());
    let mut programs = Programs { tests: Vec::new(), binaries: Vec::new(), all };
    for artifact in artifacts.into_iter().flatten() {
        programs.note(artifact, metadata);
    }
    // cargo names them in the order in which they were ready.
    programs.tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

/// Runs the examples in the documentation.
pub(super) fn documentation(
    workspace: &Workspace,
    features: &str,
    arguments: &[String],
    report: &mut Report,
) -> Result<()> {
    let mut cargo = process::cargo(workspace);
    cargo.args(["test", "--quiet", "--workspace", "--doc", "--features", features, "--"]).args(arguments);
    run(&mut cargo, "examples in the documentation", report)
}

impl Programs {
    pub(super) fn run_without_root(&self, arguments: &[String], report: &mut Report) -> Result<()> {
        self.tests
            .iter()
            .filter(|test| !test.needs_root)
            .try_for_each(|test| run(self.command(test).args(arguments), &test.name, report))
    }

    /// The programs whose tests need root; the long ones too if they are wanted.
    pub(super) fn with_root(&self) -> impl Iterator<Item = &TestProgram> {
        self.tests.iter().filter(|test| test.needs_root && (self.all || !test.is_long))
    }

    /// The test program with the surroundings that `cargo test` gives it.
    pub(super) fn command(&self, test: &TestProgram) -> Command {
        let mut command = process::command(&test.executable);
        command.current_dir(&test.folder).env("CARGO_MANIFEST_DIR", &test.folder);
        command
            .env("CARGO_PKG_NAME", &test.package)
            .envs(self.binaries.iter().map(|(name, path)| (name, path)))
            .envs(self.all.then_some((LONG_FORM, "1")));
        command
    }

    fn note(&mut self, artifact: Artifact, metadata: &Metadata) {
        let Artifact { package: id, kind, name: target, executable, is_test } = artifact;
        let Some((package, folder)) = metadata.package(&id) else { return };
        if is_test {
            let required = metadata.required_features(&id, &kind, &target);
            let requires = |wanted: &str| required.iter().any(|feature| feature == wanted);
            let (needs_root, is_long) = (requires(ROOT_FEATURE), requires(LONG_FEATURE));
            let name = match kind.as_str() {
                "lib" => format!("{package} (lib)"),
                kind => format!("{package} ({kind} {target})"),
            };
            let (package, folder) = (package.to_owned(), folder.clone());
            let is_alone = is_long || target == ALONE;
            self.tests.push(TestProgram { name, package, folder, executable, needs_root, is_long, is_alone });
        } else if kind == "bin" {
            self.binaries.push((format!("CARGO_BIN_EXE_{target}").into(), executable));
        }
    }
}

/// Runs a test program, passes its output on, and counts.
fn run(command: &mut Command, name: &str, report: &mut Report) -> Result<()> {
    let started = report.start(name);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot run `{}`", process::line(command)))?;
    let (mut count, hung) = pass_on(&mut child)?;
    if hung {
        eprintln!("{name}: silent for {}, ended", process::human(SILENCE));
        child.kill().with_context(|| format!("cannot end {name}"))?;
    }
    let status = child.wait()?;
    // A program that died has printed no result for the tests that it did not finish.
    if !status.success() && count.failed == 0 {
        eprintln!("{name}: ended with {status}");
        count.failed = 1;
    }
    report.done(name, count, started.elapsed());
    Ok(())
}

/// Passes output on until it ends or falls silent; the second value tells which.
fn pass_on(child: &mut Child) -> Result<(Count, bool)> {
    let output = BufReader::new(child.stdout.take().context("the output of a test program is piped")?);
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in output.split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut count = Count::default();
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => match Count::parse(&line) {
                Some(result) => count.add(result),
                None if line.is_empty() || line.starts_with("running ") => {}
                None => println!("{line}"),
            },
            Err(RecvTimeoutError::Disconnected) => return Ok((count, false)),
            Err(RecvTimeoutError::Timeout) => return Ok((count, true)),
        }
    }
}
