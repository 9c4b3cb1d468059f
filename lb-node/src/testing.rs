//! States that unit tests start from.

use dataplane::nexthop::{NextHop, NextHops};
use zk_schema::Desired;
pub(crate) use zk_schema::testing::{checked_vip, decided, desired, name, unchecked_vip};

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
