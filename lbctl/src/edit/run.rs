//! The course of every editing command: show what will be, ask, write, tell what became of it.

use super::carry_out::{carry_out, what_changed};
use super::effect::{self, Effect, Expected};
use super::fields::FieldChange;
use super::names;
use super::plan::{self, Plan};
use super::step::{Action, Edit, Object, Remark};
use super::time::Span;
use crate::context::Context;
use crate::output::{self, Format, Shown, say};
use crate::tree::Tree;
use anyhow::{Result, bail};
use coordination::setup::ensure_skeleton;
use coordination::zookeeper::ZooKeeperSession;
use coordination::{Error, Session};
use policy::removal;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

/// Time for which a command watches its edit when it is not told to wait.
const LOOK: Duration = Duration::from_millis(1_500);

/// Options of every editing command.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Options of editing")]
pub struct Editing {
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
    /// Show what would be written, and write nothing.
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    /// Wait until it is in force on every node. Exit code 1 if the leader refuses it, or the time is up.
    #[arg(long)]
    pub wait: bool,
    /// Longest time to wait with --wait.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub timeout: Span,
}

/// The cases in which a command asks before it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// If something about it is dangerous.
    Dangers,
    /// Always.
    Always,
}

/// The outcome of an editing command: the document that `-o json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// True if anything was written.
    pub written: bool,
    /// True if it was only to be shown.
    pub dry_run: bool,
    /// The changes that were, or would be, written.
    pub changes: Vec<Changed>,
    /// Remarks on them.
    pub remarks: Vec<Remark>,
    /// The effect; `None` if nothing was written.
    pub effect: Option<Effect>,
}

/// A change of one object.
#[derive(Clone, Debug, Serialize)]
pub struct Changed {
    /// The way in which it changes.
    pub action: Action,
    /// The kind of thing.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Its znode.
    pub path: String,
    /// In which fields, by name.
    pub fields: BTreeMap<String, OldNew>,
}

/// A field's value before and after; null where it is not there.
#[derive(Clone, Debug, Serialize)]
pub struct OldNew {
    /// Before.
    pub old: Option<serde_json::Value>,
    /// After.
    pub new: Option<serde_json::Value>,
}

impl Outcome {
    /// Of a plan that was not carried out.
    #[must_use]
    pub fn of(plan: &Plan, dry_run: bool) -> Self {
        let changes = plan.steps.iter().map(|step| Changed {
            action: step.action,
            kind: step.object.kind(),
            name: step.object.name(),
            path: step.object.path(),
            fields: step
                .fields
                .iter()
                .cloned()
                .map(|FieldChange { field, old, new }| (field, OldNew { old, new }))
                .collect(),
        });
        Self {
            written: false,
            dry_run,
            changes: changes.collect(),
            remarks: plan.remarks.clone(),
            effect: None,
        }
    }

    fn code(&self, must_be_in_force: bool) -> ExitCode {
        match &self.effect {
            Some(Effect::Refused { .. }) => ExitCode::FAILURE,
            Some(Effect::Pending { .. } | Effect::NoLeader) if must_be_in_force => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        }
    }
}

/// Only what is new to somebody who has seen the plan.
impl Shown for Outcome {
    fn text(&self) -> String {
        let effect = self.effect.as_ref().map(Effect::text).unwrap_or_default();
        match (self.written, self.dry_run) {
            (true, _) => format!("Written.\n{effect}"),
            (false, true) if !self.changes.is_empty() => {
                "Nothing was written: this was a dry run.\n".to_owned()
            }
            (false, _) if self.changes.is_empty() => "Nothing is to be changed.\n".to_owned(),
            (false, _) => "Nothing was written.\n".to_owned(),
        }
    }
}

/// The plan as people read it.
#[must_use]
pub fn text(plan: &Plan) -> String {
    let steps = plan.steps.iter().map(ToString::to_string);
    let remarks = plan.remarks.iter().map(|remark| format!("{remark}\n"));
    steps.chain(remarks).collect()
}

