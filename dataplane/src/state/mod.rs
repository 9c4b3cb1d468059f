//! The maps' content, and the way from one [`Program`] to the next.
//!
//! Order matters, as packets read the maps at any time: entries are written before the word that refers
//! to them, and reused only after that word has been switched and a grace period has passed.

mod hops;
mod inherit;
mod mac;
mod vips;

use super::entries::{SECOND, identity, vip_id};
use super::index::{self, Services, words};
use super::maps::{Maps, grace_period, publish};
use super::{Applied, Error, Settings};
use crate::nexthop::{NextHop, NextHops, Obstacle};
use crate::program::{Program, RealProgram, VipProgram};
use hops::HopKey;
use lb_ebpf::LAYOUT_VERSION;
use lb_ebpf::lb::{self, ADDRESS_SLOTS, Config, Rate, RealEntry, SERVICE_SLOTS, VipEntry, config_flags};
use slot_table::maglev::Table;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::mem::offset_of;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zk_schema::{Encapsulation, RealName, Unserved, VipName};

/// Next hops beyond one per real: room for the new ones while the old ones may still be read.
pub(super) const SPARE_NEXT_HOPS: u32 = 1024;
/// Entries for reals beyond those that are allowed: room for the new ones while the old ones are still in use.
pub(super) const fn spare_reals(reals: u32) -> u32 {
    reals / 4 + 64
}
/// ICMP errors that the node sends at most, per second and in a burst.
const ICMP_PER_SECOND: u64 = 1000;
const ICMP_BURST: u64 = 200;
/// Echo requests that it answers at most.
const ECHOES_PER_SECOND: u64 = 1000;
const ECHO_BURST: u64 = 200;
const _: () = assert!(zk_schema::Node::MOST_MACS == lb::MORE_MACS);

/// The data plane's bookkeeping.
pub(super) struct State {
    pub(super) maps: Maps,
    settings: Settings,
    front: u32,
    /// MAC address of the front interface; `None`: it has none.
    mac: Option<[u8; 6]>,
    /// XDP runs in the driver.
    native: bool,
    vips: BTreeMap<VipName, VipHandle>,
    free_vips: Free,
    free_reals: Free,
    free_tables: Free,
    free_hops: Free,
    hops: HashMap<HopKey, u32>,
    /// The content of the index in force; `None`: it has not been written yet.
    services: Option<Services>,
    /// Entries that a predecessor left, by identity, until a program claims or drops them.
    left_vips: HashMap<u64, u32>,
    left_reals: HashMap<u64, u32>,
    /// Entries that the program no longer has and packets may still meet; kept over a failed attempt to apply one.
    stale: Stale,
    restarted: Restarted,
}

/// A VIP in the maps.
pub(super) struct VipHandle {
    pub(super) index: u32,
    pub(super) reals: BTreeMap<RealName, RealHandle>,
    /// The table in force and the reals' indices that it was written with.
    written: Option<(Arc<Table>, Vec<u32>)>,
}

/// A real in the maps.
#[derive(Clone)]
pub(super) struct RealHandle {
    pub(super) index: u32,
    pub(super) address: IpAddr,
    id: u64,
    encapsulation: Encapsulation,
    /// The way by which packets reach it, as far as this process was told.
    pub(super) way: Option<NextHop>,
    /// The reason why they cannot go that way, if they cannot.
    pub(super) obstacle: Option<Obstacle>,
}

/// Entries that packets may still refer to until a grace period has passed.
#[derive(Default)]
struct Stale {
    vips: Vec<u32>,
    reals: Vec<u32>,
    tables: Vec<u32>,
    hops: bool,
}

/// VIPs and reals whose counters have begun anew.
#[derive(Default)]
pub(super) struct Restarted {
    pub(super) vips: Vec<u32>,
    pub(super) reals: Vec<u32>,
}

/// Numbers of entries of each kind that a program wants and the maps do not have yet.
#[derive(Default)]
struct Wanted {
    vips: usize,
    reals: usize,
    tables: usize,
}

/// Free indices, lowest first, so that maps stay dense.
struct Free(BTreeSet<u32>);

