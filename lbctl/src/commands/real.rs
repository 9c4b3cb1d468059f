//! `lbctl real`.

use super::reals::{Line, table};
use crate::context::Context;
use crate::edit::effect::Effect;
use crate::edit::fields::{self, FieldEdit, shown};
use crate::edit::flags::{self, Reason};
use crate::edit::plan;
use crate::edit::run::{self, Ask, Outcome};
use crate::edit::step::FlagName;
use crate::edit::{Edit, names};
use crate::output::{self, Shown};
use crate::time::rfc3339_seconds;
use crate::tree::Tree;
use crate::visible;
use anyhow::{Result, anyhow, bail};
use coordination::Session;
use host::clock::wall;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;
use zk_schema::VipName;
use zk_schema::picture::Found;
use zk_schema::tree::{Registrant, Target, paths};

/// Commands of `lbctl real`. A real is named as VIP/REAL, or as VIP REAL.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the reals.
    Ls {
        /// Of this VIP only.
        vip: Option<VipName>,
    },
    /// Show a real: its record, what is in force, what probes find.
    Show(Name),
    /// Add a real to a VIP.
    Add(Add),
    /// Change fields of a real.
    #[command(after_help = "Examples:
  lbctl real set mqtt/broker-1 weight=50
  lbctl real set mqtt broker-1 weight=50 --wait")]
    Set(Set),
    /// Delete a real. Drain it before, if it is in use.
    Rm(Named),
    /// Give a real no new connections.
    ///
    /// Its slots go to others, in two phases. Connections that are established in those slots break as of today, since
    /// nodes do not remember earlier owners yet.
    #[command(after_help = "Examples:
  lbctl real drain mqtt/broker-1 --why 'new disk' --for 2h
  lbctl real drain mqtt/broker-1 --wait     until it is out on all nodes; tells connections that are left")]
    Drain(Flagged),
    /// Let a drained real take connections again.
    Undrain(Named),
    /// Take a real out until `real enable`, whatever else is undrained.
    ///
    /// The leader treats it as a drain: in two phases, a moment later. The difference is who can end it: neither `undrain`,
    /// nor a time limit, nor `apply`, nor the real's own agent brings it back.
    Disable(Disable),
    /// Let a disabled real take connections again.
    Enable(Named),
}

/// A real.
#[derive(Debug, clap::Args)]
pub struct Name {
    /// VIP/REAL, or VIP REAL.
    #[arg(value_name = "REAL", required = true, num_args = 1..=2)]
    real: Vec<String>,
}

/// A real that is edited.
#[derive(Debug, clap::Args)]
pub struct Named {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    edit: run::Editing,
}

/// A real that gets a flag.
#[derive(Debug, clap::Args)]
pub struct Flagged {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    reason: Reason,
    #[command(flatten)]
    edit: run::Editing,
}

/// A real that is disabled.
#[derive(Debug, clap::Args)]
pub struct Disable {
    #[command(flatten)]
    name: Name,
    /// Why, for others to read.
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
    #[command(flatten)]
    edit: run::Editing,
}

/// A new real.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lbctl real add mqtt broker-4 --address 10.0.2.14
  lbctl real add mqtt/broker-4 --address 10.0.2.14 --weight 50 --wait")]
pub struct Add {
    #[command(flatten)]
    name: Name,
    /// Address of its host.
    #[arg(long)]
    address: IpAddr,
    /// Share of new connections, relative to others of the VIP: 0 to 65535. 100 if not given.
    #[arg(long)]
    weight: Option<u16>,
    #[command(flatten)]
    edit: run::Editing,
}

/// Changes of a real.
#[derive(Debug, clap::Args)]
pub struct Set {
    /// VIP/REAL, or VIP REAL, and what to change: FIELD=VALUE.
    #[arg(value_name = "REAL> <FIELD=VALUE", required = true)]
    words: Vec<String>,
    /// Give a field its default.
    #[arg(long, value_name = "FIELD", value_parser = FieldEdit::unset)]
    unset: Vec<FieldEdit>,
    #[command(flatten)]
    edit: run::Editing,
}

impl Name {
    fn target(&self) -> Result<Target> {
        let (target, rest) = names::target(&self.real)?;
        if let Some(word) = rest.first() {
            bail!("{word:?} is one word too many: a real is named as VIP/REAL or as VIP REAL");
        }
        Ok(target)
    }
}

