//! Reads the entries that a predecessor left in the maps, and those in force.

use super::super::entries::{identity, vip_id};
use super::super::index;
use super::hops::hop_key;
use super::{State, unpack};
use crate::program::Program;
use lb_ebpf::lb::{ADDRESS_SLOTS, SERVICE_SLOTS, SLOT_REAL_MASK};
use slot_table::maglev::{Table, TableSize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;
use zk_schema::{Desired, RealName, VipName};

impl State {
    /// Learns what a predecessor left in the maps.
    pub(in super::super) fn adopt(&mut self) {
        for index in 1..self.maps.vips.entries() {
            let entry = self.maps.vips.read(index);
            if entry.id != 0 {
                self.left_vips.insert(entry.id, index);
                self.free_vips.0.remove(&index);
                if let Some(table) = self.table_of(entry.table) {
                    self.free_tables.0.remove(&table);
                }
            }
        }
        let half = u32::from(self.maps.config.read(0).index & 1 != 0);
        let addresses =
            (half * ADDRESS_SLOTS..(half + 1) * ADDRESS_SLOTS).map(|at| self.maps.addresses.read(at));
        let services =
            (half * SERVICE_SLOTS..(half + 1) * SERVICE_SLOTS).map(|at| self.maps.services.read(at));
        self.services = Some(index::read(addresses, services));
        let mut used_hops = HashSet::new();
        for index in 1..self.maps.reals.entries() {
            let entry = self.maps.reals.read(index);
            if entry.id != 0 {
                self.left_reals.insert(entry.id, index);
                self.free_reals.0.remove(&index);
                used_hops.insert(entry.next_hop);
            }
        }
        for index in
            used_hops.into_iter().filter(|&index| index != 0 && index < self.maps.next_hops.entries())
        {
            self.hops.insert(hop_key(&self.maps.next_hops.read(index)), index);
            self.free_hops.0.remove(&index);
        }
    }

    /// The region of the slot map that a VIP's table word names.
    pub(super) fn table_of(&self, word: u64) -> Option<u32> {
        let (base, m) = unpack(word);
        (m == self.settings.table_size).then(|| base / m)
    }

    /// Desired reals that hold slots in the tables in force.
    /// The digests of the tables that packets meet, read back from the maps, of those VIPs of `program` that `wanted`
    /// chooses.
    pub(in super::super) fn table_digests(
        &self,
        program: &Program,
        wanted: &dyn Fn(&VipName) -> bool,
    ) -> BTreeMap<VipName, u64> {
        let mut digests = BTreeMap::new();
        let Ok(size) = TableSize::try_from(program.table_size) else { return digests };
        let mut names: BTreeMap<&VipName, HashMap<u32, &str>> = BTreeMap::new();
        for (vip, real, handle) in self.reals() {
            names.entry(vip).or_default().insert(handle.index, real.as_str());
        }
        for name in program.vips.keys().filter(|name| wanted(name)) {
            let Some(handle) = self.vips.get(name) else { continue };
            let table = self.table_of(self.maps.vips.read(handle.index).table);
            let m = self.settings.table_size;
            let nobody = HashMap::new();
            let names = names.get(name).unwrap_or(&nobody);
            let cells = table.into_iter().flat_map(|table| {
                (0..m).map(move |slot| {
                    self.maps.slots.cell(table * m + slot).load(Ordering::Relaxed) & SLOT_REAL_MASK
                })
            });
            // A cell that names no real of the VIP's makes the digest that of no right table.
            let owners = cells.map(|index| names.get(&index).copied().unwrap_or("?"));
            digests.insert(name.clone(), Table::digest_of(program.seed, size, owners));
        }
        digests
    }

    pub(in super::super) fn in_force(&self, desired: &Desired) -> BTreeSet<(VipName, RealName)> {
        let mut held = BTreeSet::new();
        for (name, vip) in &desired.vips {
            let index = match self.vips.get(name) {
                Some(handle) => handle.index,
                None => match self.left_vips.get(&vip_id(name)) {
                    Some(&index) => index,
                    None => continue,
                },
            };
            let Some(table) = self.table_of(self.maps.vips.read(index).table) else { continue };
            let m = self.settings.table_size;
            let owners: HashSet<u32> = (0..m)
                .map(|slot| self.maps.slots.cell(table * m + slot).load(Ordering::Relaxed) & SLOT_REAL_MASK)
                .collect();
            for (real_name, real) in &vip.reals {
                let holds = owners.iter().any(|&owner| {
                    owner != 0 && owner < self.maps.reals.entries() && {
                        let entry = self.maps.reals.read(owner);
                        entry.id != 0 && entry.id == self.desired_id(name, &vip.vip, real_name, real)
                    }
                });
                if holds {
                    held.insert((name.clone(), real_name.clone()));
                }
            }
        }
        held
    }

    pub(super) fn desired_id(
        &self,
        name: &VipName,
        vip: &zk_schema::Vip,
        real_name: &RealName,
        real: &zk_schema::Real,
    ) -> u64 {
        let source = self.outer_source(vip.encapsulation, real.address).unwrap_or_default();
        identity(name, (vip.encapsulation, self.settings.gue_port), real_name, real.address, source)
    }
}
