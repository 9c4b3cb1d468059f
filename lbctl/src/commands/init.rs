//! `lbctl init`.

mod rights;

use crate::context::Context;
use crate::output::{self, Shown};
use crate::tree::Tree;
use anyhow::{Context as _, Result, anyhow, bail};
use coordination::{Session, setup};
use rights::Rights;
use serde::Serialize;
use std::fs::File;
use std::io::Read as _;
use std::process::ExitCode;
use zk_schema::picture::Found;
use zk_schema::tree::paths;
use zk_schema::{Cluster, ClusterSeed, TABLE_SIZES};

/// Options of `lbctl init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lbctl init                                          a random seed, tables of 65537 slots
  lbctl init --table-size 655373                      for VIPs of thousands of reals
  lbctl init --seed 3f2a9c5d0b7e4816a1d4c6f8092b3e57  the seed of a cluster that is to be built anew
  lbctl init --secure --nodes /etc/drover/zk.credentials --agents digest:real:jxYUaRmyBvAk1wKzIbKVpGPyKD0=
                                                      close the tree: docs/security.md")]
pub struct Options {
    /// Key of the hash that places connections: 32 hexadecimal digits. Random if not given. It cannot change while there
    /// are VIPs, and whoever knows it can aim connections at one real.
    #[arg(long, value_name = "HEX")]
    seed: Option<ClusterSeed>,

    /// Slots of each VIP's table: 65537 or 655373. It cannot change while there are VIPs.
    #[arg(long, value_name = "N")]
    table_size: Option<u32>,

    #[command(flatten)]
    rights: Rights,
}

/// The cluster that there is.
#[derive(Debug, Serialize)]
struct Outcome {
    /// True if it was made just now.
    made: bool,
    seed: String,
    table_size: u32,
    vips: usize,
    nodes: usize,
    /// Znodes that got other rights; absent where the tree was not to be closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    closed: Option<Vec<String>>,
}

impl Shown for Outcome {
    fn text(&self) -> String {
        let Self { made, seed, table_size, vips, nodes, closed } = self;
        let cluster = paths::CLUSTER;
        let head = match (made, closed) {
            (true, None) => format!("Made the cluster at {cluster}."),
            (true, Some(_)) => format!("Made the cluster at {cluster}, closed."),
            (false, None) => format!("There is a cluster at {cluster} already; nothing was changed."),
            (false, Some(closed)) if closed.is_empty() => {
                format!("The cluster at {cluster} is closed: every znode has the rights that it should have.")
            }
            (false, Some(closed)) => {
                let paths: String = closed.iter().map(|path| format!("\n  {path}")).collect();
                format!(
                    "Closed the cluster at {cluster}. These znodes had other rights:{paths}\nStart nodes and agents \
                     again, one after the other, and run this once more."
                )
            }
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
    let access = options.rights.access(context)?;
    let outcome = context
        .in_session(async |session| match &access {
            None => init(session, options).await,
            Some(access) => {
                let wanted = options.cluster()?;
                let closed = session.init_secured(&wanted, access).await?;
                let made = closed.is_none();
                let closed = Some(closed.unwrap_or_default());
                Ok(Outcome { made, closed, ..init(session, options).await? })
            }
        })
        .await?;
    output::print(context.format(), &outcome)?;
    Ok(ExitCode::SUCCESS)
}

impl Options {
    /// The record that is asked for.
    fn cluster(&self) -> Result<Cluster> {
        if let Some(size) = self.table_size.filter(|size| !TABLE_SIZES.contains(size)) {
            bail!("--table-size {size}: tables have {} or {} slots", TABLE_SIZES[0], TABLE_SIZES[1]);
        }
        let seed = match self.seed {
            Some(seed) => seed,
            None => random()?,
        };
        Ok(Cluster { seed, table_size: self.table_size.unwrap_or(TABLE_SIZES[0]), ..Cluster::default() })
    }
}

async fn init<S: Session>(session: &S, options: &Options) -> Result<Outcome> {
    let made = setup::init(session, &options.cluster()?).await?;
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
        closed: None,
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

    fn asked(seed: Option<ClusterSeed>, table_size: Option<u32>) -> Options {
        Options { seed, table_size, rights: Rights::default() }
    }

    #[tokio::test]
    async fn a_cluster_is_made_once_and_then_shown_unless_another_is_asked_for() {
        let session = MemoryStore::new().client("lbctl").connect().await.unwrap();
        let plain = asked(None, None);
        let first = init(&session, &plain).await.unwrap();
        assert!(first.made);
        let again = init(&session, &plain).await.unwrap();
        assert!(!again.made && again.seed == first.seed, "{again:?}");
        let same = asked(Some(first.seed.parse().unwrap()), Some(65_537));
        assert!(!init(&session, &same).await.unwrap().made);
        let before = Tree::read(&session).await.unwrap();
        for other in [asked(Some(7.into()), None), asked(None, Some(655_373)), asked(None, Some(5))] {
            init(&session, &other).await.unwrap_err();
        }
        let after = Tree::read(&session).await.unwrap();
        assert_eq!(before.picture.cluster.unwrap().znode, after.picture.cluster.unwrap().znode);
    }

    #[test]
    fn two_random_seeds_differ() {
        assert_ne!(random().unwrap(), random().unwrap());
    }
}
