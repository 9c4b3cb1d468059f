//! `lbctl freeze`, `unfreeze`, `confirm` and `unconfirm`.

use crate::context::Context;
use crate::edit::flags::{self, Reason};
use crate::edit::plan;
use crate::edit::run::{self, Ask};
use crate::edit::step::FlagName;
use crate::edit::step::Remark;
use crate::edit::{Edit, Span, names};
use crate::tree::Tree;
use anyhow::Result;
use policy::forecast;
use policy::leader::Problem;
use std::process::ExitCode;
use std::time::Duration;
use zk_schema::VipName;

/// Time for which a confirmation counts unless told otherwise: it switches protection off.
const CONFIRMED_FOR: Span = Span(Duration::from_secs(600));

/// Options of `lbctl freeze`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lbctl freeze --why 'moving racks' --for 1h
  lbctl unfreeze")]
pub struct Freeze {
    #[command(flatten)]
    reason: Reason,
    #[command(flatten)]
    edit: run::Editing,
}

/// The end of a freeze.
#[derive(Debug, clap::Args)]
pub struct Unfreeze {
    #[command(flatten)]
    edit: run::Editing,
}

/// Options of `lbctl confirm`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The leader holds what looks like an accident: most reals of a VIP down or gone, most VIPs or nodes gone. \
`lbctl status` and `lbctl vip show` say what is held. A confirmation counts for ten minutes unless --for says otherwise.

Examples:
  lbctl confirm mqtt --why 'brokers 1 to 3 are switched off'
  lbctl confirm --vips --for 2m"
)]
pub struct Confirm {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    reason: Reason,
    #[command(flatten)]
    edit: run::Editing,
}

/// Options of `lbctl unconfirm`.
#[derive(Debug, clap::Args)]
pub struct Unconfirm {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    edit: run::Editing,
}

/// One of three.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct What {
    /// Most reals of this VIP may go.
    vip: Option<VipName>,
    /// Most VIPs may go.
    #[arg(long)]
    vips: bool,
    /// Most nodes may be gone.
    #[arg(long)]
    nodes: bool,
}

impl What {
    fn flag(&self) -> FlagName {
        match &self.vip {
            Some(vip) => FlagName::Confirm(vip.clone()),
            None if self.vips => FlagName::ConfirmVips,
            None => FlagName::ConfirmNodes,
        }
    }

    /// Returns what the leader holds of it now, in words.
    fn held(&self, tree: &Tree) -> Result<Vec<String>> {
        let mut problems = forecast::objections(&tree.view(host::clock::wall()), tree.published())?;
        problems.retain(|problem| match (&self.vip, problem) {
            (Some(vip), Problem::HeldReals { vip: held, .. }) => vip == held,
            (None, Problem::HeldVips { .. }) => self.vips,
            (None, Problem::HeldNodes(_) | Problem::MostNodesMissing) => self.nodes,
            _ => false,
        });
        let assignment = self.vip.as_ref().and_then(|vip| tree.assignment(vip));
        let down = assignment.and_then(|assignment| assignment.held.clone());
        Ok(problems.iter().map(ToString::to_string).chain(down).collect())
    }

    fn remark(&self, tree: &Tree, span: Span) -> Result<Remark> {
        let held = self.held(tree)?;
        let scope = match (&self.vip, self.vips) {
            (Some(vip), _) => {
                format!("reals of {vip} that are down or gone leave its table, were it all of them")
            }
            (None, true) => {
                "VIPs that are not in the tree are served no more, were it all of them".to_owned()
            }
            (None, false) => "nodes that are not there count as gone, were it most of them".to_owned(),
        };
        Ok(Remark::danger(match held.is_empty() {
            true => format!("nothing of this is held now; for {span} nothing will be: {scope}"),
            false => format!("for {span} {scope}; held now: {}", held.join("; ")),
        }))
    }
}

/// Sets the flag under which the leader changes nothing.
///
/// # Errors
/// If ZooKeeper fails.
pub async fn freeze(context: &Context, options: &Freeze) -> Result<ExitCode> {
    let remark = Remark::warning(
        "nothing changes until `lbctl unfreeze`: reals that die keep their slots, edits wait",
    );
    set(context, FlagName::Freeze, &options.reason, &options.edit, Ask::Dangers, |_| Ok(remark)).await
}

/// Takes the flag away.
///
/// # Errors
/// If it is not there, or ZooKeeper fails.
pub async fn unfreeze(context: &Context, options: &Unfreeze) -> Result<ExitCode> {
    unset(context, FlagName::Freeze, "the cluster is not frozen", &options.edit).await
}

/// Lets a suspect change happen.
///
/// # Errors
/// If there is no such VIP, or ZooKeeper fails.
pub async fn confirm(context: &Context, options: &Confirm) -> Result<ExitCode> {
    let span = options.reason.span.unwrap_or(CONFIRMED_FOR);
    let reason = Reason { span: Some(span), ..options.reason.clone() };
    set(context, options.what.flag(), &reason, &options.edit, Ask::Always, |tree| {
        if let Some(vip) = options.what.vip.as_ref().filter(|vip| !tree.assignments.contains_key(*vip)) {
            names::vip(tree, vip)?;
        }
        options.what.remark(tree, span)
    })
    .await
}

/// Takes the flag away.
///
/// # Errors
/// If it is not there, or ZooKeeper fails.
pub async fn unconfirm(context: &Context, options: &Unconfirm) -> Result<ExitCode> {
    unset(context, options.what.flag(), "nothing of this is confirmed", &options.edit).await
}

async fn set(
    context: &Context,
    name: FlagName,
    reason: &Reason,
    options: &run::Editing,
    ask: Ask,
    remark: impl FnOnce(&Tree) -> Result<Remark>,
) -> Result<ExitCode> {
    context
        .in_session(async |session| {
            let tree = Tree::read(session).await?;
            names::made(&tree)?;
            let remark = remark(&tree)?;
            let flag = flags::flag(&context.by(), &reason.why, reason.span, host::clock::wall());
            let there = flags::find(session, &name).await?;
            let mut plan = plan::plan(&tree, vec![Edit::PutFlag(name, flag, there)], host::clock::wall())?;
            plan.remarks.push(remark);
            run::run(session, &tree, &plan, (context.format(), options, ask)).await
        })
        .await
}

async fn unset(context: &Context, name: FlagName, missing: &str, options: &run::Editing) -> Result<ExitCode> {
    run::edit(context, options, Ask::Dangers, async |session, _| {
        Ok(vec![flags::removal(session, name, missing).await?])
    })
    .await
}
