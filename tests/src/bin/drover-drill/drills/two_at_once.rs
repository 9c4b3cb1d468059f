//! Random pairs of the other drills' faults.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Drill, Options};
use crate::faults::Fault;
use crate::stage::{Scene, Stage, Step, THREE};

/// The broker whose host is a real by its agent alone.
const REGISTERED: usize = 2;
/// How long after its last sign of life a node's guard withdraws it.
const WITHDRAW_AFTER: Duration = Duration::from_secs(6);
/// The second fault begins at most so much later than the first.
const LONGEST_GAP_MS: u64 = 3000;

pub(super) const DRILL: Drill = Drill {
    name: "two-at-once",
    about: "Random pairs of the other drills' faults at once, by a seed that is printed: together they cost no more than each \
            may cost alone",
    done: "random pairs of the other drills' faults",
    expected: "what each of the two may cost, and no more",
    scene: |_| Scene {
        registered: Some(REGISTERED),
        withdraw_after: Some(WITHDRAW_AFTER),
        ..Scene::default()
    },
    play,
};

/// A fault, before it is known which node leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    BrokerKilled(usize),
    DaemonKilled(Role),
    DaemonStopped(Role),
    DaemonHung(Role),
    NodeLost(Role),
    NodeDrained(Role),
    NodeCutOff(Role),
    ServerKilled,
    ServerCutOff,
    ZookeeperDown,
    VipsDeleted,
    AgentLost,
}

/// A node by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Leader,
    /// One that follows, counted from 0.
    Follower(usize),
}

/// What two faults at once must not share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Brokers,
    Node(Role),
    Zookeeper,
    Tree,
    Agents,
}

impl Kind {
    /// Every kind, of every part that it can befall.
    fn all() -> Vec<Kind> {
        let nodes = [Role::Leader, Role::Follower(0), Role::Follower(1)];
        let of_nodes = nodes.into_iter().flat_map(|node| {
            [
                Kind::DaemonKilled(node),
                Kind::DaemonStopped(node),
                Kind::DaemonHung(node),
                Kind::NodeLost(node),
                Kind::NodeDrained(node),
                Kind::NodeCutOff(node),
            ]
        });
        let brokers = (0..usize::from(THREE)).map(Kind::BrokerKilled);
        let others =
            [Kind::ServerKilled, Kind::ServerCutOff, Kind::ZookeeperDown, Kind::VipsDeleted, Kind::AgentLost];
        of_nodes.chain(brokers).chain(others).collect()
    }

    fn part(self) -> Part {
        match self {
            Kind::BrokerKilled(_) => Part::Brokers,
            Kind::DaemonKilled(node)
            | Kind::DaemonStopped(node)
            | Kind::DaemonHung(node)
            | Kind::NodeLost(node)
            | Kind::NodeDrained(node)
            | Kind::NodeCutOff(node) => Part::Node(node),
            Kind::ServerKilled | Kind::ServerCutOff | Kind::ZookeeperDown => Part::Zookeeper,
            Kind::VipsDeleted => Part::Tree,
            Kind::AgentLost => Part::Agents,
        }
    }

    /// Whether it is brought about, made good or noticed by way of ZooKeeper.
    fn needs_zookeeper(self) -> bool {
        matches!(
            self,
            Kind::NodeDrained(_)
                | Kind::NodeCutOff(_)
                | Kind::NodeLost(_)
                | Kind::VipsDeleted
                | Kind::AgentLost
        )
    }

    /// Whether the two can be had at once. A node and its daemon are one part; of two servers of ZooKeeper the last one
    /// alone is no ZooKeeper, which is a kind of its own.
    fn goes_with(self, other: Kind) -> bool {
        let outage = |one, other: Kind| one == Kind::ZookeeperDown && other.needs_zookeeper();
        self.part() != other.part() && !outage(self, other) && !outage(other, self)
    }

    fn fault(self, stage: &Stage) -> Result<Fault> {
        let (leader, _) = stage.site.leader()?;
        let node = |role| match role {
            Role::Leader => leader,
            Role::Follower(number) => stage.others(leader)[number],
        };
        Ok(match self {
            Kind::BrokerKilled(broker) => Fault::BrokerKilled(broker),
            Kind::DaemonKilled(role) => Fault::DaemonKilled(node(role)),
            Kind::DaemonStopped(role) => Fault::DaemonStopped(node(role)),
            Kind::DaemonHung(role) => Fault::DaemonHung(node(role)),
            Kind::NodeLost(role) => Fault::NodeLost(node(role)),
            Kind::NodeDrained(role) => Fault::NodeDrained(node(role)),
            Kind::NodeCutOff(role) => Fault::NodeCutOff(node(role)),
            Kind::ServerKilled => Fault::ServerKilled(stage.site.ensemble.leader()?),
            Kind::ServerCutOff => Fault::ServerCutOff(stage.site.ensemble.leader()?),
            Kind::ZookeeperDown => Fault::ZookeeperDown,
            Kind::VipsDeleted => Fault::VipsDeleted,
            Kind::AgentLost => Fault::AgentLost(REGISTERED),
        })
    }
}

