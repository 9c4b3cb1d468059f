//! kubectl, for the kustomize inside it: it renders the manifests, and needs no cluster for that.

use super::{Step, debian::Package};
use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Debian 12's own kubectl has kustomize 2, which knows neither components nor patches as they are written today.
const LEAST_KUSTOMIZE: u32 = 5;
/// The Debian release whose kubectl does.
const DEBIAN_SUITE: &str = "trixie";

pub(super) struct Kubectl<'a> {
    pub(super) workspace: &'a Workspace,
}

/// The kubectl to use: the one that setup has brought, else that of the machine.
pub(crate) fn program(workspace: &Workspace) -> Option<PathBuf> {
    let ours = ours(workspace);
    if ours.is_file() { Some(ours) } else { process::find_program("kubectl") }
}

fn ours(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("bin/kubectl")
}

impl Step for Kubectl<'_> {
    fn name(&self) -> String {
        format!("kubectl with kustomize {LEAST_KUSTOMIZE}")
    }

    fn missing(&self) -> Result<Option<String>> {
        let Some(program) = program(self.workspace) else {
            return Ok(Some("there is none".to_owned()));
        };
        // It exits with 0 without a cluster, as long as it is asked about itself alone.
        let says = process::output(process::command(&program).args(["version", "--client"]));
        Ok(match says.as_deref().map(kustomize) {
            Ok(Some(version)) if version >= LEAST_KUSTOMIZE => None,
            Ok(Some(version)) => Some(format!("{} has kustomize {version}", program.display())),
            Ok(None) => Some(format!("{} is older than Kubernetes 1.24", program.display())),
            Err(error) => Some(format!("{} does not run: {error:#}", program.display())),
        })
    }

    fn install(&self, label: &str) -> Result<()> {
        eprintln!("{label}: taking it from Debian's package kubectl of {DEBIAN_SUITE}");
        let cache = self.workspace.setup_cache();
        let package = Package::fetch(
            DEBIAN_SUITE,
            "kubectl",
            &cache.join("kubectl"),
            label,
            &cache.join("kubectl.log"),
        )?;
        let folder = self.workspace.tools().join("bin");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        package.unpack("./usr/bin/kubectl", 3, &folder)?;
        ensure!(Path::new(&ours(self.workspace)).is_file(), "the package holds no /usr/bin/kubectl");
        package.discard()
    }

    fn by_hand(&self) -> String {
        format!("put a kubectl of Kubernetes 1.27 or later on PATH, or as {}", ours(self.workspace).display())
    }
}

/// The first number of the version of the kustomize inside, from what `kubectl version --client` says.
fn kustomize(says: &str) -> Option<u32> {
    let version = says.lines().find_map(|line| line.strip_prefix("Kustomize Version: v"))?;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_tells_which_kustomize_is_inside() {
        assert_eq!(kustomize("Client Version: v1.32.3\nKustomize Version: v5.5.0\n"), Some(5));
        assert_eq!(kustomize("Client Version: version.Info{Major:\"1\", Minor:\"20\"}\n"), None);
    }
}
