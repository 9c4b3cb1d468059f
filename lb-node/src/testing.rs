//! States that unit tests start from.

use crate::nexthop::{NextHop, NextHops};
use coordination::memory::{MemoryClient, MemorySession};
use coordination::{Error, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use zk_schema::tree::{Assignment, Decided, Entry, Head, StateRecord as _};
use zk_schema::{CheckKind, Desired, Extra, HealthCheck, NameError, Protocol, Real, Vip, VipName, VipState};

/// A name (of a VIP, a real or a node) from a text that is one.
pub(crate) fn name<T: FromStr<Err = NameError>>(text: &str) -> T {
    text.parse().expect("a valid name")
}

/// A desired state of these VIPs, each with an address of its own.
pub(crate) fn desired<const N: usize>(vips: [(&str, VipState); N]) -> Desired {
    let mut desired = Desired::default();
    for (number, (name, mut state)) in (1..).zip(vips) {
        state.vip.address = [198, 51, 100, number].into();
        desired.vips.insert(self::name(name), state);
    }
    desired
}

/// A VIP whose reals (name, weight) are probed by TCP through the tunnel.
pub(crate) fn checked_vip(reals: &[(&str, u16)]) -> VipState {
    let mut state = unchecked_vip(reals);
    state.vip.health = Some(HealthCheck::new(CheckKind::Tcp));
    state
}

/// A VIP whose reals (name, weight) nobody probes.
pub(crate) fn unchecked_vip(reals: &[(&str, u16)]) -> VipState {
    let reals = (1..).zip(reals).map(|(number, (name, weight))| {
        let mut real = Real::new([10, 0, 2, number].into());
        real.weight = *weight;
        (self::name(name), real)
    });
    VipState { vip: Vip::new([198, 51, 100, 1].into(), 1883, Protocol::Tcp), reals: reals.collect() }
}

/// A next hop for every real.
pub(crate) fn next_hops(desired: &Desired) -> NextHops {
    let hop = NextHop {
        ifindex: 2,
        source_mac: [2; 6],
        destination_mac: [4; 6],
        vlan: None,
        mtu: 1500,
        on_link: true,
        takes_redirects: true,
    };
    let reals = desired.vips.values().flat_map(|state| state.reals.values());
    reals.map(|real| (real.address, hop)).collect()
}

/// What a leader would decide at (term, epoch): every real with the weight that operators gave it.
pub(crate) fn decided(term: u64, epoch: u64, desired: &Desired) -> Decided {
    let assignment = |state: &VipState| Assignment {
        term,
        epoch,
        vip: state.vip.clone(),
        reals: state.reals.clone(),
        weights: state.reals.iter().map(|(name, real)| (name.clone(), real.weight)).collect(),
        since: epoch,
        next: None,
        history: Vec::new(),
        held: None,
        held_reals: Default::default(),
        why: "a test".to_owned(),
        extra: Extra::new(),
    };
    let assignments: BTreeMap<VipName, Arc<Assignment>> =
        desired.vips.iter().map(|(name, state)| (name.clone(), Arc::new(assignment(state)))).collect();
    let entry = |assignment: &Assignment| Entry {
        epoch,
        digest: Assignment::digest(&assignment.bytes().expect("a small record")),
    };
    let head = Head {
        term,
        epoch,
        cluster: desired.cluster.clone(),
        nodes: BTreeSet::new(),
        peers: Default::default(),
        targets: epoch,
        settling: false,
        lagging: BTreeSet::new(),
        cut_off: Default::default(),
        held_vips: Default::default(),
        held_nodes: Default::default(),
        problems: BTreeSet::new(),
        vips: assignments.iter().map(|(name, assignment)| (name.clone(), entry(assignment))).collect(),
        extra: Extra::new(),
    };
    Decided::written(head, assignments).expect("small records")
}

/// Clients of a store that note when they ask for a session.
#[derive(Clone, Debug)]
pub(crate) struct Noted {
    pub(crate) client: MemoryClient,
    pub(crate) asked: Arc<Mutex<Vec<Instant>>>,
}

impl Noted {
    pub(crate) fn new(client: MemoryClient) -> Self {
        Self { client, asked: Arc::default() }
    }

    /// When it asked for the first time since `start`.
    pub(crate) fn first_since(&self, start: Instant) -> Option<Instant> {
        self.asked.lock().expect("nobody panicked").iter().copied().find(|at| *at >= start)
    }
}

impl Store for Noted {
    type Session = MemorySession;

    async fn connect(&self) -> Result<MemorySession, Error> {
        self.asked.lock().expect("nobody panicked").push(Instant::now());
        self.client.connect().await
    }
}

/// How many of these clients, all of which asked for a session since then, did so for the first time within any 50 ms, at
/// most.
pub(crate) fn crowd(clients: &[Noted], since: Instant) -> usize {
    const WINDOW: Duration = Duration::from_millis(50);
    let asked: Vec<Instant> = clients.iter().filter_map(|client| client.first_since(since)).collect();
    assert_eq!(asked.len(), clients.len(), "not all asked");
    let within = |from: &Instant| asked.iter().filter(|at| (*from..*from + WINDOW).contains(at)).count();
    asked.iter().map(within).max().unwrap_or(0)
}
