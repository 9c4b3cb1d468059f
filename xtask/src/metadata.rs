//! The workspace's packages and targets, from `cargo metadata`.

use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The packages of the workspace.
pub(crate) struct Metadata {
    packages: Vec<Package>,
}

struct Package {
    id: String,
    name: String,
    folder: PathBuf,
    features: Vec<String>,
    targets: Vec<Target>,
    dependencies: BTreeSet<String>,
}

struct Target {
    name: String,
    kind: String,
    required_features: Vec<String>,
}

impl Metadata {
    pub(crate) fn read(workspace: &Workspace) -> Result<Self> {
        let mut cargo = process::cargo(workspace);
        let text = process::output(cargo.args(["metadata", "--format-version=1", "--no-deps", "--offline"]))?;
        Self::parse(&text).context("cannot make sense of what `cargo metadata` prints")
    }

    fn parse(text: &str) -> Result<Self> {
        let root: Value = serde_json::from_str(text)?;
        let packages = list(&root, "packages")?.iter().map(Package::parse).collect::<Result<_>>()?;
        Ok(Self { packages })
    }

    /// `package/feature` for each package that has the feature.
    pub(crate) fn with_feature(&self, feature: &str) -> Vec<String> {
        let has = |package: &&Package| package.features.iter().any(|name| name == feature);
        self.packages.iter().filter(has).map(|package| format!("{}/{feature}", package.name)).collect()
    }

    /// The dependencies of each package besides its tests, by name: packages of the workspace and others.
    pub(crate) fn dependencies(&self) -> BTreeMap<String, BTreeSet<String>> {
        self.packages.iter().map(|package| (package.name.clone(), package.dependencies.clone())).collect()
    }

    /// Name and folder of a package.
    pub(crate) fn package(&self, id: &str) -> Option<(&str, &PathBuf)> {
        let package = self.packages.iter().find(|package| package.id == id)?;
        Some((&package.name, &package.folder))
    }

    /// The kind of a package's target of this name: `bin`, `example`, …
    pub(crate) fn kind(&self, package: &str, target: &str) -> Option<&str> {
        let package = self.packages.iter().find(|candidate| candidate.name == package)?;
        Some(&package.targets.iter().find(|candidate| candidate.name == target)?.kind)
    }

    /// The features without which cargo does not build a target; `kind` as in cargo's messages.
    pub(crate) fn required_features(&self, id: &str, kind: &str, name: &str) -> &[String] {
        let package = self.packages.iter().find(|package| package.id == id);
        let targets = package.map_or(&[][..], |package| &package.targets);
        let target = targets.iter().find(|target| target.kind == kind && target.name == name);
        target.map_or(&[], |target| &target.required_features)
    }
}

impl Package {
    fn parse(package: &Value) -> Result<Self> {
        let manifest = PathBuf::from(string(package, "manifest_path")?);
        let features = package.get("features").and_then(Value::as_object).context("no features")?;
        Ok(Self {
            id: string(package, "id")?,
            name: string(package, "name")?,
            folder: manifest.parent().context("a manifest is in a folder")?.to_owned(),
            features: features.keys().cloned().collect(),
            targets: list(package, "targets")?.iter().map(Target::parse).collect::<Result<_>>()?,
            dependencies: list(package, "dependencies")?
                .iter()
                .filter(|dependency| dependency.get("kind").and_then(Value::as_str) != Some("dev"))
                .map(|dependency| string(dependency, "name"))
                .collect::<Result<_>>()?,
        })
    }
}

impl Target {
    fn parse(target: &Value) -> Result<Self> {
        let kind = list(target, "kind")?.first().and_then(Value::as_str).context("no kind")?;
        let required = target.get("required-features").and_then(Value::as_array);
        let required = required.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(Self { name: string(target, "name")?, kind: kind.to_owned(), required_features: required })
    }
}

fn list<'a>(value: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    value.get(name).and_then(Value::as_array).with_context(|| format!("no list `{name}`"))
}

fn string(value: &Value, name: &str) -> Result<String> {
    let text = value.get(name).and_then(Value::as_str).with_context(|| format!("no text `{name}`"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_and_what_requires_them_are_found() {
        let metadata = Metadata::parse(
            r#"{"packages":[
              {"id":"a-id","name":"a","manifest_path":"/w/a/Cargo.toml","features":{"e2e":[]},"dependencies":[
                {"name":"b","kind":null},{"name":"c","kind":"dev"},{"name":"d","kind":"build"}],"targets":[
                {"name":"net","kind":["test"],"required-features":["e2e"]},{"name":"net","kind":["bin"]}]},
              {"id":"b-id","name":"b","manifest_path":"/w/b/Cargo.toml","features":{},"dependencies":[],"targets":[{"name":"bench","kind":["example"]}]}]}"#,
        )
        .unwrap();
        assert_eq!(metadata.with_feature("e2e"), ["a/e2e"]);
        assert_eq!(metadata.required_features("a-id", "test", "net"), ["e2e"]);
        assert!(metadata.required_features("a-id", "bin", "net").is_empty());
        assert_eq!(metadata.dependencies()["a"], ["b", "d"].map(str::to_owned).into());
        assert_eq!(metadata.kind("b", "bench"), Some("example"));
        assert_eq!(metadata.kind("a", "bench"), None);
        assert_eq!(metadata.package("b-id"), Some(("b", &PathBuf::from("/w/b"))));
    }
}
