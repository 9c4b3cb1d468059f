//! `lbctl capture`.

mod merge;
mod nodes;

use crate::context::Context;
use crate::output::{self, Format, Shown};
use crate::visible;
use admin::client::{Client, ClientFiles};
use anyhow::{Context as _, Result, bail, ensure};
use merge::Merge;
use nodes::Place;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use zk_schema::{NodeName, VipName};

/// Time that a node may take to begin.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pieces that wait for this program to write them.
const WAITING: usize = 64;

/// Options of `lbctl capture`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A node takes samples of the packets that it sends on to reals, as they arrived, at most 256 bytes \
of each. The file is pcapng: an interface for each node, and as a packet's comment the real that it went to. Wireshark, tshark and \
tcpdump read it.

Nodes are asked on their admin addresses, which are in the tree. One that listens on 127.0.0.1, as it does unless told otherwise, can be \
asked only on its own host: run lbctl there, or make a tunnel (ssh -L 9940:127.0.0.1:9940 lb-1) and name its end by --admin.

Examples:
  lbctl capture mqtt -w mqtt.pcapng              1000 packets of all nodes, or a minute
  lbctl capture mqtt --one-in 1024 --seconds 300 -w sample.pcapng
  lbctl capture mqtt --node lb-1 -w - | tshark -r - -T fields -e frame.interface_name -e frame.comment -e ip.src
  lbctl capture mqtt --admin 127.0.0.1:9940 -w - | tcpdump -nr -"
)]
pub struct Options {
    /// VIP, by name.
    vip: VipName,
    /// Node to capture on; all if none is named. May be given several times.
    #[arg(long, value_name = "NODE")]
    node: Vec<NodeName>,
    /// Admin address of a node, instead of those in the tree. Needs no ZooKeeper. May be given several times.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "node")]
    admin: Vec<SocketAddr>,
    /// Take one packet in this many, on average: a power of two.
    #[arg(long, value_name = "N", default_value_t = 1)]
    one_in: u32,
    /// Stop after this many packets of all nodes together.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
    /// Stop after this many seconds.
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// File to write, or `-` for standard output.
    #[arg(long, short, value_name = "FILE")]
    write: PathBuf,
}

/// The outcome of a capture.
#[derive(Debug, Serialize)]
struct Captured {
    vip: VipName,
    packets: u64,
    nodes: Vec<NodeCaptured>,
}

/// The part that one node gave.
#[derive(Debug, Serialize)]
struct NodeCaptured {
    node: String,
    admin: SocketAddr,
    packets: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Shown for Captured {
    fn text(&self) -> String {
        let mut text = format!("{} packets of VIP {}\n", self.packets, self.vip);
        for node in &self.nodes {
            let _ = match &node.problem {
                None => writeln!(text, "  {}: {}", node.node, node.packets),
                Some(problem) => {
                    writeln!(text, "  {}: {} ({})", node.node, node.packets, visible::line(problem))
                }
            };
        }
        text
    }
}

/// Captures. The exit code is 0 if every node that was asked gave what it had, else 1.
///
/// # Errors
/// If no node can be asked, or the file cannot be written.
pub async fn run(options: &Options, context: &Context) -> Result<ExitCode> {
    ensure!(options.one_in.is_power_of_two(), "--one-in {}: give a power of two, such as 64", options.one_in);
    let access = match options.admin.as_slice() {
        [] => context.settings()?.admin,
        // Without settings a node that asks for nothing can be asked.
        _ => context.settings().map(|settings| settings.admin).unwrap_or_default(),
    };
    let files = ClientFiles {
        token: access.token_file,
        ca: access.tls_ca,
        cert: access.tls_cert,
        key: access.tls_key,
    };
    let client = Client::new(&files, PATIENCE)?;
    let places = nodes::places(options, context).await?;
    let mut file = create(&options.write)?;
    let captured = capture(options, &client, places, file.as_mut()).await?;
    let all_well = captured.nodes.iter().all(|node| node.problem.is_none());
    if options.write == Path::new("-") {
        // Standard output is the capture's.
        let text = match context.format() {
            Format::Text => captured.text(),
            Format::Json => visible::json(&serde_json::to_string_pretty(&captured)?).into_owned() + "\n",
        };
        output::say(&text);
    } else {
        output::print(context.format(), &captured)?;
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn create(path: &Path) -> Result<Box<dyn Write + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::stdout()));
    }
    Ok(Box::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?))
}

/// Merges the nodes' streams until all end, or there are enough packets.
async fn capture(
    options: &Options,
    client: &Client,
    places: Vec<Place>,
    file: &mut (dyn Write + Send),
) -> Result<Captured> {
    let page = format!(
        "/capture?vip={}&one_in={}&count={}&seconds={}",
        options.vip, options.one_in, options.count, options.seconds
    );
    let (pieces, mut taken) = mpsc::channel(WAITING);
    // Ends the streams when this returns.
    let mut streams = JoinSet::new();
    for (index, place) in places.iter().enumerate() {
        let (client, page, pieces, address) = (client.clone(), page.clone(), pieces.clone(), place.admin);
        streams.spawn(async move {
            let outcome = async {
                let mut stream = client.stream(address, &page).await?;
                while let Some(piece) = stream.next().await? {
                    if pieces.send((index, Ok(Some(piece)))).await.is_err() {
                        break;
                    }
                }
                Ok(None)
            };
            let outcome: Result<Option<bytes::Bytes>> = outcome.await;
            let _ = pieces.send((index, outcome)).await;
        });
    }
    drop(pieces);

    let mut merge = Merge::new(places.iter().map(|place| place.name.clone()));
    let mut problems: Vec<Option<String>> = vec![None; places.len()];
    // Nodes end by themselves; one that does not must not keep this from ending.
    let end = Instant::now() + Duration::from_secs(options.seconds) + PATIENCE;
    let mut written = write(file, merge.begin())?;
    while written && merge.packets() < options.count {
        let (index, piece) = tokio::select! {
            piece = taken.recv() => match piece {
                Some(piece) => piece,
                None => break,
            },
            () = sleep_until(end) => break,
            _ = tokio::signal::ctrl_c() => break,
        };
        match piece {
            Ok(Some(_)) if problems[index].is_some() => {}
            Ok(Some(piece)) => match merge.take(index, &piece, options.count) {
                Ok(bytes) => written = write(file, bytes)?,
                Err(error) => problems[index] = Some(format!("not what a node sends: {error}")),
            },
            Ok(None) => {}
            Err(error) => problems[index] = Some(format!("{error:#}")),
        }
    }
    let nodes = places.into_iter().zip(problems).enumerate();
    let nodes: Vec<NodeCaptured> = nodes
        .map(|(index, (place, problem))| NodeCaptured {
            node: merge.name(index).unwrap_or_else(|| place.admin.to_string()),
            admin: place.admin,
            packets: merge.packets_of(index),
            problem: problem.or(place.problem),
        })
        .collect();
    if nodes.iter().all(|node| node.problem.is_some()) {
        let problems: Vec<String> = nodes
            .iter()
            .filter_map(|node| Some(format!("{}: {}", node.node, node.problem.as_ref()?)))
            .collect();
        bail!("no node could be captured on:\n  {}", problems.join("\n  "));
    }
    Ok(Captured { vip: options.vip.clone(), packets: merge.packets(), nodes })
}

/// Writes at once, for readers of a pipe. Returns whether anybody reads on.
fn write(file: &mut (dyn Write + Send), bytes: Vec<u8>) -> Result<bool> {
    match file.write_all(&bytes).and_then(|()| file.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        outcome => outcome.map(|()| true).context("cannot write the capture"),
    }
}
