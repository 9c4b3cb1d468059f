//! The machine: kernel, BPF file system, rights.

use super::report::Finding;
use crate::host;
use rustix::fs::statfs;
use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use zk_schema::{OLDEST_KERNEL, kernel_version};

/// From here on BPF's memory is not counted as locked.
const NO_MEMLOCK: (u32, u32) = (5, 11);
/// `f_type` of a bpffs, from the kernel's `linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Options that the kernel must be built with, each with what needs it.
const OPTIONS: [(&str, &str); 4] = [
    ("CONFIG_BPF", "programs"),
    ("CONFIG_BPF_SYSCALL", "programs"),
    ("CONFIG_BPF_JIT", "their speed"),
    ("CONFIG_NET_CLS_ACT", "probes through tunnels"),
];

/// The kernel's version and build.
pub(super) fn kernel() -> Vec<Finding> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let version = kernel_version(&release);
    let mut findings = vec![found_kernel(&release)];
    findings.push(features(&release));
    findings.push(match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").as_deref().map(str::trim) {
        Ok("0") => Finding::warning(
            "kernel.jit",
            "BPF programs are interpreted, which takes several times as long",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Ok(value) => Finding::ok("kernel.jit", format!("bpf_jit_enable = {value}")),
        Err(error) => Finding::skipped("kernel.jit", format!("bpf_jit_enable cannot be read: {error}")),
    });
    findings.push(memlock(version));
    findings
}

/// Checks that a node runs on this release.
fn found_kernel(release: &str) -> Finding {
    match kernel_version(release) {
        Some(found) if found < OLDEST_KERNEL => Finding::fault(
            "kernel.version",
            format!("Linux {release}, on which lb-node refuses to start"),
            format!("run Linux {}.{} or later", OLDEST_KERNEL.0, OLDEST_KERNEL.1),
        ),
        _ => Finding::ok("kernel.version", format!("Linux {release}")),
    }
}

fn features(release: &str) -> Finding {
    let Some((config, from)) = config(release) else {
        return Finding::skipped(
            "kernel.features",
            "how the kernel was built is not told: neither /proc/config.gz nor /boot/config-* can be read",
        );
    };
    let missing = missing_options(&config);
    if missing.is_empty() {
        return Finding::ok("kernel.features", format!("{from} has what is needed"));
    }
    Finding::fault(
        "kernel.features",
        format!("{from} lacks {}", missing.join(", ")),
        "run a kernel that was built with these options; those of distributions are",
    )
}

fn missing_options(config: &str) -> Vec<String> {
    let has = |option: &str| {
        config.lines().any(|line| line.strip_prefix(option).is_some_and(|rest| rest == "=y" || rest == "=m"))
    };
    let missing = OPTIONS.iter().filter(|(option, _)| !has(option));
    missing.map(|(option, why)| format!("{option} ({why})")).collect()
}

/// The kernel's configuration, and where it was read.
fn config(release: &str) -> Option<(String, String)> {
    for path in [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")] {
        if let Ok(config) = fs::read_to_string(&path) {
            return Some((config, path));
        }
    }
    let path = "/proc/config.gz";
    let unpacked =
        Command::new("gzip").args(["-dc", path]).output().ok().filter(|out| out.status.success())?;
    Some((String::from_utf8_lossy(&unpacked.stdout).into_owned(), path.to_owned()))
}

fn memlock(version: Option<(u32, u32)>) -> Finding {
    let limit = getrlimit(Resource::Memlock).current;
    let shown = limit.map_or("unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
    match limit {
        Some(_) if version.is_some_and(|version| version < NO_MEMLOCK) => Finding::fault(
            "kernel.memlock",
            format!("locked memory is limited to {shown}, and this kernel counts maps as such"),
            "LimitMEMLOCK=infinity in the service, or `ulimit -l unlimited`",
        ),
        _ => Finding::ok("kernel.memlock", format!("limit {shown}; this kernel does not count maps")),
    }
}

/// The place of the pins, and the pins that are there. `interfaces` are those of this machine.
pub(super) fn bpffs(
    directory: &Path,
    interface: &str,
    daemon_runs: bool,
    interfaces: &[String],
) -> Vec<Finding> {
    const MOUNT: &str = "kernel.bpffs";
    const PINS: &str = "kernel.pins";
    let is_bpffs = directory.ancestors().find_map(|path| statfs(path).ok().map(|found| (path, found.f_type)));
    match is_bpffs {
        Some((_, BPF_FS_MAGIC)) => {}
        Some((path, _)) => {
            let standard = directory.starts_with("/sys/fs/bpf");
            let mount = if standard { Path::new("/sys/fs/bpf") } else { directory };
            return vec![
                Finding::fault(
                    MOUNT,
                    format!(
                        "{} is not on a BPF file system ({} is another)",
                        directory.display(),
                        path.display()
                    ),
                    format!(
                        "mount -t bpf bpf {}; or name the directory that lb-node was started with by --bpffs",
                        mount.display()
                    ),
                ),
                Finding::skipped(PINS, "there is no BPF file system"),
            ];
        }
        None => return vec![Finding::skipped(MOUNT, format!("{} cannot be looked at", directory.display()))],
    }
    let mount = Finding::ok(MOUNT, format!("{} is on a BPF file system", directory.display()));
    let stale: Vec<String> = match fs::read_dir(directory) {
        Ok(entries) => {
            let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().replace(':', "."));
            names.filter(|name| !interfaces.contains(name)).collect()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let why = format!("{} cannot be listed: {error}; run this as root", directory.display());
            return vec![mount, Finding::skipped(PINS, why)];
        }
    };
    let pins = pins(directory, interface);
    let there = pins.join("maps/CONFIG").exists();
    let state = match (there, daemon_runs) {
        _ if !stale.is_empty() => Finding::warning(
            PINS,
            format!("pins for interfaces that this machine does not have: {}", stale.join(", ")),
            format!(
                "they hold memory; if nobody is to use them again: rm -r {}/{}",
                directory.display(),
                stale[0].replace('.', ":")
            ),
        ),
        (true, _) => Finding::ok(PINS, format!("{} has a data plane", pins.display())),
        (false, false) => Finding::ok(PINS, format!("none for {interface}: lb-node makes them")),
        (false, true) => Finding::warning(
            PINS,
            format!("lb-node runs, but there are no pins in {}", pins.display()),
            "name the directory that lb-node was started with by --bpffs",
        ),
    };
    vec![mount, state]
}

