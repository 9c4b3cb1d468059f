//! `lbctl status`.

use crate::context::Context;
use crate::output::{self, Format};
use crate::overview::{Link, Overview, Shares, text};
use crate::paint::{Paper, Span};
use crate::tree::Tree;
use anyhow::{Context as _, Result, bail};
use coordination::Session;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use zk_schema::VipName;

/// Time that a passing problem may last until it counts.
const PATIENCE: Duration = Duration::from_secs(1);

/// The exit code when something needs attention.
const ATTENTION: u8 = 2;

/// Options of `lbctl status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code: 0 all is well, 1 it could not be told, 2 something needs attention.

Examples:
  lbctl status
  lbctl status mqtt -o json
  lbctl status --quiet || notify-the-operator")]
pub struct Options {
    /// Show this VIP alone.
    vip: Option<VipName>,

    /// Print only what needs attention: nothing when all is well.
    #[arg(long, short)]
    quiet: bool,
}

/// Prints how the cluster is.
///
/// # Errors
/// If it cannot be told: ZooKeeper cannot be reached, there is no cluster, or no such VIP.
pub async fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    let servers = context.settings()?.zookeeper.servers;
    let overview = context.in_session(async |session| look(session, &servers).await).await?;
    let overview = match &options.vip {
        Some(vip) => {
            let there = overview.vips.keys().map(VipName::as_str).collect::<Vec<_>>().join(", ");
            let there = if there.is_empty() { "none".to_owned() } else { there };
            overview.only(vip).with_context(|| format!("{vip}: no such VIP; there are: {there}"))?
        }
        None => overview,
    };
    match (context.format(), options.quiet) {
        (Format::Json, _) => output::print_json(&overview)?,
        (Format::Text, true) => {
            let problems = overview.problems.iter().map(|problem| vec![Span::from(problem.text.as_str())]);
            output::write(Paper::default().print(&problems.collect::<Vec<_>>()).as_bytes())?;
        }
        (Format::Text, false) => {
            let paper = Paper::stdout();
            output::write(paper.print(&text::screen(&overview, paper)).as_bytes())?;
        }
    }
    Ok(if overview.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(ATTENTION) })
}

/// Looks once, and where all that is wrong may be over in a moment, again.
async fn look<S: Session>(session: &S, servers: &str) -> Result<Overview> {
    let until = Instant::now() + PATIENCE;
    let mut shares = Shares::default();
    loop {
        let overview = read(session, servers, &mut shares).await?;
        let passing =
            !overview.problems.is_empty() && overview.problems.iter().all(|problem| problem.passing);
        if !passing || Instant::now() >= until {
            return Ok(overview);
        }
        tokio::time::sleep(PATIENCE / 5).await;
    }
}

/// The cluster as it is now.
///
/// # Errors
/// If the store fails, or there is no cluster.
pub(crate) async fn read<S: Session>(session: &S, servers: &str, shares: &mut Shares) -> Result<Overview> {
    let begun = Instant::now();
    let tree = Tree::read_in_part(session).await?;
    if tree.cluster.is_none() {
        bail!("there is no cluster at {servers}: /drover is missing; `lbctl init` makes one");
    }
    let link = Link {
        servers: servers.to_owned(),
        session: format!("{:#x}", session.id()),
        read_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    Ok(Overview::of(&tree, link, host::clock::wall(), shares))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use coordination::memory::MemoryStore;
    use coordination::{Store as _, setup};
    use zk_schema::Cluster;

    #[tokio::test]
    async fn where_there_is_no_cluster_it_cannot_be_told_and_where_nothing_was_decided_it_is_told() {
        let session = MemoryStore::new().client("lbctl").connect().await.unwrap();
        let error = look(&session, "zk-1:2181").await.unwrap_err().to_string();
        assert!(error.contains("no cluster at zk-1:2181") && error.contains("lbctl init"), "{error}");
        setup::init(&session, &Cluster::default()).await.unwrap();
        let overview = look(&session, "zk-1:2181").await.unwrap();
        assert!(overview.problems[0].text.starts_with("nothing was ever decided"), "{overview:?}");
        assert_eq!(overview.zookeeper.session, format!("{:#x}", session.id()));
    }
}
