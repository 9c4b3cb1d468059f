//! Programs that Debian packages bring.

use super::{Scope, Step};
use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self as std_process, Command},
};

/// A package, and the file by which a machine without dpkg shows that it has what the package brings.
struct Package {
    name: &'static str,
    /// A program's name, or the absolute path of a file.
    witness: &'static str,
    /// The thing that needs it.
    why: &'static str,
}

const PACKAGES: &[Package] = &[
    package("gcc", "cc", "linking, and the C in dependencies"),
    package("g++", "c++", "libFuzzer, which the fuzzers are linked with"),
    package("libc6-dev", "/usr/include/stdlib.h", "linking, and the C in dependencies"),
    package("ca-certificates", "/etc/ssl/certs/ca-certificates.crt", "HTTPS health checks"),
    package("iproute2", "ip", "network namespaces of tests and demo"),
    package("iputils-ping", "ping", "tests of ICMP"),
    package("ethtool", "ethtool", "offloads of virtual interfaces"),
    package("bpftool", "bpftool", "looking at programs and maps"),
    package("tshark", "tshark", "an independent parser of what the data plane sends"),
    package(
        "python3-scapy",
        "/usr/lib/python3/dist-packages/scapy/__init__.py",
        "making and checking odd packets",
    ),
    package("mosquitto", "mosquitto", "the brokers of tests and demo"),
    package("bird2", "/usr/sbin/bird", "the routers of tests and demo"),
    package("mosquitto-clients", "mosquitto_pub", "the clients of tests and demo"),
    package("default-jre-headless", "java", "the ZooKeeper servers of tests and demo"),
    // Without a service; the one is in the package zookeeperd.
    package("zookeeper", "/usr/share/java/zookeeper.jar", "the ZooKeeper servers of tests and demo"),
    package("openssl", "openssl", "certificates of tests"),
    package("faketime", "faketime", "tests of clocks that differ"),
    package("prometheus", "promtool", "checks of the alert rules"),
    package("curl", "curl", "tests of the HTTP endpoints"),
    // Without the package systemd-sysv, which would make it this machine's init.
    package("systemd", "systemd-analyze", "checking the units"),
    package("python3-venv", "python3", "the checker of manifests"),
];

/// Packages that long tests need besides.
const LONG_PACKAGES: &[Package] = &[
    package("debootstrap", "debootstrap", "a small Debian in a folder"),
    package("systemd-container", "systemd-nspawn", "machines with a systemd of their own"),
    package("buildah", "buildah", "building the images"),
    package("runc", "runc", "running the images"),
];

/// The packages above that would start a service, each with the service's name.
const SERVICES: &[(&str, &str)] =
    &[("mosquitto", "mosquitto"), ("bird2", "bird"), ("prometheus", "prometheus")];

const fn package(name: &'static str, witness: &'static str, why: &'static str) -> Package {
    Package { name, witness, why }
}

pub(super) struct Packages<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) scope: Scope,
}

impl Packages<'_> {
    fn wanted(&self) -> Vec<&'static Package> {
        let long = if self.scope == Scope::All { LONG_PACKAGES } else { &[] };
        PACKAGES.iter().chain(long).collect()
    }
}

impl Step for Packages<'_> {
    fn name(&self) -> String {
        "packages".into()
    }

    fn missing(&self) -> Result<Option<String>> {
        let missing = missing(&self.wanted())?;
        let list =
            missing.iter().map(|package| format!("{} ({})", package.name, package.why)).collect::<Vec<_>>();
        Ok((!list.is_empty()).then(|| list.join(", ")))
    }

    fn install(&self, label: &str) -> Result<()> {
        ensure!(process::find_program("apt-get").is_some(), "this machine has no apt-get");
        ensure!(process::is_root(), "installing packages needs root");
        let names: Vec<&str> = missing(&self.wanted())?.iter().map(|package| package.name).collect();
        let log = self.workspace.setup_cache().join("apt-get.log");
        let _held = ServiceHeld::new(Path::new("/usr/sbin/policy-rc.d"))?;
        eprintln!("{label}: apt-get install {}", names.join(" "));
        if let Err(error) = process::logged(&mut apt_install(&names), label, &log) {
            // Package lists that are absent or old are the usual reason; fetching them costs some seconds, so
            // they are fetched only now.
            let reason = error.to_string();
            eprintln!("{label}: {}; fetching the package lists", reason.lines().next().unwrap_or_default());
            let update = process::logged(apt_get().arg("update"), label, &log);
            let update =
                update.err().map_or_else(String::new, |error| format!(" (apt-get update: {error:#})"));
            process::logged(&mut apt_install(&names), label, &log)
                .with_context(|| format!("cannot install {}{update}", names.join(" ")))?;
        }
        let installed = SERVICES.iter().filter(|(package, _)| names.contains(package));
        for (_, service) in installed.filter(|_| Path::new("/run/systemd/system").is_dir()) {
            eprintln!("{label}: keeping the service {service} off: tests and demo start their own");
            process::output(process::command("systemctl").args(["disable", service]))?;
        }
        Ok(())
    }

    fn by_hand(&self) -> String {
        let wanted = self.wanted();
        let missing = missing(&wanted).unwrap_or(wanted);
        let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
        format!(
            "sudo apt-get install --no-install-recommends {} (elsewhere: the packages with these programs)",
            names.join(" ")
        )
    }
}

