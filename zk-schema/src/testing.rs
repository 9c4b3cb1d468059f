//! Records that unit tests of this and other crates start from.

use crate::picture::{Found, VipFound};
use crate::tree::{Assignment, Decided, Entry, Head, StateRecord as _, Znode};
use crate::{CheckKind, Desired, Extra, HealthCheck, NameError, Protocol, Real, Vip, VipName, VipState};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

/// A name (of a VIP, a real or a node) from a text that is one.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn name<T: FromStr<Err = NameError>>(text: &str) -> T {
    text.parse().expect("a valid name")
}

/// A desired state of these VIPs, each with an address of its own.
#[must_use]
pub fn desired<const N: usize>(vips: [(&str, VipState); N]) -> Desired {
    let mut desired = Desired::default();
    for (number, (name, mut state)) in (1..).zip(vips) {
        state.vip.address = [198, 51, 100, number].into();
        desired.vips.insert(self::name(name), state);
    }
    desired
}

/// A VIP whose reals (name, weight) are probed by TCP through the tunnel.
#[must_use]
pub fn checked_vip(reals: &[(&str, u16)]) -> VipState {
    let mut state = unchecked_vip(reals);
    state.vip.health = Some(HealthCheck::new(CheckKind::Tcp));
    state
}

/// A VIP whose reals (name, weight) nobody probes.
#[must_use]
pub fn unchecked_vip(reals: &[(&str, u16)]) -> VipState {
    let reals = (1..).zip(reals).map(|(number, (name, weight))| {
        let mut real = Real::new([10, 0, 2, number].into());
        real.weight = *weight;
        (self::name(name), real)
    });
    VipState { vip: Vip::new([198, 51, 100, 1].into(), 1883, Protocol::Tcp), reals: reals.collect() }
}

/// A record as if it had been read from a znode that nobody's session owns.
#[must_use]
pub fn found<T>(record: T) -> Found<T> {
    Found { record: Ok(record), ..broken("") }
}

/// A record as if it had been found broken in this way.
#[must_use]
pub fn broken<T>(why: &str) -> Found<T> {
    let znode = Znode { data: Vec::new(), version: 0, created: 1, modified: 1, owner: None };
    Found { record: Err(why.to_owned()), znode: Arc::new(znode) }
}

/// A VIP as if operators had written it.
#[must_use]
pub fn vip_found(state: VipState) -> Arc<VipFound> {
    let reals = state.reals.into_iter().map(|(name, real)| (name, found(real))).collect();
    Arc::new(VipFound { vip: found(state.vip), has_reals: true, reals })
}

/// What a leader would decide at (term, epoch): every real with the weight that operators gave it.
#[must_use]
pub fn decided(term: u64, epoch: u64, desired: &Desired) -> Decided {
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
