//! States that unit tests start from.

use crate::nexthop::{NextHop, NextHops};
use std::str::FromStr;
use zk_schema::{CheckKind, Desired, HealthCheck, NameError, Protocol, Real, Vip, VipState};

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
    let hop = NextHop { ifindex: 2, source_mac: [2; 6], destination_mac: [4; 6], vlan: None, mtu: 1500 };
    let reals = desired.vips.values().flat_map(|state| state.reals.values());
    reals.map(|real| (real.address, hop)).collect()
}
