//! The pins of a real's maps and link, and recovery from a crash in the middle of a change.
//!
//! ```text
//! <bpffs>/<interface>/real/
//!     host         map: what was changed on the host, to be undone by `detach`
//!     link         the program's link to the interface
//!     v<layout>/   the program's maps, one pin each
//! ```
//! The kernel keeps the program and its maps alive through the link, so removing a map's pin never
//! disturbs forwarding. That makes every order of events safe: a start builds or reuses the maps of
//! its own layout, replaces the program behind the link in one step, and only then removes the
//! directories of other layouts.

use anyhow::{Context as _, Result};
use host::bpffs;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The pin directory of one interface, locked against a second process for as long as this lives.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    layout: u32,
    _lock: File,
}

impl Pins {
    /// Opens the directory of `interface` below `bpffs` for maps of the given layout. Makes it, and
    /// mounts the standard bpffs, where they are missing.
    pub(super) fn open(root: &Path, interface: &str, layout: u32) -> Result<Self> {
        bpffs::ensure(root)?;
        let directory = bpffs::directory(root, interface, "real");
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let lock = bpffs::lock(&directory, "lb-node real", interface)?;
        let pins = Self { directory, layout, _lock: lock };
        let maps = pins.maps();
        fs::create_dir_all(&maps).with_context(|| format!("cannot make {}", maps.display()))?;
        Ok(pins)
    }

    /// Opens the directory if there is one.
    pub(super) fn open_existing(root: &Path, interface: &str, layout: u32) -> Result<Option<Self>> {
        let directory = bpffs::directory(root, interface, "real");
        if !directory.is_dir() {
            return Ok(None);
        }
        let lock = bpffs::lock(&directory, "lb-node real", interface)?;
        Ok(Some(Self { directory, layout, _lock: lock }))
    }

    /// The directory of this layout's maps.
    pub(super) fn maps(&self) -> PathBuf {
        self.directory.join(format!("v{}", self.layout))
    }

    /// The pin of one map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The pin of the link.
    pub(super) fn link(&self) -> PathBuf {
        self.directory.join("link")
    }

    /// The pin of the map that says what was changed on the host. Outside the layouts: an upgrade
    /// must not forget it.
    pub(super) fn host(&self) -> PathBuf {
        self.directory.join("host")
    }

    /// Removes the maps of other layouts than ours.
    pub(super) fn remove_other_layouts(&self) -> Result<()> {
        let ours = self.maps();
        let entries = fs::read_dir(&self.directory)
            .with_context(|| format!("cannot read {}", self.directory.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", self.directory.display()))?.path();
            if path.is_dir() && path != ours {
                bpffs::remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Removes everything, and the directories above that this leaves empty.
    pub(super) fn remove(self, root: &Path) -> Result<()> {
        bpffs::remove_tree(&self.directory)?;
        for parent in self.directory.ancestors().skip(1) {
            // Anything that stops this is somebody else's: another interface, the mount itself.
            if !parent.starts_with(root) || fs::remove_dir(parent).is_err() {
                break;
            }
        }
        Ok(())
    }
}
