//! bpffs, where the daemon pins its programs and maps.

use super::Step;
use crate::process;
use anyhow::{Context as _, Result, ensure};
use std::fs;

const MOUNT_POINT: &str = "/sys/fs/bpf";

pub(super) struct Bpffs;

impl Step for Bpffs {
    fn name(&self) -> String {
        "bpffs".into()
    }

    fn missing(&self) -> Result<Option<String>> {
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
        Ok((!mounted(&mounts)).then(|| format!("not mounted at {MOUNT_POINT}")))
    }

    fn install(&self, label: &str) -> Result<()> {
        ensure!(process::is_root(), "mounting needs root");
        eprintln!("{label}: mounting it at {MOUNT_POINT}");
        let mount = process::output(process::command("mount").args(["-t", "bpf", "bpf", MOUNT_POINT]));
        mount
            .context("the kernel may lack CONFIG_BPF_SYSCALL, or this container the right to mount")
            .map(drop)
    }

    fn by_hand(&self) -> String {
        format!("sudo mount -t bpf bpf {MOUNT_POINT}")
    }
}

/// Returns whether `/proc/mounts` has a file system of type `bpf` at the mount point.
fn mounted(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some(MOUNT_POINT) && fields.next() == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bpf_file_system_at_the_mount_point_counts() {
        assert!(mounted("sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,relatime 0 0\n"));
        assert!(!mounted("sysfs /sys sysfs rw 0 0\nnone /sys/fs/bpf tmpfs rw 0 0\nbpf /mnt bpf rw 0 0\n"));
    }
}
