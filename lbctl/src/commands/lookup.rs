//! `lbctl lookup`.

use crate::context::Context;
use crate::output::{self, Shown};
use crate::overview::words;
use crate::placement::{Destination, Outlook, Placement, Service, Source};
use crate::tree::Tree;
use anyhow::{Result, bail, ensure};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use zk_schema::Affinity;

/// Options of `lbctl lookup`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The answer is that of the assignment in force, which every node computes alike. A node that has \
not applied it yet, or is cut off, may differ: the last line names those.

Examples:
  lbctl lookup mqtt 192.0.2.7:40123
  lbctl lookup 198.51.100.10:1883/tcp 192.0.2.7:40123
  lbctl lookup '[2001:db8::10]:1883/tcp' '[2001:db8::7]:40123'
  lbctl lookup every-port 192.0.2.7:40123 --destination-port 8883
  lbctl lookup mqtt --file flows.txt
  ss -tnH sport = :1883 | awk '{print $4}' | lbctl lookup mqtt -"
)]
pub struct Options {
    /// The VIP: its name, or address:port/protocol; IPv6 in brackets.
    #[arg(value_name = "VIP")]
    vip: Destination,

    /// Clients' addresses and ports; IPv6 in brackets. `-`: one a line on standard input. A VIP with source affinity
    /// needs no ports.
    #[arg(value_name = "SOURCE:PORT", required_unless_present = "file")]
    sources: Vec<String>,

    /// A file of clients' addresses and ports, one a line; `-`: standard input.
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,

    /// The port on the VIP that clients talk to, where the VIP takes all ports.
    #[arg(long, short = 'p', value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    destination_port: Option<u16>,
}

/// Prints where flows go.
///
/// # Errors
/// If there is no such VIP, no decision on it, a source that is none, or ZooKeeper cannot be reached.
pub async fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    let sources = sources(options)?;
    let tree = context.in_session(async |session| Ok(Tree::read(session).await?)).await?;
    let outlook = Outlook::of(&tree, &options.vip)?;
    let port = port(&outlook.service, options.destination_port)?;
    let flows: Result<Vec<Placement>> = sources.iter().map(|source| outlook.fate(source, port)).collect();
    let answer = Answer { outlook: &outlook, destination_port: port, flows: flows? };
    output::print(context.format(), &answer)?;
    Ok(ExitCode::SUCCESS)
}

fn sources(options: &Options) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let stdin = Path::new("-");
    for text in &options.sources {
        if text == "-" {
            sources.extend(listed(stdin)?);
        } else {
            sources.push(text.parse().map_err(anyhow::Error::msg)?);
        }
    }
    if let Some(path) = &options.file {
        sources.extend(listed(path)?);
    }
    Ok(sources)
}

/// The sources in a file, one a line; lines that are empty or begin with `#` are passed over.
fn listed(path: &Path) -> Result<Vec<Source>> {
    let (name, text) = super::file_or_stdin(path)?;
    let lines = (1..).zip(text.lines().map(str::trim));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(number, line)| {
            line.parse().map_err(|error: String| anyhow::anyhow!("{name}:{number}: {error}"))
        })
        .collect()
}

/// The port on the VIP that flows go to.
fn port(service: &Service, asked: Option<u16>) -> Result<u16> {
    match (service.port, asked) {
        (0, Some(port)) => Ok(port),
        (0, None) if service.affinity == Affinity::Source => Ok(0),
        (0, None) => bail!("{} takes all ports: say which one by --destination-port", service.vip),
        (port, Some(asked)) => {
            ensure!(port == asked, "{} is at port {port}, not at {asked}", service.vip);
            Ok(port)
        }
        (port, None) => Ok(port),
    }
}

/// The document to print.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    outlook: &'a Outlook,
    /// The port on the VIP that the flows go to.
    destination_port: u16,
    flows: Vec<Placement>,
}

impl Shown for Answer<'_> {
    fn text(&self) -> String {
        let Outlook { service, epoch, next_epoch, nodes, table_size, .. } = self.outlook;
        let mut text = format!("{service}, by its assignment of epoch {epoch}:\n");
        for flow in &self.flows {
            let place = match (&flow.real, flow.address) {
                (Some(real), Some(address)) => format!("{real} ({address})"),
                _ => "no real: the packet is dropped".to_owned(),
            };
            let _ = write!(text, "  {}  slot {} of {table_size}  {place}", flow.source, flow.slot);
            if let (Some(epoch), true) = (next_epoch, flow.moves) {
                let next = flow.next_real.as_ref().map_or("no real", |real| real.as_str());
                let _ = write!(text, "; then {next}, as announced at epoch {epoch}");
            }
            text.push('\n');
        }
        let in_force = words(&nodes.in_force).unwrap_or_else(|| "no node".to_owned());
        let _ = writeln!(text, "In force on {in_force}.");
        for (node, why) in &nodes.may_differ {
            let _ = writeln!(text, "{node} may differ: {why}.");
        }
        text
    }
}
