//! The operator's command line under test.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use testbed::Host;

/// `lbctl` on a host, at an ensemble.
#[derive(Clone, Debug)]
pub struct Lbctl {
    host: Host,
    servers: String,
    limit: Option<Duration>,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its exit code; -1 where a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Lbctl {
    /// `lbctl` on `host`, at the ensemble that `servers` names.
    #[must_use]
    pub fn new(host: &Host, servers: &str) -> Lbctl {
        Lbctl { host: host.clone(), servers: servers.to_owned(), limit: None }
    }

    /// How long a command may take; as any [`HostCommand`](crate::HostCommand) if this is not called.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Lbctl {
        self.limit = Some(limit);
        self
    }

    /// Runs a command to its end, well or not.
    ///
    /// # Errors
    ///
    /// When the binary is missing, or does not end in time.
    pub fn run(&self, words: &[&str]) -> Result<Answer> {
        let command = self.host.command(binary()?).args(["--zookeeper", &self.servers]).args(words);
        let command = match self.limit {
            Some(limit) => command.limit(limit),
            None => command,
        };
        let finished = command.output()?;
        let code = finished.status.code().unwrap_or(-1);
        Ok(Answer { code, stdout: finished.stdout, stderr: finished.stderr })
    }

    /// What a command prints with `-o json`.
    ///
    /// # Errors
    ///
    /// As [`Lbctl::run`], and when it does not print JSON; with what it printed.
    pub fn json(&self, words: &[&str]) -> Result<serde_json::Value> {
        let answer = self.run(&[&["-o", "json"], words].concat())?;
        serde_json::from_str(&answer.stdout).with_context(|| format!("not JSON: {answer:?}"))
    }
}

/// `lbctl`, built beside the running program.
fn binary() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    // Tests run from target/<profile>/deps, programs from target/<profile>.
    let found =
        own.ancestors().skip(1).take(2).map(|folder| folder.join("lbctl")).find(|path| path.is_file());
    found.with_context(|| format!("no lbctl beside {}: build it first (`cargo xtask build`)", own.display()))
}
