//! A small Debian with its own systemd, in the network namespace of a host.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::long::debian;
use testbed::{Finished, Host, HostCommand, Process, wait_until};

/// systemd's own boot takes some seconds, others' work on this machine aside.
const BOOT: Duration = Duration::from_secs(120);
/// A machine that was killed is gone in a moment.
const REMOVED: Duration = Duration::from_secs(10);
/// Where systemd-nspawn makes control groups, as far as they are there: version 1, hybrid, version 2.
const CGROUPS: [&str; 3] = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
/// How the control groups of these machines begin; the lab's name follows.
const PREFIX: &str = "drover-nspawn-";

/// A machine that has booted. Its disk is a layer in memory over the Debian that all share, its processes end with the
/// handle, and mounts and layer with them. What a crash of the test leaves, the lab's sweep ends, since it is in a
/// namespace of the lab; empty control groups are removed by the next machine.
#[derive(Debug)]
pub struct Booted {
    host: Host,
    supervisor: Process,
    /// The machine's first process, as this machine counts.
    init: u32,
    cgroups: Vec<PathBuf>,
}

impl Booted {
    /// Boots a machine on `host`, which sees these folders of this machine (read-only) at these places of its own.
    ///
    /// # Errors
    ///
    /// When systemd does not come up in time.
    pub fn start(host: &Host, folders: &[(&Path, &str)]) -> Result<Booted> {
        sweep();
        let cgroups = cgroups(host)?;
        // The shell puts itself into the groups, and becomes systemd-nspawn, which makes its own below them.
        let enter: String =
            cgroups.iter().map(|group| format!("echo $$ > {}/cgroup.procs; ", group.display())).collect();
        let mut nspawn = format!(
            "{enter}exec env SYSTEMD_NSPAWN_API_VFS_WRITABLE=1 systemd-nspawn --quiet --boot --volatile=overlay \
             --directory={} --machine={} --register=no --keep-unit --resolv-conf=off --timezone=off --link-journal=no \
             --capability=CAP_BPF,CAP_PERFMON,CAP_NET_ADMIN,CAP_NET_RAW,CAP_SYS_ADMIN \
             --system-call-filter='bpf perf_event_open' --console=pipe",
            debian().display(),
            host.namespace(),
        );
        for (from, to) in folders {
            nspawn.push_str(&format!(" --bind-ro={}:{to}", from.display()));
        }
        let mut supervisor = host.command("sh").args(["-c", &nspawn]).spawn()?;
        let pid = supervisor.pid();
        let init = supervisor.wait_ready("its first process", BOOT, || Ok(first_process(pid)))?;
        let mut machine = Booted { host: host.clone(), supervisor, init, cgroups };
        machine.wait_up()?;
        Ok(machine)
    }

    /// Runs a line of shell in the machine, as root in its home, and returns what it prints.
    ///
    /// # Errors
    ///
    /// When it fails, or takes longer than `limit`.
    pub fn shell(&self, line: &str, limit: Duration) -> Result<String> {
        self.command(line).limit(limit).run().with_context(|| format!("in the machine: {line}"))
    }

    /// As [`Booted::shell`], whether it succeeds or not.
    ///
    /// # Errors
    ///
    /// When it takes longer than `limit`.
    pub fn attempt(&self, line: &str, limit: Duration) -> Result<Finished> {
        self.command(line).limit(limit).output().with_context(|| format!("in the machine: {line}"))
    }

    fn command(&self, line: &str) -> HostCommand {
        let init = self.init.to_string();
        let enter = ["--target", &init, "--all", "--root", "--wd=/"];
        let shell = [
            "env",
            "-i",
            "HOME=/root",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
            "bash",
            "-c",
        ];
        self.host.command("nsenter").args(enter).args(shell).arg(line)
    }

    /// Waits until systemd has started what it starts. A service of the distribution's may have failed meanwhile.
    fn wait_up(&mut self) -> Result<()> {
        let mut last = String::new();
        wait_until("systemd to have booted", BOOT, || {
            let answer = self.attempt("systemctl is-system-running", BOOT)?;
            last = answer.stdout.trim().to_owned();
            Ok(["running", "degraded"].contains(&last.as_str()).then_some(()))
        })
        .with_context(|| {
            format!(
                "it says {last:?}; output of systemd-nspawn:\n{}",
                self.supervisor.log().unwrap_or_default()
            )
        })
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // All processes of the machine end with its first, and its supervisor then. The number is still the first one's as long
        // as the supervisor has it as a child.
        if first_process(self.supervisor.pid()) == Some(self.init)
            && let Some(init) = i32::try_from(self.init).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(init, Signal::KILL);
            let _ = self.supervisor.wait(REMOVED);
        }
        let _ = self.supervisor.kill();
        for group in &self.cgroups {
            let _ = wait_until("the control groups to be empty", REMOVED, || {
                remove_groups(group);
                Ok((!group.exists()).then_some(()))
            });
        }
    }
}

/// The first process of the machine that this systemd-nspawn runs: its child that is number 1 in a namespace of its own.
fn first_process(supervisor: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
    children.split_whitespace().filter_map(|child| child.parse().ok()).find(|child: &u32| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        numbers.split_whitespace().skip(1).last() == Some("1")
    })
}

/// Control groups for the machine on this host, in each hierarchy that systemd uses.
fn cgroups(host: &Host) -> Result<Vec<PathBuf>> {
    let mut groups = Vec::new();
    for hierarchy in CGROUPS.map(Path::new) {
        if !hierarchy.join("cgroup.procs").is_file() {
            continue;
        }
        let group = hierarchy.join(format!("{PREFIX}{}", host.namespace()));
        fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
        groups.push(group);
    }
    ensure!(!groups.is_empty(), "there are no control groups below /sys/fs/cgroup");
    Ok(groups)
}

/// Removes the empty control groups that machines of tests that crashed have left.
fn sweep() {
    for hierarchy in CGROUPS {
        for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                remove_groups(&entry.path());
            }
        }
    }
}

/// Removes a control group and those below it, as far as no process is in them: the kernel refuses the others.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
