//! systemd's units: held against systemd's own parser, and against its scale of how much a service can reach.

use super::report::{Count, Report};
use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Tenths on the scale of `systemd-analyze security`, from 0 (reaches nothing) to 100: what the units have today is 2.0.
const MOST_EXPOSED: u32 = 25;

pub(super) fn run(workspace: &Workspace, report: &mut Report) -> Result<()> {
    const NAME: &str = "systemd's units";
    let started = report.start(NAME);
    let outcome = check(workspace);
    if let Err(error) = &outcome {
        eprintln!("{error:#}");
    }
    report.done(NAME, Count::one(outcome.is_ok()), started.elapsed());
    Ok(())
}

fn check(workspace: &Workspace) -> Result<()> {
    let analyze = process::find_program("systemd-analyze")
        .context("there is no systemd-analyze: `cargo xtask setup` installs it")?;
    let work = workspace.root.join("target/units");
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    for unit in units(&workspace.root.join("systemd"))? {
        let copy = with_a_program_that_exists(&unit, &work)?;
        // An unknown setting is only a warning where it stands, but a failure in a unit that is named.
        let mut verify = process::command(&analyze);
        verify.args(["--man=no", "--recursive-errors=no", "verify"]).arg(&copy);
        process::output(&mut verify)?;
        let mut security = process::command(&analyze);
        security.args(["--no-pager", "--offline=yes", &format!("--threshold={MOST_EXPOSED}"), "security"]);
        process::output(security.arg(&unit))
            .context("it reaches more than it did: see `systemd-analyze security --offline=yes`")?;
    }
    Ok(())
}

fn units(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let is_unit = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "service");
    let units: Vec<PathBuf> = paths.into_iter().filter(is_unit).collect();
    ensure!(!units.is_empty(), "there are no units in {}", folder.display());
    Ok(units)
}

/// A copy of the unit for a machine on which the product is not installed: the parser wants to see the program.
fn with_a_program_that_exists(unit: &Path, work: &Path) -> Result<PathBuf> {
    const START: &str = "\nExecStart=/usr/bin/lb-node ";
    let text = fs::read_to_string(unit).with_context(|| format!("cannot read {}", unit.display()))?;
    ensure!(text.contains(START), "{} does not start /usr/bin/lb-node", unit.display());
    let copy = work.join(unit.file_name().context("a unit has a name")?);
    fs::write(&copy, text.replace(START, "\nExecStart=/bin/true "))
        .with_context(|| format!("cannot write {}", copy.display()))?;
    Ok(copy)
}
