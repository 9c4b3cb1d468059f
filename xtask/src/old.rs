//! An older lb-node, to upgrade from.

use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result, bail};
use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

/// The program's sources: where two commits are alike in these, so are their programs.
const SOURCES: [&str; 11] = [
    "lb-node/src",
    "lb-ebpf/src",
    "coordination/src",
    "policy/src",
    "zk-schema/src",
    "slot-table/src",
    "host/src",
    "admin/src",
    "health/src",
    "dataplane/src",
    "agent/src",
];
/// The most commits that are looked at.
const MOST_COMMITS: &str = "500";

/// The lb-node to upgrade from, and the one to upgrade to, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Old {
    /// The old program; none where there is no history.
    file: Option<PathBuf>,
    old_version: Option<String>,
    new_version: Option<String>,
}

impl Old {
    /// A program that somebody has at hand.
    pub(crate) fn given(file: &Path) -> Old {
        Old { file: Some(file.to_owned()), ..Old::default() }
    }

    /// The program of the newest commit whose sources differ from the work tree's, built unless that was done before. Where
    /// it cannot be had, stderr says why, and there is none.
    pub(crate) fn built(workspace: &Workspace) -> Old {
        Old::from_history(workspace).unwrap_or_else(|error| {
            eprintln!(
                "No older lb-node to upgrade from: {error:#}.\nThe upgrade goes from the present lb-node to itself, with \
                 maps of another size, so that they are migrated all the same."
            );
            Old::default()
        })
    }

    /// For the program that plays drills.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        if let Some(file) = &self.file {
            arguments.extend(["--old".into(), file.into()]);
        }
        let versions = [("--old-version", &self.old_version), ("--new-version", &self.new_version)];
        for (flag, version) in versions {
            if let Some(version) = version {
                arguments.extend([flag.into(), version.into()]);
            }
        }
        arguments
    }

    fn from_history(workspace: &Workspace) -> Result<Old> {
        let history = History { root: &workspace.root };
        let new_version = history.present()?;
        let commit = history.newest_other()?;
        let old_version = history.shown(&commit)?;
        let place = workspace.target_dir().join("old-lb-node");
        let file = place.join(format!("lb-node-{commit}"));
        if !file.is_file() {
            build(workspace, &history, &commit, &old_version, &place, &file)?;
        }
        Ok(Old { file: Some(file), old_version: Some(old_version), new_version: Some(new_version) })
    }
}

/// The work tree's git history.
struct History<'w> {
    root: &'w Path,
}

impl History<'_> {
    fn git(&self) -> Command {
        let mut git = process::command("git");
        // The work tree may belong to the user who called sudo.
        let mut safe = OsString::from("safe.directory=");
        safe.push(self.root);
        git.arg("-C").arg(self.root).arg("-c").arg(safe);
        git
    }

    fn ask(&self, arguments: &[&str]) -> Result<String> {
        Ok(process::output(self.git().args(arguments))?.trim().to_owned())
    }

    /// Returns whether a commit's program is not that of the work tree as it stands.
    fn differs(&self, commit: &str) -> Result<bool> {
        let status = process::status(self.git().args(["diff", "--quiet", commit, "--"]).args(SOURCES))?;
        match status.code() {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => bail!("`git diff` failed ({status})"),
        }
    }

    /// Describes the work tree.
    fn present(&self) -> Result<String> {
        let head = self.shown("HEAD")?;
        Ok(if self.differs("HEAD")? { format!("the work tree, changed since {head}") } else { head })
    }

    /// A commit, for people.
    fn shown(&self, commit: &str) -> Result<String> {
        self.ask(&["log", "-1", "--format=commit %h of %cs (%s)", commit])
    }

    /// The newest commit with another program.
    fn newest_other(&self) -> Result<String> {
        let commits = self.ask(&["rev-list", "--first-parent", "--max-count", MOST_COMMITS, "HEAD"])?;
        for commit in commits.lines() {
            if self.differs(commit)? {
                return Ok(commit.to_owned());
            }
        }
        let shallow = self.ask(&["rev-parse", "--is-shallow-repository"])? == "true";
        let why = if shallow { "this clone is shallow" } else { "the history holds no other program" };
        bail!("{why} ({} commits looked at)", commits.lines().count())
    }
}