impl Free {
    fn new(range: std::ops::Range<u32>) -> Self {
        Self(range.collect())
    }

    fn take(&mut self) -> Option<u32> {
        self.0.pop_first()
    }
}

impl State {
    /// The bookkeeping of empty maps.
    pub(super) fn new(maps: Maps, settings: &Settings) -> Result<Self, Error> {
        let missing = || io::Error::from(rustix::io::Errno::NODEV);
        let front = host::interface::index(&settings.interface)
            .and_then(|index| index.ok_or_else(missing))
            .map_err(|source| Error::Interface { interface: settings.interface.clone(), source })?;
        Ok(Self {
            front,
            mac: mac::of(&settings.interface)
                .map_err(|source| Error::Interface { interface: settings.interface.clone(), source })?,
            native: false,
            vips: BTreeMap::new(),
            free_vips: Free::new(1..maps.vips.entries()),
            free_reals: Free::new(1..maps.reals.entries()),
            free_tables: Free::new(0..maps.slots.cells() / settings.table_size),
            free_hops: Free::new(1..maps.next_hops.entries()),
            hops: HashMap::new(),
            services: None,
            left_vips: HashMap::new(),
            left_reals: HashMap::new(),
            stale: Stale::default(),
            restarted: Restarted::default(),
            settings: settings.clone(),
            maps,
        })
    }

    /// Takes note of whether XDP runs in the driver; next hops are to be applied anew then.
    pub(super) fn set_native(&mut self, native: bool) -> bool {
        std::mem::replace(&mut self.native, native) != native
    }

    /// Reals that packets cannot be sent to although they have a next hop, and why.
    pub(super) fn obstacles(&self) -> BTreeMap<(VipName, RealName), Obstacle> {
        let obstacles = self.reals().filter_map(|(vip, name, real)| Some((vip, name, real.obstacle?)));
        obstacles.map(|(vip, name, obstacle)| ((vip.clone(), name.clone()), obstacle)).collect()
    }

    /// The number of the interface that all this is for.
    pub(super) fn front(&self) -> u32 {
        self.front
    }

    /// Checks that the program fits; changes nothing.
    pub(super) fn check(&self, program: &Program) -> Result<(), Error> {
        let room = self.settings.table_size;
        if program.table_size != room {
            return Err(Error::TableSize { wanted: program.table_size, room });
        }
        let fits = |what, wanted: usize, room: u32, field| {
            if wanted > room as usize {
                Err(Error::Capacity { what, wanted, room: room as usize, field })
            } else {
                Ok(())
            }
        };
        fits("VIPs", program.vips.len(), self.settings.capacity.vips, "vips")?;
        fits("VIPs", program.vips.len(), ADDRESS_SLOTS.min(SERVICE_SLOTS) / 2, "vips")?;
        let reals = program.vips.values().map(|vip| vip.reals.len()).sum();
        fits("reals", reals, self.settings.capacity.reals, "reals")?;
        let tables = program.vips.values().filter(|vip| !vip.table.owners().is_empty()).count();
        fits("VIPs", tables, (self.maps.slots.cells() / room).saturating_sub(1), "tables")?;
        for (name, vip) in &program.vips {
            for real in &vip.reals {
                self.source(name, vip, real)?;
            }
        }
        // The reals of VIPs that stay keep their entries until the tables have been switched.
        let staying = self.staying(program);
        let leaving = |index: u32| {
            let vip = self.maps.reals.read(index).vip;
            !staying.contains(&vip)
        };
        let held = self.vips.values().flat_map(|vip| vip.reals.values().map(|real| real.index));
        let held = held.chain(self.left_reals.values().copied()).filter(|&index| !leaving(index)).count();
        let at_once = held + self.stale.reals.len() + self.wanted(program)?.reals;
        fits("reals, old and new ones together,", at_once, self.maps.reals.entries() - 1, "reals")
    }

    /// Indices of the VIPs that a program has and the maps have too.
    fn staying(&self, program: &Program) -> HashSet<u32> {
        program.vips.keys().filter_map(|name| self.vip_index(name)).collect()
    }

