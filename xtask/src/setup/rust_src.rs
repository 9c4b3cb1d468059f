//! The standard library's sources, from which `core` is built for the BPF target.

use super::{Step, toolchain::Toolchain};
use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result, ensure};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The Debian suite that has a package `rust-src` of current compilers.
const DEBIAN_SUITE: &str = "trixie-backports";
const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub(super) struct RustSrc<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) toolchain: &'a Toolchain,
}

impl RustSrc<'_> {
    /// Where the sources are to be: where rustup puts them, and where cargo's build-std looks.
    fn folder(&self) -> PathBuf {
        self.toolchain.sysroot.join("lib/rustlib/src/rust")
    }

    fn cache(&self) -> PathBuf {
        self.workspace.setup_cache().join("rust-src")
    }

    fn add_with_rustup(&self, label: &str) -> Result<()> {
        eprintln!("{label}: rustup component add rust-src");
        let mut rustup = process::command("rustup");
        rustup.current_dir(&self.workspace.root).args(["component", "add", "rust-src"]);
        process::logged(&mut rustup, label, &self.workspace.setup_cache().join("rustup.log"))
    }

    /// Takes the sources out of Debian's package, without adding its suite to this machine: apt-get works with
    /// lists, sources and a cache of its own, so this needs no root either.
    fn take_from_debian(&self, label: &str) -> Result<()> {
        let release = &self.toolchain.release;
        eprintln!("{label}: taking them from Debian's package rust-src {release} of {DEBIAN_SUITE}");
        let cache = self.cache();
        if cache.exists() {
            fs::remove_dir_all(&cache).with_context(|| format!("cannot clear {}", cache.display()))?;
        }
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = cache.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let mut indextargets = process::command("apt-get");
        indextargets.args(["indextargets", "--format", "$(REPO_URI)"]);
        let targets = process::output(&mut indextargets)
            .context("apt-get cannot name this machine's package repositories")?;
        let repository = debian_repository(&targets)
            .context("none of this machine's package repositories is Debian's (`apt-get indextargets`)")?;
        let source = format!("deb [signed-by={DEBIAN_KEYRING}] {repository} {DEBIAN_SUITE} main\n");
        fs::write(cache.join("sources.list"), source)?;

        let log = self.workspace.setup_cache().join("rust-src.log");
        process::logged(self.apt_get(&cache).arg("update"), label, &log)?;
        let mut download = self.apt_get(&cache);
        process::logged(download.arg("download").arg(format!("rust-src={release}*")), label, &log)?;
        let package = package_in(&cache)?;
        self.unpack(&package)?;
        fs::remove_dir_all(&cache).with_context(|| format!("cannot clear {}", cache.display()))
    }

    fn apt_get(&self, cache: &Path) -> Command {
        let option = |name: &str, value: &Path| {
            let mut option = OsString::from(format!("-o{name}="));
            option.push(value);
            option
        };
        let mut apt_get = process::command("apt-get");
        apt_get
            .arg("-q")
            .arg(option("Dir::State::Lists", &cache.join("lists")))
            .arg(option("Dir::Etc::sourcelist", &cache.join("sources.list")))
            .arg(option("Dir::Etc::sourceparts", Path::new("/dev/null")))
            .arg(option("Dir::Cache", &cache.join("cache")))
            .current_dir(cache);
        apt_get
    }

    /// Unpacks `library/` beside its place and then renames it, so that half a tree never looks like a whole one.
    fn unpack(&self, package: &Path) -> Result<()> {
        let partial = self.folder().join(".library.partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("cannot clear {}", partial.display()))?;
        }
        fs::create_dir_all(&partial).with_context(|| {
            format!("cannot write into the toolchain: {} (is it another user's?)", partial.display())
        })?;
        let mut deb =
            process::command("dpkg-deb").arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).spawn()?;
        let archive = deb.stdout.take().context("the output of dpkg-deb is piped")?;
        let mut tar = process::command("tar");
        tar.arg("-x").arg("-C").arg(&partial).arg("--strip-components=5");
        tar.arg(format!("./usr/src/rustc-{}/library", self.toolchain.release));
        let tar = tar.stdin(archive).status().context("cannot run tar")?;
        let deb = deb.wait()?;
        ensure!(
            tar.success() && deb.success(),
            "cannot unpack {}: dpkg-deb {deb}, tar {tar}",
            package.display()
        );
        let library = self.folder().join("library");
        if library.exists() {
            fs::remove_dir_all(&library).with_context(|| format!("cannot replace {}", library.display()))?;
        }
        fs::rename(&partial, &library).with_context(|| format!("cannot put {} in place", library.display()))
    }
}

impl Step for RustSrc<'_> {
    fn name(&self) -> String {
        format!("rust-src {}", self.toolchain.release)
    }

    fn missing(&self) -> Result<Option<String>> {
        let core = self.folder().join("library/core/src/lib.rs");
        Ok((!core.is_file()).then(|| format!("{} does not exist", core.display())))
    }

    fn install(&self, label: &str) -> Result<()> {
        let Err(no_rustup) = self.add_with_rustup(label) else { return Ok(()) };
        eprintln!("{label}: rustup cannot ({})", no_rustup.to_string().lines().next().unwrap_or_default());
        ensure!(process::find_program("apt-get").is_some(), "{no_rustup:#}");
        self.take_from_debian(label).with_context(|| format!("rustup could not either: {no_rustup:#}"))
    }

    fn by_hand(&self) -> String {
        let release = &self.toolchain.release;
        format!(
            "`rustup component add rust-src --toolchain {release}`, or put the folder `library` of the sources of \
             Rust {release} into {}",
            self.folder().display()
        )
    }
}

/// The address of Debian's main archive, or of its mirror, among those that this machine uses.
fn debian_repository(targets: &str) -> Option<&str> {
    let path = |uri: &&str| uri.trim_end_matches('/').ends_with("/debian");
    targets.lines().map(str::trim).find(path)
}

fn package_in(folder: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    anyhow::bail!("apt-get downloaded no package into {}", folder.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_archive_is_told_from_its_security_updates_and_from_strangers() {
        let targets = "https://strangers.example/apt/\nhttp://mirror.example/debian-security/\n\
                       http://mirror.example/debian/\nhttp://mirror.example/debian/\n";
        assert_eq!(debian_repository(targets), Some("http://mirror.example/debian/"));
        assert_eq!(debian_repository("http://mirror.example/ubuntu/\n"), None);
    }
}
