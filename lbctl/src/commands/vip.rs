//! `lbctl vip`.

use crate::context::Context;
use crate::edit::danger::service;
use crate::edit::fields::{self, FieldEdit, shown};
use crate::edit::run::{self, Ask};
use crate::edit::{Edit, names};
use crate::output::{self, Shown};
use crate::paint::Sheet;
use crate::tree::Tree;
use crate::visible;
use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;
use zk_schema::VipName;
use zk_schema::picture::VipFound;
use zk_schema::tree::paths;

/// Commands of `lbctl vip`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the VIPs.
    Ls,
    /// Show a VIP: its record, and what is in force.
    Show {
        /// The VIP.
        vip: VipName,
    },
    /// Add a VIP. It serves once it has reals.
    Add(Add),
    /// Change fields of a VIP.
    #[command(
        after_help = "Fields are those of docs/cluster-file.md, with dots: health.interval_ms. Without a value, a field gets its default.

Examples:
  lbctl vip set mqtt health.interval_ms=500 health.timeout_ms=400
  lbctl vip set mqtt limits.connections_per_second=5000 limits.burst=20000
  lbctl vip set mqtt health.type=tcp --wait
  lbctl vip set mqtt --unset limits"
    )]
    Set(Set),
    /// Delete a VIP with all its reals.
    Rm {
        /// The VIP.
        vip: VipName,
        /// Options of editing.
        #[command(flatten)]
        edit: run::Editing,
    },
}

/// A new VIP.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lbctl vip add mqtt --address 198.51.100.10 --port 1883 --protocol tcp --health mqtt
  lbctl vip add media --address 198.51.100.11 --port 0 --protocol udp --encapsulation l2 affinity=source")]
pub struct Add {
    /// Its name.
    vip: VipName,
    /// Address that clients connect to.
    #[arg(long)]
    address: IpAddr,
    /// Port that clients connect to; 0 for all.
    #[arg(long)]
    port: u16,
    /// tcp or udp.
    #[arg(long)]
    protocol: String,
    /// Encapsulation of packets to the reals: gue, ipip or l2.
    #[arg(long)]
    encapsulation: Option<String>,
    /// Health check of the reals: tcp, http, https or mqtt. Without, every real counts as up.
    #[arg(long, value_name = "TYPE")]
    health: Option<String>,
    /// Other fields, e.g. health.interval_ms=500.
    #[arg(value_name = "FIELD=VALUE")]
    fields: Vec<FieldEdit>,
    #[command(flatten)]
    edit: run::Editing,
}

/// Changes of a VIP.
#[derive(Debug, clap::Args)]
pub struct Set {
    /// The VIP.
    vip: VipName,
    /// Fields to change.
    #[arg(value_name = "FIELD=VALUE")]
    fields: Vec<FieldEdit>,
    /// Give a field its default; of a table such as health or limits, take it out.
    #[arg(long, value_name = "FIELD", value_parser = FieldEdit::unset)]
    unset: Vec<FieldEdit>,
    #[command(flatten)]
    edit: run::Editing,
}

