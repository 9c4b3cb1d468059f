//! Processes that end with their handle.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait::{wait_undisturbed, wait_until};

/// How long a process may take to go away after SIGKILL.
const REAP_LIMIT: Duration = Duration::from_secs(5);

/// A running program, at the head of its own process group. Dropping the handle kills the group, unless the lab is
/// kept.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    kept: Arc<AtomicBool>,
}

impl Process {
    /// Starts `command` with standard output and standard error going to the file `log`.
    pub(crate) fn spawn(
        name: String,
        mut command: Command,
        log: PathBuf,
        kept: Arc<AtomicBool>,
    ) -> Result<Process> {
        let file = File::create(&log).with_context(|| format!("cannot create the log {}", log.display()))?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", command.get_program().display()))?;
        Ok(Process { name, child, log, kept })
    }

    /// What this process is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All it has written so far to standard output and standard error.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether it still runs.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends a signal to the process itself, not to its children.
    ///
    /// # Errors
    ///
    /// When it has already ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running()? {
            bail!("{} has already ended; its output:\n{}", self.name, self.log()?);
        }
        kill_process(self.process_id(), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Kills it, as a crash would (SIGKILL), and reaps it.
    ///
    /// # Errors
    ///
    /// When it has already ended.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(REAP_LIMIT)?;
        Ok(())
    }

    /// Asks it to stop (SIGTERM) and waits for its end.
    ///
    /// # Errors
    ///
    /// When it has already ended, or is still there after `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(limit)
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it is still there after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait_until(format_args!("{} to end", self.name), limit, || Ok(child.try_wait()?))
    }

    /// Waits until `ready` says so, but not past the process's end.
    ///
    /// # Errors
    ///
    /// When the process ends first, or `limit` passes; both with the process's output in the message.
    pub fn wait_ready<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let outcome = wait_until(format_args!("{}: {what}", self.name), limit, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before this: {what}", self.name);
            }
            ready()
        });
        outcome.with_context(|| format!("output of {}:\n{}", self.name, self.log().unwrap_or_default()))
    }

    /// Waits for a line of its output that contains `text`, and returns the first such line.
    ///
    /// # Errors
    ///
    /// As [`Process::wait_ready`].
    pub fn wait_for_line(&mut self, text: &str, limit: Duration) -> Result<String> {
        let log = self.log.clone();
        self.wait_ready(&format!("a line with \"{text}\""), limit, || {
            let written = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
            Ok(written.lines().find(|line| line.contains(text)).map(str::to_owned))
        })
    }

    fn process_id(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        // Once reaped, the id may belong to somebody else: signal only what has not been waited for.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(self.process_id(), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// How a short command ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs `command` to its end, or kills it after `limit`.
pub(crate) fn run_to_end(command: &mut Command, limit: Duration) -> Result<Finished> {
    let shown = shown(command);
    // Files rather than pipes: a grandchild that keeps one open cannot block us.
    let mut stdout = tempfile::tempfile().context("cannot create a file for a command's output")?;
    let mut stderr = tempfile::tempfile().context("cannot create a file for a command's output")?;
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start `{shown}`; `cargo xtask setup` installs what is missing"))?;
    let ended = wait_undisturbed(format_args!("`{shown}` to end"), limit, || Ok(child.try_wait()?));
    if ended.is_err() {
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let _ = child.wait();
    }
    let (stdout, stderr) = (text_of(&mut stdout)?, text_of(&mut stderr)?);
    let status = ended.with_context(|| format!("{stdout}{stderr}"))?;
    Ok(Finished { status, stdout, stderr })
}

/// As [`run_to_end`], and a failing exit status is an error. Returns the standard output.
pub(crate) fn run_well(command: &mut Command, limit: Duration) -> Result<String> {
    let finished = run_to_end(command, limit)?;
    if !finished.status.success() {
        bail!("`{}` failed ({}): {}{}", shown(command), finished.status, finished.stdout, finished.stderr);
    }
    Ok(finished.stdout)
}

fn shown(command: &Command) -> String {
    let mut shown = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        shown.push(' ');
        shown.push_str(&argument.to_string_lossy());
    }
    shown
}

fn text_of(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
