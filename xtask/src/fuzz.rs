//! `cargo xtask fuzz`: what others can send to Drover, made up by libFuzzer.

use crate::{
    process,
    setup::{self, Scope},
    workspace::Workspace,
};
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

/// The version of cargo-fuzz that the targets are built with.
const VERSION: &str = "0.13.2";
/// The targets, each a program of `fuzz/`.
pub(crate) const TARGETS: [&str; 7] =
    ["records", "files", "tree", "packets", "tunnel_packets", "answers", "icmp"];
/// Targets that load BPF programs.
const OF_ROOT: [&str; 2] = ["packets", "tunnel_packets"];
/// Memory of a fuzzer, in MiB: more means that an input takes memory out of proportion.
const MEMORY: u32 = 1024;
/// Seconds that one input may take.
const HANGS: u32 = 30;

/// Feeds znodes, files, packets and answers that nobody sane would send, and looks whether anything breaks.
///
/// Each target begins with its seeds (`fuzz/seeds`) and what earlier runs found worth keeping (`fuzz/corpus`). The last
/// lines say how many inputs ran and what was found; exits with 0 only if nothing was. An input that broke something is
/// kept in `fuzz/artifacts`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask fuzz --all --seconds 60\n  \
    cargo xtask fuzz packets --seconds 3600\n  \
    cargo xtask fuzz tree --replay fuzz/artifacts/tree/crash-0123   what was found, once more\n  \
    cargo xtask fuzz --all --seeds                                  writes the seeds anew")]
pub(crate) struct Args {
    /// Targets to fuzz. Those of packets need root.
    #[arg(required_unless_present = "all", value_parser = TARGETS)]
    targets: Vec<String>,

    /// All targets, one after the other.
    #[arg(long)]
    all: bool,

    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,

    /// Run one input of the target, and nothing else.
    #[arg(long, value_name = "FILE", conflicts_with = "all")]
    replay: Option<PathBuf>,

    /// Write the targets' seeds, and run nothing.
    #[arg(long, conflicts_with = "replay")]
    seeds: bool,
}

/// The outcome of one target.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Inputs that ran.
    runs: u64,
    /// Edges of code that inputs reached.
    coverage: u64,
    /// The input that broke something, if one did; else why the fuzzer failed.
    pub(crate) finding: Option<String>,
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let targets: Vec<&str> =
        if args.all { TARGETS.to_vec() } else { args.targets.iter().map(String::as_str).collect() };
    if targets.iter().any(|target| OF_ROOT.contains(target)) {
        process::need_root("fuzzing the BPF programs loads them")?;
    }
    setup::ensure(workspace, Scope::Build)?;
    let programs = build(workspace)?;
    if args.seeds {
        return write_seeds(workspace, &programs, &targets);
    }
    if let Some(input) = &args.replay {
        let input = input.canonicalize().with_context(|| input.display().to_string())?;
        return process::exit_code(Command::new(programs.join(targets[0])).arg(input));
    }
    let mut found = Vec::new();
    println!("{:<16} {:>8} {:>12} {:>9}  findings", "target", "seconds", "runs", "coverage");
    for target in targets {
        let outcome = run(workspace, &programs, target, args.seconds)?;
        let finding = outcome.finding.as_deref().unwrap_or("none");
        println!("{target:<16} {:>8} {:>12} {:>9}  {finding}", args.seconds, outcome.runs, outcome.coverage);
        if let Some(finding) = outcome.finding {
            found.push(format!("cargo xtask fuzz {target} --replay {finding}"));
        }
    }
    for replay in &found {
        println!("to see it again: {replay}");
    }
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds all targets; returns the folder of the programs.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let tool = install(workspace)?;
    let target_dir = workspace.target_dir().join("fuzz");
    let mut command = process::command(tool);
    // The code is safe Rust but for a few places: overflows, debug assertions and the targets' own accounts of memory
    // find more here than a sanitizer would, and it runs on a stable compiler.
    command
        .current_dir(&workspace.root)
        .args(["fuzz", "build", "--fuzz-dir", "fuzz", "--sanitizer", "none", "--target-dir"])
        .arg(&target_dir)
        .stdout(Stdio::null());
    process::logged(&mut command, "building the fuzzers", &workspace.setup_cache().join("fuzz.log"))?;
    let host = process::output(process::command("rustc").args(["--print", "host-tuple"]))?;
    Ok(target_dir.join(host.trim()).join("release"))
}