/// Does it.
///
/// # Errors
/// In words that say what to fix.
pub async fn run(context: &Context, command: Command) -> Result<ExitCode> {
    match command {
        Command::Ls => {
            let tree = read(context).await?;
            let vips = tree.vips.iter().map(|(name, found)| Line::of(&tree, name, found)).collect();
            output::print(context.format(), &List { vips })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Show { vip } => {
            let tree = read(context).await?;
            output::print(context.format(), &Details::of(&tree, &vip)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Add(add) => {
            run::edit(context, &add.edit, Ask::Dangers, async |_, tree| {
                if tree.vips.contains_key(&add.vip) {
                    bail!("there is a VIP named {0} already: `lbctl vip set {0}` changes it", add.vip);
                }
                Ok(vec![Edit::PutVip(add.vip.clone(), fields::vip(&add.vip, None, &add.orders())?)])
            })
            .await
        }
        Command::Set(set) => {
            let orders = [set.unset.as_slice(), &set.fields].concat();
            if orders.is_empty() {
                bail!("what is to be set? E.g. `lbctl vip set {} panic_threshold=50`", set.vip);
            }
            run::edit(context, &set.edit, Ask::Dangers, async |_, tree| {
                let old = names::sound_vip(tree, &set.vip)?;
                Ok(vec![Edit::PutVip(set.vip.clone(), fields::vip(&set.vip, Some(old), &orders)?)])
            })
            .await
        }
        Command::Rm { vip, edit } => {
            run::edit(context, &edit, Ask::Always, async |_, tree| {
                names::vip(tree, &vip)?;
                Ok(vec![Edit::RemoveVip(vip.clone())])
            })
            .await
        }
    }
}

pub(crate) async fn read(context: &Context) -> Result<Tree> {
    let tree = context.in_session(async |session| Ok(Tree::read(session).await?)).await?;
    names::made(&tree)?;
    Ok(tree)
}

impl Add {
    fn orders(&self) -> Vec<FieldEdit> {
        let order = |field: &str, value: Value| FieldEdit {
            path: field.split('.').map(str::to_owned).collect(),
            value: Some(value),
        };
        let mut orders = vec![
            order("address", self.address.to_string().into()),
            order("port", self.port.into()),
            order("protocol", self.protocol.clone().into()),
        ];
        orders.extend(self.encapsulation.iter().map(|word| order("encapsulation", word.clone().into())));
        orders.extend(self.health.iter().map(|word| order("health.type", word.clone().into())));
        orders.extend(self.fields.iter().cloned());
        orders
    }
}

/// The VIPs.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct List {
    vips: Vec<Line>,
}

/// A VIP in a list.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    address: Option<IpAddr>,
    port: Option<u16>,
    protocol: Option<&'static str>,
    encapsulation: Option<&'static str>,
    /// The kind of health check.
    health: Option<String>,
    /// Reals that have records.
    reals: usize,
    /// Reals that have slots.
    in_table: usize,
    /// Its problem, or what is held.
    problem: Option<String>,
}

impl Line {
    fn of(tree: &Tree, name: &VipName, found: &VipFound) -> Self {
        let vip = found.vip.ok();
        let assignment = tree.assignment(name);
        let held = assignment.and_then(|assignment| assignment.held.clone());
        let fields = vip.and_then(|vip| fields::of_record(vip).ok()).unwrap_or_default();
        Self {
            name: name.to_string(),
            address: vip.map(|vip| vip.address),
            port: vip.map(|vip| vip.port),
            protocol: vip.map(|vip| vip.protocol.as_str()),
            encapsulation: vip.map(|vip| vip.encapsulation.as_str()),
            health: fields.get("health.type").map(shown),
            reals: found.reals.len(),
            in_table: assignment.map_or(0, |assignment| assignment.weights.len()),
            problem: found.vip.record.as_ref().err().cloned().or(held),
        }
    }
}

impl Shown for List {
    fn text(&self) -> String {
        if self.vips.is_empty() {
            return "There are no VIPs: `lbctl vip add` or `lbctl apply` makes some.\n".to_owned();
        }
        let headings = ["VIP", "ADDRESS", "PORT", "PROTOCOL", "ENCAP", "HEALTH", "IN TABLE", "PROBLEM"];
        let mut table = Sheet::plain(headings);
        for line in &self.vips {
            let word = |word: Option<&str>| word.unwrap_or("-").to_owned();
            table.cells([
                line.name.clone(),
                line.address.map_or_else(|| "-".to_owned(), |address| address.to_string()),
                match line.port {
                    Some(0) => "all".to_owned(),
                    port => port.map_or_else(|| "-".to_owned(), |port| port.to_string()),
                },
                word(line.protocol),
                word(line.encapsulation),
                word(line.health.as_deref()),
                format!("{} of {}", line.in_table, line.reals),
                line.problem.clone().unwrap_or_default(),
            ]);
        }
        table.text(0)
    }
}

/// A VIP in full.
#[derive(Debug, Serialize)]
struct Details {
    name: String,
    path: String,
    /// The znode's version.
    version: i32,
    /// Its record's fields, by dotted name.
    record: BTreeMap<String, Value>,
    /// The record's problem.
    broken: Option<String>,
    /// Its reals' records.
    reals: Vec<super::reals::Line>,
    /// The VIP in force.
    in_force: Option<InForce>,
    #[serde(skip)]
    service: String,
}

/// A VIP in force.
#[derive(Debug, Serialize)]
struct InForce {
    epoch: u64,
    why: String,
    held: Option<String>,
    /// The weights that are announced, if any.
    next: Option<BTreeMap<String, u16>>,
}

impl Details {
    fn of(tree: &Tree, name: &VipName) -> Result<Self> {
        let found = names::vip(tree, name)?;
        let in_force = tree.assignment(name).map(|assignment| InForce {
            epoch: assignment.epoch,
            why: assignment.why.clone(),
            held: assignment.held.clone(),
            next: assignment
                .next
                .as_ref()
                .map(|next| next.weights.iter().map(|(real, weight)| (real.to_string(), *weight)).collect()),
        });
        let record = found.vip.ok().map(fields::of_record).transpose()?.unwrap_or_default();
        Ok(Self {
            name: name.to_string(),
            path: paths::vip(name),
            version: found.vip.znode.version,
            record,
            broken: found.vip.record.as_ref().err().cloned(),
            reals: found
                .reals
                .iter()
                .map(|(real, found)| super::reals::Line::of(tree, name, real, found))
                .collect(),
            in_force,
            service: found.vip.ok().map(service).unwrap_or_default(),
        })
    }
}

impl Shown for Details {
    fn text(&self) -> String {
        let mut text = format!("{}: {}\n", self.name, self.service);
        let _ = writeln!(text, "  {} (version {} of the znode)", self.path, self.version);
        if let Some(broken) = &self.broken {
            let _ = writeln!(text, "  broken: {}", visible::line(broken));
        }
        for (field, value) in &self.record {
            let _ = writeln!(text, "    {} = {}", visible::line(field), shown(value));
        }
        match &self.in_force {
            None => text.push_str("  in force: nothing yet\n"),
            Some(InForce { epoch, why, held, next }) => {
                let _ = writeln!(text, "  in force since epoch {epoch}: {}", visible::line(why));
                if let Some(held) = held {
                    let _ = writeln!(text, "  held: {}", visible::line(held));
                }
                if let Some(next) = next {
                    let weights: Vec<String> =
                        next.iter().map(|(real, weight)| format!("{real} {weight}")).collect();
                    let _ = writeln!(text, "  announced: {}", weights.join(", "));
                }
            }
        }
        text.push_str(&super::reals::table(&self.reals, 2));
        text
    }
}
