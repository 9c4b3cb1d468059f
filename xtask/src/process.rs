//! Running other programs: quietly, for their output, or with a log file and a sign of life.

use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{IsTerminal as _, Write as _, stderr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A command without the variables that `cargo run` added for xtask itself.
///
/// Build scripts ask to be run again when some of these change (ring's does for `CARGO_PKG_NAME`), so handing
/// them on would make builds from xtask and builds by hand undo each other. `LD_LIBRARY_PATH` goes too: it
/// would hide that a tool does not find its libraries by itself.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let of_cargo = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
                || matches!(
                    name,
                    "CARGO" | "CARGO_BIN_NAME" | "CARGO_CRATE_NAME" | "OUT_DIR" | "LD_LIBRARY_PATH"
                )
        });
        if of_cargo {
            command.env_remove(name);
        }
    }
    command
}

/// The cargo that runs xtask, in the root of the work tree, with its messages on stderr.
pub(crate) fn cargo(workspace: &Workspace) -> Command {
    let mut cargo = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&workspace.root);
    cargo
}

/// The command line as a person would type it, for messages.
pub(crate) fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Runs a command that shares this terminal.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| format!("cannot run `{}`", line(command)))
}

/// Runs a command that shares this terminal, and ends as it ends.
///
/// A command that was killed by a signal counts as a failure.
pub(crate) fn exit_code(command: &mut Command) -> Result<ExitCode> {
    let code = status(command)?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Runs a command that shares this terminal; an error if it fails.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    ensure!(status.success(), "`{}` failed ({status})", line(command));
    Ok(())
}

/// Returns what a command prints on stdout; an error with what it prints on stderr if it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run `{}`", line(command)))?;
    ensure!(
        output.status.success(),
        "`{}` failed ({}): {}",
        line(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("`{}` does not print UTF-8", line(command)))
}

/// Runs a command with its output in `log`, while showing `what`, the time it has taken and the last line of
/// its output. If it fails, the error carries the end of the log.
pub(crate) fn logged(command: &mut Command, what: &str, log: &Path) -> Result<()> {
    let folder = log.parent().context("a log file is in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut child = command.spawn().with_context(|| format!("cannot run `{}`", line(command)))?;
    let status = show_life(&mut child, what, log)?;
    if !status.success() {
        bail!("`{}` failed ({status})\nthe end of {}:\n{}", line(command), log.display(), tail(log, 20));
    }
    Ok(())
}

/// True when this process has the rights of root.
pub(crate) fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0")
}

/// An error with the way out if this process lacks the rights of root; `what` needs them.
pub(crate) fn need_root(what: &str) -> Result<()> {
    // Under plain sudo, root's own cargo would be looked for, and there is none.
    const AS_ROOT: &str = r#"sudo env HOME="$HOME" PATH="$PATH" cargo xtask ..."#;
    ensure!(is_root(), "{what}, which needs root: run `{AS_ROOT}`");
    Ok(())
}

/// The place of a program: on `PATH`, or in the folders of administrators' programs, which a user's `PATH` may lack.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders =
        env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// A duration as a person reads it: `0.4 s`, `12 s`, `3 min 05 s`.
pub(crate) fn human(duration: Duration) -> String {
    match duration.as_secs() {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        seconds @ 10..60 => format!("{seconds} s"),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

fn show_life(child: &mut Child, what: &str, log: &Path) -> Result<ExitStatus> {
    const LOOK: Duration = Duration::from_millis(50);
    let started = Instant::now();
    let terminal = stderr().is_terminal();
    // A terminal's line is overwritten; elsewhere (a CI log) each sign of life is a line of its own.
    let (mut next, period) =
        if terminal { (Duration::from_secs(1), 1) } else { (Duration::from_secs(10), 10) };
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let elapsed = started.elapsed();
        if elapsed >= next {
            next += Duration::from_secs(period);
            let last: String = tail(log, 1).trim().chars().take(60).collect();
            let (before, after) = if terminal { ("\r\x1b[2K", "") } else { ("", "\n") };
            eprint!("{before}{what}: {} s  {last}{after}", elapsed.as_secs());
            stderr().flush()?;
        }
        thread::sleep(LOOK);
    };
    if terminal {
        eprint!("\r\x1b[2K");
    }
    Ok(status)
}

fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut last: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(lines).collect();
    last.reverse();
    last.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(human(Duration::from_millis(420)), "0.4 s");
        assert_eq!(human(Duration::from_millis(59_900)), "59 s");
        assert_eq!(human(Duration::from_secs(185)), "3 min 05 s");
    }

    #[test]
    fn output_of_a_failing_command_names_it_and_what_it_said() {
        let error = output(command("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("broken") && error.contains('3'), "{error}");
    }

    #[test]
    fn a_command_that_does_not_exist_is_named() {
        let error = output(&mut command("no-such-program-here")).unwrap_err().to_string();
        assert!(error.contains("no-such-program-here"), "{error}");
    }
}
