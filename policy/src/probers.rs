//! The assignment of probers: a few of the nodes probe each real, so that probing does not grow with the cluster.
//!
//! Rendezvous hashing (Thaler and Ravishankar, 1998): each node scores each target, and the highest scores probe it. When a
//! node comes or goes, only the targets that it wins or held change hands. Every node computes the same.

use std::collections::BTreeSet;
use zk_schema::tree::Target;
use zk_schema::{NodeName, fnv1a};

/// Most nodes that probe one real.
pub const PROBERS: usize = 5;

/// The nodes of `nodes` that probe `target`: [`PROBERS`] of them, or all if they are fewer.
#[must_use]
pub fn probers<'a>(nodes: &'a BTreeSet<NodeName>, target: &Target) -> Vec<&'a NodeName> {
    if nodes.len() <= PROBERS {
        return nodes.iter().collect();
    }
    let mut scored: Vec<(u64, &NodeName)> = nodes.iter().map(|node| (score(node, target), node)).collect();
    scored.sort_unstable_by(|a, b| b.cmp(a));
    scored.truncate(PROBERS);
    scored.into_iter().map(|(_, node)| node).collect()
}

fn score(node: &NodeName, target: &Target) -> u64 {
    let parts = [node.as_str(), "/", target.vip.as_str(), "/", target.real.as_str()];
    let hash = fnv1a(parts.iter().flat_map(|part| part.bytes()));
    // FNV leaves the upper bits of similar texts alike; this is the finaliser of SplitMix64.
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zk_schema::testing::name;

    fn nodes(count: usize) -> BTreeSet<NodeName> {
        (0..count).map(|number| name(&format!("lb-{number}"))).collect()
    }

    fn targets(count: usize) -> Vec<Target> {
        let target = |number| Target { vip: name("mqtt"), real: name(&format!("broker-{number}")) };
        (0..count).map(target).collect()
    }

    #[test]
    fn each_target_has_five_probers_or_all_nodes_if_they_are_fewer() {
        for (there, expected) in [(0, 0), (1, 1), (3, 3), (5, 5), (6, 5), (64, 5)] {
            let nodes = nodes(there);
            for target in targets(20) {
                let chosen: BTreeSet<_> = probers(&nodes, &target).into_iter().collect();
                assert_eq!(chosen.len(), expected);
            }
        }
    }

    #[test]
    fn targets_spread_evenly_over_the_nodes() {
        let nodes = nodes(16);
        let mut load = std::collections::BTreeMap::new();
        for target in targets(1600) {
            for node in probers(&nodes, &target) {
                *load.entry(node).or_insert(0_u32) += 1;
            }
        }
        // 1600 targets by 5 probers each, over 16 nodes: 500 each on average.
        assert!(load.len() == 16 && load.values().all(|load| (400..600).contains(load)), "{load:?}");
    }

    #[test]
    fn a_node_that_goes_hands_over_its_own_targets_and_no_others() {
        let before = nodes(16);
        let mut after = before.clone();
        let gone: NodeName = name("lb-7");
        after.remove(&gone);
        for target in targets(500) {
            let old: BTreeSet<_> = probers(&before, &target).into_iter().cloned().collect();
            let new: BTreeSet<_> = probers(&after, &target).into_iter().cloned().collect();
            let moved = old.difference(&new).count();
            assert_eq!(moved, usize::from(old.contains(&gone)), "{target}");
        }
    }
}
