//! Decides when to make the kernel look at a neighbour. Pure.
//!
//! Frames that an XDP program sends do not count as use of a neighbour entry: left alone, the
//! kernel would never resolve a real, nor notice that its MAC address changed. So entries in use
//! are kicked (NTF_USE): those that are missing at once, those that are stale every so often.

use super::resolve::Picture;
use host::netlink::{NeighbourKey, Reachability};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two kicks of an entry that the kernel does not have or does nothing about.
const MISSING: Duration = Duration::from_secs(1);
/// Between two kicks of one that does not answer. Each makes the kernel ask three times, a second apart.
const FAILED: Duration = Duration::from_secs(5);
/// Between two kicks of a stale one. The kernel then waits 5 s for traffic to confirm it, and asks. With
/// Linux's defaults an entry goes stale 15 to 45 s after its last confirmation, so a MAC address that
/// changes unannounced is found out within a minute; an announced one (gratuitous ARP) at once.
const STALE: Duration = Duration::from_secs(15);

/// The time at which each neighbour in use was last kicked.
#[derive(Clone, Debug, Default)]
pub(super) struct Kicks(BTreeMap<NeighbourKey, Instant>);

impl Kicks {
    /// The neighbours to kick now. Counts them as kicked, forgets those no longer in use.
    pub(super) fn due(&mut self, picture: &Picture, now: Instant) -> Vec<NeighbourKey> {
        let in_use = picture.neighbours_in_use();
        self.0.retain(|key, _| in_use.contains(key));
        let mut due = Vec::new();
        for key in in_use {
            let Some(pause) = pause(picture.neighbours.get(&key).map(|neighbour| neighbour.state)) else {
                continue;
            };
            if self.0.get(&key).is_none_or(|last| now.duration_since(*last) >= pause) {
                self.0.insert(key, now);
                due.push(key);
            }
        }
        due
    }
}

fn pause(state: Option<Reachability>) -> Option<Duration> {
    match state {
        None | Some(Reachability::Idle) => Some(MISSING),
        Some(Reachability::Failed) => Some(FAILED),
        Some(Reachability::Stale) => Some(STALE),
        Some(Reachability::Incomplete | Reachability::Tracked | Reachability::Fixed) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::netlink::{Neighbour, Path};
    use std::net::IpAddr;

    const REAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));
    const KEY: NeighbourKey = (2, REAL);

    fn picture(state: Option<Reachability>) -> Picture {
        let mut picture = Picture::default();
        picture.routes.insert(REAL, Ok(Path { ifindex: 2, gateway: None, mtu: None }));
        if let Some(state) = state {
            picture.neighbours.insert(KEY, Neighbour { state, mac: Some([2; 6]) });
        }
        picture
    }

    #[test]
    fn each_state_is_kicked_at_once_and_then_at_its_own_pace() {
        let start = Instant::now();
        for (state, pause) in [
            (None, MISSING),
            (Some(Reachability::Idle), MISSING),
            (Some(Reachability::Failed), FAILED),
            (Some(Reachability::Stale), STALE),
        ] {
            let mut kicks = Kicks::default();
            let almost = pause - Duration::from_millis(1);
            assert_eq!(kicks.due(&picture(state), start), [KEY], "{state:?}");
            assert_eq!(kicks.due(&picture(state), start + almost), [], "{state:?}");
            assert_eq!(kicks.due(&picture(state), start + pause), [KEY], "{state:?}");
        }
    }

    #[test]
    fn entries_that_the_kernel_looks_after_are_left_alone() {
        for state in [Reachability::Incomplete, Reachability::Tracked, Reachability::Fixed] {
            assert_eq!(Kicks::default().due(&picture(Some(state)), Instant::now()), [], "{state:?}");
        }
    }

    #[test]
    fn a_neighbour_that_comes_back_into_use_is_kicked_at_once() {
        let (mut kicks, now) = (Kicks::default(), Instant::now());
        assert_eq!(kicks.due(&picture(None), now), [KEY]);
        assert_eq!(kicks.due(&Picture::default(), now), []);
        assert_eq!(kicks.due(&picture(None), now), [KEY]);
    }

    #[test]
    fn reals_behind_one_gateway_cause_one_kick() {
        let mut picture = picture(None);
        let path = Path { ifindex: 2, gateway: Some(REAL), mtu: None };
        picture.routes.insert(IpAddr::from([10, 1, 0, 1]), Ok(path));
        picture.routes.insert(IpAddr::from([10, 1, 0, 2]), Ok(path));
        assert_eq!(Kicks::default().due(&picture, Instant::now()), [KEY]);
    }
}
