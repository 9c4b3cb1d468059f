//! `lbctl node`.

use super::vip::read;
use crate::context::Context;
use crate::edit::flags::{self, Reason};
use crate::edit::plan;
use crate::edit::run::{self, Ask, Outcome, Progress};
use crate::edit::step::FlagName;
use crate::edit::step::Remark;
use crate::edit::{Edit, names};
use crate::output::{self, Format, Shown};
use crate::overview::ReplacedView;
use crate::paint::Sheet;
use crate::time::rfc3339_seconds;
use crate::tree::Tree;
use crate::visible;
use anyhow::{Result, bail};
use coordination::Session;
use host::clock::wall;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;
use zk_schema::NodeName;
use zk_schema::picture::Found;

/// Time between looks at a node.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Commands of `lbctl node`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the nodes that are there, and those that were.
    Ls,
    /// Show a node.
    Show {
        /// The node.
        node: NodeName,
    },
    /// Forget a node that is gone for good. It is refused while the node is there.
    Rm {
        /// The node.
        node: NodeName,
        /// Options of editing.
        #[command(flatten)]
        edit: run::Editing,
    },
    /// Take a node out of service: it withdraws its VIPs from the front, and forwards what still reaches it.
    #[command(after_help = "Examples:
  lbctl node drain lb-2 --why 'new kernel' --wait     then stop it, when this returns
  lbctl node undrain lb-2")]
    Drain {
        /// The node.
        node: NodeName,
        /// Why, and for how long.
        #[command(flatten)]
        reason: Reason,
        /// Options of editing.
        #[command(flatten)]
        edit: run::Editing,
    },
    /// Take a node back into service.
    Undrain {
        /// The node.
        node: NodeName,
        /// Options of editing.
        #[command(flatten)]
        edit: run::Editing,
    },
}