/// Returns the folder of a node's pins for an interface.
pub(super) fn pins(directory: &Path, interface: &str) -> PathBuf {
    directory.join(interface.replace('.', ":")).join("lb")
}

/// A process of lb-node that runs in this network namespace.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    pub(super) pid: u32,
    effective: CapabilitySet,
}

/// The node's daemon, if one runs here and may be looked at.
pub(super) fn daemon() -> Option<Daemon> {
    let pid = host::daemon()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(Daemon { pid, effective: effective(&status)? })
}

fn effective(status: &str) -> Option<CapabilitySet> {
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    Some(CapabilitySet::from_bits_retain(u64::from_str_radix(bits.trim(), 16).ok()?))
}

/// The rights of the daemon, or, where none runs, of whoever runs this.
pub(super) fn capabilities(daemon: Option<&Daemon>) -> Finding {
    const CHECK: &str = "kernel.capabilities";
    let (whose, effective) = match daemon {
        Some(daemon) => (format!("lb-node (process {})", daemon.pid), daemon.effective),
        None => match rustix::thread::capabilities(None) {
            Ok(own) => ("this user (no lb-node runs here)".to_owned(), own.effective),
            Err(error) => return Finding::skipped(CHECK, format!("not told by the kernel: {error}")),
        },
    };
    let missing = missing_capabilities(effective);
    if missing.is_empty() {
        return Finding::ok(CHECK, format!("{whose} has what is needed"));
    }
    Finding::fault(
        CHECK,
        format!("{whose} lacks {}", missing.join(", ")),
        format!(
            "run lb-node as root, or with AmbientCapabilities={} in its service (capabilities.add in Kubernetes, without \
             CAP_)",
            "CAP_BPF CAP_NET_ADMIN CAP_NET_RAW CAP_PERFMON"
        ),
    )
}

/// As lb-node itself judges when it starts.
fn missing_capabilities(effective: CapabilitySet) -> Vec<&'static str> {
    let mut needed =
        vec![(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::NET_RAW, "CAP_NET_RAW")];
    // The kernel takes CAP_SYS_ADMIN for these two.
    if !effective.contains(CapabilitySet::SYS_ADMIN) {
        needed.extend([(CapabilitySet::BPF, "CAP_BPF"), (CapabilitySet::PERFMON, "CAP_PERFMON")]);
    }
    needed.retain(|(capability, _)| !effective.contains(*capability));
    needed.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[test]
    fn a_kernel_on_which_lb_node_does_not_start_is_a_fault() {
        let is_fault = |release: &str| found_kernel(release).level == Level::Fault;
        assert!(is_fault("6.1.0-13-amd64") && is_fault("6.5.9"));
        assert!(!is_fault("6.6.0") && !is_fault("7.0.1"));
    }

    #[test]
    fn options_that_are_off_or_absent_are_missing() {
        let config = "CONFIG_BPF=y\n# CONFIG_BPF_JIT is not set\nCONFIG_NET_CLS_ACT=m\n";
        let missing = missing_options(config).join(" ");
        assert_eq!(missing, "CONFIG_BPF_SYSCALL (programs) CONFIG_BPF_JIT (their speed)");
    }

    #[test]
    fn the_right_to_administer_the_system_stands_for_those_of_bpf() {
        let network = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
        assert_eq!(missing_capabilities(network), ["CAP_BPF", "CAP_PERFMON"]);
        assert!(missing_capabilities(network | CapabilitySet::SYS_ADMIN).is_empty());
        assert_eq!(missing_capabilities(CapabilitySet::SYS_ADMIN), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
    }

    #[test]
    fn a_directory_on_another_file_system_is_a_fault_with_the_mount_as_its_fix() {
        let findings = bpffs(Path::new("/proc/nowhere"), "eth0", false, &[]);
        assert!(findings[0].fix.contains("mount -t bpf bpf /proc/nowhere"), "{findings:?}");
        assert_eq!(findings[0].level, super::super::report::Level::Fault);
    }

    #[test]
    fn a_process_tells_its_rights_in_hexadecimal() {
        let status = "Name:\tlb-node\nCapEff:\t0000000000003000\n";
        assert_eq!(effective(status), Some(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW));
    }
}