/// Does it.
///
/// # Errors
/// In words that say what to fix.
pub async fn run(context: &Context, command: Command) -> Result<ExitCode> {
    match command {
        Command::Ls { vip } => ls(context, vip.as_ref()).await,
        Command::Show(name) => {
            let tree = super::vip::read(context).await?;
            output::print(context.format(), &Details::of(&tree, &name.target()?)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Add(add) => self::add(context, &add).await,
        Command::Set(set) => self::set(context, &set).await,
        Command::Rm(Named { name, edit }) => {
            let target = name.target()?;
            run::edit(context, &edit, Ask::Dangers, async |_, tree| {
                operators(tree, &target)?;
                Ok(vec![Edit::RemoveReal(target.clone())])
            })
            .await
        }
        Command::Drain(Flagged { name, reason, edit }) => {
            let flag = flags::flag(&context.by(), &reason.why, reason.span, wall());
            take_out(context, &name.target()?, flag, &edit).await
        }
        Command::Disable(Disable { name, why, edit }) => {
            let flag = flags::disabling(flags::flag(&context.by(), &why, None, wall()));
            take_out(context, &name.target()?, flag, &edit).await
        }
        Command::Undrain(Named { name, edit }) => {
            let target = name.target()?;
            run::edit(context, &edit, Ask::Dangers, async |session, tree| {
                if let Some(flag) = tree.flags.drain.get(&target).filter(|flag| flags::is_disabling(flag)) {
                    let told = flags::told(flag);
                    bail!("{target} is disabled {told}: `lbctl real enable {target}` undoes that. Nothing was written.");
                }
                put_back(session, tree, &target, "drained").await
            })
            .await
        }
        Command::Enable(Named { name, edit }) => {
            let target = name.target()?;
            run::edit(context, &edit, Ask::Dangers, async |session, tree| {
                if tree.flags.drain.get(&target).is_some_and(|flag| !flags::is_disabling(flag)) {
                    bail!("{target} is drained, not disabled: `lbctl real undrain {target}` undoes that. Nothing was written.");
                }
                put_back(session, tree, &target, "disabled").await
            })
            .await
        }
    }
}

async fn ls(context: &Context, vip: Option<&VipName>) -> Result<ExitCode> {
    let tree = super::vip::read(context).await?;
    if let Some(vip) = vip {
        names::vip(&tree, vip)?;
    }
    let vips = tree.vips.iter().filter(|(name, _)| vip.is_none_or(|vip| vip == *name));
    let lines = vips.flat_map(|(name, found)| {
        found.reals.iter().map(|(real, found)| Line::of(&tree, name, real, found)).collect::<Vec<_>>()
    });
    output::print(context.format(), &List { reals: lines.collect() })?;
    Ok(ExitCode::SUCCESS)
}

async fn add(context: &Context, add: &Add) -> Result<ExitCode> {
    let target = add.name.target()?;
    run::edit(context, &add.edit, Ask::Dangers, async |_, tree| {
        let vip = names::sound_vip(tree, &target.vip)?;
        if let Some(there) = names::vip(tree, &target.vip)?.reals.get(&target.real) {
            match there.znode.owner {
                Some(_) => bail!("{target} is there: its own agent registers it"),
                None => bail!("{target} is there already: `lbctl real set {target}` changes it"),
            }
        }
        let order =
            |field: &str, value: Value| FieldEdit { path: vec![field.to_owned()], value: Some(value) };
        let mut orders = vec![order("address", add.address.to_string().into())];
        orders.extend(add.weight.map(|weight| order("weight", weight.into())));
        let real = fields::real((&target.vip, vip), &target.real, None, &orders)?;
        Ok(vec![Edit::PutReal(target.clone(), real)])
    })
    .await
}

async fn set(context: &Context, set: &Set) -> Result<ExitCode> {
    let (target, words) = names::target(&set.words)?;
    let mut orders = set.unset.clone();
    for word in words {
        orders.push(word.parse().map_err(|problem: String| anyhow!(problem))?);
    }
    if orders.is_empty() {
        bail!("what is to be set? E.g. `lbctl real set {target} weight=50`");
    }
    run::edit(context, &set.edit, Ask::Dangers, async |_, tree| {
        operators(tree, &target)?;
        let vip = names::sound_vip(tree, &target.vip)?;
        let old = names::sound_real(tree, &target)?;
        let real = fields::real((&target.vip, vip), &target.real, Some(old), &orders)?;
        Ok(vec![Edit::PutReal(target.clone(), real)])
    })
    .await
}

/// Checks that a real is there, and an operator's.
fn operators(tree: &Tree, target: &Target) -> Result<()> {
    if names::real(tree, target)?.znode.owner.is_some() {
        bail!(
            "{target} is registered by its own agent, so its record is the agent's: change the agent's settings or stop it. \
             `lbctl real disable {target}` takes it out all the same. Nothing was written."
        );
    }
    Ok(())
}

/// Drains or disables a real; with --wait, until it has no slots.
async fn take_out(
    context: &Context,
    target: &Target,
    flag: zk_schema::tree::Flag,
    options: &run::Editing,
) -> Result<ExitCode> {
    context
        .in_session(async |session| {
            let tree = Tree::read(session).await?;
            names::real(&tree, target)?;
            let there = tree.flags.drain.get(target);
            if let Some(there) =
                there.filter(|there| flags::is_disabling(there) && !flags::is_disabling(&flag))
            {
                let told = flags::told(there);
                bail!("{target} is disabled {told}: it takes no connections already. Nothing was written.");
            }
            let name = FlagName::Drain(target.clone());
            let there = flags::find(session, &name).await?;
            let plan = plan::plan(&tree, vec![Edit::PutFlag(name, flag, there)], wall())?;
            let outcome =
                run::decide(session, &tree, &plan, (context.format(), options, Ask::Dangers)).await?;
            let drained = Drained::of(&Tree::read(session).await?, target, outcome);
            output::print(context.format(), &drained)?;
            let failed = matches!(drained.outcome.effect, Some(Effect::Refused { .. }))
                || (options.wait && drained.outcome.written && drained.weight.is_some());
            Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        })
        .await
}

async fn put_back<S: Session>(session: &S, tree: &Tree, target: &Target, how: &str) -> Result<Vec<Edit>> {
    let name = FlagName::Drain(target.clone());
    if !tree.flags.drain.contains_key(target) {
        // An invalid name explains more than a flag that is not there.
        names::real(tree, target)?;
    }
    Ok(vec![flags::removal(session, name, &format!("{target} is not {how}")).await?])
}

/// The outcome of taking a real's slots away.
#[derive(Debug, Serialize)]
struct Drained {
    #[serde(flatten)]
    outcome: Outcome,
    /// Its weight in the table in force; null: it has no slots.
    weight: Option<u16>,
    /// Connections that its agent counted last; null: no agent tells.
    connections: Option<u64>,
    /// The time at which they were counted, in seconds since 1970.
    counted_at: Option<u64>,
    #[serde(skip)]
    target: String,
}

impl Drained {
    fn of(tree: &Tree, target: &Target, outcome: Outcome) -> Self {
        let assignment = tree.assignment(&target.vip);
        let load = tree.loads.get(target).and_then(Found::ok);
        Self {
            outcome,
            weight: assignment.and_then(|assignment| assignment.weights.get(&target.real).copied()),
            connections: load.map(|load| load.connections),
            counted_at: load.map(|load| load.at),
            target: target.to_string(),
        }
    }
}

impl Shown for Drained {
    fn text(&self) -> String {
        let mut text = self.outcome.text();
        if !self.outcome.written {
            return text;
        }
        let Self { target, .. } = self;
        match self.weight {
            Some(weight) => {
                let _ = writeln!(text, "{target} still has weight {weight} in the table.");
            }
            None => {
                let _ = writeln!(text, "{target} takes no new connections.");
            }
        }
        if let (Some(connections), Some(at)) = (self.connections, self.counted_at) {
            let _ =
                writeln!(text, "Connections left there: {connections} (counted {}).", rfc3339_seconds(at));
        }
        text
    }
}

/// Reals.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct List {
    reals: Vec<Line>,
}

impl Shown for List {
    fn text(&self) -> String {
        match table(&self.reals, 0) {
            text if text.is_empty() => {
                "There are no reals: `lbctl real add` or `lbctl apply` makes some.\n".to_owned()
            }
            text => text,
        }
    }
}

/// A real in full.
#[derive(Debug, Serialize)]
struct Details {
    #[serde(flatten)]
    line: Line,
    path: String,
    /// The znode's version.
    version: i32,
    /// Its record's fields, by dotted name.
    record: BTreeMap<String, Value>,
    /// The agent that registered it.
    registered_by: Option<String>,
    /// The findings of nodes, by name: that it is down, since when, and why.
    down: BTreeMap<String, Finding>,
    /// Connections that its agent counted last.
    connections: Option<u64>,
}

/// The finding of a node's probe.
#[derive(Debug, Serialize)]
struct Finding {
    since: u64,
    reason: String,
}

impl Details {
    fn of(tree: &Tree, target: &Target) -> Result<Self> {
        let found = names::real(tree, target)?;
        let down = tree.health.iter().filter_map(|(node, vote)| {
            let finding = vote.ok()?.down.get(target)?;
            Some((node.to_string(), Finding { since: finding.since, reason: finding.reason.clone() }))
        });
        Ok(Self {
            line: Line::of(tree, &target.vip, &target.real, found),
            path: paths::real(&target.vip, &target.real),
            version: found.znode.version,
            record: found.ok().map(fields::of_record).transpose()?.unwrap_or_default(),
            registered_by: found.ok().and_then(Registrant::of).map(|agent| agent.as_str().to_owned()),
            down: down.collect(),
            connections: tree.loads.get(target).and_then(Found::ok).map(|load| load.connections),
        })
    }
}

impl Shown for Details {
    fn text(&self) -> String {
        let mut text =
            format!("{}\n  {} (version {} of the znode)\n", self.line.name, self.path, self.version);
        for (field, value) in &self.record {
            let _ = writeln!(text, "    {} = {}", visible::line(field), shown(value));
        }
        if let Some(broken) = &self.line.broken {
            let _ = writeln!(text, "  broken: {}", visible::line(broken));
        }
        let _ = match self.line.in_table {
            Some(weight) => writeln!(text, "  in the table with weight {weight}"),
            None => writeln!(text, "  not in the table: it gets no new connections"),
        };
        if let Some(out) = &self.line.out {
            let _ = writeln!(text, "  {out}");
        }
        for (node, finding) in &self.down {
            let _ = writeln!(
                text,
                "  down for {node} since {}: {}",
                rfc3339_seconds(finding.since),
                visible::line(&finding.reason)
            );
        }
        if let Some(connections) = self.connections {
            let _ = writeln!(text, "  connections: {connections}");
        }
        text
    }
}
