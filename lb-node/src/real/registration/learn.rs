//! What a real learns from the tree. Pure: time is an argument.

use coordination::Contents;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;
use zk_schema::tree::{Member, StateRecord as _, paths};
use zk_schema::{Desired, Real, RealName, Vip, VipName, VipState, from_json};

/// How long something is taken as before that the tree names no more.
///
/// A node whose session has expired is gone from the tree and forwards all the same, for as long as it takes; a VIP that
/// was deleted, or moved to another address, is served as before while the leader holds that. To take both for a while
/// longer costs next to nothing.
pub(super) const GRACE: Duration = Duration::from_secs(24 * 3600);

/// What the tree says, as far as it concerns a real.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    /// The records of the VIPs that it is to serve, or what is wrong with them; `None` where there is none.
    pub(super) vips: BTreeMap<VipName, Option<Result<Vip, String>>>,
    /// Where the nodes' packets come from.
    pub(super) sources: BTreeSet<IpAddr>,
}

impl Seen {
    /// Parses the tree's `contents`, of which `vips` matter.
    pub(super) fn parse(contents: &Contents, vips: &BTreeSet<VipName>) -> Self {
        let record = |name: &VipName| {
            let znode = contents.get(&paths::vip(name))?;
            Some(from_json(&znode.data).map_err(|error| error.to_string()))
        };
        let vips = vips.iter().map(|name| (name.clone(), record(name))).collect();
        let mut sources = BTreeSet::new();
        for (node, znode) in contents.children(paths::NODES) {
            match Member::parse(&znode.data) {
                Ok(Member { source_v4, source_v6, .. }) => {
                    sources.extend(source_v4.map(IpAddr::from));
                    sources.extend(source_v6.map(IpAddr::from));
                }
                Err(error) => tracing::debug!(node, %error, "not a node's record"),
            }
        }
        Self { vips, sources }
    }

    /// The addresses of the VIPs.
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.vips.values().flatten().flatten().map(|vip| vip.address).collect()
    }
}

/// Addresses that the tree names, or named until recently.
#[derive(Clone, Debug)]
pub(super) struct Remembered {
    /// Since when the tree names each no more.
    missing_since: BTreeMap<IpAddr, Option<Instant>>,
}

impl Remembered {
    /// Those that were in use before the tree was looked at.
    pub(super) fn new(before: BTreeSet<IpAddr>, now: Instant) -> Self {
        Self { missing_since: before.into_iter().map(|address| (address, Some(now))).collect() }
    }

    /// Takes note of what the tree names now, and forgets what it has not named for [`GRACE`]: unless it names nothing,
    /// which is more likely an accident than meant.
    pub(super) fn see(&mut self, named: &BTreeSet<IpAddr>, now: Instant) {
        for (address, missing_since) in &mut self.missing_since {
            if !named.contains(address) {
                missing_since.get_or_insert(now);
            }
        }
        self.missing_since.extend(named.iter().map(|address| (*address, None)));
        if !named.is_empty() {
            self.missing_since.retain(|_, missing| missing.is_none_or(|since| now < since + GRACE));
        }
    }

    /// All of them.
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.missing_since.keys().copied().collect()
    }
}

/// Whether a real may be registered for a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fitness {
    /// It may.
    Fit,
    /// Not at the moment; if it is registered already, it may stay.
    Unclear(String),
    /// It may not.
    Unfit(String),
}

/// Whether `real` may be registered for the VIP `name`, given what the tree has of that, and the VIPs' addresses that
/// the host has `in_place`. `served` are those that it is to have, where they do not come from the tree.
pub(super) fn fitness(
    name: &VipName,
    vip: Option<&Result<Vip, String>>,
    real: (&RealName, &Real),
    served: Option<&BTreeSet<IpAddr>>,
    in_place: &BTreeSet<IpAddr>,
) -> Fitness {
    let path = paths::vip(name);
    let vip = match vip {
        None => {
            return Fitness::Unfit(format!(
                "{path}: no such znode; there will be one when the VIP is defined"
            ));
        }
        Some(Err(problem)) => return Fitness::Unclear(format!("{path}: {problem}; mend the VIP's record")),
        Some(Ok(vip)) => vip,
    };
    // One record that does not go with its VIP would keep the leader from taking over any change of the VIP.
    let reals = BTreeMap::from([(real.0.clone(), real.1.clone())]);
    let vips = BTreeMap::from([(name.clone(), VipState { vip: vip.clone(), reals })]);
    if let Err(problems) = (Desired { vips, ..Desired::default() }).validate() {
        return Fitness::Unfit(format!("{path}: {problems}"));
    }
    let address = vip.address;
    if served.is_some_and(|served| !served.contains(&address)) {
        return Fitness::Unfit(format!(
            "{path}: its address is {address}, which is not among those of --vip; add it, or leave --vip out"
        ));
    }
    if !in_place.contains(&address) {
        return Fitness::Unclear(format!("{path}: this host is not ready yet to take packets for {address}"));
    }
    Fitness::Fit
}

