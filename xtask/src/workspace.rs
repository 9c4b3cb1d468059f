//! Folders of the work tree.

use anyhow::{Context as _, Result};
use std::{env, path::PathBuf};

/// The work tree that this xtask belongs to.
pub(crate) struct Workspace {
    /// Folder of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
}

impl Workspace {
    /// Finds the work tree from the manifest folder that cargo names (`cargo run` sets it, also when several
    /// work trees share one target folder).
    pub(crate) fn locate() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.join("..");
        let root = root.canonicalize().with_context(|| {
            format!("the work tree {} is gone: run `cargo xtask` from inside a clone", root.display())
        })?;
        Ok(Self { root })
    }

    /// The folder in which `setup` installs build tools. Not under `CARGO_TARGET_DIR`: bpf-build looks here.
    pub(crate) fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// Downloads and logs of `setup`; may be deleted at any time.
    pub(crate) fn setup_cache(&self) -> PathBuf {
        self.root.join("target/setup-cache")
    }

    /// The folder in which cargo builds: `CARGO_TARGET_DIR`, or `target` in the work tree.
    pub(crate) fn target_dir(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), |dir| self.root.join(dir))
    }
}
