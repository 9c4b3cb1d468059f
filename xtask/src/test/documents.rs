//! Checks that the files exist which CONTRIBUTING.md names.

use crate::workspace::Workspace;
use anyhow::{Context as _, Result};
use std::{fs, path::Path};

const DOCUMENT: &str = "CONTRIBUTING.md";

/// The files that CONTRIBUTING.md names in backticks and that do not exist, a line for each.
pub(super) fn problems(workspace: &Workspace) -> Result<Vec<String>> {
    let text = fs::read_to_string(workspace.root.join(DOCUMENT))
        .with_context(|| format!("cannot read {DOCUMENT}"))?;
    Ok(missing(&text, |path| workspace.root.join(path).exists()))
}

fn missing(text: &str, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let is_missing = |path: &&str| !exists(Path::new(path));
    files(text)
        .filter(is_missing)
        .map(|path| format!("{DOCUMENT} names {path}, which does not exist"))
        .collect()
}

/// The words in backticks that look like paths in the repository. Paths of builds do not.
fn files(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|word| {
        word.contains('/') && !word.contains(char::is_whitespace) && !word.starts_with("target/")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_exist_is_named() {
        let text = "1. `a/b.rs`: `Thing`.\n2. `cargo test a/b`, `a/gone.rs`, `target/debug/x`.";
        let found = missing(text, |path| path == Path::new("a/b.rs"));
        assert_eq!(found, ["CONTRIBUTING.md names a/gone.rs, which does not exist"]);
    }
}
