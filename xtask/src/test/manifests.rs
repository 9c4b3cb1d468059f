//! Kubernetes' manifests: each overlay, by itself and with every component, is rendered, and held against the schemas and
//! rules of ours.

mod rules;

use super::report::{Count, Report};
use crate::{
    process,
    setup::{kubectl, kubernetes_validate},
    workspace::Workspace,
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The first Kubernetes that the manifests are for (sidecars among init containers), and the newest whose schemas there are.
const VERSIONS: [&str; 2] = ["1.29", "1.37"];

/// Kinds that Kubernetes itself does not have, and so has no schema for.
const FOREIGN_KINDS: [&str; 1] = ["ServiceMonitor"];

/// A field that every overlay has, and how a hasty hand may write it.
const MISSPELT: (&str, &str) = ("readOnlyRootFilesystem:", "readOnlyRootFilesytem:");

pub(super) fn run(workspace: &Workspace, report: &mut Report) -> Result<()> {
    let manifests = workspace.root.join("k8s");
    let work = workspace.root.join("target/manifests");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot clear {}", work.display()))?;
    }
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;

    let mut rendered = Vec::new();
    let components = folders(&manifests.join("components"))?;
    for overlay in folders(&manifests.join("overlays"))? {
        let name = format!("k8s/overlays/{}", name_of(&overlay));
        judge(report, &name, || {
            let file = render(workspace, &overlay, &work)?;
            rendered.push(file.clone());
            check(workspace, &file)
        });
        for chosen in choices(&components) {
            let names: Vec<&str> = chosen.iter().map(|component| name_of(component)).collect();
            judge(report, &format!("{name} with {}", names.join(" and ")), || {
                let user = with_components(&overlay, &names, &work)?;
                check(workspace, &render(workspace, &user, &work)?)
            });
        }
    }
    judge(report, "patches by number say what they expect", || {
        let all = ["base", "overlays", "components"].map(|part| manifests.join(part));
        for folder in all.iter().flat_map(|part| kustomizations(part)) {
            let file = folder.join("kustomization.yaml");
            for patch in patches(workspace, &file)? {
                rules::patches_are_guarded(&patch).with_context(|| file.display().to_string())?;
            }
        }
        Ok(())
    });
    judge(report, "a misspelt field in a manifest is found", || {
        let file = rendered.first().context("no overlay could be rendered")?;
        let text = fs::read_to_string(file)?;
        ensure!(text.contains(MISSPELT.0), "{} has no {}", file.display(), MISSPELT.0);
        let wrong = work.join("misspelt.yaml");
        fs::write(&wrong, text.replace(MISSPELT.0, MISSPELT.1))?;
        ensure!(
            validate(workspace, &wrong).is_err(),
            "{} passed, which proves the checks void",
            wrong.display()
        );
        Ok(())
    });
    Ok(())
}

fn judge(report: &mut Report, name: &str, check: impl FnOnce() -> Result<()>) {
    let started = report.start(name);
    let outcome = check();
    if let Err(error) = &outcome {
        eprintln!("{error:#}");
    }
    report.done(name, Count::one(outcome.is_ok()), started.elapsed());
}