/// The packages that are not installed; without dpkg, those whose witness is not there.
fn missing(wanted: &[&'static Package]) -> Result<Vec<&'static Package>> {
    let mut query = process::command("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"]);
    query.args(wanted.iter().map(|package| package.name));
    // It exits with 1 when it does not know one of the names, and still tells about the others.
    match query.output() {
        Ok(output) => {
            let says = String::from_utf8_lossy(&output.stdout);
            Ok(wanted.iter().copied().filter(|package| !installed(&says, package.name)).collect())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let present = |package: &&'static Package| match package.witness.starts_with('/') {
                true => Path::new(package.witness).exists(),
                false => process::find_program(package.witness).is_some(),
            };
            Ok(wanted.iter().copied().filter(|package| !present(package)).collect())
        }
        Err(error) => Err(error).context("cannot run dpkg-query"),
    }
}

fn installed(dpkg_says: &str, name: &str) -> bool {
    dpkg_says.lines().any(|line| line.split_once(' ') == Some((name, "installed")))
}

fn apt_get() -> Command {
    let mut apt_get = process::command("apt-get");
    apt_get
        // Another apt-get may be at work, as on a machine that has just booted.
        .args(["-q", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    apt_get
}

fn apt_install(names: &[&str]) -> Command {
    let mut install = apt_get();
    install.args(["install", "--yes", "--no-install-recommends"]).args(names);
    install
}

/// While it lives, packages that are installed cannot start one of [`SERVICES`].
///
/// Debian asks a program, `policy-rc.d`, whether a package may start its service. Where none is in place, one is
/// put there that refuses these services alone, and only while this process runs: left behind by a crash, it does nothing.
struct ServiceHeld {
    ours: Option<PathBuf>,
}

impl ServiceHeld {
    const MARK: &str = "# Written by `cargo xtask setup`";

    fn new(policy: &Path) -> Result<Self> {
        let of_predecessor = fs::read_to_string(policy).is_ok_and(|text| text.contains(Self::MARK));
        if policy.exists() && !of_predecessor {
            return Ok(Self { ours: None });
        }
        let pid = std_process::id();
        let names: Vec<&str> = SERVICES.iter().map(|(_, service)| *service).collect();
        let patterns: Vec<String> =
            names.iter().map(|name| format!("*\" {name} \"* | *\" {name}.service \"*")).collect();
        let text = format!(
            "#!/bin/sh\n{}, which installs {} without starting them; it is in\n\
             # force only while process {pid} runs, and may be deleted.\n\
             case \" $* \" in\n{}) [ ! -d /proc/{pid} ] || exit 101 ;;\nesac\n\
             exit 0\n",
            Self::MARK,
            names.join(", "),
            patterns.join(" | ")
        );
        let write = || {
            fs::write(policy, text)?;
            fs::set_permissions(policy, fs::Permissions::from_mode(0o755))
        };
        write().with_context(|| format!("cannot write {}", policy.display()))?;
        Ok(Self { ours: Some(policy.to_owned()) })
    }
}

impl Drop for ServiceHeld {
    fn drop(&mut self) {
        let Some(policy) = &self.ours else { return };
        if let Err(error) = fs::remove_file(policy) {
            eprintln!("cannot remove {}: {error}; it is without effect from now on", policy.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_that_dpkg_calls_installed_count() {
        let says = "gcc installed\ntshark config-files\n";
        assert!(installed(says, "gcc"));
        assert!(!installed(says, "tshark"));
        assert!(!installed(says, "curl"));
    }

    #[test]
    fn the_policy_refuses_our_services_alone_and_goes_away() {
        let policy = std::env::temp_dir().join(format!("drover-policy-rc.d-{}", std_process::id()));
        let asked = |service: &str| Command::new(&policy).args([service, "start"]).status().unwrap().code();
        let held = ServiceHeld::new(&policy).unwrap();
        assert_eq!(asked("mosquitto"), Some(101));
        assert_eq!(asked("mosquitto.service"), Some(101));
        assert_eq!(asked("bird"), Some(101));
        assert_eq!(asked("ssh"), Some(0));
        drop(held);
        assert!(!policy.exists());
    }

    #[test]
    fn a_policy_of_the_administrator_stays_as_it_is() {
        let policy = std::env::temp_dir().join(format!("drover-own-policy-rc.d-{}", std_process::id()));
        fs::write(&policy, "#!/bin/sh\nexit 101\n").unwrap();
        drop(ServiceHeld::new(&policy).unwrap());
        let text = fs::read_to_string(&policy).unwrap();
        fs::remove_file(&policy).unwrap();
        assert_eq!(text, "#!/bin/sh\nexit 101\n");
    }
}