/// Does it.
///
/// # Errors
/// In words that say what to fix.
pub async fn run(context: &Context, command: Command) -> Result<ExitCode> {
    match command {
        Command::Ls => {
            let tree = read(context).await?;
            output::print(context.format(), &List { nodes: lines(&tree) })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Show { node } => {
            let tree = read(context).await?;
            names::node(&tree, &node)?;
            let line = lines(&tree).into_iter().find(|line| line.name == node.as_str());
            if let Some(line) = line {
                output::print(context.format(), &line)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Rm { node, edit } => {
            run::edit(context, &edit, Ask::Dangers, async |_, tree| {
                names::node(tree, &node)?;
                if tree.nodes.contains_key(&node) {
                    bail!("{node} is there: stop its lb-node first (`systemctl stop lb-node` on it). Nothing was written.");
                }
                Ok(vec![Edit::ForgetNode(node.clone())])
            })
            .await
        }
        Command::Drain { node, reason, edit } => drain(context, &node, &reason, &edit).await,
        Command::Undrain { node, edit } => {
            run::edit(context, &edit, Ask::Dangers, async |session, tree| {
                if !tree.flags.maintenance.contains_key(&node) {
                    names::node(tree, &node)?;
                }
                let missing = format!("{node} is not out of service");
                Ok(vec![flags::removal(session, FlagName::Maintenance(node.clone()), &missing).await?])
            })
            .await
        }
    }
}

async fn drain(
    context: &Context,
    node: &NodeName,
    reason: &Reason,
    options: &run::Editing,
) -> Result<ExitCode> {
    context
        .in_session(async |session| {
            let tree = Tree::read(session).await?;
            names::node(&tree, node)?;
            let flag = flags::flag(&context.by(), &reason.why, reason.span, wall());
            let name = FlagName::Maintenance(node.clone());
            let there = flags::find(session, &name).await?;
            let mut plan = plan::plan(&tree, vec![Edit::PutFlag(name, flag, there)], wall())?;
            plan.remarks.extend(remarks(&tree, node, wall()));
            let outcome =
                run::decide(session, &tree, &plan, (context.format(), options, Ask::Dangers)).await?;
            let is_there = tree.nodes.contains_key(node);
            let announced = match outcome.written && options.wait && is_there {
                true => wait_withdrawn(session, node, options.timeout.0, context.format()).await?,
                false => None,
            };
            let drained =
                Drained { outcome, node: node.to_string(), waited: options.wait && is_there, announced };
            output::print(context.format(), &drained)?;
            let failed = drained.outcome.written && drained.waited && !drained.is_withdrawn();
            Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        })
        .await
}

/// Returns remarks to read before a node is taken out of service at `now`.
fn remarks(tree: &Tree, node: &NodeName, now: u64) -> Vec<Remark> {
    if !tree.nodes.contains_key(node) {
        return vec![Remark::note(format!(
            "{node} is not there now: it stays out of service when it comes back"
        ))];
    }
    let out = |node: &NodeName| tree.flags.maintenance.get(node).is_some_and(|flag| flag.counts(now));
    let announces = |node: &NodeName| {
        let applied = tree.applied.get(node).and_then(Found::ok);
        // One that does not tell announces, as far as can be seen.
        applied.and_then(|applied| applied.announced.as_ref()).is_none_or(|announced| !announced.is_empty())
    };
    let others = tree.nodes.keys().filter(|other| *other != node && !out(other) && announces(other));
    match others.count() {
        0 => vec![Remark::danger(format!(
            "{node} is the last node in service: clients of all VIPs are served no more once it has withdrawn"
        ))],
        1 => vec![Remark::warning("this leaves one node in service".to_owned())],
        _ => Vec::new(),
    }
}

/// Waits until the node announces nothing. Returns what it announces then; `None`: it does not tell.
async fn wait_withdrawn<S: Session>(
    session: &S,
    node: &NodeName,
    limit: Duration,
    format: Format,
) -> Result<Option<BTreeSet<IpAddr>>> {
    let start = Instant::now();
    let mut progress = Progress::new(format == Format::Text);
    loop {
        let tree = Tree::read(session).await?;
        let applied = tree.applied.get(node).and_then(Found::ok);
        let announced = applied.and_then(|applied| applied.announced.clone());
        let done = announced.as_ref().is_none_or(BTreeSet::is_empty) || !tree.nodes.contains_key(node);
        if done || start.elapsed() >= limit {
            return Ok(announced);
        }
        progress.tell(&format!("{node} announces {}", list(announced.as_ref())));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn list(addresses: Option<&BTreeSet<IpAddr>>) -> String {
    match addresses {
        None => "-".to_owned(),
        Some(none) if none.is_empty() => "nothing".to_owned(),
        Some(some) => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// The outcome of taking a node out of service.
#[derive(Debug, Serialize)]
struct Drained {
    #[serde(flatten)]
    outcome: Outcome,
    node: String,
    /// True if its withdrawal was waited for.
    waited: bool,
    /// The addresses that it announces, if it was waited for and it tells.
    announced: Option<BTreeSet<IpAddr>>,
}

impl Drained {
    fn is_withdrawn(&self) -> bool {
        self.announced.as_ref().is_some_and(BTreeSet::is_empty)
    }
}

impl Shown for Drained {
    fn text(&self) -> String {
        let mut text = self.outcome.text();
        let node = &self.node;
        let _ = match (self.outcome.written && self.waited, &self.announced) {
            (false, _) => Ok(()),
            (true, None) => {
                writeln!(text, "{node} does not tell what it announces: look at its own /status.")
            }
            (true, Some(_)) if self.is_withdrawn() => writeln!(text, "{node} has withdrawn its VIPs."),
            (true, announced) => writeln!(text, "{node} still announces {}.", list(announced.as_ref())),
        };
        text
    }
}

/// Nodes.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct List {
    nodes: Vec<Line>,
}

/// A node.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    /// True if it is there.
    there: bool,
    /// True if it leads.
    leads: bool,
    /// The epoch that it has in force.
    epoch: Option<u64>,
    /// The number of epochs by which it is behind the head.
    behind: Option<u64>,
    /// The way in which it came to what it has in force: `live`, `static` or `autonomous`.
    mode: Option<String>,
    /// Addresses that it announces; null: it does not tell.
    announced: Option<BTreeSet<IpAddr>>,
    /// The person who took it out of service, and why.
    maintenance: Option<String>,
    software: Option<String>,
    /// The time at which it started, in seconds since 1970.
    started: Option<u64>,
    /// Its problem.
    problem: Option<String>,
    /// The other machine that had its name until lately.
    replaced: Option<String>,
}

fn lines(tree: &Tree) -> Vec<Line> {
    let head = tree.head.as_ref().and_then(Found::ok);
    let leader = tree.leads();
    let names: BTreeSet<&NodeName> =
        tree.nodes.keys().chain(tree.applied.keys()).chain(tree.flags.maintenance.keys()).collect();
    let line = |name: &NodeName| {
        let member = tree.nodes.get(name);
        let applied = tree.applied.get(name).and_then(Found::ok);
        let flag = tree.flags.maintenance.get(name).filter(|flag| flag.counts(wall()));
        let mode = applied.and_then(|applied| serde_json::to_value(applied.mode).ok());
        Line {
            name: name.to_string(),
            there: member.is_some(),
            leads: leader == Some(name),
            epoch: applied.map(|applied| applied.epoch),
            behind: applied.and_then(|applied| Some(head?.epoch.saturating_sub(applied.epoch))),
            mode: mode.and_then(|mode| mode.as_str().map(str::to_owned)),
            announced: applied.filter(|_| member.is_some()).and_then(|applied| applied.announced.clone()),
            maintenance: flag.map(flags::told),
            software: member.and_then(Found::ok).map(|member| member.software.clone()),
            started: member.and_then(Found::ok).map(|member| member.started),
            problem: applied.and_then(|applied| applied.problem.clone()),
            replaced: applied.and_then(|applied| Some(ReplacedView::of(applied, wall())?.words)),
        }
    };
    names.into_iter().map(line).collect()
}

impl Line {
    fn state(&self) -> &'static str {
        match (self.there, self.leads) {
            (false, _) => "gone",
            (true, true) => "leads",
            (true, false) => "there",
        }
    }

    fn remarks(&self) -> String {
        let maintenance = self.maintenance.iter().map(|told| format!("out of service {told}"));
        let replaced = self.replaced.iter().map(|_| "another machine had this name".to_owned());
        maintenance.chain(self.problem.iter().cloned()).chain(replaced).collect::<Vec<_>>().join("; ")
    }
}

impl Shown for List {
    fn text(&self) -> String {
        if self.nodes.is_empty() {
            return "There are no nodes: start lb-node on some (docs/node-file.md).\n".to_owned();
        }
        let headings = ["NODE", "STATE", "EPOCH", "BEHIND", "MODE", "ANNOUNCES", "SOFTWARE", "REMARK"];
        let mut table = Sheet::plain(headings);
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "-".to_owned());
        for line in &self.nodes {
            table.cells([
                line.name.clone(),
                line.state().to_owned(),
                number(line.epoch),
                number(line.behind),
                word(&line.mode),
                list(line.announced.as_ref()),
                word(&line.software),
                line.remarks(),
            ]);
        }
        table.text(0)
    }
}

impl Shown for Line {
    fn text(&self) -> String {
        let mut text = format!("{}: {}\n", self.name, self.state());
        let mut row = |name: &str, value: Option<String>| {
            let _ = value.map(|value| writeln!(text, "  {name:<12} {}", visible::line(&value)));
        };
        row("epoch", self.epoch.map(|epoch| epoch.to_string()));
        row("behind", self.behind.map(|behind| behind.to_string()));
        row("mode", self.mode.clone());
        row("announces", self.announced.as_ref().map(|announced| list(Some(announced))));
        row("software", self.software.clone());
        row("started", self.started.map(rfc3339_seconds));
        row("maintenance", self.maintenance.clone());
        row("problem", self.problem.clone());
        row("replaced", self.replaced.clone());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::Severity;
    use crate::edit::testing::tree;
    use zk_schema::tree::{Flag, Replaced};

    #[test]
    fn the_last_node_in_service_is_dangerous_to_take_out() {
        let mut tree = tree(&["mqtt/a"]);
        let (first, second): (NodeName, NodeName) =
            ("lb-1".parse().expect("a name"), "lb-2".parse().expect("a name"));
        assert_eq!(remarks(&tree, &first, 0)[0].severity, Severity::Danger);
        assert_eq!(remarks(&tree, &second, 0)[0].severity, Severity::Note);

        let (member, applied) = (tree.nodes["lb-1"].clone(), tree.applied["lb-1"].clone());
        tree.nodes.insert(second.clone(), member);
        tree.applied.insert(second.clone(), applied.clone());
        assert_eq!(remarks(&tree, &first, 0)[0].severity, Severity::Warning);

        // The other one is out of service, or announces nothing for another reason.
        tree.flags.maintenance.insert(second.clone(), Flag { until: Some(10), ..Flag::default() });
        assert_eq!(remarks(&tree, &first, 0)[0].severity, Severity::Danger);
        assert_eq!(remarks(&tree, &first, 10)[0].severity, Severity::Warning);
        let mut silent = applied;
        if let Ok(record) = &mut silent.record {
            record.announced = Some(BTreeSet::new());
        }
        tree.applied.insert(second, silent);
        assert_eq!(remarks(&tree, &first, 10)[0].severity, Severity::Danger);
    }

    #[test]
    fn another_machine_of_the_same_name_is_shown_for_a_day() {
        let mut tree = tree(&["mqtt/a"]);
        let applied = tree.applied.get_mut("lb-1").and_then(|found| found.record.as_mut().ok());
        let applied = applied.expect("it has applied something");
        applied.boot = Some("boot-2".to_owned());
        applied.sources = [[10, 0, 0, 2].into()].into();
        let mut replaced = Replaced {
            boot: "boot-1".to_owned(),
            sources: [[10, 0, 0, 1].into()].into(),
            at: wall() - 3 * 3600,
            extra: Default::default(),
        };
        applied.replaced = Some(replaced.clone());
        let text = lines(&tree)[0].text();
        let told = "another machine took this name over 3 h 0 min ago: it is 10.0.0.2 (boot boot-2) now and was 10.0.0.1 \
                    (boot boot-1) before";
        assert!(text.contains("  replaced ") && text.contains(told), "{text}");
        assert!(List { nodes: lines(&tree) }.text().contains("another machine had this name"));

        replaced.at = wall() - Replaced::TOLD_FOR_S;
        let applied = tree.applied.get_mut("lb-1").and_then(|found| found.record.as_mut().ok());
        applied.expect("it has applied something").replaced = Some(replaced);
        assert!(!lines(&tree)[0].text().contains("replaced"));
    }

    #[test]
    fn what_others_wrote_stays_on_its_line_and_reaches_no_terminal() {
        let hostile = "disk\x1b[2J\u{9b}A\u{202e}\nlb-9  leads";
        let mut tree = tree(&["mqtt/a"]);
        let flag = Flag { by: hostile.to_owned(), why: hostile.to_owned(), ..Flag::default() };
        tree.flags.maintenance.insert("lb-1".parse().expect("a name"), flag);
        let applied = tree.applied.get_mut("lb-1").and_then(|found| found.record.as_mut().ok());
        applied.expect("it has applied something").problem = Some(hostile.to_owned());
        let nodes = lines(&tree);
        let one = nodes[0].text();
        let list = List { nodes }.text();
        let mut overview = crate::overview::text::screen(
            &crate::overview::Overview::of(&tree, Default::default(), 0, &mut Default::default()),
            crate::paint::Paper::default(),
        );
        overview.retain(|line| !line.is_empty());
        for text in [&one, &list, &crate::paint::Paper::default().print(&overview)] {
            assert!(text.contains("disk\\u{1b}[2J\\u{9b}A\\u{202e}"), "{text}");
            assert!(!text.lines().any(|line| line.starts_with("lb-9")), "{text}");
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
        }
        assert_eq!(list.lines().count(), 2, "{list}");
    }
}
