//! kubernetes-validate, which holds manifests against Kubernetes' own schemas, without a cluster.

use super::Step;
use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result};
use std::{fs, path::PathBuf, process::Command};

/// It brings the schemas of Kubernetes 1.25 up to its own version.
const VERSION: &str = "1.37.0";

pub(super) struct KubernetesValidate<'a> {
    pub(super) workspace: &'a Workspace,
}

/// The program, whether or not it is there.
pub(crate) fn program(workspace: &Workspace) -> PathBuf {
    folder(workspace).join("bin/kubernetes-validate")
}

/// The Python that it runs by, which has a parser of YAML.
pub(crate) fn python(workspace: &Workspace) -> PathBuf {
    folder(workspace).join("bin/python")
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("kubernetes-validate")
}

impl KubernetesValidate<'_> {
    fn environment(&self) -> Command {
        let mut python = process::command("python3");
        python.args(["-m", "venv", "--clear"]).arg(folder(self.workspace));
        python
    }

    fn pip(&self) -> Command {
        let mut pip = process::command(folder(self.workspace).join("bin/pip"));
        pip.args(["install", "--disable-pip-version-check", &format!("kubernetes-validate=={VERSION}")]);
        pip
    }
}

impl Step for KubernetesValidate<'_> {
    fn name(&self) -> String {
        format!("kubernetes-validate {VERSION}")
    }

    fn missing(&self) -> Result<Option<String>> {
        let program = program(self.workspace);
        if !program.is_file() {
            return Ok(Some(format!("{} does not exist", program.display())));
        }
        Ok(match process::output(process::command(&program).arg("--version")) {
            Ok(says) if says.contains(VERSION) => None,
            Ok(says) => Some(format!("{} is `{}`", program.display(), says.trim())),
            Err(error) => Some(format!("it does not run: {error:#}")),
        })
    }

    fn install(&self, label: &str) -> Result<()> {
        let log = self.workspace.setup_cache().join("kubernetes-validate.log");
        fs::create_dir_all(self.workspace.tools()).context("cannot create the folder of tools")?;
        process::logged(&mut self.environment(), label, &log).context("is python3-venv installed?")?;
        process::logged(&mut self.pip(), label, &log)
    }

    fn by_hand(&self) -> String {
        format!(
            "sudo apt-get install python3-venv; {} && {}",
            process::line(&self.environment()),
            process::line(&self.pip())
        )
    }
}
