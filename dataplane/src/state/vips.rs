//! A VIP's own entries, and its table.

use super::super::Error;
use super::super::entries::{real_entry, vip_entry, vip_id};
use super::super::maps::{grace_period, publish};
use super::{RealHandle, State, VipHandle, pack, tick};
use crate::program::VipProgram;
use lb_ebpf::lb::{DROP_REASONS, Limiter, REASONS, RealEntry, VipEntry};
use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zk_schema::{RealName, VipName};

impl State {
    /// Gives the VIP and its reals their entries; those in use are left alone.
    pub(super) fn apply_vip(&mut self, name: &VipName, vip: &VipProgram) -> Result<(), Error> {
        let id = vip_id(name);
        let index =
            match self.vips.get(name).map(|handle| handle.index).or_else(|| self.left_vips.remove(&id)) {
                Some(index) => index,
                None => {
                    let room = self.full("VIPs", self.maps.vips.entries(), "vips");
                    let index = self.free_vips.take().ok_or(room)?;
                    self.clear_drops(index)?;
                    index
                }
            };
        let old = self.maps.vips.read(index);
        let entry = VipEntry { table: old.table, ..vip_entry(id, vip, tick()) };
        if old != entry {
            // Words other than the table may change one by one: at worst one packet meets the old limit.
            self.maps.vips.write(index, entry);
            let rates = |entry: &VipEntry| (entry.connections, entry.packets);
            if rates(&old) != rates(&entry) {
                // What it holds is a time up to which connections were admitted at the old rate; under
                // the new one that may be minutes away. (Prefixes' limiters see that by themselves.)
                self.maps.vip_limiters.write(index, Limiter::default());
            }
        }
        let mut handle =
            self.vips.remove(name).unwrap_or(VipHandle { index, reals: BTreeMap::new(), written: None });
        let mut before = std::mem::take(&mut handle.reals);
        let applied = self.apply_reals(name, vip, &mut handle, &mut before);
        for (real_name, real) in before {
            // After a failure those not looked at yet stay the VIP's.
            if applied.is_ok() || handle.reals.contains_key(&real_name) {
                self.stale.reals.push(real.index);
            } else {
                handle.reals.insert(real_name, real);
            }
        }
        self.vips.insert(name.clone(), handle);
        applied
    }

    /// Moves reals from `before` to `handle`, making entries for those that are new.
    pub(super) fn apply_reals(
        &mut self,
        name: &VipName,
        vip: &VipProgram,
        handle: &mut VipHandle,
        before: &mut BTreeMap<RealName, RealHandle>,
    ) -> Result<(), Error> {
        for real in &vip.reals {
            let source = self.source(name, vip, real)?;
            let id = self.real_id(name, vip, real, source);
            let known = before.get(&real.name).filter(|known| known.id == id).map(|known| known.index);
            let index = match known.or_else(|| self.left_reals.remove(&id)) {
                Some(index) => {
                    self.maps
                        .reals
                        .word32(index, offset_of!(RealEntry, vip))
                        .store(handle.index, Ordering::Relaxed);
                    index
                }
                None => {
                    let room = self.full("reals", self.maps.reals.entries(), "reals");
                    let index = self.free_reals.take().ok_or(room)?;
                    self.clear_counters(index)?;
                    let entry = real_entry(handle.index, vip, real, source, self.settings.gue_port, id);
                    self.maps.reals.write(index, entry);
                    index
                }
            };
            if known.is_some() {
                before.remove(&real.name);
            }
            let (address, encapsulation) = (real.address, vip.encapsulation);
            let (way, obstacle) = (None, None);
            let known = RealHandle { index, address, id, encapsulation, way, obstacle };
            handle.reals.insert(real.name.clone(), known);
        }
        Ok(())
    }

    pub(super) fn clear_counters(&mut self, index: u32) -> Result<(), Error> {
        self.restarted.reals.push(index);
        self.maps.counters.clear(index)
    }

    pub(super) fn clear_drops(&mut self, vip: u32) -> Result<(), Error> {
        let first = vip * DROP_REASONS;
        self.restarted.vips.push(vip);
        (first..first + REASONS).try_for_each(|index| self.maps.drops.clear(index))
    }

    /// Writes the VIP's table beside the one in force and switches to it; false if they are equal.
    pub(super) fn apply_table(&mut self, name: &VipName, vip: &VipProgram) -> Result<bool, Error> {
        let Some(handle) = self.vips.get(name) else { return Ok(false) };
        let index = handle.index;
        let indices: Vec<u32> =
            vip.reals.iter().map(|real| handle.reals.get(&real.name).map_or(0, |real| real.index)).collect();
        if handle
            .written
            .as_ref()
            .is_some_and(|(table, written)| Arc::ptr_eq(table, &vip.table) && *written == indices)
        {
            return Ok(false);
        }
        let owners = vip.table.owners();
        let word = self.maps.vips.word64(index, offset_of!(VipEntry, table)).load(Ordering::Relaxed);
        let in_force = self.table_of(word);
        let cells = owners.iter().map(|&owner| indices.get(usize::from(owner)).copied().unwrap_or(0));
        let m = self.settings.table_size;
        let same = match in_force {
            Some(table) => {
                !owners.is_empty()
                    && cells.clone().zip(0..).all(|(cell, slot)| {
                        self.maps.slots.cell(table * m + slot).load(Ordering::Relaxed) == cell
                    })
            }
            None => owners.is_empty(),
        };
        if !same {
            let next = if owners.is_empty() {
                0
            } else {
                let table = self.free_table()?;
                for (cell, slot) in cells.zip(0..) {
                    self.maps.slots.cell(table * m + slot).store(cell, Ordering::Relaxed);
                }
                pack(table * m, m)
            };
            publish();
            self.maps.vips.word64(index, offset_of!(VipEntry, table)).store(next, Ordering::SeqCst);
            self.stale.tables.extend(in_force);
        }
        if let Some(handle) = self.vips.get_mut(name) {
            handle.written = Some((Arc::clone(&vip.table), indices));
        }
        Ok(!same)
    }

    /// A free region of the slot map; waits for those just left, if need be.
    pub(super) fn free_table(&mut self) -> Result<u32, Error> {
        if self.free_tables.0.is_empty() && !self.stale.tables.is_empty() {
            grace_period();
            self.free_tables.0.extend(self.stale.tables.drain(..));
        }
        let room = self.maps.slots.cells() / self.settings.table_size;
        self.free_tables.take().ok_or(Error::Capacity {
            what: "slot tables",
            wanted: room as usize + 1,
            room: room as usize,
            field: "tables",
        })
    }
}
