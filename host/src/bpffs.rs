//! The BPF file system (bpffs), where pins live, and its peculiarities.

use anyhow::{Context as _, Result, bail, ensure as require};
use rustix::fs::{FlockOperation, flock, statfs};
use rustix::mount::{MountFlags, mount};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where Drover's pins live unless configured otherwise.
pub const DEFAULT: &str = "/sys/fs/bpf/drover";

/// Distributions mount the bpffs here. [`ensure`] mounts it here if they did not.
const STANDARD_BPFFS: &str = "/sys/fs/bpf";

/// `f_type` of a bpffs, from the kernel's `linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Returns the directory of an agent's pins for an interface, below the bpffs directory `bpffs`.
///
/// Dots in the interface's name become colons: a bpffs refuses names with a dot, and no interface name has a colon.
pub fn directory(bpffs: &Path, interface: &str, agent: &str) -> PathBuf {
    bpffs.join(interface.replace('.', ":")).join(agent)
}

/// Locks an agent's directory against a second process until the result is dropped.
///
/// # Errors
///
/// If the directory cannot be opened, or another process holds the lock. The message says that the other process runs
/// `command` on `interface`.
pub fn lock(directory: &Path, command: &str, interface: &str) -> Result<File> {
    let file = File::open(directory).with_context(|| format!("cannot open {}", directory.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another `{command}` is at work on {interface} (it holds the lock on {}): stop it first; \
             packets keep flowing until the next one takes over",
            directory.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", directory.display())),
    }
}

/// Ensures that `path` is on a bpffs. Mounts the standard one, `/sys/fs/bpf`, if it is missing.
///
/// # Errors
///
/// If `path` is relative, is on another file system, or the standard bpffs cannot be mounted.
pub fn ensure(path: &Path) -> Result<()> {
    require!(path.is_absolute(), "the bpffs directory {} must be an absolute path", path.display());
    if is_bpffs(path)? {
        return Ok(());
    }
    let standard = Path::new(STANDARD_BPFFS);
    require!(
        path.starts_with(standard),
        "{0} is not on a BPF file system: mount one there (mount -t bpf bpf {0}) or name a directory \
         below {STANDARD_BPFFS}",
        path.display(),
    );
    tracing::info!("mounting a BPF file system on {STANDARD_BPFFS}");
    mount("bpf", standard, "bpf", MountFlags::empty(), None)
        .with_context(|| format!("cannot mount a BPF file system on {STANDARD_BPFFS}"))
}

/// Returns whether `path`, or its nearest ancestor that exists, is on a bpffs.
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

/// Removes a directory of pins, and directories of pins in it. Succeeds if the directory does not exist.
///
/// `remove_dir_all` cannot: it relies on file types in directory entries, which a bpffs does not give.
///
/// # Errors
///
/// If a pin or directory cannot be removed.
pub fn remove_tree(path: &Path) -> Result<()> {
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
        assert_eq!(directory(Path::new("/b"), "eth0.100", "real"), Path::new("/b/eth0:100/real"));
    }

    #[test]
    fn a_directory_off_any_bpffs_is_refused_with_the_way_out() {
        let error = ensure(Path::new("/tmp/nowhere")).unwrap_err().to_string();
        assert!(error.contains("mount -t bpf bpf /tmp/nowhere"), "{error}");
        assert!(ensure(Path::new("relative")).is_err());
    }

    #[test]
    fn the_directory_is_locked_while_open() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock(directory.path(), "lb-node real", "eth0").unwrap();
        let error = lock(directory.path(), "lb-node real", "eth0").unwrap_err().to_string();
        assert!(error.contains("another `lb-node real`"), "{error}");
        drop(first);
        lock(directory.path(), "lb-node real", "eth0").unwrap();
    }
}
