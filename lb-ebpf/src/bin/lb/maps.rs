//! The maps. Sizes here are the smallest; user space sets those that [`Capacity`] asks for.
//!
//! [`Capacity`]: ../../zk_schema/records/struct.Capacity.html

use crate::rare::Pending;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, xdp_action};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, RingBuf};
use lb_ebpf::lb::{
    ADDRESS_SLOTS, AddressEntry, Capture, Config, DROP_REASONS, DropReason, EVENTS, Event, FragmentKey,
    FragmentOwner, Limiter, NextHop, PREFIX_LINES, PrefixLine, RealCounters, RealEntry, SERVICE_SLOTS,
    ServiceEntry, SlotPair, VipEntry, config_flags,
};

#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_MMAPABLE);
// `BPF_F_MMAPABLE` also puts the elements on a page boundary, so that none straddles two cache lines.
/// Two halves; [`Config::index`] says which is in force.
#[map]
pub static ADDRESSES: Array<AddressEntry> = Array::with_max_entries(2 * ADDRESS_SLOTS, BPF_F_MMAPABLE);
#[map]
pub static SERVICES: Array<ServiceEntry> = Array::with_max_entries(2 * SERVICE_SLOTS, BPF_F_MMAPABLE);
#[map]
pub static VIPS: Array<VipEntry> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static SLOTS: Array<SlotPair> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static REALS: Array<RealEntry> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static NEXT_HOPS: Array<NextHop> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static COUNTERS: PerCpuArray<RealCounters> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DROP_REASONS, 0);
#[map]
pub static EVENTS_SEEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(EVENTS, 0);
#[map]
pub static VIP_LIMITERS: Array<Limiter> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// By source prefix, in ticks.
#[map]
pub static PREFIX_LIMITERS: Array<PrefixLine> = Array::with_max_entries(PREFIX_LINES, BPF_F_MMAPABLE);
/// The same for packets; its ticks are shorter. Apart, so that a flood of packets refuses no connection.
#[map]
pub static PREFIX_PACKET_LIMITERS: Array<PrefixLine> = Array::with_max_entries(PREFIX_LINES, BPF_F_MMAPABLE);
/// By [`crate::admission::Answers`].
#[map]
pub static ICMP_LIMITERS: Array<Limiter> = Array::with_max_entries(2, 0);
/// Arrival time of the first fragments that a CPU notes.
#[map]
pub static FRAGMENT_LIMITER: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentOwner> = LruHashMap::with_max_entries(16_384, 0);
#[map]
pub static CAPTURES: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
/// The packet that a rare path hands on.
#[map]
pub static PENDING: PerCpuArray<Pending> = PerCpuArray::with_max_entries(1, 0);
/// Room to build ICMP messages in; too large for the stack.
#[map]
pub static SCRATCH: PerCpuArray<[u8; crate::icmp::MESSAGE_ROOM]> = PerCpuArray::with_max_entries(1, 0);

const _: () = assert!(size_of::<Capture>().is_multiple_of(8));

/// Counts what became of a packet.
#[inline(always)]
pub fn count(event: Event) {
    if let Some(counter) = EVENTS_SEEN.get_ptr_mut(event as u32) {
        // SAFETY: the element is this CPU's own, and XDP does not preempt itself.
        unsafe { *counter += 1 };
    }
}

/// Leaves the packet to the kernel.
#[inline(always)]
pub fn pass(event: Event) -> u32 {
    count(event);
    xdp_action::XDP_PASS
}

/// Drops or passes a packet to a VIP's address that no VIP serves. A host that forwards would send it to its
/// gateway, which has the address from this host: it would go round until its TTL ends.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unserved() -> u32 {
    match CONFIG.get(0) {
        Some(config) if config.flags & config_flags::PASS_UNSERVED != 0 => pass(Event::PassedNoService),
        _ => discard(0, DropReason::NoService),
    }
}

/// Drops the packet and counts why.
#[inline(always)]
pub fn discard(vip: u32, reason: DropReason) -> u32 {
    discard_counted(vip * DROP_REASONS + reason as u32)
}

/// The same for a reason that a function returned as a number.
#[inline(always)]
pub fn discard_for(vip: u32, reason: u32) -> u32 {
    discard_counted(vip * DROP_REASONS + (reason & (DROP_REASONS - 1)))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn discard_counted(index: u32) -> u32 {
    if let Some(counter) = DROPS.get_ptr_mut(index) {
        // SAFETY: as in `count`.
        unsafe { *counter += 1 };
    }
    xdp_action::XDP_DROP
}
