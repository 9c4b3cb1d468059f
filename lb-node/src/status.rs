//! The state of the daemon, for `/status`, `/readyz`, `/healthz` and `/metrics`.

use crate::cluster::agent::{ClusterView, Name};
use crate::cluster::peers::Overtaken;
use dataplane::SelfTest;
use dataplane::nexthop::{Mac, NextHop, NextHops, Obstacle};
use dataplane::program::Program;
use health::{Key, State, Verdicts};
use host::clock::wall;
use policy::local::Assignment;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use zk_schema::tree::{Decided, Mode};
use zk_schema::{Desired, NodeName, Protocol, RealName, VipName, VipState};

/// The control side at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// The leadership that decided on what is in force; `None` on a node that decides itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    /// The assignment in force; 0 until there is one.
    pub epoch: u64,
    /// The way in which what is in force came to be, on a node among others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// True if XDP runs in the driver; meaningful once something is in force.
    pub xdp_native: bool,
    /// The reason why the newest state is not in force, while it is not.
    pub apply_error: Option<String>,
    /// The reason why packets do not meet the programs, while they do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detached: Option<String>,
    /// The number of times that a program which had been taken off the interface was put back.
    #[serde(skip)]
    pub reattachments: u64,
    /// The newest self-test; `None` until there was one.
    pub self_test: Option<SelfTestStatus>,
    /// VIPs that are wanted.
    pub vips: BTreeMap<VipName, VipStatus>,
}

/// Outcome of a self-test.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SelfTestStatus {
    /// VIPs through which a packet was sent.
    pub tested: usize,
    /// The failures, by VIP.
    pub failures: BTreeMap<VipName, String>,
}

impl From<SelfTest> for SelfTestStatus {
    fn from(test: SelfTest) -> Self {
        Self { tested: test.tested, failures: test.failures }
    }
}

/// A VIP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VipStatus {
    /// Address that clients use.
    pub address: IpAddr,
    /// Port, or 0 for all.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// True if it has its table, or needs none since no real is to take connections.
    pub ready: bool,
    /// The epoch at which its assignment was written; that of the node on one that decides itself.
    pub epoch: u64,
    /// Digest of its table in the maps, in hexadecimal; `None` until it has one. Nodes with equal digests route alike.
    pub table_digest: Option<String>,
    /// The reason why reals that are down keep their slots, while they do.
    pub held: Option<String>,
    /// Its reals.
    pub reals: BTreeMap<RealName, RealStatus>,
}

/// A real of a VIP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RealStatus {
    /// Address that packets are sent to.
    pub address: IpAddr,
    /// State.
    pub state: RealState,
    /// True if this node cannot probe it, so that `state` is only the last that was known.
    pub blind: bool,
    /// Outcome of the last probe in words.
    pub reason: String,
    /// The time at which `state` began, in seconds since 1970; `None` if nobody probes.
    pub since: Option<u64>,
    /// Weight that operators gave it.
    pub configured_weight: u16,
    /// Weight in the table in force; 0 if it is not in it.
    pub weight: u16,
    /// Part of the VIP's slots that it holds, 0 to 1.
    pub share: f64,
    /// The way by which packets reach it; `None` while that is not known.
    pub next_hop: Option<NextHopStatus>,
    /// The reason why this node cannot send packets that way, if it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
}

impl RealStatus {
    /// Returns whether it is thought to take connections.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        matches!(self.state, RealState::Up | RealState::Unchecked)
    }
}

/// The state of a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RealState {
    /// Not probed yet, or only inconclusively.
    Unknown,
    /// Takes connections.
    Up,
    /// Does not.
    Down,
    /// Its VIP has no health check, so it counts as up.
    Unchecked,
}

impl RealState {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
            Self::Unchecked => "unchecked",
        }
    }
}

/// A next hop, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextHopStatus {
    /// Interface's index.
    pub ifindex: u32,
    /// MAC address of the real, or of its gateway.
    pub mac: String,
    /// VLAN that frames are tagged with.
    pub vlan: Option<u16>,
    /// Largest IP packet that the path takes, in bytes.
    pub mtu: u32,
}

impl From<&NextHop> for NextHopStatus {
    fn from(hop: &NextHop) -> Self {
        let mac = |mac: &Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
        Self { ifindex: hop.ifindex, mac: mac(&hop.destination_mac), vlan: hop.vlan, mtu: hop.mtu }
    }
}

/// Slots by VIP and real of an applied program.
pub type Shares = BTreeMap<VipName, BTreeMap<RealName, u32>>;

/// The cache of a node of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptStatus {
    /// The reason why what is on disk is older than what is in force, if it is.
    pub problem: Option<String>,
}