/// Does the edits that `make` makes of the tree.
///
/// # Errors
/// As [`run`], and if `make` fails.
pub async fn edit(
    context: &Context,
    options: &Editing,
    ask: Ask,
    make: impl AsyncFnOnce(&ZooKeeperSession, &Tree) -> Result<Vec<Edit>>,
) -> Result<ExitCode> {
    context
        .in_session(async |session| {
            let tree = Tree::read(session).await?;
            names::made(&tree)?;
            let edits = make(session, &tree).await?;
            let plan = plan::plan(&tree, edits, host::clock::wall())?;
            run(session, &tree, &plan, (context.format(), options, ask)).await
        })
        .await
}

/// Shows a plan that was made of `tree`, asks, carries it out, and tells what became of it.
///
/// # Errors
/// If nobody can be asked, something was changed since, or the store fails.
pub async fn run<S: Session>(
    session: &S,
    tree: &Tree,
    plan: &Plan,
    (format, options, ask): (Format, &Editing, Ask),
) -> Result<ExitCode> {
    let outcome = decide(session, tree, plan, (format, options, ask)).await?;
    output::print(format, &outcome)?;
    Ok(outcome.code(options.wait))
}

/// As [`run`], but leaves it to the caller to print the end.
///
/// # Errors
/// As there.
pub async fn decide<S: Session>(
    session: &S,
    tree: &Tree,
    plan: &Plan,
    (format, options, ask): (Format, &Editing, Ask),
) -> Result<Outcome> {
    let mut outcome = Outcome::of(plan, options.dry_run);
    if format == Format::Text {
        output::write_text(&text(plan))?;
    }
    if plan.steps.is_empty() || options.dry_run {
        return Ok(outcome);
    }
    if (ask == Ask::Always || plan.is_dangerous()) && !options.yes {
        if format == Format::Json && std::io::stdin().is_terminal() {
            say(&text(plan));
        }
        if !consent()? {
            bail!("Nothing was written.");
        }
    }
    let expected = expected(plan);
    // Somebody may have deleted a part of the tree, and with it the parents of what is to be written.
    ensure_skeleton(session).await?;
    if let Err(mut halt) = carry_out(session, plan).await {
        let path = match &halt.error {
            Error::BadVersion(path) | Error::Exists(path) | Error::NoNode(path) | Error::NotEmpty(path) => {
                path
            }
            _ => return Err(halt.into()),
        };
        let now = Tree::read(session).await?;
        halt.what = what_changed(path, tree, &now);
        return Err(halt.into());
    }
    outcome.written = true;
    if !expected.is_nothing() {
        let limit = if options.wait { options.timeout.0 } else { look(plan) };
        let mut progress = Progress::new(options.wait);
        let tell = |effect: &Effect| progress.tell(&effect.waits_for());
        outcome.effect = Some(effect::wait(session, &expected, limit, tell).await?);
    }
    Ok(outcome)
}

/// Returns the time to look without being told to wait: what is deleted stays in force for a moment in any case.
fn look(plan: &Plan) -> Duration {
    let is_removal = |step: &super::Step| {
        step.action == Action::Delete && matches!(step.object, Object::Vip(_) | Object::Real(_))
    };
    if plan.steps.iter().any(is_removal) { removal::ALONE + LOOK } else { LOOK }
}

/// Returns what is to follow from a plan.
#[must_use]
pub fn expected(plan: &Plan) -> Expected {
    let real = |step: &super::Step| match &step.object {
        Object::Real(target) => Some(target.clone()),
        _ => None,
    };
    Expected { vips: plan.vips(), reals: plan.steps.iter().filter_map(real).collect() }
}

/// Asks whether to go on.
fn consent() -> Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!(
            "there is nobody to ask, since standard input is no terminal: look at it with --dry-run, and say --yes if \
             it is meant\nNothing was written."
        );
    }
    say("Write this? [y/N] ");
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Tells on standard error what is waited for, whenever that is something else.
#[derive(Debug)]
pub(crate) struct Progress {
    wanted: bool,
    last: String,
}

impl Progress {
    /// Tells if it is `wanted`.
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, last: String::new() }
    }

    /// Tells what is waited for.
    pub(crate) fn tell(&mut self, text: &str) {
        if self.wanted && text != self.last {
            say(&format!("waiting: {text}\n"));
            text.clone_into(&mut self.last);
        }
    }
}