#[cfg(test)]
mod tests {
    use super::*;
    use zk_schema::{Encapsulation, Protocol};

    fn addresses<const N: usize>(texts: [&str; N]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_the_tree_names_no_more_is_remembered_for_the_grace_from_when_it_was_missed() {
        let start = Instant::now();
        let mut remembered = Remembered::new(addresses(["10.0.0.9"]), start);
        remembered.see(&addresses(["10.0.0.1", "10.0.0.2"]), start);
        assert_eq!(remembered.addresses(), addresses(["10.0.0.1", "10.0.0.2", "10.0.0.9"]));
        let missed = start + GRACE / 2;
        remembered.see(&addresses(["10.0.0.1"]), missed);
        remembered.see(&addresses(["10.0.0.1"]), start + GRACE);
        assert_eq!(
            remembered.addresses(),
            addresses(["10.0.0.1", "10.0.0.2"]),
            "the predecessor's is forgotten"
        );
        remembered.see(&addresses(["10.0.0.1"]), missed + GRACE);
        assert_eq!(remembered.addresses(), addresses(["10.0.0.1"]));
    }

    #[test]
    fn what_is_named_again_is_not_forgotten() {
        let start = Instant::now();
        let mut remembered = Remembered::new(addresses(["10.0.0.1"]), start);
        remembered.see(&addresses(["10.0.0.1"]), start + GRACE / 2);
        remembered.see(&addresses(["10.0.0.2"]), start + GRACE);
        assert_eq!(remembered.addresses(), addresses(["10.0.0.1", "10.0.0.2"]));
    }

    #[test]
    fn a_tree_that_names_nothing_makes_nothing_forgotten() {
        let start = Instant::now();
        let mut remembered = Remembered::new(BTreeSet::new(), start);
        remembered.see(&addresses(["10.0.0.1"]), start);
        remembered.see(&BTreeSet::new(), start + GRACE);
        remembered.see(&BTreeSet::new(), start + GRACE * 3);
        assert_eq!(remembered.addresses(), addresses(["10.0.0.1"]));
    }

    #[test]
    fn a_real_that_does_not_go_with_its_vip_is_not_registered() {
        let name: VipName = "mqtt".parse().unwrap();
        let real_name: RealName = "broker-1".parse().unwrap();
        let mut vip = Vip::new("198.51.100.1".parse().unwrap(), 1883, Protocol::Tcp);
        let judge = |vip: &Vip, address: &str, served: Option<&BTreeSet<IpAddr>>| {
            let real = Real::new(address.parse().unwrap());
            fitness(&name, Some(&Ok(vip.clone())), (&real_name, &real), served, &addresses(["198.51.100.1"]))
        };
        let unfit = |fitness: Fitness, word: &str| match fitness {
            Fitness::Unfit(problem) => assert!(problem.contains(word), "{problem}"),
            other => panic!("{other:?}"),
        };
        assert_eq!(judge(&vip, "10.0.0.1", None), Fitness::Fit);
        unfit(judge(&vip, "198.51.100.1", None), "the VIP's own");
        unfit(judge(&vip, "10.0.0.1", Some(&addresses(["198.51.100.2"]))), "--vip");
        vip.encapsulation = Encapsulation::L2;
        unfit(judge(&vip, "2001:db8::1", None), "l2");
        vip.address = "198.51.100.3".parse().unwrap();
        assert!(matches!(judge(&vip, "10.0.0.1", None), Fitness::Unclear(_)));
    }
}
