//! Building the test programs once, and running them.

use super::{
    ROOT_FEATURE,
    report::{Count, Report},
};
use crate::{metadata::Metadata, process, workspace::Workspace};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// A test program that prints nothing for so long hangs, and is ended: a report late is better than none.
const SILENCE: Duration = Duration::from_secs(10 * 60);

/// The programs that hold the tests, and the binaries that tests start.
pub(super) struct Programs {
    tests: Vec<TestProgram>,
    /// `CARGO_BIN_EXE_<name>` for each binary of the workspace, as `cargo test` sets it.
    binaries: Vec<(OsString, PathBuf)>,
}

struct TestProgram {
    /// `lb-node (lib)`, `drover-tests (test paths)`.
    name: String,
    package: String,
    /// Where `cargo test` would run it.
    folder: PathBuf,
    executable: PathBuf,
    needs_root: bool,
}

/// Builds every test program and every binary in one go, with the feature of the tests that need root.
///
/// A build that fails counts as one failure, and leaves nothing to run.
pub(super) fn build(
    workspace: &Workspace,
    metadata: &Metadata,
    features: &str,
    report: &mut Report,
) -> Result<Programs> {
    const NAME: &str = "build of the tests and the BPF programs";
    let started = report.start(NAME);
    let mut cargo = process::cargo(workspace);
    cargo.args(["build", "--workspace", "--bins", "--tests", "--features", features]);
    cargo.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = cargo.output().with_context(|| format!("cannot run `{}`", process::line(&cargo)))?;
    report.done(NAME, Count::one(output.status.success()), started.elapsed());
    let mut programs = Programs { tests: Vec::new(), binaries: Vec::new() };
    if output.status.success() {
        for message in String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?.lines() {
            programs
                .note(message, metadata)
                .with_context(|| format!("cannot read cargo's message {message}"))?;
        }
        // cargo names them in the order in which they were ready.
        programs.tests.sort_by(|a, b| a.name.cmp(&b.name));
    }
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

    /// One test at a time: they share the kernel's network namespaces, bpffs and two processor cores.
    pub(super) fn run_with_root(&self, arguments: &[String], report: &mut Report) -> Result<()> {
        self.tests.iter().filter(|test| test.needs_root).try_for_each(|test| {
            run(self.command(test).env("RUST_TEST_THREADS", "1").args(arguments), &test.name, report)
        })
    }

    /// The test program with the surroundings that `cargo test` gives it.
    fn command(&self, test: &TestProgram) -> Command {
        let mut command = process::command(&test.executable);
        command.current_dir(&test.folder).env("CARGO_MANIFEST_DIR", &test.folder);
        command
            .env("CARGO_PKG_NAME", &test.package)
            .envs(self.binaries.iter().map(|(name, path)| (name, path)));
        command
    }

    fn note(&mut self, message: &str, metadata: &Metadata) -> Result<()> {
        let message: Value = serde_json::from_str(message)?;
        let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str);
        let (Some("compiler-artifact"), Some(executable)) = (text("/reason"), text("/executable")) else {
            return Ok(());
        };
        let id = text("/package_id").context("no package")?;
        let kind = text("/target/kind/0").context("no kind of target")?;
        let target = text("/target/name").context("no name of the target")?;
        let Some((package, folder)) = metadata.package(id) else { return Ok(()) };
        let is_test = message.pointer("/profile/test").and_then(Value::as_bool).context("no profile")?;
        if is_test {
            let needs_root =
                metadata.required_features(id, kind, target).iter().any(|name| name == ROOT_FEATURE);
            let name = if kind == "lib" {
                format!("{package} (lib)")
            } else {
                format!("{package} ({kind} {target})")
            };
            let (package, folder, executable) = (package.to_owned(), folder.clone(), executable.into());
            self.tests.push(TestProgram { name, package, folder, executable, needs_root });
        } else if kind == "bin" {
            self.binaries.push((format!("CARGO_BIN_EXE_{target}").into(), executable.into()));
        }
        Ok(())
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