/// The cluster's state, as a node of it knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// True if ZooKeeper answers.
    pub connected: bool,
    /// The reason why not, if there is one.
    pub problem: Option<String>,
    /// Sessions begun so far.
    pub sessions: u64,
    /// The term of this node's leadership, while it leads.
    pub leading: Option<u64>,
    /// The other node that has this node's name, if there is one.
    pub name_problem: Option<String>,
    /// The other machine that had this node's name until lately, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaced: Option<String>,
    /// The reason why it cannot lead, if it cannot.
    pub election_problem: Option<String>,
    /// True if operators took it out of service.
    pub maintenance: bool,
    /// Set while others have something newer in force and this node does not reach ZooKeeper.
    pub overtaken: Option<Overtaken>,
    /// The reason why what the tree holds is not taken over, if it is not.
    pub tree_problem: Option<String>,
    /// The things that the leader refuses or holds back.
    pub leader_problems: BTreeSet<String>,
    /// Nodes that did not acknowledge in time.
    pub lagging: BTreeSet<NodeName>,
    /// Nodes that are not in the tree and, as they told last, announce addresses.
    pub cut_off: BTreeSet<NodeName>,
    /// True if the leader, new or just back, removes nothing.
    pub settling: bool,
}

impl ClusterStatus {
    /// The status at this moment.
    #[must_use]
    pub fn of(learnt: &ClusterView) -> Self {
        let link = learnt.link.borrow().clone();
        let leading = learnt.leading.borrow().clone();
        let followed = learnt.followed.borrow().clone();
        let head = followed.decided.as_ref().map(|decided| &decided.head);
        Self {
            connected: link.connected,
            problem: link.problem,
            sessions: link.sessions,
            leading: leading.term,
            name_problem: match &*learnt.name.borrow() {
                Name::Taken(problem) => Some(problem.clone()),
                Name::Unknown | Name::Own => None,
            },
            replaced: learnt.past.borrow().words(wall()),
            election_problem: leading.problem,
            maintenance: *learnt.maintenance.borrow(),
            overtaken: *learnt.overtaken.borrow(),
            tree_problem: followed.problem.clone(),
            leader_problems: head.map(|head| head.problems.clone()).unwrap_or_default(),
            lagging: head.map(|head| head.lagging.clone()).unwrap_or_default(),
            cut_off: head.map(|head| head.cut_off.clone()).unwrap_or_default(),
            settling: head.is_some_and(|head| head.settling),
        }
    }

    /// Returns what an operator should know, a line for each.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if let Some(problem) = &self.problem {
            remarks.push(format!("no ZooKeeper, so what is in force stays: {problem}"));
        }
        if self.maintenance {
            remarks.push("taken out of service by an operator: nothing is announced".to_owned());
        }
        remarks.extend(self.name_problem.iter().map(|problem| format!("nothing is announced: {problem}")));
        remarks.extend(self.overtaken.iter().map(ToString::to_string));
        remarks.extend(self.replaced.iter().cloned());
        remarks.extend(self.tree_problem.iter().cloned());
        remarks.extend(self.election_problem.iter().map(|problem| format!("cannot lead: {problem}")));
        remarks.extend(self.leader_problems.iter().cloned());
        remarks
    }
}

/// Counts the slots of each real.
#[must_use]
pub fn shares(program: &Program) -> Shares {
    let of_vip = |vip: &dataplane::program::VipProgram| {
        vip.reals.iter().zip(vip.table.shares()).map(|(real, slots)| (real.name.clone(), slots)).collect()
    };
    program.vips.iter().map(|(name, vip)| (name.clone(), of_vip(vip))).collect()
}

/// The inputs of the VIPs' status.
#[derive(Clone, Copy, Debug)]
pub struct VipInputs<'a> {
    /// The operators' records.
    pub desired: &'a Desired,
    /// The probes' findings.
    pub verdicts: &'a Verdicts,
    /// Next hops that are known.
    pub next_hops: &'a NextHops,
    /// Reals that packets cannot be sent to although they have a next hop.
    pub obstacles: &'a BTreeMap<Key, Obstacle>,
    /// The assignment in force.
    pub assignment: &'a Assignment,
    /// The slots in force.
    pub shares: &'a Shares,
    /// Digests of the tables in the maps.
    pub digests: &'a BTreeMap<VipName, u64>,
    /// The leader's decision, where there is a leader.
    pub decided: Option<&'a Decided>,
}

/// The status of every desired VIP.
#[must_use]
pub fn vips(sources: &VipInputs<'_>) -> BTreeMap<VipName, VipStatus> {
    let vips = sources.desired.vips.iter();
    vips.map(|(name, state)| (name.clone(), vip(sources, name, state))).collect()
}

