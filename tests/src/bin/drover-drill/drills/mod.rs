//! The drills. One is a page of code: steps that each do something, may cost so much, and end when all is steady.
//!
//! To add one: a file here with a [`Drill`], and its name in [`ALL`]. docs/drills.md says more.

mod broker_death;
mod leader_death;
mod node_death;
mod node_drain;
mod registry_flap;
mod rolling_upgrade;
mod stuck_node;
mod tree_wipe;
mod two_at_once;
mod zk_outage;
mod zk_partition;
mod zk_server_death;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::stage::{Scene, Stage};

/// What is told of a drill, and how it is played.
#[derive(Debug)]
pub(crate) struct Drill {
    /// What it is called on the command line.
    pub(crate) name: &'static str,
    /// What is done and what must hold, in a sentence.
    pub(crate) about: &'static str,
    /// What was done, in a few words, for the table.
    pub(crate) done: &'static str,
    /// What clients may notice, and why.
    pub(crate) expected: &'static str,
    /// What it wants on stage.
    pub(crate) scene: fn(&Options) -> Scene,
    /// Its steps.
    pub(crate) play: fn(&mut Stage, &Options) -> Result<()>,
}

/// What the command line says.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How long ZooKeeper is down in `zk-outage`.
    pub(crate) outage: Duration,
    /// The `lb-node` that `rolling-upgrade` begins with.
    pub(crate) old: Option<PathBuf>,
    /// What it is.
    pub(crate) old_version: Option<String>,
    /// What the other one is.
    pub(crate) new_version: Option<String>,
    /// What `two-at-once` draws its pairs of faults from.
    pub(crate) seed: u64,
    /// How many pairs it plays.
    pub(crate) pairs: u32,
}

/// Every drill, in the order in which `all` plays them.
pub(crate) const ALL: &[Drill] = &[
    broker_death::DRILL,
    node_death::DRILL,
    node_drain::DRILL,
    leader_death::DRILL,
    zk_server_death::DRILL,
    zk_outage::DRILL,
    zk_partition::DRILL,
    rolling_upgrade::DRILL,
    tree_wipe::DRILL,
    stuck_node::DRILL,
    registry_flap::DRILL,
    two_at_once::DRILL,
];

/// What most drills want on stage: what all have.
fn plain(_: &Options) -> Scene {
    Scene::default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_drill_is_described_and_has_a_runbook() {
        const DRILLS: &str = include_str!("../../../../../docs/drills.md");
        const OPERATIONS: &str = include_str!("../../../../../docs/operations.md");
        for drill in ALL {
            let heading = format!("\n### {}\n", drill.name);
            assert!(DRILLS.contains(&heading), "docs/drills.md does not describe {}", drill.name);
            assert!(OPERATIONS.contains(&heading), "docs/operations.md has no runbook for {}", drill.name);
        }
    }

    #[test]
    fn every_drill_has_a_name_of_its_own_and_tells_what_it_does() {
        let names: BTreeSet<&str> = ALL.iter().map(|drill| drill.name).collect();
        assert_eq!(names.len(), ALL.len());
        for drill in ALL {
            let plain = |c: char| c.is_ascii_lowercase() || c == '-';
            assert!(drill.name.chars().all(plain) && drill.name.len() <= 16, "{}", drill.name);
            assert!([drill.about, drill.done, drill.expected].iter().all(|text| !text.is_empty()));
        }
    }
}
