//! Packages of another Debian release, taken apart without installing them.
//!
//! apt-get works with lists, sources and a cache of its own here, so neither root nor a change of the machine is needed.

use crate::process;
use anyhow::{Context as _, Result, ensure};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package that has been fetched.
pub(super) struct Package {
    folder: PathBuf,
    file: PathBuf,
}

impl Package {
    /// Fetches the newest package that matches `pattern` (`name=version*`) of a suite into `folder`, which is cleared.
    pub(super) fn fetch(suite: &str, pattern: &str, folder: &Path, label: &str, log: &Path) -> Result<Self> {
        ensure!(process::find_program("apt-get").is_some(), "this machine has no apt-get");
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot clear {}", folder.display()))?;
        }
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        let repository = repository()?;
        let source = format!("deb [signed-by={KEYRING}] {repository} {suite} main\n");
        fs::write(folder.join("sources.list"), source)?;

        process::logged(apt_get(folder).arg("update"), label, log)?;
        process::logged(apt_get(folder).args(["download", pattern]), label, log)?;
        Ok(Self { folder: folder.to_owned(), file: package_in(folder)? })
    }

    /// Unpacks `path` of the package into `into`, without the first `strip` folders of its name.
    pub(super) fn unpack(&self, path: &str, strip: usize, into: &Path) -> Result<()> {
        let mut deb = process::command("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&self.file)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run dpkg-deb")?;
        let archive = deb.stdout.take().context("the output of dpkg-deb is piped")?;
        let mut tar = process::command("tar");
        tar.arg("-x").arg("-C").arg(into).arg(format!("--strip-components={strip}")).arg(path);
        let tar = tar.stdin(archive).status().context("cannot run tar")?;
        let deb = deb.wait()?;
        ensure!(
            tar.success() && deb.success(),
            "cannot unpack {}: dpkg-deb {deb}, tar {tar}",
            self.file.display()
        );
        Ok(())
    }

    /// Removes what was fetched.
    pub(super) fn discard(self) -> Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot clear {}", self.folder.display()))
    }
}

/// The address of Debian's main archive, as this machine's own sources name it.
pub(super) fn repository() -> Result<String> {
    let mut indextargets = process::command("apt-get");
    indextargets.args(["indextargets", "--format", "$(REPO_URI)"]);
    let targets = process::output(&mut indextargets)
        .context("apt-get cannot name this machine's package repositories")?;
    let repository = debian_repository(&targets)
        .context("none of this machine's package repositories is Debian's (`apt-get indextargets`)")?;
    Ok(repository.to_owned())
}

fn apt_get(folder: &Path) -> Command {
    let option = |name: &str, value: &Path| {
        let mut option = OsString::from(format!("-o{name}="));
        option.push(value);
        option
    };
    let mut apt_get = process::command("apt-get");
    apt_get
        .arg("-q")
        .arg(option("Dir::State::Lists", &folder.join("lists")))
        // What is installed here must not count: it may be newer, and from elsewhere.
        .arg(option("Dir::State::status", Path::new("/dev/null")))
        .arg(option("Dir::Etc::sourcelist", &folder.join("sources.list")))
        .arg(option("Dir::Etc::sourceparts", Path::new("/dev/null")))
        .arg(option("Dir::Cache", &folder.join("cache")))
        .current_dir(folder);
    apt_get
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
