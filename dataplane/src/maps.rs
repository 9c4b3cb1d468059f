//! Typed access to the maps: mapped into memory where the kernel allows it, through calls where not.

use super::Error;
use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::{Ebpf, Pod};
use lb_ebpf::lb::{
    AddressEntry, Config, Limiter, NextHop, RealCounters, RealEntry, ServiceEntry, SlotPair, VipEntry,
};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// An array map, mapped into this process. The BPF program reads the same memory at any time.
pub(crate) struct Mapped<T> {
    start: NonNull<u8>,
    length: usize,
    entries: u32,
    stride: usize,
    name: &'static str,
    marker: PhantomData<T>,
}

// SAFETY: the mapping belongs to this value alone; all access goes through `&self` and volatile or atomic
// operations, whose other side is the BPF program.
unsafe impl<T: Send> Send for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    /// Maps an array that was created with `BPF_F_MMAPABLE`.
    pub(crate) fn new(name: &'static str, map: &MapData) -> Result<Self, Error> {
        let info = map.info().map_err(|source| Error::Map { name, source: Box::new(source) })?;
        if info.value_size() as usize != size_of::<T>() {
            return Err(Error::ValueSize { name, found: info.value_size() as usize, wanted: size_of::<T>() });
        }
        let stride = size_of::<T>().next_multiple_of(8);
        let length = (stride * info.max_entries() as usize).next_multiple_of(rustix::param::page_size());
        // SAFETY: a fresh shared mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                map.fd().as_fd(),
                0,
            )
        }
        .map_err(|source| Error::Mmap { name, source: source.into() })?;
        let start = NonNull::new(start.cast())
            .ok_or(Error::Mmap { name, source: std::io::ErrorKind::Other.into() })?;
        Ok(Self { start, length, entries: info.max_entries(), stride, name, marker: PhantomData })
    }

    /// Number of elements.
    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    fn at(&self, index: u32) -> *mut T {
        assert!(index < self.entries, "{}: element {index} of {}", self.name, self.entries);
        // SAFETY: within the mapping, as just checked.
        unsafe { self.start.as_ptr().add(index as usize * self.stride).cast() }
    }

    /// Copies an element out.
    pub(crate) fn read(&self, index: u32) -> T {
        // SAFETY: in bounds and aligned (elements are multiples of eight bytes, `T` is Pod). Only this
        // process writes these maps.
        unsafe { self.at(index).read_volatile() }
    }

    /// Writes an element that nothing refers to yet, or whose words need not change together.
    pub(crate) fn write(&self, index: u32, value: T) {
        // SAFETY: as in `read`.
        unsafe { self.at(index).write_volatile(value) }
    }

    /// A 32-bit word of an element, to be replaced atomically while packets read it.
    pub(crate) fn word32(&self, index: u32, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= size_of::<T>());
        // SAFETY: in bounds and aligned, as just checked; shared memory that is only accessed atomically
        // while it is in use.
        unsafe { AtomicU32::from_ptr(self.at(index).cast::<u8>().add(offset).cast()) }
    }

    /// A 64-bit word of an element.
    pub(crate) fn word64(&self, index: u32, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= size_of::<T>());
        // SAFETY: as in `word32`.
        unsafe { AtomicU64::from_ptr(self.at(index).cast::<u8>().add(offset).cast()) }
    }
}

impl Mapped<SlotPair> {
    /// Slot cells: twice as many as elements.
    pub(super) fn cells(&self) -> u32 {
        self.entries * 2
    }

    /// A slot's cell.
    pub(super) fn cell(&self, index: u32) -> &AtomicU32 {
        self.word32(index / 2, (index as usize % 2) * 4)
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, of that length; nothing borrowed from it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast::<c_void>(), self.length) };
    }
}

/// A per-CPU array of counters.
pub(super) struct Counters<T: Pod> {
    array: PerCpuArray<MapData, T>,
    fd: OwnedFd,
    cpus: usize,
    name: &'static str,
}

/// Elements that one call reads: a few hundred kilobytes on a machine of dozens of CPUs.
const BATCH: u32 = 1024;

