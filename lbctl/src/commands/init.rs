//! `lbctl init`.

use crate::context::Context;
use crate::output::{self, Shown};
use crate::tree::{Found, Tree};
use anyhow::{Context as _, Result, anyhow, bail};
use coordination::{Session, setup};
use serde::Serialize;
use std::fs::File;
use std::io::Read as _;
use std::process::ExitCode;
use zk_schema::tree::paths;
use zk_schema::{Cluster, ClusterSeed, TABLE_SIZES};

/// What the cluster is to be.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lbctl init                                          a random seed, tables of 65537 slots
  lbctl init --table-size 655373                      for VIPs of thousands of reals
  lbctl init --seed 3f2a9c5d0b7e4816a1d4c6f8092b3e57  the seed of a cluster that is to be built anew")]
pub struct Options {
    /// Key of the hash that places connections: 32 hexadecimal digits. Random if not given. It cannot change while there
    /// are VIPs, and whoever knows it can aim connections at one real.
    #[arg(long, value_name = "HEX")]
    seed: Option<ClusterSeed>,

    /// Slots of each VIP's table: 65537 or 655373. It cannot change while there are VIPs.
    #[arg(long, value_name = "N")]
    table_size: Option<u32>,
}

/// What there is.
#[derive(Debug, Serialize)]
struct Outcome {
    /// Whether it was made just now.
    made: bool,
    seed: String,
    table_size: u32,
    vips: usize,
    nodes: usize,
}

impl Shown for Outcome {
    fn text(&self) -> String {
        let Self { made, seed, table_size, vips, nodes } = self;
        let head = match made {
            true => format!("Made the cluster at {}.", paths::CLUSTER),
            false => format!("There is a cluster at {} already; nothing was changed.", paths::CLUSTER),
        };
        format!(
            "{head}\n  seed        {seed}\n  table_size  {table_size}\n  VIPs        {vips}\n  nodes       {nodes}\n"
        )
    }
}

/// Makes the tree, or shows the one that is there.
///
/// # Errors
/// If there is a cluster other than the one that is asked for, or ZooKeeper fails.
pub async fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    let outcome = context.in_session(async |session| init(session, options).await).await?;
    output::print(context.format(), &outcome)?;
    Ok(ExitCode::SUCCESS)
}

async fn init<S: Session>(session: &S, options: &Options) -> Result<Outcome> {
    if let Some(size) = options.table_size.filter(|size| !TABLE_SIZES.contains(size)) {
        bail!("--table-size {size}: tables have {} or {} slots", TABLE_SIZES[0], TABLE_SIZES[1]);
    }
    let seed = match options.seed {
        Some(seed) => seed,
        None => random()?,
    };
    let wanted =
        Cluster { seed, table_size: options.table_size.unwrap_or(TABLE_SIZES[0]), ..Cluster::default() };
    let made = setup::init(session, &wanted).await?;
    let tree = Tree::read(session).await?;
    let found = tree.cluster.as_ref().context("the cluster's record vanished at once")?;
    let there = found.record.as_ref().map_err(|problem| {
        anyhow!(
            "{} is there and is broken: {problem}. See docs/znodes.md for what it must hold",
            paths::CLUSTER
        )
    })?;
    let differs = options.seed.is_some_and(|seed| seed != there.seed)
        || options.table_size.is_some_and(|size| size != there.table_size);
    if differs {
        bail!(
            "there is a cluster at {} already, of another kind: seed {}, table_size {}. Nothing was changed. Both stay \
             as long as there are VIPs, since every connection would move",
            paths::CLUSTER,
            there.seed,
            there.table_size
        );
    }
    Ok(Outcome {
        made,
        seed: there.seed.to_string(),
        table_size: there.table_size,
        vips: tree.vips.len(),
        nodes: tree.nodes.values().filter(|node| Found::ok(node).is_some()).count(),
    })
}

fn random() -> Result<ClusterSeed> {
    let mut bytes = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    read.context("no random seed can be had from /dev/urandom; give one by --seed (`openssl rand -hex 16`)")?;
    Ok(u128::from_be_bytes(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordination::Store as _;
    use coordination::memory::MemoryStore;

    #[tokio::test]
    async fn a_cluster_is_made_once_and_then_shown_unless_another_is_asked_for() {
        let session = MemoryStore::new().client("lbctl").connect().await.unwrap();
        let plain = Options { seed: None, table_size: None };
        let first = init(&session, &plain).await.unwrap();
        assert!(first.made);
        let again = init(&session, &plain).await.unwrap();
        assert!(!again.made && again.seed == first.seed, "{again:?}");
        let same = Options { seed: Some(first.seed.parse().unwrap()), table_size: Some(65_537) };
        assert!(!init(&session, &same).await.unwrap().made);
        let before = Tree::read(&session).await.unwrap();
        for other in [
            Options { seed: Some(7.into()), table_size: None },
            Options { seed: None, table_size: Some(655_373) },
            Options { seed: None, table_size: Some(5) },
        ] {
            init(&session, &other).await.unwrap_err();
        }
        let after = Tree::read(&session).await.unwrap();
        assert_eq!(before.cluster.unwrap().znode, after.cluster.unwrap().znode);
    }

    #[test]
    fn two_random_seeds_differ() {
        assert_ne!(random().unwrap(), random().unwrap());
    }
}
