//! Building with cargo, and learning from its messages what was built and where.

use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

/// A program that cargo built.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// cargo's id of the package.
    pub(crate) package: String,
    /// `bin`, `test`, `lib`, …, as in a manifest.
    pub(crate) kind: String,
    /// Name of the target.
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
    /// Built with the test harness.
    pub(crate) is_test: bool,
}

/// Runs `cargo build` with these arguments. `None` means that the build failed; cargo has said why.
pub(crate) fn build(workspace: &Workspace, arguments: &[&str]) -> Result<Option<Vec<Artifact>>> {
    let mut cargo = process::cargo(workspace);
    cargo.arg("build").args(arguments).arg("--message-format=json-render-diagnostics");
    cargo.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = cargo.output().with_context(|| format!("cannot run `{}`", process::line(&cargo)))?;
    if !output.status.success() {
        return Ok(None);
    }
    let messages = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
    let artifacts = messages.lines().map(|message| {
        Artifact::parse(message).with_context(|| format!("cannot make sense of cargo's message {message}"))
    });
    Ok(Some(artifacts.filter_map(Result::transpose).collect::<Result<_>>()?))
}

/// Builds every binary of the workspace and gives the place of the one with this name.
///
/// Every one, since programs start others that they find beside themselves; and since dependencies are then
/// built with the same features, hence once, as by `cargo build`.
pub(crate) fn binary(workspace: &Workspace, name: &str, arguments: &[&str]) -> Result<PathBuf> {
    let Some(artifacts) = build(workspace, &[&["--workspace", "--bins"], arguments].concat())? else {
        bail!("the build failed, see above");
    };
    let wanted = |artifact: &Artifact| !artifact.is_test && artifact.kind == "bin" && artifact.name == name;
    let found = artifacts.into_iter().find(wanted);
    Ok(found.with_context(|| format!("the workspace has no binary `{name}`"))?.executable)
}

impl Artifact {
    /// Reads one message of cargo's; `None` if it tells of something else.
    fn parse(message: &str) -> Result<Option<Self>> {
        let message: Value = serde_json::from_str(message)?;
        let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str);
        let (Some("compiler-artifact"), Some(executable)) = (text("/reason"), text("/executable")) else {
            return Ok(None);
        };
        Ok(Some(Self {
            package: text("/package_id").context("no package")?.to_owned(),
            kind: text("/target/kind/0").context("no kind of target")?.to_owned(),
            name: text("/target/name").context("no name of the target")?.to_owned(),
            executable: Path::new(executable).to_owned(),
            is_test: message.pointer("/profile/test").and_then(Value::as_bool).context("no profile")?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_libraries_and_other_messages() {
        let program = r#"{"reason":"compiler-artifact","package_id":"p","target":{"kind":["bin"],"name":"n"},
                          "profile":{"test":false},"executable":"/t/n"}"#;
        let (package, kind, name) = ("p".to_owned(), "bin".to_owned(), "n".to_owned());
        let wanted = Artifact { package, kind, name, executable: "/t/n".into(), is_test: false };
        assert_eq!(Artifact::parse(program).unwrap(), Some(wanted));
        let library = program.replace(r#""/t/n""#, "null");
        assert_eq!(Artifact::parse(&library).unwrap(), None);
        assert_eq!(Artifact::parse(r#"{"reason":"build-finished","success":true}"#).unwrap(), None);
    }
}