impl<T: Pod + Default> Counters<T> {
    fn new(name: &'static str, map: MapData) -> Result<Self, Error> {
        let io = |source| Error::Map { name, source: Box::new(MapError::IoError(source)) };
        let fd = map.fd().as_fd().try_clone_to_owned().map_err(io)?;
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| io(source))?;
        let array = PerCpuArray::try_from(Map::PerCpuArray(map))
            .map_err(|source| Error::Map { name, source: Box::new(source) })?;
        Ok(Self { array, fd, cpus, name })
    }

    fn error(&self, source: MapError) -> Error {
        Error::Map { name: self.name, source: Box::new(source) }
    }

    /// Sets an element to zero on all CPUs.
    pub(super) fn clear(&mut self, index: u32) -> Result<(), Error> {
        let zeros = PerCpuValues::try_from(vec![T::default(); self.cpus])
            .map_err(|source| self.error(MapError::IoError(source)))?;
        self.array.set(index, zeros, 0).map_err(|source| self.error(source))
    }

    /// The first `count` elements, each summed over the CPUs.
    pub(super) fn sums(&self, count: u32, add: impl Fn(T, T) -> T + Copy) -> Result<Vec<T>, Error> {
        let mut sums = Vec::with_capacity(count as usize);
        let mut values = vec![T::default(); BATCH.min(count) as usize * self.cpus];
        let mut last = None;
        while sums.len() < count as usize {
            let left = count - u32::try_from(sums.len()).unwrap_or(count);
            match self.read_batch(last, left.min(BATCH), &mut values) {
                Ok((read, next)) if read > 0 => {
                    let elements = values.chunks_exact(self.cpus).take(read as usize);
                    sums.extend(elements.map(|cpus| cpus.iter().copied().fold(T::default(), add)));
                    last = Some(next);
                }
                // Kernels before 5.13 have no batches for per-CPU arrays.
                _ => return self.sums_one_by_one(count, add),
            }
        }
        Ok(sums)
    }

    fn sums_one_by_one(&self, count: u32, add: impl Fn(T, T) -> T + Copy) -> Result<Vec<T>, Error> {
        let sum = |index| {
            let cpus = self.array.get(&index, 0).map_err(|source| self.error(source))?;
            Ok(cpus.iter().copied().fold(T::default(), add))
        };
        (0..count).map(sum).collect()
    }

    /// Reads up to `count` elements behind the one that `last` stands for, with all CPUs' values of each.
    /// Returns how many there were, and what stands for the last of them.
    fn read_batch(&self, last: Option<u32>, count: u32, values: &mut [T]) -> std::io::Result<(u32, u32)> {
        /// The part of `union bpf_attr` that BPF_MAP_LOOKUP_BATCH reads (linux/bpf.h).
        #[repr(C)]
        struct Attributes {
            in_batch: u64,
            out_batch: u64,
            keys: u64,
            values: u64,
            count: u32,
            map: u32,
            element_flags: u64,
            flags: u64,
        }
        const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
        // The kernel lays values out with a stride of eight bytes or a multiple.
        assert!(size_of::<T>().is_multiple_of(8) && count as usize * self.cpus <= values.len());
        let mut keys = vec![0_u32; count as usize];
        let mut next = 0_u32;
        let mut attributes = Attributes {
            in_batch: last.as_ref().map_or(0, |last| std::ptr::from_ref(last) as u64),
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count,
            map: u32::try_from(self.fd.as_raw_fd()).unwrap_or(u32::MAX),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes have the kernel's layout. Their pointers are to a key each (`in_batch`,
        // `out_batch`), and to buffers with room for `count` keys and `count` values of all CPUs, which is
        // what the kernel writes at most; any bytes are a valid `T`.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attributes, size_of::<Attributes>())
        };
        let error = std::io::Error::last_os_error();
        // ENOENT says that the map's end was reached; the elements before it are there.
        if result == 0 || error.raw_os_error() == Some(libc::ENOENT) {
            Ok((attributes.count, next))
        } else {
            Err(error)
        }
    }
}

/// Makes all earlier writes visible before any later one: entries before the word that refers to them.
pub(super) fn publish() {
    fence(Ordering::SeqCst);
}

/// Waits until no BPF program that started earlier still runs, so that what it may refer to can be
/// reused. `membarrier(MEMBARRIER_CMD_GLOBAL)` waits for an RCU grace period (`synchronize_rcu` in
/// `kernel/sched/membarrier.c`), and XDP programs run within RCU read-side sections. Kernels with
/// `nohz_full` refuse it; there a pause far above a packet's time has to do.
pub(super) fn grace_period() {
    // SAFETY: a system call without pointers.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done != 0 {
        #[allow(clippy::disallowed_methods, reason = "a bounded pause in blocking code")]
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// All maps that user space uses.
pub(super) struct Maps {
    pub(super) config: Mapped<Config>,
    pub(super) addresses: Mapped<AddressEntry>,
    pub(super) services: Mapped<ServiceEntry>,
    pub(super) vips: Mapped<VipEntry>,
    pub(super) slots: Mapped<SlotPair>,
    pub(super) reals: Mapped<RealEntry>,
    pub(super) next_hops: Mapped<NextHop>,
    pub(super) vip_limiters: Mapped<Limiter>,
    pub(super) counters: Counters<RealCounters>,
    pub(super) drops: Counters<u64>,
    pub(super) events: Counters<u64>,
}

impl Maps {
    /// Takes them from a loaded object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            config: mapped(object, "CONFIG")?,
            addresses: mapped(object, "ADDRESSES")?,
            services: mapped(object, "SERVICES")?,
            vips: mapped(object, "VIPS")?,
            slots: mapped(object, "SLOTS")?,
            reals: mapped(object, "REALS")?,
            next_hops: mapped(object, "NEXT_HOPS")?,
            vip_limiters: mapped(object, "VIP_LIMITERS")?,
            counters: per_cpu(object, "COUNTERS")?,
            drops: per_cpu(object, "DROPS")?,
            events: per_cpu(object, "EVENTS_SEEN")?,
        })
    }
}

fn mapped<T: Pod>(object: &mut Ebpf, name: &'static str) -> Result<Mapped<T>, Error> {
    match object.take_map(name) {
        Some(Map::Array(data)) => Mapped::new(name, &data),
        _ => Err(Error::NoMap { name }),
    }
}

fn per_cpu<T: Pod + Default>(object: &mut Ebpf, name: &'static str) -> Result<Counters<T>, Error> {
    match object.take_map(name) {
        Some(Map::PerCpuArray(data)) => Counters::new(name, data),
        _ => Err(Error::NoMap { name }),
    }
}