    fn vip_index(&self, name: &VipName) -> Option<u32> {
        match self.vips.get(name) {
            Some(handle) => Some(handle.index),
            None => self.left_vips.get(&vip_id(name)).copied(),
        }
    }

    /// Counts the entries of a program that are not in the maps yet.
    fn wanted(&self, program: &Program) -> Result<Wanted, Error> {
        let mut wanted = Wanted::default();
        for (name, vip) in &program.vips {
            let index = self.vip_index(name);
            wanted.vips += usize::from(index.is_none());
            let has_table =
                index.is_some_and(|index| self.table_of(self.maps.vips.read(index).table).is_some());
            wanted.tables += usize::from(!has_table && !vip.table.owners().is_empty());
            let known = self.vips.get(name).map(|handle| &handle.reals);
            for real in &vip.reals {
                let id = self.real_id(name, vip, real, self.source(name, vip, real)?);
                let is_known =
                    known.and_then(|known| known.get(&real.name)).is_some_and(|known| known.id == id);
                wanted.reals += usize::from(!is_known && !self.left_reals.contains_key(&id));
            }
        }
        Ok(wanted)
    }

    /// Outer source towards a real; zero where nothing is wrapped.
    fn source(&self, name: &VipName, vip: &VipProgram, real: &RealProgram) -> Result<[u64; 2], Error> {
        let missing = |family, field| Error::NoSource {
            vip: name.clone(),
            real: real.address,
            family,
            field,
            interface: self.settings.interface.clone(),
        };
        let (family, field) = if real.address.is_ipv4() { ("IPv4", "v4") } else { ("IPv6", "v6") };
        self.outer_source(vip.encapsulation, real.address).ok_or_else(|| missing(family, field))
    }

    /// Outer source towards an address; `None` if the node has none of its family.
    fn outer_source(&self, encapsulation: Encapsulation, real: IpAddr) -> Option<[u64; 2]> {
        match (encapsulation, real) {
            (Encapsulation::L2, _) => Some([0, 0]),
            (_, IpAddr::V4(_)) => {
                self.settings.source_v4.map(|ip| [u64::from(u32::from_le_bytes(ip.octets())), 0])
            }
            (_, IpAddr::V6(_)) => self.settings.source_v6.map(|ip| words(ip.octets())),
        }
    }

    /// Brings the maps to what `program` says; [`Self::reclaim`] is to follow.
    pub(super) fn apply(&mut self, program: &Program, hops: &NextHops) -> Result<Applied, Error> {
        let mut applied = Applied::default();
        self.write_config(program);
        let wanted = self.wanted(program)?;
        let tables = self.free_tables.0.len() + self.stale.tables.len();
        if wanted.vips > self.free_vips.0.len()
            || wanted.reals > self.free_reals.0.len()
            || wanted.tables >= tables
        {
            self.retire_first(program);
        }
        for (name, vip) in &program.vips {
            self.apply_vip(name, vip)?;
        }
        self.apply_next_hops(hops)?;
        // VIPs that give a table back come before those that need one.
        let (without, with): (Vec<_>, Vec<_>) =
            program.vips.iter().partition(|(_, vip)| vip.table.owners().is_empty());
        for (name, vip) in without.into_iter().chain(with) {
            applied.tables += usize::from(self.apply_table(name, vip)?);
        }
        let services = self.services_of(program);
        applied.index = self.apply_index(services);
        let gone = self.retire(program);
        self.stale.vips.extend(gone.vips);
        self.stale.reals.extend(gone.reals);
        self.stale.reals.extend(self.left_reals.drain().map(|(_, index)| index));
        Ok(applied)
    }

    /// Frees the entries of VIPs that a program does not have before it is applied, where there is no room
    /// for both.
    fn retire_first(&mut self, program: &Program) {
        let staying = self.staying(program);
        let mut services = self.services.clone().unwrap_or_default();
        services.retain(|_, vip| staying.contains(vip));
        self.apply_index(services);
        let gone = self.retire(program);
        self.free(gone);
    }

