//! The page `/announced`: whether a node announces all that it should, which a Kubernetes readiness probe asks.
//!
//! `/readyz` says that the tables are in force. That is not enough to go on to the next node of a rolling upgrade: the
//! routers must send packets here again. So a node counts as announced when its tables are in force, the self-test
//! passes, it is in service, and every address that it has reals for is announced.

use crate::front::FrontStatus;
use crate::status::{ClusterStatus, Status, VipStatus};
use policy::announce::{InForce, serving};
use std::net::IpAddr;

/// Returns what keeps the node from announcing all that it should, a line for each; empty when nothing does.
///
/// A standalone node announces nothing itself: routes to it are somebody else's care, so being ready and healthy is
/// enough there.
#[must_use]
pub(crate) fn missing(status: &Status, cluster: Option<&ClusterStatus>, front: &FrontStatus) -> Vec<String> {
    let mut missing = status.not_ready();
    missing.extend(status.not_healthy());
    let Some(cluster) = cluster else { return missing };
    if cluster.maintenance {
        missing.push("taken out of service by an operator: nothing is announced".to_owned());
    }
    missing.extend(cluster.overtaken.iter().map(ToString::to_string));
    missing.extend(cluster.name_problem.iter().map(|problem| format!("nothing is announced: {problem}")));
    if !missing.is_empty() {
        return missing;
    }
    // All VIPs work: what does not was told above.
    let vip = |vip: &VipStatus| InForce { address: vip.address, has_reals: has_reals(vip), works: true };
    let served = serving(status.vips.values().map(vip));
    let why = |address: &IpAddr| match &front.problem {
        _ if !front.wanted.contains(address) => "this node is stopping, or has fallen behind the others",
        Some(problem) => problem,
        None => "it has not been fit for announce_hold_ms yet",
    };
    let absent = served.difference(&front.announced);
    absent.map(|address| format!("{address} is not announced: {}", why(address))).collect()
}

/// Returns what an operator should know of a node that announces all that it should, a line for each.
#[must_use]
pub(crate) fn remarks(status: &Status) -> Vec<String> {
    let idle = status.vips.iter().filter(|(_, vip)| !has_reals(vip));
    idle.map(|(name, _)| format!("VIP {name} has no reals that take connections, so no node announces it"))
        .collect()
}

fn has_reals(vip: &VipStatus) -> bool {
    vip.reals.values().any(|real| real.share > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{RealState, RealStatus, SelfTestStatus};
    use crate::testing::name;
    use std::collections::BTreeSet;
    use zk_schema::Protocol;

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));

    fn serving(share: f64) -> Status {
        let real = RealStatus {
            address: [10, 0, 2, 1].into(),
            state: RealState::Up,
            blind: false,
            reason: "connected".into(),
            since: None,
            configured_weight: 100,
            weight: 100,
            share,
            next_hop: None,
            obstacle: None,
        };
        let vip = VipStatus {
            address: VIP,
            port: 1883,
            protocol: Protocol::Tcp,
            ready: true,
            epoch: 1,
            table_digest: None,
            held: None,
            reals: [(name("a"), real)].into(),
        };
        Status {
            epoch: 1,
            self_test: Some(SelfTestStatus::default()),
            vips: [(name("mqtt"), vip)].into(),
            ..Status::default()
        }
    }

    fn member() -> ClusterStatus {
        ClusterStatus {
            connected: true,
            problem: None,
            sessions: 1,
            leading: None,
            name_problem: None,
            replaced: None,
            election_problem: None,
            maintenance: false,
            overtaken: None,
            tree_problem: None,
            leader_problems: BTreeSet::new(),
            lagging: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            settling: false,
        }
    }

    fn front(wanted: &[IpAddr], announced: &[IpAddr], problem: Option<&str>) -> FrontStatus {
        FrontStatus {
            wanted: wanted.iter().copied().collect(),
            announced: announced.iter().copied().collect(),
            problem: problem.map(str::to_owned),
            ..FrontStatus::default()
        }
    }

    #[test]
    fn every_address_with_reals_must_be_announced() {
        let told = |front: &FrontStatus| missing(&serving(1.0), Some(&member()), front);
        assert_eq!(told(&front(&[VIP], &[VIP], None)), Vec::<String>::new());
        assert!(told(&front(&[VIP], &[], None))[0].contains("announce_hold_ms"));
        assert!(
            told(&front(&[VIP], &[], Some("no BIRD")))[0].contains("198.51.100.1 is not announced: no BIRD")
        );
        assert!(told(&front(&[], &[], None))[0].contains("stopping"));
    }

    #[test]
    fn a_broken_driver_alone_is_no_reason_while_everything_is_announced() {
        let front = front(&[VIP], &[VIP], Some("a mistake elsewhere in BIRD's configuration"));
        assert_eq!(missing(&serving(1.0), Some(&member()), &front), Vec::<String>::new());
    }

    #[test]
    fn a_vip_without_reals_is_no_fault_of_the_node() {
        let status = serving(0.0);
        assert_eq!(missing(&status, Some(&member()), &front(&[], &[], None)), Vec::<String>::new());
        assert!(remarks(&status)[0].contains("VIP mqtt has no reals"));
        assert_eq!(remarks(&serving(1.0)), Vec::<String>::new());
    }

    #[test]
    fn out_of_service_unhealthy_and_unready_nodes_are_not_announced() {
        let all = front(&[VIP], &[VIP], None);
        let told = |status: &Status, cluster: &ClusterStatus| missing(status, Some(cluster), &all).join("\n");
        let out = ClusterStatus { maintenance: true, ..member() };
        assert!(told(&serving(1.0), &out).contains("out of service"));
        let namesake = ClusterStatus { name_problem: Some("lb-1 is another's".into()), ..member() };
        assert!(told(&serving(1.0), &namesake).contains("lb-1 is another's"));
        let untested = Status { self_test: None, ..serving(1.0) };
        assert!(told(&untested, &member()).contains("no self-test"));
        assert!(told(&Status::default(), &member()).contains("nothing is in force"));
    }

    #[test]
    fn a_standalone_node_needs_nothing_announced() {
        let nothing = front(&[], &[], None);
        assert_eq!(missing(&serving(1.0), None, &nothing), Vec::<String>::new());
        assert_ne!(missing(&Status::default(), None, &nothing), Vec::<String>::new());
    }
}