/// Builds a commit's program in a work tree of its own, which is removed again; what cargo built stays for next time.
fn build(
    workspace: &Workspace,
    history: &History<'_>,
    commit: &str,
    shown: &str,
    place: &Path,
    file: &Path,
) -> Result<()> {
    fs::create_dir_all(place).with_context(|| format!("cannot create {}", place.display()))?;
    let tree = Tree::check_out(history, commit, place.join("tree"))?;
    // bpf-build looks for bpf-linker here.
    fs::create_dir_all(tree.path.join("target"))?;
    symlink(workspace.tools(), tree.path.join("target/tools")).context("cannot link the build tools")?;
    let target = place.join("target");
    let mut cargo = process::cargo(workspace);
    cargo.current_dir(&tree.path).env_remove("CARGO_TARGET_DIR");
    cargo
        .args(["build", "--locked", "--package", "lb-node", "--bin", "lb-node", "--target-dir"])
        .arg(&target);
    let what = format!("building the lb-node to upgrade from, {shown}");
    process::logged(&mut cargo, &what, &place.join("build.log"))?;
    // Under another name until it is whole.
    let partial = file.with_extension("partial");
    fs::copy(target.join("debug/lb-node"), &partial).context("cannot keep the old lb-node")?;
    fs::rename(&partial, file).context("cannot keep the old lb-node")?;
    Ok(())
}

/// A commit checked out beside the work tree. Dropping it removes it, and git's note of it.
struct Tree<'h> {
    history: &'h History<'h>,
    path: PathBuf,
}

impl<'h> Tree<'h> {
    fn check_out(history: &'h History<'_>, commit: &str, path: PathBuf) -> Result<Tree<'h>> {
        let tree = Tree { history, path };
        // What an interrupted run left.
        tree.remove()?;
        let mut add = history.git();
        add.args(["worktree", "add", "--quiet", "--force", "--detach"]).arg(&tree.path).arg(commit);
        process::output(&mut add)?;
        Ok(tree)
    }

    fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", self.path.display()));
            }
            _ => {}
        }
        // Forgets work trees whose folders are gone.
        let pruned = process::output(self.history.git().args(["worktree", "prune"]));
        pruned.map(|_| ())
    }
}

impl Drop for Tree<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history of one file, each commit with a content of it.
    fn history(root: &Path, contents: &[&str]) -> Result<()> {
        let git = |arguments: &[&str]| {
            let mut git = History { root }.git();
            git.args(["-c", "user.name=a test", "-c", "user.email=test@example.org"]).args(arguments);
            process::output(&mut git)
        };
        git(&["init", "--quiet"])?;
        for folder in SOURCES {
            fs::create_dir_all(root.join(folder))?;
        }
        for content in contents {
            fs::write(root.join(SOURCES[0]).join("main.rs"), content)?;
            git(&["add", "--all"])?;
            git(&["commit", "--quiet", "--allow-empty", "--message", content])?;
        }
        Ok(())
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("drover-xtask-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn the_newest_commit_with_another_program_is_found_past_those_with_the_same() {
        let root = folder("found");
        history(&root, &["one", "two", "three", "three"]).unwrap();
        let found = History { root: &root };
        let shown = |commit: String| found.shown(&commit).unwrap();
        assert!(shown(found.newest_other().unwrap()).ends_with("(two)"));
        // Not committed yet: then the last commit is another.
        fs::write(root.join(SOURCES[0]).join("main.rs"), "four").unwrap();
        assert!(shown(found.newest_other().unwrap()).ends_with("(three)"));
        assert!(found.present().unwrap().starts_with("the work tree, changed since"));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_history_without_another_program_and_none_at_all_are_told_apart() {
        let root = folder("none");
        let history_of = History { root: &root };
        assert!(history_of.newest_other().is_err());
        history(&root, &["one", "one"]).unwrap();
        let error = history_of.newest_other().unwrap_err().to_string();
        assert!(error.contains("no other program") && error.contains("2 commits"), "{error}");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_checked_out_tree_goes_with_its_handle_and_git_forgets_it() {
        let root = folder("tree");
        history(&root, &["one", "two"]).unwrap();
        let of = History { root: &root };
        let path = root.join("target/tree");
        let tree = Tree::check_out(&of, &of.newest_other().unwrap(), path.clone()).unwrap();
        assert_eq!(fs::read_to_string(path.join(SOURCES[0]).join("main.rs")).unwrap(), "one");
        assert_eq!(of.ask(&["worktree", "list"]).unwrap().lines().count(), 2);
        drop(tree);
        assert!(!path.exists());
        assert_eq!(of.ask(&["worktree", "list"]).unwrap().lines().count(), 1);
        fs::remove_dir_all(&root).unwrap();
    }
}
