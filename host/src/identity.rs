//! Identifies a host: one boot of a machine, and one network namespace on it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Returns the kernel's random id of this boot (`/proc/sys/kernel/random/boot_id`). It is unique to the boot.
///
/// # Errors
///
/// If /proc is not mounted.
pub fn boot_id() -> io::Result<String> {
    boot_id_in(Path::new("/proc"))
}

/// Returns the boot id that the `/proc` mounted at `proc` shows. See [`boot_id`].
///
/// # Errors
///
/// If no `/proc` is mounted at `proc`.
pub fn boot_id_in(proc: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(proc.join("sys/kernel/random/boot_id"))?.trim().to_owned())
}

/// Returns the inode number of this process' network namespace. It is unique among the namespaces of this boot.
///
/// # Errors
///
/// If /proc is not mounted.
pub fn network_namespace() -> io::Result<u64> {
    network_namespace_of(Path::new("/proc/self"))
}

/// Returns the inode number of the network namespace of the process with the folder `process`, such as `/proc/1`.
///
/// # Errors
///
/// If there is no such process, or this user may not look at it.
pub fn network_namespace_of(process: &Path) -> io::Result<u64> {
    Ok(fs::metadata(process.join("ns/net"))?.ino())
}

/// Returns the id of a host, `<boot>/<network namespace>`. Each network namespace is a host of its own, even where
/// several share a kernel.
#[must_use]
pub fn host_id(boot: &str, network_namespace: u64) -> String {
    format!("{boot}/{network_namespace}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_has_an_id() {
        let id = boot_id().unwrap();
        assert_eq!((id.len(), id.lines().count()), (36, 1), "{id}");
    }

    #[test]
    fn this_process_is_in_the_namespace_of_its_parent() {
        let parent = std::os::unix::process::parent_id().to_string();
        let of_parent = network_namespace_of(&Path::new("/proc").join(parent)).unwrap();
        assert_eq!(network_namespace().unwrap(), of_parent);
    }
}
