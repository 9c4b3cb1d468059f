//! `cargo xtask reference`.

use crate::{artifacts, process, setup, workspace::Workspace};
use anyhow::{Context as _, Result};
use std::{fs, process::ExitCode};

const DOCUMENT: &str = "docs/lbctl.md";
/// As in `lbctl::reference`, whose test says so if they differ.
const BEGIN: &str =
    "<!-- Written by `cargo xtask reference`: edit the command line's definition instead. -->";
const END: &str = "<!-- The end of what is written. -->";

/// Writes the reference part of docs/lbctl.md from lbctl's own definition of its command line.
///
/// A test of lbctl fails while the two differ. The rest of the document is left as it is.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn command(workspace: &Workspace, _args: &Args) -> Result<ExitCode> {
    setup::ensure(workspace, setup::Scope::Build)?;
    let lbctl = artifacts::binary(workspace, "lbctl", &[])?;
    let reference = process::output(process::command(lbctl).arg("reference"))?;
    let path = workspace.root.join(DOCUMENT);
    let document = fs::read_to_string(&path).with_context(|| format!("cannot read {DOCUMENT}"))?;
    let written = replaced(&document, &reference)
        .with_context(|| format!("{DOCUMENT} has no line `{BEGIN}` with a line `{END}` behind it"))?;
    if written != document {
        fs::write(&path, written).with_context(|| format!("cannot write {DOCUMENT}"))?;
        println!("{DOCUMENT}: written");
    }
    Ok(ExitCode::SUCCESS)
}

/// The document with another reference between its two lines; `None` where it lacks one of them.
fn replaced(document: &str, reference: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", reference.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_lines_is_replaced() {
        let document = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let written = replaced(&document, "new\n").expect("both lines are there");
        assert_eq!(written, format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        assert_eq!(replaced(&written, "new").as_deref(), Some(written.as_str()));
        assert_eq!(replaced("no lines", "new"), None);
    }
}