fn vip(sources: &VipInputs<'_>, name: &VipName, state: &VipState) -> VipStatus {
    let assigned = sources.assignment.vips.get(name);
    let shares = sources.shares.get(name);
    let decided = sources.decided.and_then(|decided| decided.assignments.get(name));
    let slots: u32 = shares.map_or(0, |shares| shares.values().sum());
    let reals = state.reals.iter().map(|(real_name, real)| {
        let verdict = sources.verdicts.get(&(name.clone(), real_name.clone()));
        let held = shares.and_then(|shares| shares.get(real_name)).copied().unwrap_or(0);
        let mut status = RealStatus {
            address: real.address,
            state: RealState::Unchecked,
            blind: false,
            reason: "the VIP has no health check".into(),
            since: None,
            configured_weight: real.weight,
            weight: assigned.and_then(|vip| vip.weights.get(real_name)).copied().unwrap_or(0),
            share: if slots == 0 { 0.0 } else { f64::from(held) / f64::from(slots) },
            next_hop: sources.next_hops.get(&real.address).map(NextHopStatus::from),
            obstacle: sources.obstacles.get(&(name.clone(), real_name.clone())).map(ToString::to_string),
        };
        if state.vip.health.is_some() {
            status.state = match verdict.map(|verdict| verdict.state) {
                Some(State::Up) => RealState::Up,
                Some(State::Down) => RealState::Down,
                Some(State::Unknown) | None => RealState::Unknown,
            };
            status.blind = verdict.is_some_and(|verdict| verdict.blind);
            status.reason = verdict.map_or("not probed yet".into(), |verdict| verdict.reason.clone());
            status.since = verdict.and_then(|verdict| host::clock::seconds(verdict.since));
        }
        (real_name.clone(), status)
    });
    VipStatus {
        address: state.vip.address,
        port: state.vip.port,
        protocol: state.vip.protocol,
        ready: assigned.is_some_and(|assigned| !assigned.waiting),
        epoch: decided.map_or(sources.assignment.epoch, |decided| decided.epoch),
        table_digest: sources.digests.get(name).map(|digest| format!("{digest:016x}")),
        held: assigned
            .and_then(|assigned| assigned.held)
            .map(|held| held.to_string())
            .or_else(|| decided.and_then(|decided| decided.held.clone())),
        reals: reals.collect(),
    }
}

impl Status {
    /// Returns what keeps the node from being ready, a line for each; empty when it is.
    #[must_use]
    pub fn not_ready(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.epoch == 0 {
            missing.push("nothing is in force yet".into());
        }
        if let Some(error) = &self.apply_error {
            let old = if self.epoch == 0 { "" } else { " (the state before it is)" };
            missing.push(format!("the newest state is not in force{old}: {error}"));
        }
        for (name, vip) in self.vips.iter().filter(|(_, vip)| !vip.ready) {
            let reals = vip.reals.iter().filter(|(_, real)| real.configured_weight > 0);
            let reals: Vec<String> = reals
                .map(|(real_name, real)| {
                    format!("{real_name} is {} ({})", real.state.as_str(), real.waits_for())
                })
                .collect();
            missing.push(format!("VIP {name} has no table yet: {}", reals.join(", ")));
        }
        missing
    }

    /// Returns what is wrong with the data plane, a line for each; empty when it works.
    #[must_use]
    pub fn not_healthy(&self) -> Vec<String> {
        let mut wrong: Vec<String> = self.detached.iter().cloned().collect();
        match &self.self_test {
            None => wrong.push("there was no self-test yet".into()),
            Some(test) => {
                wrong.extend(test.failures.iter().map(|(vip, failure)| format!("VIP {vip}: {failure}")));
            }
        }
        wrong
    }

    /// All of it in one line; `announced` counts addresses, on a node that announces some itself.
    #[must_use]
    pub fn summary(&self, announced: Option<usize>) -> String {
        let mut problems = self.not_ready();
        problems.extend(self.not_healthy());
        match problems.as_slice() {
            [] => {}
            [problem] => return problem.clone(),
            [first, rest @ ..] => return format!("{first} (and {} more)", rest.len()),
        }
        let term = self.term.map_or(String::new(), |term| format!("term {term}, "));
        let mode = match self.mode {
            None | Some(Mode::Live) => "",
            Some(Mode::Static) => ", without ZooKeeper",
            Some(Mode::Autonomous) => ", on its own",
        };
        let announced = announced.map_or(String::new(), |count| format!(", {count} addresses announced"));
        format!("{term}epoch {} in force{mode}: {} VIPs{announced}", self.epoch, self.vips.len())
    }

    /// VIPs whose removals are held.
    #[must_use]
    pub fn held(&self) -> BTreeSet<&VipName> {
        self.vips.iter().filter(|(_, vip)| vip.held.is_some()).map(|(name, _)| name).collect()
    }
}

impl RealStatus {
    fn waits_for(&self) -> &str {
        if let Some(obstacle) = &self.obstacle {
            obstacle
        } else if self.state == RealState::Unchecked && self.next_hop.is_none() {
            "its next hop is not known"
        } else {
            &self.reason
        }
    }
}
