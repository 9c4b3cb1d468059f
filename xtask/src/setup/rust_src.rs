//! The standard library's sources, from which `core` is built for the BPF target.

use super::{Step, debian::Package, toolchain::Toolchain};
use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result};
use std::{fs, path::PathBuf};

/// The Debian suite that has a package `rust-src` of current compilers.
const DEBIAN_SUITE: &str = "trixie-backports";

pub(super) struct RustSrc<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) toolchain: &'a Toolchain,
}

impl RustSrc<'_> {
    /// The folder of the sources: rustup puts them there, and cargo's build-std looks there.
    fn folder(&self) -> PathBuf {
        self.toolchain.sysroot.join("lib/rustlib/src/rust")
    }

    fn cache(&self) -> PathBuf {
        self.workspace.setup_cache().join("rust-src")
    }

    fn add_with_rustup(&self, label: &str) -> Result<()> {
        eprintln!("{label}: rustup component add rust-src");
        let mut rustup = process::command("rustup");
        rustup.current_dir(&self.workspace.root).args(["component", "add", "rust-src"]);
        process::logged(&mut rustup, label, &self.workspace.setup_cache().join("rustup.log"))
    }

    /// Takes the sources out of Debian's package.
    fn take_from_debian(&self, label: &str) -> Result<()> {
        let release = &self.toolchain.release;
        eprintln!("{label}: taking them from Debian's package rust-src {release} of {DEBIAN_SUITE}");
        let log = self.workspace.setup_cache().join("rust-src.log");
        let pattern = format!("rust-src={release}*");
        let package = Package::fetch(DEBIAN_SUITE, &pattern, &self.cache(), label, &log)?;
        self.unpack(&package)?;
        package.discard()
    }

    /// Unpacks `library/` beside its place and then renames it, so that half a tree never looks like a whole one.
    fn unpack(&self, package: &Package) -> Result<()> {
        let partial = self.folder().join(".library.partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("cannot clear {}", partial.display()))?;
        }
        fs::create_dir_all(&partial).with_context(|| {
            format!("cannot write into the toolchain: {} (is it another user's?)", partial.display())
        })?;
        package.unpack(&format!("./usr/src/rustc-{}/library", self.toolchain.release), 5, &partial)?;
        let library = self.folder().join("library");
        if library.exists() {
            fs::remove_dir_all(&library).with_context(|| format!("cannot replace {}", library.display()))?;
        }
        fs::rename(&partial, &library).with_context(|| format!("cannot put {} in place", library.display()))
    }
}

impl Step for RustSrc<'_> {
    fn name(&self) -> String {
        format!("rust-src {}", self.toolchain.release)
    }

    fn missing(&self) -> Result<Option<String>> {
        let core = self.folder().join("library/core/src/lib.rs");
        Ok((!core.is_file()).then(|| format!("{} does not exist", core.display())))
    }

    fn install(&self, label: &str) -> Result<()> {
        let Err(no_rustup) = self.add_with_rustup(label) else { return Ok(()) };
        eprintln!("{label}: rustup cannot ({})", no_rustup.to_string().lines().next().unwrap_or_default());
        self.take_from_debian(label).with_context(|| format!("rustup could not either: {no_rustup:#}"))
    }

    fn by_hand(&self) -> String {
        let release = &self.toolchain.release;
        format!(
            "`rustup component add rust-src --toolchain {release}`, or put the folder `library` of the sources of \
             Rust {release} into {}",
            self.folder().display()
        )
    }
}