/// Two faults, and how they come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    faults: [Kind; 2],
    gap: Duration,
    /// Whether the one that came first goes first.
    in_order: bool,
}

impl Pair {
    fn draw(random: &mut SplitMix64) -> Pair {
        let kinds = Kind::all();
        let first = random.pick(&kinds);
        let others: Vec<Kind> = kinds.into_iter().filter(|other| first.goes_with(*other)).collect();
        let second = random.pick(&others);
        let gap = Duration::from_millis(random.below(LONGEST_GAP_MS));
        Pair { faults: [first, second], gap, in_order: random.below(2) == 0 }
    }
}

fn play(stage: &mut Stage, options: &Options) -> Result<()> {
    stage.note(format_args!("{} pairs by the seed {}", options.pairs, options.seed));
    stage.facts.push(("seed", options.seed.into()));
    stage.facts.push(("pairs", options.pairs.into()));
    let before = stage.digests()?;
    let mut random = SplitMix64(options.seed);
    for _ in 0..options.pairs {
        let pair = Pair::draw(&mut random);
        let faults = [pair.faults[0].fault(stage)?, pair.faults[1].fault(stage)?];
        let [first, second] = faults;
        let mut lasting: Vec<Fault> = faults.into_iter().filter(|fault| !fault.is_urgent()).collect();
        stage.play(
            first.strikes(stage).and(second.strikes(stage)),
            |stage| {
                first.strike(stage)?;
                stage.watch(pair.gap)?;
                second.strike(stage)
            },
            |stage| {
                faults.into_iter().try_for_each(|fault| fault.struck(stage))?;
                let mut urgent = faults.into_iter().filter(|fault| fault.is_urgent());
                urgent.try_for_each(|fault| fault.end(stage))?;
                stage.steady_with(&lasting)
            },
        )?;
        if !pair.in_order {
            lasting.reverse();
        }
        let steps = lasting.iter().map(|fault| fault.ends(stage));
        let ends = steps.reduce(Step::and).context("one of two faults lasts")?;
        stage.play(
            ends,
            |stage| {
                for (number, fault) in lasting.iter().enumerate() {
                    if number > 0 {
                        stage.watch(pair.gap)?;
                    }
                    fault.end(stage)?;
                }
                Ok(())
            },
            |stage| {
                lasting.iter().try_for_each(|fault| fault.ended(stage))?;
                stage.steady_with(&[])?;
                stage.check_tables(&before)?;
                stage.check_content()
            },
        )?;
        stage.refill()?;
    }
    Ok(())
}

/// Random numbers from a seed (Steele, Lea and Flood, 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below this one, which is small.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// One of these, of which there must be some.
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let count = u64::try_from(from.len()).unwrap_or(u64::MAX);
        from[usize::try_from(self.below(count)).unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn pairs(seed: u64, count: usize) -> Vec<Pair> {
        let mut random = SplitMix64(seed);
        (0..count).map(|_| Pair::draw(&mut random)).collect()
    }

    #[test]
    fn a_seed_tells_the_pairs() {
        assert_eq!(pairs(7, 20), pairs(7, 20));
        assert_ne!(pairs(7, 20), pairs(8, 20));
    }

    #[test]
    fn every_fault_is_drawn_and_only_what_goes_together() {
        let pairs = pairs(1, 2000);
        assert!(pairs.iter().all(|pair| pair.faults[0].goes_with(pair.faults[1])));
        assert!(pairs.iter().all(|pair| pair.faults[1].goes_with(pair.faults[0])));
        let drawn: BTreeSet<String> =
            pairs.iter().flat_map(|pair| pair.faults).map(|kind| format!("{kind:?}")).collect();
        assert_eq!(drawn.len(), Kind::all().len(), "{drawn:?}");
    }

    #[test]
    fn what_needs_zookeeper_does_not_go_with_its_outage() {
        assert!(!Kind::ZookeeperDown.goes_with(Kind::VipsDeleted));
        assert!(!Kind::NodeDrained(Role::Leader).goes_with(Kind::ZookeeperDown));
        assert!(!Kind::ServerKilled.goes_with(Kind::ServerCutOff));
        assert!(Kind::ZookeeperDown.goes_with(Kind::BrokerKilled(0)));
        assert!(Kind::NodeLost(Role::Leader).goes_with(Kind::NodeLost(Role::Follower(1))));
    }
}
