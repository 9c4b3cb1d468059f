//! The host that this runs on, as nodes tell of theirs.

use std::os::unix::fs::MetadataExt as _;

/// Machine's boot and network namespace, as a node on this host writes them into the tree
/// ([`Member::boot`](zk_schema::tree::Member::boot)); `None` if the kernel does not say.
#[must_use]
pub fn identity() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::metadata("/proc/self/ns/net").ok()?;
    Some(format!("{}/{}", boot.trim(), namespace.ino()))
}
