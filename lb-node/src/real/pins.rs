//! Where a real's maps and link are pinned, and how a crash in the middle of a change is mended.
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

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock, statfs};
use rustix::mount::{MountFlags, mount};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where distributions mount bpffs, and where it is mounted when nobody did.
const STANDARD_BPFFS: &str = "/sys/fs/bpf";

/// `f_type` of a bpffs, from the kernel's `linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

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
    pub(super) fn open(bpffs: &Path, interface: &str, layout: u32) -> Result<Self> {
        ensure_bpffs(bpffs)?;
        let directory = directory(bpffs, interface);
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let lock = lock(&directory, interface)?;
        let pins = Self { directory, layout, _lock: lock };
        let maps = pins.maps();
        fs::create_dir_all(&maps).with_context(|| format!("cannot make {}", maps.display()))?;
        Ok(pins)
    }

    /// Opens the directory if there is one.
    pub(super) fn open_existing(bpffs: &Path, interface: &str, layout: u32) -> Result<Option<Self>> {
        let directory = directory(bpffs, interface);
        if !directory.is_dir() {
            return Ok(None);
        }
        let lock = lock(&directory, interface)?;
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
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Removes everything, and the directories above that this leaves empty.
    pub(super) fn remove(self, bpffs: &Path) -> Result<()> {
        remove_tree(&self.directory)?;
        for parent in self.directory.ancestors().skip(1) {
            // Anything that stops this is somebody else's: another interface, the mount itself.
            if !parent.starts_with(bpffs) || fs::remove_dir(parent).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// A bpffs reserves names with a dot, and interfaces such as `eth0.100` have one; no interface name
/// has a colon.
fn directory(bpffs: &Path, interface: &str) -> PathBuf {
    bpffs.join(interface.replace('.', ":")).join("real")
}

fn lock(directory: &Path, interface: &str) -> Result<File> {
    let file = File::open(directory).with_context(|| format!("cannot open {}", directory.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another `lb-node real` is at work on {interface} (it holds the lock on {}): stop it first; \
             packets keep flowing until the next one takes over",
            directory.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", directory.display())),
    }
}

fn ensure_bpffs(path: &Path) -> Result<()> {
    ensure!(path.is_absolute(), "the bpffs directory {} must be an absolute path", path.display());
    if is_bpffs(path)? {
        return Ok(());
    }
    let standard = Path::new(STANDARD_BPFFS);
    ensure!(
        path.starts_with(standard),
        "{0} is not on a BPF file system: mount one there (mount -t bpf bpf {0}) or name a directory \
         below {STANDARD_BPFFS}",
        path.display(),
    );
    tracing::info!("mounting a BPF file system on {STANDARD_BPFFS}");
    mount("bpf", standard, "bpf", MountFlags::empty(), None)
        .with_context(|| format!("cannot mount a BPF file system on {STANDARD_BPFFS}"))
}

/// Whether `path`, or what of it exists, is on a bpffs.
fn is_bpffs(path: &Path) -> Result<bool> {
    for ancestor in path.ancestors() {
        match statfs(ancestor) {
            Ok(found) => return Ok(found.f_type == BPF_FS_MAGIC),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot look at {}", ancestor.display()));
            }
        }
    }
    Ok(false)
}

/// `remove_dir_all` relies on file types in directory entries, which a bpffs does not give.
fn remove_tree(path: &Path) -> Result<()> {
    let remove = || -> std::io::Result<()> {
        for entry in fs::read_dir(path)? {
            let entry = entry?.path();
            if entry.is_dir() {
                for pin in fs::read_dir(&entry)? {
                    fs::remove_file(pin?.path())?;
                }
                fs::remove_dir(&entry)?;
            } else {
                fs::remove_file(&entry)?;
            }
        }
        fs::remove_dir(path)
    };
    match remove() {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_interface_gets_a_directory_name_that_a_bpffs_takes() {
        assert_eq!(directory(Path::new("/b"), "eth0.100"), Path::new("/b/eth0:100/real"));
    }

    #[test]
    fn a_directory_off_any_bpffs_is_refused_with_the_way_out() {
        let error = ensure_bpffs(Path::new("/tmp/nowhere")).unwrap_err().to_string();
        assert!(error.contains("mount -t bpf bpf /tmp/nowhere"), "{error}");
        assert!(ensure_bpffs(Path::new("relative")).is_err());
    }

    #[test]
    fn the_directory_is_locked_while_open() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock(directory.path(), "eth0").unwrap();
        let error = lock(directory.path(), "eth0").unwrap_err().to_string();
        assert!(error.contains("another `lb-node real`"), "{error}");
        drop(first);
        lock(directory.path(), "eth0").unwrap();
    }
}
