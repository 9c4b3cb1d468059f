//! The node's knowledge of a real, as [`policy`] takes it.

use dataplane::nexthop::{NextHops, Obstacle};
use health::{Key, State, Verdict, Verdicts};
use policy::panic::Standing;
use std::collections::BTreeMap;
use zk_schema::Desired;

/// The standing of a real: as its probes say, or, where it has no health check, whether packets can be sent to it.
pub(crate) fn standing(
    key: &Key,
    desired: &Desired,
    verdicts: &Verdicts,
    next_hops: &NextHops,
    obstacles: &BTreeMap<Key, Obstacle>,
) -> Standing {
    let Some(vip) = desired.vips.get(&key.0) else { return Standing::Pending };
    if vip.vip.health.is_some() {
        return verdicts.get(key).map_or(Standing::Pending, judged);
    }
    let has_next_hop = || vip.reals.get(&key.1).is_some_and(|real| next_hops.contains_key(&real.address));
    match obstacles.contains_key(key) {
        true => Standing::Down,
        false if has_next_hop() => Standing::Up,
        false => Standing::Pending,
    }
}

/// Returns what the last conclusive probes said, also after the node has lost sight of the real.
fn judged(verdict: &Verdict) -> Standing {
    match verdict.state {
        State::Up => Standing::Up,
        State::Down => Standing::Down,
        State::Unknown if verdict.blind => Standing::Blind,
        State::Unknown => Standing::Pending,
    }
}

/// Returns what the node's probes find now: neither up nor down once it has lost sight of the real.
pub(crate) fn found(key: &Key, verdicts: &Verdicts) -> Standing {
    match verdicts.get(key) {
        Some(verdict) if verdict.blind => Standing::Blind,
        Some(verdict) => judged(verdict),
        None => Standing::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checked_vip, desired, name, next_hops, unchecked_vip};
    use std::time::SystemTime;

    fn key(real: &str) -> Key {
        (name("mqtt"), name(real))
    }

    #[test]
    fn a_real_stands_as_its_probes_say() {
        let all = desired([("mqtt", checked_vip(&[("a", 100)]))]);
        let standings = |state, blind| {
            let verdict = Verdict { state, blind, since: SystemTime::UNIX_EPOCH, reason: "told so".into() };
            let verdicts = [(key("a"), verdict)].into();
            let standing = standing(&key("a"), &all, &verdicts, &NextHops::new(), &BTreeMap::new());
            (standing, found(&key("a"), &verdicts))
        };
        assert_eq!(standings(State::Up, false), (Standing::Up, Standing::Up));
        assert_eq!(standings(State::Down, false), (Standing::Down, Standing::Down));
        assert_eq!(standings(State::Unknown, false), (Standing::Pending, Standing::Pending));
        assert_eq!(standings(State::Unknown, true), (Standing::Blind, Standing::Blind));
        assert_eq!(standings(State::Up, true), (Standing::Up, Standing::Blind), "up is what was known last");
        assert_eq!(standings(State::Down, true), (Standing::Down, Standing::Blind));
    }

    #[test]
    fn a_real_without_a_health_check_stands_as_packets_can_be_sent_to_it() {
        let all = desired([("mqtt", unchecked_vip(&[("a", 100), ("b", 100), ("c", 100)]))]);
        let mut hops = next_hops(&all);
        hops.remove(&all.vips["mqtt"].reals["b"].address);
        let obstacles = [(key("c"), Obstacle::NotOnLink)].into();
        let standing = |real| standing(&key(real), &all, &Verdicts::new(), &hops, &obstacles);
        assert_eq!(["a", "b", "c"].map(standing), [Standing::Up, Standing::Pending, Standing::Down]);
    }
}