    /// Forgets the VIPs that a program does not have.
    fn retire(&mut self, program: &Program) -> Stale {
        let mut gone = Stale::default();
        let staying = self.staying(program);
        let names: Vec<_> =
            self.vips.keys().filter(|name| !program.vips.contains_key(*name)).cloned().collect();
        for name in names {
            if let Some(handle) = self.vips.remove(&name) {
                gone.vips.push(handle.index);
                gone.reals.extend(handle.reals.values().map(|real| real.index));
            }
        }
        gone.vips
            .extend(self.left_vips.extract_if(|_, index| !staying.contains(index)).map(|(_, index)| index));
        let reals = &self.maps.reals;
        let left = self.left_reals.extract_if(|_, index| !staying.contains(&reals.read(*index).vip));
        gone.reals.extend(left.map(|(_, index)| index));
        gone
    }

    fn write_config(&mut self, program: &Program) {
        let rate = |per_second: u64, burst: u64| {
            let interval = SECOND / per_second;
            Rate { interval, tolerance: interval * burst }
        };
        let old = self.maps.config.read(0);
        let config = Config {
            layout: LAYOUT_VERSION,
            gue_port: u32::from(self.settings.gue_port),
            seed: [program.seed.k0, program.seed.k1],
            prefix_seed: if old.prefix_seed == 0 { random_word() } else { old.prefix_seed },
            tick: tick(),
            flags: if self.settings.unserved == Unserved::Pass { config_flags::PASS_UNSERVED } else { 0 },
            icmp_errors: rate(ICMP_PER_SECOND, ICMP_BURST),
            echoes: rate(ECHOES_PER_SECOND, ECHO_BURST),
            mac: self.mac.map_or(0, lb::mac_word),
            more_macs: std::array::from_fn(|place| {
                self.settings.accept_macs.get(place).map_or(0, |mac| lb::mac_word(mac.0))
            }),
            ..old
        };
        if config != old {
            self.maps.config.write(0, config);
        }
    }

    /// Keeps the (term, epoch) that the tables are from.
    pub(super) fn set_order(&self, (term, epoch): (u64, u64)) {
        let word =
            |number: usize| self.maps.config.word64(0, offset_of!(Config, order) + number * size_of::<u64>());
        // What a crash in between leaves is smaller than both, never greater.
        if word(0).load(Ordering::SeqCst) != term {
            word(1).store(0, Ordering::SeqCst);
            word(0).store(term, Ordering::SeqCst);
        }
        word(1).store(epoch, Ordering::SeqCst);
    }

    /// Has the program take frames for the MAC address that the front interface has now, if that is another. Where
    /// the kernel does not say, what was known stays.
    pub(super) fn refresh_mac(&mut self) {
        let Ok(mac) = mac::of(&self.settings.interface) else { return };
        if self.mac != mac {
            self.mac = mac;
            let word = self.maps.config.word64(0, offset_of!(Config, mac));
            word.store(mac.map_or(0, lb::mac_word), Ordering::Relaxed);
        }
    }

    /// MAC address of the front interface.
    pub(super) fn mac(&self) -> Option<[u8; 6]> {
        self.mac
    }

    fn full(&self, what: &'static str, entries: u32, field: &'static str) -> Error {
        Error::Capacity { what, wanted: entries as usize, room: entries as usize - 1, field }
    }

    /// Returns the VIPs and reals whose counters have begun anew since the last call.
    pub(super) fn restarted(&mut self) -> Restarted {
        std::mem::take(&mut self.restarted)
    }

    /// Returns the wanted content of the index for a program whose VIPs have their entries.
    fn services_of(&self, program: &Program) -> Services {
        let vips = program.vips.iter();
        vips.filter_map(|(name, vip)| {
            Some(((vip.address, vip.port, vip.protocol), self.vips.get(name)?.index))
        })
        .collect()
    }

