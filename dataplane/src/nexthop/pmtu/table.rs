//! Path MTUs that routers told, for as long as they are believed. Pure.

use super::{PathMtu, PathMtus};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time for which a path MTU is believed after it was last told. Then the larger size is tried again
/// (RFC 1191 section 6.3 and RFC 8201 section 4 say 10 minutes).
pub const LIFETIME: Duration = Duration::from_secs(600);

/// Between two changes of one path's MTU. A path of several ever narrower links is still learnt in
/// seconds; a forger cannot make the balancer rewrite its tables at the pace of his packets.
const PACE: Duration = Duration::from_secs(1);

/// ClusterView path MTUs.
#[derive(Clone, Debug, Default)]
pub struct Table(BTreeMap<IpAddr, Entry>);

#[derive(Clone, Copy, Debug)]
struct Entry {
    mtu: u32,
    changed: Instant,
    told: Instant,
}

impl Table {
    /// Takes what a router told; says whether a path's MTU changed by it. MTUs only fall by being
    /// told, at most once a second per path; they rise by [`Table::expire`].
    pub fn learn(&mut self, heard: PathMtu, now: Instant) -> bool {
        let fresh = Entry { mtu: heard.mtu, changed: now, told: now };
        let Some(entry) = self.0.get_mut(&heard.real) else {
            self.0.insert(heard.real, fresh);
            return true;
        };
        if heard.mtu == entry.mtu {
            entry.told = now;
        } else if heard.mtu < entry.mtu && now.duration_since(entry.changed) >= PACE {
            *entry = fresh;
            return true;
        }
        false
    }

    /// Forgets what is older than [`LIFETIME`], and all about addresses that are not wanted.
    pub fn expire(&mut self, wanted: &BTreeSet<IpAddr>, now: Instant) {
        self.0.retain(|real, entry| wanted.contains(real) && now.duration_since(entry.told) < LIFETIME);
    }

    /// Returns the path MTUs that are known now.
    pub fn path_mtus(&self) -> PathMtus {
        self.0.iter().map(|(real, entry)| (*real, entry.mtu)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 9));

    fn told(mtu: u32) -> PathMtu {
        PathMtu { real: REAL, mtu }
    }

    fn mtu(table: &Table) -> Option<u32> {
        table.path_mtus().get(&REAL).copied()
    }

    #[test]
    fn an_mtu_falls_by_being_told_at_its_pace_and_never_rises_by_it() {
        let (mut table, start) = (Table::default(), Instant::now());
        assert!(table.learn(told(1400), start));
        assert!(!table.learn(told(1300), start + PACE / 2), "too soon");
        assert_eq!(mtu(&table), Some(1400));
        assert!(table.learn(told(1300), start + PACE));
        assert!(!table.learn(told(1450), start + PACE * 3), "it rises only by expiry");
        assert_eq!(mtu(&table), Some(1300));
    }

    #[test]
    fn an_mtu_is_forgotten_after_its_lifetime_unless_told_again() {
        let (mut table, start) = (Table::default(), Instant::now());
        let wanted = BTreeSet::from([REAL]);
        table.learn(told(1400), start);
        assert!(!table.learn(told(1400), start + PACE), "told again is no change");
        table.expire(&wanted, start + LIFETIME);
        assert_eq!(mtu(&table), Some(1400));
        table.expire(&wanted, start + PACE + LIFETIME);
        assert_eq!(mtu(&table), None);
    }

    #[test]
    fn an_address_that_is_not_wanted_any_more_is_forgotten() {
        let mut table = Table::default();
        table.learn(told(1400), Instant::now());
        table.expire(&BTreeSet::new(), Instant::now());
        assert_eq!(mtu(&table), None);
    }
}
