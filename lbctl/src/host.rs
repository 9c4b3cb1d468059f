//! The host that this runs on, as nodes tell of theirs.

use host::identity;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The boot ids that nodes on this host write into the tree ([`Member::boot`](zk_schema::tree::Member::boot)).
///
/// There may be two: systemd-nspawn gives a container a boot id of its own by a mount over the kernel's, and a service
/// with a `/proc` of its own (`ProtectProc=`) sees the kernel's. So a daemon that runs here is looked at through its own
/// eyes, too.
#[derive(Clone, Debug, Default)]
pub struct Here(BTreeSet<String>);

impl Here {
    /// Looks.
    #[must_use]
    pub fn look() -> Self {
        let own = identity(Path::new("/proc/self"), Path::new("/proc"));
        let of_daemon = daemon().and_then(|pid| {
            let process = Path::new("/proc").join(pid.to_string());
            identity(&process, &process.join("root/proc"))
        });
        Self(own.into_iter().chain(of_daemon).collect())
    }

    /// Returns whether a node that wrote `boot` is, or was, on this host, in this network namespace.
    #[must_use]
    pub fn is(&self, boot: &str) -> bool {
        self.0.contains(boot)
    }
}

impl<S: Into<String>> FromIterator<S> for Here {
    fn from_iter<I: IntoIterator<Item = S>>(identities: I) -> Self {
        Self(identities.into_iter().map(Into::into).collect())
    }
}

/// Machine's boot, as the `/proc` at `proc` tells it, and the network namespace of a process; `None` if they are not told.
fn identity(process: &Path, proc: &Path) -> Option<String> {
    let boot = identity::boot_id_in(proc).ok()?;
    let namespace = identity::network_namespace_of(process).ok()?;
    Some(identity::host_id(&boot, namespace))
}

/// The process of the node's daemon in this network namespace, if one runs and may be looked at.
#[must_use]
pub fn daemon() -> Option<u32> {
    let own = identity::network_namespace().ok()?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let path = entry.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        let words = fs::read(path.join("cmdline")).ok()?;
        let runs = words.split(|byte| *byte == 0).any(|word| word == b"run");
        let here = identity::network_namespace_of(&path).ok()? == own;
        (name.trim() == "lb-node" && runs && here).then_some(pid)
    })
}