/// Brings cargo-fuzz into place, if it is not; returns where it is.
fn install(workspace: &Workspace) -> Result<PathBuf> {
    let program = workspace.tools().join("bin/cargo-fuzz");
    let version = process::output(process::command(&program).args(["fuzz", "--version"]));
    if version.is_ok_and(|says| says.split_whitespace().last() == Some(VERSION)) {
        return Ok(program);
    }
    let build_folder = workspace.setup_cache().join("cargo-fuzz");
    let mut cargo = process::cargo(workspace);
    cargo
        .args(["install", "cargo-fuzz", "--version", VERSION, "--locked", "--force", "--root"])
        .arg(workspace.tools())
        .arg("--target-dir")
        .arg(&build_folder);
    let log = workspace.setup_cache().join("cargo-fuzz.log");
    process::logged(&mut cargo, "installing cargo-fuzz", &log)?;
    fs::remove_dir_all(&build_folder).context("cannot remove the finished build of cargo-fuzz")?;
    Ok(program)
}

/// Fuzzes one target for some seconds.
pub(crate) fn run(workspace: &Workspace, programs: &Path, target: &str, seconds: u32) -> Result<Outcome> {
    let fuzz = workspace.root.join("fuzz");
    let (corpus, artifacts) = (fuzz.join("corpus").join(target), fuzz.join("artifacts").join(target));
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let mut command = Command::new(programs.join(target));
    command
        .args([&corpus, &fuzz.join("seeds").join(target)])
        .arg(format!("-max_total_time={seconds}"))
        .args([format!("-rss_limit_mb={MEMORY}"), format!("-timeout={HANGS}")])
        .args(["-max_len=4096", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run `{}`", process::line(&command)))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let mut outcome = read(&said);
    if !output.status.success() {
        eprintln!("{}", panic_of(&said));
        let failed = || format!("the fuzzer ended with {}", output.status);
        outcome.finding = Some(outcome.finding.unwrap_or_else(failed));
    } else {
        ensure!(outcome.runs > 0, "{target}: no input ran, which proves nothing");
    }
    Ok(outcome)
}

/// Reads libFuzzer's words about a run.
fn read(said: &str) -> Outcome {
    let number = |text: &str| text.split_whitespace().next().and_then(|number| number.parse().ok());
    let after = |what: &str| said.rsplit_once(what).and_then(|(_, rest)| number(rest)).unwrap_or(0);
    let written = said.rsplit_once("Test unit written to ").and_then(|(_, rest)| rest.lines().next());
    Outcome {
        runs: after("stat::number_of_executed_units:"),
        coverage: after(" cov: "),
        finding: written.map(|path| path.trim().to_owned()),
    }
}

/// The lines about a panic, or the last ones.
fn panic_of(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let start = lines.iter().position(|line| line.contains("panicked at"));
    let start = start.unwrap_or(lines.len().saturating_sub(20));
    lines[start..].iter().take(20).copied().collect::<Vec<_>>().join("\n")
}

fn write_seeds(workspace: &Workspace, programs: &Path, targets: &[&str]) -> Result<ExitCode> {
    for target in targets {
        let folder = workspace.root.join("fuzz/seeds").join(target);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        let mut command = Command::new(programs.join(target));
        command.env("DROVER_FUZZ_SEEDS", &folder).stdout(Stdio::null()).stderr(Stdio::null());
        let status = process::status(&mut command)?;
        if !status.success() || !folder.exists() {
            bail!("{target} has written no seeds ({status})");
        }
        println!("{target}: {} seeds", fs::read_dir(&folder)?.count());
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fuzzers_last_words_tell_runs_coverage_and_what_was_found() {
        let well = "#2\tINITED cov: 7 ft: 8\n#400\tDONE   cov: 4589 ft: 11795 corp: 13/190Kb\n\
                    stat::number_of_executed_units: 253538\nstat::average_exec_per_sec:     23048\n";
        assert_eq!(read(well), Outcome { runs: 253_538, coverage: 4589, finding: None });
        let found = "thread panicked at src/x.rs:1:2:\nboo\n\
                     artifact_prefix='a/'; Test unit written to a/crash-0123\nBase64: eA==\n";
        assert_eq!(read(found).finding.as_deref(), Some("a/crash-0123"));
        assert!(panic_of(found).starts_with("thread panicked at src/x.rs:1:2:\nboo"));
    }
}
