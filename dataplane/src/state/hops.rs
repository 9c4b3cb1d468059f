//! Next hops, which reals share.

use super::super::Error;
use super::super::maps::{grace_period, publish};
use super::{Stale, State};
use crate::nexthop::{NextHop, NextHops};
use lb_ebpf::lb::{NextHop as NextHopEntry, RealEntry};
use std::collections::HashSet;
use std::mem::offset_of;
use std::sync::atomic::Ordering;

/// A next hop's entry as a map key.
pub(super) type HopKey = ([u32; 3], u32, u32);

impl State {
    /// Makes next hops and MTUs what `hops` says.
    pub(in super::super) fn apply_next_hops(&mut self, hops: &NextHops) -> Result<(), Error> {
        let (front, native) = (self.front, self.native);
        let mut reals = Vec::new();
        for real in self.vips.values_mut().flat_map(|vip| vip.reals.values_mut()) {
            let Some(hop) = hops.get(&real.address) else { continue };
            real.way = Some(*hop);
            real.obstacle = hop.obstacle(real.encapsulation, front, native);
            match real.obstacle {
                None => reals.push((real.index, *hop)),
                // Nowhere, rather than somewhere else.
                Some(_) => self
                    .maps
                    .reals
                    .word32(real.index, offset_of!(RealEntry, next_hop))
                    .store(0, Ordering::SeqCst),
            }
        }
        for (index, hop) in reals {
            let entry = self.hop_entry(&hop);
            let key = hop_key(&entry);
            let at = match self.hops.get(&key) {
                Some(&at) => at,
                None => {
                    if self.free_hops.0.is_empty() {
                        grace_period();
                        self.free_unused_hops();
                    }
                    let room = self.full("next hops", self.maps.next_hops.entries(), "reals");
                    let at = self.free_hops.take().ok_or(room)?;
                    self.maps.next_hops.write(at, entry);
                    publish();
                    self.hops.insert(key, at);
                    at
                }
            };
            self.maps.reals.word32(index, offset_of!(RealEntry, next_hop)).store(at, Ordering::SeqCst);
            self.maps
                .reals
                .word32(index, offset_of!(RealEntry, mtu))
                .store(hop.mtu.min(u32::from(u16::MAX)), Ordering::SeqCst);
        }
        let used = self.used_hops();
        self.stale.hops |= self.hops.values().any(|at| !used.contains(at));
        Ok(())
    }

    pub(super) fn used_hops(&self) -> HashSet<u32> {
        let word =
            |index| self.maps.reals.word32(index, offset_of!(RealEntry, next_hop)).load(Ordering::Relaxed);
        let ours = self.vips.values().flat_map(|vip| vip.reals.values()).map(|real| word(real.index));
        let theirs = self.left_reals.values().chain(&self.stale.reals).map(|&index| word(index));
        ours.chain(theirs).collect()
    }

    pub(super) fn hop_entry(&self, hop: &NextHop) -> NextHopEntry {
        let [d, s] = [hop.destination_mac, hop.source_mac];
        NextHopEntry {
            ethernet: [
                u32::from_ne_bytes([d[0], d[1], d[2], d[3]]),
                u32::from_ne_bytes([d[4], d[5], s[0], s[1]]),
                u32::from_ne_bytes([s[2], s[3], s[4], s[5]]),
            ],
            vlan: hop.vlan.map_or(0, u32::from),
            ifindex: if hop.ifindex == self.front { 0 } else { hop.ifindex },
            reserved: [0; 3],
        }
    }

    /// Returns the next hop that [`Self::hop_entry`] made an entry from, as far as the entry tells.
    pub(super) fn hop_of(&self, entry: &NextHopEntry) -> NextHop {
        let [a, b, c] = entry.ethernet.map(u32::to_ne_bytes);
        NextHop {
            ifindex: if entry.ifindex == 0 { self.front } else { entry.ifindex },
            destination_mac: [a[0], a[1], a[2], a[3], b[0], b[1]],
            source_mac: [b[2], b[3], c[0], c[1], c[2], c[3]],
            vlan: u16::try_from(entry.vlan).ok().filter(|vlan| *vlan != 0),
            mtu: u32::from(u16::MAX),
            on_link: true,
            takes_redirects: true,
        }
    }

    /// Frees next hops that nothing refers to any more, after a grace period.
    pub(in super::super) fn reclaim_next_hops(&mut self) {
        let stale = Stale { hops: std::mem::take(&mut self.stale.hops), ..Stale::default() };
        self.free(stale);
    }

    pub(super) fn free_unused_hops(&mut self) {
        let used = self.used_hops();
        let unused: Vec<_> =
            self.hops.iter().filter(|(_, at)| !used.contains(at)).map(|(key, &at)| (*key, at)).collect();
        for (key, at) in unused {
            self.hops.remove(&key);
            self.free_hops.0.insert(at);
        }
    }
}

pub(super) fn hop_key(entry: &NextHopEntry) -> HopKey {
    (entry.ethernet, entry.vlan, entry.ifindex)
}
