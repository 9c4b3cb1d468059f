//! cargo-deny, which holds dependencies against `deny.toml`.

use super::Step;
use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result};
use std::{fs, path::PathBuf, process::Command};

const VERSION: &str = "0.20.2";

pub(super) struct CargoDeny<'a> {
    pub(super) workspace: &'a Workspace,
}

/// The program, whether or not it is there.
pub(crate) fn program(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("bin/cargo-deny")
}

impl CargoDeny<'_> {
    fn build_folder(&self) -> PathBuf {
        self.workspace.setup_cache().join("cargo-deny")
    }

    /// Unoptimised: it runs for seconds, and a release build of it takes many minutes.
    fn cargo_install(&self) -> Command {
        let mut cargo = process::cargo(self.workspace);
        cargo
            .args(["install", "cargo-deny", "--version", VERSION, "--locked", "--force", "--debug", "--root"])
            .arg(self.workspace.tools())
            .arg("--target-dir")
            .arg(self.build_folder())
            .env("CARGO_PROFILE_DEV_DEBUG", "0");
        cargo
    }
}

impl Step for CargoDeny<'_> {
    fn name(&self) -> String {
        format!("cargo-deny {VERSION}")
    }

    fn missing(&self) -> Result<Option<String>> {
        let program = program(self.workspace);
        if !program.is_file() {
            return Ok(Some(format!("{} does not exist", program.display())));
        }
        Ok(match process::output(process::command(&program).arg("--version")) {
            Ok(says) if says.split_whitespace().last() == Some(VERSION) => None,
            Ok(says) => Some(format!("{} is `{}`", program.display(), says.trim())),
            Err(error) => Some(format!("it does not run: {error:#}")),
        })
    }

    fn install(&self, label: &str) -> Result<()> {
        eprintln!("{label}: building it, one to two minutes");
        let log = self.workspace.setup_cache().join("cargo-deny.log");
        process::logged(&mut self.cargo_install(), label, &log)?;
        // Only an interrupted build is worth keeping, to go on from.
        fs::remove_dir_all(self.build_folder()).context("cannot remove the finished build of cargo-deny")
    }

    fn by_hand(&self) -> String {
        process::line(&self.cargo_install())
    }
}