/// The folders in a folder, sorted.
fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let mut folders: Vec<PathBuf> = paths.into_iter().filter(|path| path.is_dir()).collect();
    folders.sort();
    ensure!(!folders.is_empty(), "there is nothing in {}", folder.display());
    Ok(folders)
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Renders a kustomization into a file.
fn render(workspace: &Workspace, folder: &Path, work: &Path) -> Result<PathBuf> {
    let kubectl = kubectl::program(workspace).context("there is no kubectl: run `cargo xtask setup`")?;
    let text = process::output(process::command(kubectl).arg("kustomize").arg(folder))?;
    let file = work.join(format!("{}.yaml", name_of(folder)));
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// Every component by itself, and all together.
fn choices(components: &[PathBuf]) -> Vec<Vec<PathBuf>> {
    let mut choices: Vec<Vec<PathBuf>> = components.iter().map(|component| vec![component.clone()]).collect();
    if components.len() > 1 {
        choices.push(components.to_vec());
    }
    choices
}

/// A copy of an overlay that names these components, as one is told to have them: what the overlay says of images counts
/// for theirs, too.
fn with_components(overlay: &Path, components: &[&str], work: &Path) -> Result<PathBuf> {
    let user = work.join(format!("{}-with-{}", name_of(overlay), components.join("-")));
    fs::create_dir_all(&user)?;
    for entry in fs::read_dir(overlay)? {
        let path = entry?.path();
        fs::copy(&path, user.join(path.file_name().context("a file has a name")?))?;
    }
    let file = user.join("kustomization.yaml");
    // kustomize takes relative paths alone.
    let mut text = fs::read_to_string(&file)?.replace("../../base", "../../../k8s/base");
    ensure!(!text.contains("\ncomponents:"), "{} has components already", overlay.display());
    text.push_str("\ncomponents:\n");
    text.extend(components.iter().map(|name| format!("  - ../../../k8s/components/{name}\n")));
    fs::write(&file, text)?;
    Ok(user)
}

/// The folders below one, itself included, that hold a kustomization.
fn kustomizations(folder: &Path) -> Vec<PathBuf> {
    let inner = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let all = std::iter::once(folder.to_owned()).chain(inner.filter(|path| path.is_dir()));
    all.filter(|folder| folder.join("kustomization.yaml").is_file()).collect()
}

/// The patches of a kustomization that are lists of operations.
fn patches(workspace: &Workspace, kustomization: &Path) -> Result<Vec<Vec<Value>>> {
    let documents = documents(workspace, kustomization)?;
    let patches = documents.iter().filter_map(|document| document.get("patches")?.as_array()).flatten();
    let texts = patches.filter_map(|patch| patch.get("patch")?.as_str());
    texts
        .map(|text| {
            let file = workspace.root.join("target/manifests/patch.yaml");
            fs::write(&file, text)?;
            let parsed = self::documents(workspace, &file)?;
            Ok(parsed.iter().filter_map(Value::as_array).flatten().cloned().collect())
        })
        .collect()
}

/// The documents of a YAML file, read by the parser that the checker of schemas brings.
pub(super) fn documents(workspace: &Workspace, file: &Path) -> Result<Vec<Value>> {
    const READ: &str =
        "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let mut python = process::command(kubernetes_validate::python(workspace));
    let text = process::output(python.args(["-c", READ]).arg(file))?;
    serde_json::from_str(&text).with_context(|| format!("{} as JSON", file.display()))
}

/// Holds a rendered file against the schemas and our rules.
fn check(workspace: &Workspace, file: &Path) -> Result<()> {
    validate(workspace, file)?;
    rules::check(&documents(workspace, file)?, env!("CARGO_PKG_VERSION"))
        .with_context(|| file.display().to_string())
}

/// Holds a rendered file against the schemas of each version.
fn validate(workspace: &Workspace, file: &Path) -> Result<()> {
    for version in VERSIONS {
        let mut checker = process::command(kubernetes_validate::program(workspace));
        checker.args(["--strict", "--kubernetes-version", version]).arg(file);
        let output = checker.output().with_context(|| format!("cannot run `{}`", process::line(&checker)))?;
        let says =
            [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
        if let Err(error) = verdict(output.status.success(), &says) {
            bail!("{} is not for Kubernetes {version}: {error}", file.display());
        }
    }
    Ok(())
}

/// Judges the checker's words: a kind that it does not know is only a warning to it.
fn verdict(succeeded: bool, says: &str) -> Result<()> {
    let unknown = says.lines().filter(|line| line.contains("Couldn't find schema for kind"));
    let known = |line: &&str| FOREIGN_KINDS.iter().any(|kind| line.contains(&format!("for kind {kind} ")));
    let faults: Vec<&str> = unknown.filter(|line| !known(line)).collect();
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    let refusals: Vec<&str> = says.lines().filter(|line| !line.starts_with("INFO ")).collect();
    ensure!(succeeded, "{}", refusals.join("\n"));
    ensure!(says.contains(" passed for resource "), "nothing was checked: {says}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: &str = "INFO a.yaml passed for resource service/lb-node against version 1.37\n";

    #[test]
    fn only_kinds_that_are_listed_may_go_unchecked() {
        let unknown =
            |kind| format!("{PASSED}WARN a.yaml Couldn't find schema for kind {kind} with api version v1\n");
        verdict(true, PASSED).unwrap();
        verdict(true, &unknown("ServiceMonitor")).unwrap();
        assert!(verdict(true, &unknown("StatefulSett")).is_err());
        assert!(verdict(true, &unknown("ServiceMonitorr")).is_err());
    }

    #[test]
    fn a_refusal_or_silence_is_no_pass() {
        assert!(verdict(false, PASSED).is_err());
        assert!(verdict(true, "").is_err());
    }
}
