//! Which host this is: the boot of a machine, and a network namespace on it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Returns the kernel's id of this boot of the machine (`/proc/sys/kernel/random/boot_id`), which no other boot of any
/// machine has.
///
/// # Errors
///
/// If /proc is not mounted.
pub fn boot_id() -> io::Result<String> {
    boot_id_in(Path::new("/proc"))
}

/// As [`boot_id`], by the `/proc` that is mounted at `proc`.
///
/// # Errors
///
/// If no `/proc` is mounted there.
pub fn boot_id_in(proc: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(proc.join("sys/kernel/random/boot_id"))?.trim().to_owned())
}

/// Returns the number of this process' network namespace, which no other one of this boot has while this one exists.
///
/// # Errors
///
/// If /proc is not mounted.
pub fn network_namespace() -> io::Result<u64> {
    network_namespace_of(Path::new("/proc/self"))
}

/// As [`network_namespace`], of the process whose folder in `/proc` this is.
///
/// # Errors
///
/// If there is no such process, or it may not be looked at.
pub fn network_namespace_of(process: &Path) -> io::Result<u64> {
    Ok(fs::metadata(process.join("ns/net"))?.ino())
}

/// The name of a host: one network namespace of one boot is one host, even where several share a kernel.
#[must_use]
pub fn host(boot: &str, network_namespace: u64) -> String {
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
