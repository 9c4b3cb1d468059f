//! Decides which of the things that vanished from the tree look like an accident, and how long anything that vanishes
//! stays. Pure.
//!
//! The leader goes by it, and `lbctl` by the same when it says beforehand what will be held.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use zk_schema::VipName;

/// Time for which a thing that vanished alone stays, in case more follows.
pub const ALONE: Duration = Duration::from_secs(2);

/// Time for which nothing more must have vanished, or returned, until things that vanished together are judged.
pub const QUIET: Duration = Duration::from_secs(10);

/// Time for which a real that its own agent registered stays when its record vanishes though probes find it up.
pub const UNREGISTERED: Duration = Duration::from_secs(30);

/// The amount that there was of something, and the part of it that vanished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// The part that vanished.
    pub lost: usize,
    /// The amount that there was, with the part that vanished.
    pub of: usize,
}

impl Loss {
    /// Returns whether more than half vanished.
    #[must_use]
    pub const fn is_most(self) -> bool {
        self.lost * 2 > self.of
    }
}

/// The things that there were in a cluster, and those that vanished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// VIPs.
    pub vips: Loss,
    /// Reals of each VIP; of one that vanished, all.
    pub reals: BTreeMap<VipName, Loss>,
    /// VIPs with connections, of whose reals nothing that takes connections would be left.
    pub emptied: BTreeSet<VipName>,
    /// Nodes.
    pub nodes: Loss,
}

/// Things whose loss looks like an accident, and that stay until they return or an operator confirms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    /// The VIPs that vanished: most of them did.
    pub vips: bool,
    /// The reals that vanished of these VIPs: most of them did, or nothing would be left to take connections.
    pub reals: BTreeSet<VipName>,
    /// The nodes that vanished: most of them did.
    pub nodes: bool,
    /// All that vanished: most of what there was did, of more than one VIP.
    pub all: bool,
}

/// Judges what vanished.
#[must_use]
pub fn suspects(losses: &Losses) -> Suspects {
    let all = losses.reals.values().chain([&losses.vips, &losses.nodes]);
    let all =
        all.fold(Loss::default(), |sum, loss| Loss { lost: sum.lost + loss.lost, of: sum.of + loss.of });
    let of_vips = losses.reals.values().filter(|loss| loss.lost > 0).count();
    let is_most = |(_, loss): &(&VipName, &Loss)| loss.is_most();
    let most = losses.reals.iter().filter(is_most).map(|(vip, _)| vip);
    Suspects {
        vips: losses.vips.is_most(),
        reals: most.chain(&losses.emptied).cloned().collect(),
        nodes: losses.nodes.is_most(),
        all: of_vips > 1 && all.is_most(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reals<const N: usize>(losses: [(usize, usize); N]) -> BTreeMap<VipName, Loss> {
        let name = |number: usize| format!("vip-{number}").parse().unwrap();
        losses.into_iter().enumerate().map(|(number, (lost, of))| (name(number), Loss { lost, of })).collect()
    }

    #[test]
    fn half_may_go_and_more_than_half_looks_like_an_accident() {
        let judged = suspects(&Losses {
            vips: Loss { lost: 2, of: 4 },
            reals: reals([(1, 2), (2, 3), (0, 0)]),
            nodes: Loss { lost: 3, of: 5 },
            ..Losses::default()
        });
        assert!(!judged.vips && judged.nodes);
        assert_eq!(judged.reals.iter().map(VipName::as_str).collect::<Vec<_>>(), ["vip-1"]);
    }

    #[test]
    fn nothing_left_to_take_connections_looks_like_an_accident() {
        let emptied = ["vip-0".parse().unwrap()].into();
        let losses = Losses { reals: reals([(1, 2)]), emptied, ..Losses::default() };
        assert_eq!(suspects(&losses).reals.len(), 1);
    }

    #[test]
    fn most_of_a_cluster_in_pieces_that_are_small_alone_looks_like_an_accident_but_one_large_vip_does_not() {
        let pieces = |lost| Losses {
            vips: Loss { lost: 1, of: 3 },
            reals: reals([(10, 10), (lost, 4), (2, 4)]),
            ..Losses::default()
        };
        assert!(suspects(&pieces(2)).all);
        assert!(!suspects(&Losses { reals: reals([(10, 10), (0, 4), (0, 4)]), ..pieces(0) }).all);
    }
}
