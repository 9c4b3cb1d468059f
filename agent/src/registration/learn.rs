//! Derives from the tree what a real needs to know. Pure: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;
use zk_schema::tree::{Applied, Contents, Member, StateRecord as _, paths};
use zk_schema::{Desired, Real, RealName, Vip, VipName, VipState, from_json};

/// Time for which a VIP's address is still served after the tree names it no more.
///
/// A VIP that was deleted, or moved to another address, is served as before while the leader holds that. To take its
/// packets for a while longer costs next to nothing.
pub(super) const VIP_GRACE: Duration = Duration::from_secs(24 * 3600);

/// Time for which packets are still taken from a node after the tree names it no more.
///
/// Trust goes by the address alone, so it must not outlive its reason. A node that left in good order has withdrawn before;
/// this is for packets on their way, and for a session that has expired before the next one begins. One that was killed is
/// named for as long as it may forward: see [`Seen::parse`].
pub(super) const SOURCE_GRACE: Duration = Duration::from_secs(600);

/// The part of the tree that concerns a real.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    /// The records of the VIPs that it is to serve, or what is wrong with them; `None` where there is none.
    pub(super) vips: BTreeMap<VipName, Option<Result<Vip, String>>>,
    /// Source addresses of the nodes' packets.
    pub(super) sources: BTreeSet<IpAddr>,
}

impl Seen {
    /// Parses the tree's `contents`, of which `vips` matter. Packets may come from every node that is there, and from the
    /// `lingering` sources of those that are not.
    pub(super) fn parse(contents: &Contents, vips: &BTreeSet<VipName>, lingering: &BTreeSet<IpAddr>) -> Self {
        let record = |name: &VipName| {
            let path = paths::vip(name);
            match contents.get(&path) {
                Some(znode) => Some(from_json(&znode.data).map_err(|error| error.to_string())),
                // What cannot be read is not gone.
                None => contents.unreadable.get(&path).map(|why| Err(why.clone())),
            }
        };
        let vips = vips.iter().map(|name| (name.clone(), record(name))).collect();
        let mut sources = lingering.clone();
        for (node, znode) in contents.children(paths::NODES) {
            match Member::parse(&znode.data) {
                Ok(member) => sources.extend(member.sources()),
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

/// Source addresses of nodes that are not in the tree but may still forward, by the last `applied` record of each.
///
/// The kernel of a node that was killed goes on forwarding, also to reals whose agents start only now, while what the node
/// announced stays announced. One that left in good order has withdrawn. The record is there until the node is back, or
/// the leader forgets it.
pub(super) fn lingering<'a>(applied: impl IntoIterator<Item = &'a [u8]>) -> BTreeSet<IpAddr> {
    let records = applied.into_iter().filter_map(|data| Applied::parse(data).ok());
    let announces =
        |record: &Applied| record.announced.as_ref().is_some_and(|announced| !announced.is_empty());
    records.filter(announces).flat_map(|record| record.sources).collect()
}

/// Addresses that the tree names, or named until recently.
#[derive(Clone, Debug)]
pub(super) struct Remembered {
    /// Time for which an address is remembered after the tree names it no more.
    grace: Duration,
    /// Since when the tree names each no more.
    missing_since: BTreeMap<IpAddr, Option<Instant>>,
}

impl Remembered {
    /// Those that were in use before the tree was looked at.
    pub(super) fn new(grace: Duration, before: BTreeSet<IpAddr>, now: Instant) -> Self {
        Self { grace, missing_since: before.into_iter().map(|address| (address, Some(now))).collect() }
    }

    /// Takes note of what the tree names now, and forgets what it has not named for the grace: unless it names nothing,
    /// which is more likely an accident than meant.
    pub(super) fn see(&mut self, named: &BTreeSet<IpAddr>, now: Instant) {
        for (address, missing_since) in &mut self.missing_since {
            if !named.contains(address) {
                missing_since.get_or_insert(now);
            }
        }
        self.missing_since.extend(named.iter().map(|address| (*address, None)));
        if !named.is_empty() {
            self.missing_since.retain(|_, missing| missing.is_none_or(|since| now < since + self.grace));
        }
    }

    /// All of them.
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.missing_since.keys().copied().collect()
    }
}

/// The answer to whether a real may be registered for a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fitness {
    /// It may.
    Fit,
    /// Not at the moment; if it is registered already, it may stay.
    Unclear(String),
    /// It may not.
    Unfit(String),
}

/// Decides whether `real` may be registered for the VIP `name`, whose record in the tree is `vip`. `in_place` are the
/// VIPs' addresses that the host takes packets for, `served` those that it is to take, where they do not come from the
/// tree.
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
        Some(Err(problem)) => return Fitness::Unclear(format!("{path}: {problem}; fix the VIP's record")),
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
    use zk_schema::tree::Mode;
    use zk_schema::{Encapsulation, Protocol};

    const GRACE: Duration = Duration::from_secs(60);

    fn addresses<const N: usize>(texts: [&str; N]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_the_tree_names_no_more_is_remembered_for_the_grace_from_when_it_was_missed() {
        let start = Instant::now();
        let mut remembered = Remembered::new(GRACE, addresses(["10.0.0.9"]), start);
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

    /// The last `applied` record of a node.
    fn applied(announced: Option<&[&str]>, sources: &[&str]) -> Vec<u8> {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let record = Applied {
            term: 1,
            epoch: 1,
            digest: String::new(),
            mode: Mode::Live,
            problem: None,
            announced: announced.map(parse),
            sources: parse(sources),
            boot: None,
            replaced: None,
            extra: Default::default(),
        };
        record.bytes().unwrap()
    }

    #[test]
    fn a_node_that_was_killed_is_trusted_while_it_may_forward_and_one_that_withdrew_is_not() {
        let records = [
            ("killed", applied(Some(&["198.51.100.1"]), &["10.0.0.1", "fd00::1"])),
            ("withdrawn", applied(Some(&[]), &["10.0.0.2"])),
            ("older", applied(None, &[])),
            ("garbage", b"{".to_vec()),
        ];
        let seen = lingering(records.iter().map(|(_, data)| &data[..]));
        assert_eq!(seen, addresses(["10.0.0.1", "fd00::1"]));
    }

    #[test]
    fn what_is_named_again_is_not_forgotten() {
        let start = Instant::now();
        let mut remembered = Remembered::new(GRACE, addresses(["10.0.0.1"]), start);
        remembered.see(&addresses(["10.0.0.1"]), start + GRACE / 2);
        remembered.see(&addresses(["10.0.0.2"]), start + GRACE);
        assert_eq!(remembered.addresses(), addresses(["10.0.0.1", "10.0.0.2"]));
    }

    #[test]
    fn a_tree_that_names_nothing_makes_nothing_forgotten() {
        let start = Instant::now();
        let mut remembered = Remembered::new(GRACE, BTreeSet::new(), start);
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