    /// Switches to a new index of addresses and ports, if it differs.
    fn apply_index(&mut self, services: Services) -> bool {
        if self.services.as_ref() == Some(&services) {
            return false;
        }
        // `check` has bounded their number; with 64 seeds at half load this does not fail.
        let Some(index) = index::build(&services) else {
            tracing::error!(
                services = services.len(),
                "no seed places all VIPs in the index; the old one stays"
            );
            return false;
        };
        let word = self.maps.config.word64(0, offset_of!(Config, index));
        #[allow(clippy::cast_possible_truncation, reason = "one bit")]
        let half = 1 - (word.load(Ordering::Relaxed) as u32 & 1);
        for (entry, at) in index.addresses.into_iter().zip(half * ADDRESS_SLOTS..) {
            self.maps.addresses.write(at, entry);
        }
        for (entry, at) in index.services.into_iter().zip(half * SERVICE_SLOTS..) {
            self.maps.services.write(at, entry);
        }
        publish();
        word.store(u64::from(index.seed) << 32 | u64::from(half), Ordering::SeqCst);
        // The half that was left is the next one to be written.
        grace_period();
        self.services = Some(services);
        true
    }

    /// Frees what nothing refers to any more, after a grace period.
    pub(super) fn reclaim(&mut self) {
        let stale = std::mem::take(&mut self.stale);
        self.free(stale);
    }

    fn free(&mut self, stale: Stale) {
        if stale.vips.is_empty() && stale.reals.is_empty() && stale.tables.is_empty() && !stale.hops {
            return;
        }
        grace_period();
        for index in stale.vips {
            let table = self.table_of(self.maps.vips.read(index).table);
            self.maps.vips.write(index, VipEntry::default());
            self.free_tables.0.extend(table);
            self.free_vips.0.insert(index);
        }
        for index in stale.reals {
            self.maps.reals.write(index, RealEntry::default());
            self.free_reals.0.insert(index);
        }
        self.free_tables.0.extend(stale.tables);
        self.free_unused_hops();
    }

    /// All reals in the maps.
    pub(super) fn reals(&self) -> impl Iterator<Item = (&VipName, &RealName, &RealHandle)> {
        self.vips
            .iter()
            .flat_map(|(vip, handle)| handle.reals.iter().map(move |(name, real)| (vip, name, real)))
    }

    /// All VIPs in the maps.
    pub(super) fn vips(&self) -> impl Iterator<Item = (&VipName, &VipHandle)> {
        self.vips.iter()
    }

    /// Reals without a next hop.
    pub(super) fn unresolved(&self) -> BTreeSet<(VipName, RealName)> {
        self.reals()
            .filter(|(_, _, real)| self.maps.reals.read(real.index).next_hop == 0)
            .map(|(vip, name, _)| (vip.clone(), name.clone()))
            .collect()
    }

    /// A real in the maps.
    pub(super) fn real(&self, vip: &VipName, real: &RealName) -> Option<&RealHandle> {
        self.vips.get(vip)?.reals.get(real)
    }

    /// Returns the way to a real that has a next hop: as this process was told, else as a predecessor wrote it.
    pub(super) fn way(&self, real: &RealHandle) -> NextHop {
        real.way.unwrap_or_else(|| {
            let entry = self.maps.next_hops.read(self.maps.reals.read(real.index).next_hop);
            self.hop_of(&entry)
        })
    }

    /// The real's entry as the maps have it.
    pub(super) fn entry(&self, real: &RealHandle) -> RealEntry {
        self.maps.reals.read(real.index)
    }

    fn real_id(&self, name: &VipName, vip: &VipProgram, real: &RealProgram, source: [u64; 2]) -> u64 {
        identity(name, (vip.encapsulation, self.settings.gue_port), &real.name, real.address, source)
    }
}

fn pack(base: u32, m: u32) -> u64 {
    u64::from(base) << 32 | u64::from(m)
}

#[allow(clippy::cast_possible_truncation, reason = "the two halves")]
fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// Length of the kernel's tick in ns: the resolution of the coarse clocks (`clock_getres(2)`).
fn tick() -> u32 {
    let resolution = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    u32::try_from(resolution.tv_nsec).unwrap_or(4_000_000).max(1)
}

/// A random word from the kernel, never 0.
fn random_word() -> u64 {
    let mut bytes = [0; 8];
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes).max(1)
}
