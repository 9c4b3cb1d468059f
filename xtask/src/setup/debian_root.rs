//! The file system of a small Debian: a machine that systemd-nspawn boots, and what images are built on in tests.

use super::{Step, debian};
use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The release that the Dockerfile builds on, and the oldest systemd that the units are for.
const SUITE: &str = "bookworm";
/// Besides the essential packages.
const PACKAGES: &str = "systemd,systemd-sysv,iproute2,bird2,curl,ca-certificates,binutils";
/// There once everything is.
const WITNESS: &str = "usr/sbin/bird";

pub(super) struct DebianRoot<'a> {
    pub(super) workspace: &'a Workspace,
}

impl DebianRoot<'_> {
    fn folder(&self) -> PathBuf {
        self.workspace.root.join("target/debian").join(SUITE)
    }
}

impl Step for DebianRoot<'_> {
    fn name(&self) -> String {
        format!("Debian {SUITE} in a folder")
    }

    fn missing(&self) -> Result<Option<String>> {
        let witness = self.folder().join(WITNESS);
        Ok((!witness.is_file()).then(|| format!("{} does not exist", witness.display())))
    }

    fn install(&self, label: &str) -> Result<()> {
        ensure!(process::is_root(), "debootstrap needs root");
        let folder = self.folder();
        // Under its name only once it is whole.
        let partial = folder.with_extension("partial");
        for old in [&folder, &partial] {
            remove(old)?;
        }
        let parent = folder.parent().context("it is in a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        let mut debootstrap = process::command("debootstrap");
        debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE]).arg(&partial);
        debootstrap.arg(debian::repository()?);
        process::logged(&mut debootstrap, label, &self.workspace.setup_cache().join("debootstrap.log"))?;
        fs::rename(&partial, &folder).with_context(|| format!("cannot rename {}", partial.display()))
    }

    fn by_hand(&self) -> String {
        format!("sudo debootstrap --variant=minbase --include={PACKAGES} {SUITE} {}", self.folder().display())
    }
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    Ok(())
}
