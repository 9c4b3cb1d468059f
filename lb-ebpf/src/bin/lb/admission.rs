//! Limits, for reconnect storms and floods: on new TCP connections and on packets, per VIP and per source prefix.
//!
//! All are the generic cell rate algorithm (ITU-T I.371): one word, the theoretical arrival time. The words are
//! shared by all CPUs and changed by atomic operations alone, so that what is admitted is the limit's, however
//! many CPUs ask. What is refused changes nothing: a flood costs loads, which CPUs share, and no writes.
//!
//! Source prefixes share a sketch of fixed size (a count-min sketch of arrival times): nothing is
//! inserted or evicted, a flood of spoofed sources costs no memory, and a prefix is refused only if
//! *both* of its cells are over the limit. Both lie in one cache line, so that a flood of new sources
//! costs one cache miss each. Where so many sources come that most cells are over the limit, prefixes that sent
//! nothing are refused too. To make that visible, some refusals look at a pair of cells at random and count how
//! often a stranger would be refused.

use crate::atomic;
use crate::fragment;
use crate::maps::{
    self, FRAGMENT_LIMITER, ICMP_LIMITERS, PENDING, PREFIX_LIMITERS, PREFIX_PACKET_LIMITERS, VIP_LIMITERS,
    VIPS,
};
use crate::rare::Step;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_jiffies64};
use aya_ebpf::maps::Array;
use lb_ebpf::lb::{
    Config, DropReason, Event, FRAGMENT_INTERVAL, FRAGMENT_TOLERANCE, PACKET_TICK_SHIFT, PREFIX_LINES,
    PREFIX_TICK_SHIFT, PrefixLine, Rate, VipEntry, vip_flags,
};
use lb_ebpf::packet::{Frame, Ipv4, Ipv6};

/// Attempts to change a word that other CPUs change at the same instant.
const ATTEMPTS: usize = 4;
/// One refusal in so many samples the sketch: a mask on a random number.
const SAMPLE_MASK: u32 = 0x0f;

/// Returns whether a VIP limits new connections, so that [`admit_connection`] is to be asked.
#[inline(always)]
pub fn limits_connections(vip: &VipEntry) -> bool {
    vip.flags & (vip_flags::RATE_LIMIT | vip_flags::PREFIX_LIMIT) != 0
}

/// Asks for a new connection: 0 if it may go to the VIP, else the [`DropReason`]. `prefix` is the client's address under
/// the VIP's mask. A function of its own, as the common path has no stack to spare.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit_connection(index: u32, prefix: u64) -> u32 {
    let (Some(config), Some(vip)) = (maps::CONFIG.get(0), VIPS.get(index)) else { return 0 };
    let now = now(config);
    if vip.flags & vip_flags::PREFIX_LIMIT != 0 {
        let limit = connections(vip, now);
        if !admit_prefix(&PREFIX_LIMITERS, config, index, prefix, limit) {
            sample_sketch(index, 0);
            return DropReason::PrefixRateLimited as u32;
        }
    }
    if vip.flags & vip_flags::RATE_LIMIT != 0
        && let Some(limiter) = VIP_LIMITERS.get_ptr_mut(index)
    {
        // SAFETY: a valid element.
        let arrival = unsafe { &raw mut (*limiter).arrival };
        if !take(arrival, now, vip.connections) {
            return DropReason::RateLimited as u32;
        }
    }
    0
}

/// The step for a first fragment that opens a connection to the VIP that [`PENDING`] names: back to where it came from,
/// if that is admitted.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit_fragment(ctx: *mut xdp_md, l3: u32, v6: u32) -> u32 {
    let Some(pending) = PENDING.get(0) else { return maps::discard(0, DropReason::NoReal) };
    let index = pending.vip;
    let Some(vip) = VIPS.get(index) else { return maps::discard(0, DropReason::NoReal) };
    if limits_connections(vip)
        && let Some(prefix) = prefix_of(ctx, l3, v6, vip)
    {
        let refusal = admit_connection(index, prefix);
        if refusal != 0 {
            return maps::discard_for(index, refusal);
        }
    }
    let step = if v6 != 0 { Step::Ipv6Fragment } else { Step::Ipv4Fragment };
    step.at(l3 as usize, fragment::ADMITTED as usize)
}

/// Returns whether a VIP limits packets, so that [`admit_packet`] is to be asked.
#[inline(always)]
pub fn limits_packets(vip: &VipEntry) -> bool {
    vip.flags & (vip_flags::PACKET_LIMIT | vip_flags::PREFIX_PACKET_LIMIT) != 0
}

/// The source of the packet at `l3` under the VIP's mask.
#[inline(always)]
fn prefix_of(ctx: *mut xdp_md, l3: u32, v6: u32, vip: &VipEntry) -> Option<u64> {
    let l3 = (l3 & 0x1f) as usize;
    let frame = Frame::new(ctx);
    if v6 != 0 {
        frame.header::<Ipv6>(l3).map(|ip| ip.source[0] & vip.prefix_mask_v6)
    } else {
        frame.header::<Ipv4>(l3).map(|ip| u64::from(ip.source & vip.prefix_mask_v4))
    }
}

/// Asks for a packet, whose IP header is at `l3`: 0 if it may go to the VIP, else the [`DropReason`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit_packet(ctx: *mut xdp_md, index: u32, l3: u32, v6: u32) -> u32 {
    let (Some(config), Some(vip)) = (maps::CONFIG.get(0), VIPS.get(index)) else { return 0 };
    let Some(prefix) = prefix_of(ctx, l3, v6, vip) else { return 0 };
    let now = now(config);
    if vip.flags & vip_flags::PREFIX_PACKET_LIMIT != 0 {
        let limit = packets(vip, now);
        if !admit_prefix(&PREFIX_PACKET_LIMITERS, config, index, prefix, limit) {
            sample_sketch(index, 1);
            return DropReason::PrefixPacketRateLimited as u32;
        }
    }
    if vip.flags & vip_flags::PACKET_LIMIT != 0
        && let Some(limiter) = VIP_LIMITERS.get_ptr_mut(index)
    {
        // SAFETY: a valid element.
        let arrival = unsafe { &raw mut (*limiter).packets };
        if !take(arrival, now, vip.packets) {
            return DropReason::PacketRateLimited as u32;
        }
    }
    0
}

/// Limiters of what the node says itself: index of [`ICMP_LIMITERS`].
pub enum Answers {
    /// ICMP errors (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).
    Errors = 0,
    /// Echo replies. Apart, so that a flood of pings does not silence the errors.
    Echoes = 1,
}

/// Returns whether the node may send one more.
#[inline(always)]
pub fn may_answer(config: &Config, what: Answers) -> bool {
    let rate = match what {
        Answers::Errors => config.icmp_errors,
        Answers::Echoes => config.echoes,
    };
    let Some(limiter) = ICMP_LIMITERS.get_ptr_mut(what as u32) else { return false };
    // SAFETY: a valid element.
    let arrival = unsafe { &raw mut (*limiter).arrival };
    take(arrival, now(config), rate)
}

/// Returns whether this CPU may note one more first fragment.
#[inline(always)]
pub fn may_note_fragment(config: &Config) -> bool {
    let Some(arrival) = FRAGMENT_LIMITER.get_ptr_mut(0) else { return false };
    let now = now(config);
    // SAFETY: the element is this CPU's own.
    let arrival = unsafe { &mut *arrival };
    let start = if *arrival > now { *arrival } else { now };
    if start - now > FRAGMENT_TOLERANCE {
        return false;
    }
    *arrival = start + FRAGMENT_INTERVAL;
    true
}

/// Monotonic time in ns, in steps of the kernel's tick. The verifier turns `bpf_jiffies64` into a load;
/// any other clock is a call.
#[inline(always)]
fn now(config: &Config) -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() }.wrapping_mul(u64::from(config.tick))
}

/// A limit of source prefixes, in ticks of its sketch, and the time.
#[derive(Clone, Copy)]
struct Limit {
    now: u32,
    interval: u32,
    tolerance: u32,
    /// The most by which a cell may be ahead for another reason than its limit: see [`ahead`].
    slack: u32,
}

/// More than by which the clocks of two CPUs differ, in ns: one may have read it a while before it asks.
const CLOCK_SLACK: u64 = 1 << 30;

impl Limit {
    /// A limit of the sketch whose ticks are of `2^shift` ns.
    #[inline(always)]
    fn new(rate: Rate, now: u64, shift: u32) -> Self {
        Self {
            now: (now >> shift) as u32,
            interval: rate.interval as u32,
            tolerance: rate.tolerance as u32,
            slack: (CLOCK_SLACK >> shift) as u32,
        }
    }
}

#[inline(always)]
fn connections(vip: &VipEntry, now: u64) -> Limit {
    Limit::new(vip.prefix_connections, now, PREFIX_TICK_SHIFT)
}

#[inline(always)]
fn packets(vip: &VipEntry, now: u64) -> Limit {
    Limit::new(vip.prefix_packets, now, PACKET_TICK_SHIFT)
}

/// A cell of a sketch: half of a word, as the kernel's compare-and-exchange takes whole ones.
#[derive(Clone, Copy)]
struct Cell {
    word: *mut u64,
    shift: u32,
}

impl Cell {
    /// A cell of a line by its number, of which the lower four bits count.
    #[inline(always)]
    fn of(line: *mut PrefixLine, number: u64) -> Self {
        // SAFETY: a line has eight words.
        let word = unsafe { line.cast::<u64>().add((number >> 1) as usize & 7) };
        Self { word, shift: (number as u32 & 1) * 32 }
    }

    /// The arrival time in the cell's word.
    #[inline(always)]
    fn within(self, word: u64) -> u32 {
        (word >> self.shift) as u32
    }
}

/// The two cells, of one line, that a number's upper 24 bits choose.
#[inline(always)]
fn cells(sketch: &Array<PrefixLine>, x: u64) -> Option<(Cell, Cell)> {
    let line = sketch.get_ptr_mut((x >> 40) as u32 & (PREFIX_LINES - 1))?;
    let first = x >> 52;
    let second = first ^ (x >> 56 & 14 | 1);
    Some((Cell::of(line, first), Cell::of(line, second)))
}

#[inline(always)]
fn admit_prefix(sketch: &Array<PrefixLine>, config: &Config, index: u32, prefix: u64, limit: Limit) -> bool {
    let x = (prefix ^ config.prefix_seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 32) ^ u64::from(index)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let Some((first, second)) = cells(sketch, x) else { return true };
    // Both cells count; one of them under the limit is enough.
    let in_first = take_ticks(first, limit);
    let in_second = take_ticks(second, limit);
    in_first | in_second
}

/// Now and then, looks whether a stranger's cells would be over the VIP's limit. `packets` says which sketch.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sample_sketch(index: u32, packets: u32) -> u32 {
    // SAFETY: a helper without arguments.
    let dice = unsafe { bpf_get_prandom_u32() };
    if dice & SAMPLE_MASK != 0 {
        return 0;
    }
    let (Some(config), Some(vip)) = (maps::CONFIG.get(0), VIPS.get(index)) else { return 0 };
    let now = now(config);
    let (sketch, limit, sampled, full) = if packets == 0 {
        let events = (Event::PrefixSampled, Event::PrefixSampledFull);
        (&PREFIX_LIMITERS, connections(vip, now), events.0, events.1)
    } else {
        let events = (Event::PrefixPacketSampled, Event::PrefixPacketSampledFull);
        (&PREFIX_PACKET_LIMITERS, self::packets(vip, now), events.0, events.1)
    };
    let Some((first, second)) = cells(sketch, u64::from(dice) << 32) else { return 0 };
    maps::count(sampled);
    // SAFETY: both point into a map element; loads of a word do not tear.
    let (in_first, in_second) = unsafe { (first.word.read_volatile(), second.word.read_volatile()) };
    let is_full = |cell: Cell, word: u64| ahead(cell.within(word), limit) > limit.tolerance;
    if is_full(first, in_first) && is_full(second, in_second) {
        maps::count(full);
    }
    0
}

/// Returns by how much a cell is ahead of its time. Times are 32 bits of ticks, which wrap: one that is further ahead
/// than the algorithm ever sets one is a remnant, and as good as none. Another CPU may have read a later clock, and
/// several may have taken one on top of the limit; a cell that they set is no remnant, or all of a burst would be admitted
/// again.
#[inline(always)]
fn ahead(arrival: u32, limit: Limit) -> u32 {
    let ahead = arrival.wrapping_sub(limit.now);
    // Without a branch, as half of them would be mispredicted; opaque, or LLVM makes one of it. The
    // mask is all ones for a remnant, zero otherwise.
    let most = u64::from(limit.tolerance) + (u64::from(limit.interval) << 4) + u64::from(limit.slack);
    let room = core::hint::black_box(most.wrapping_sub(u64::from(ahead)));
    let remnant = (room.cast_signed() >> 63) as u32;
    ahead & !remnant
}

/// Takes one from a cell of a sketch if that conforms.
///
/// Whoever loses to other CPUs at each attempt takes it on top of what they took, as in [`take`]. Taking nothing would let
/// two CPUs that flood from one prefix each live on a cell of their own, and so admit twice the limit. What an addition
/// carries into the upper cell, once each time that the lower one wraps, is a single tick.
#[inline(always)]
fn take_ticks(cell: Cell, limit: Limit) -> bool {
    // SAFETY: it points into a map element.
    let mut seen = unsafe { cell.word.read_volatile() };
    for _ in 0..ATTEMPTS {
        let arrival = cell.within(seen);
        let ahead = ahead(arrival, limit);
        if ahead > limit.tolerance {
            return false;
        }
        let next = limit.now.wrapping_add(ahead + limit.interval);
        // SAFETY: likewise.
        match unsafe { atomic::replace(cell.word, seen, seen ^ u64::from(arrival ^ next) << cell.shift) } {
            Ok(()) => return true,
            Err(found) => seen = found,
        }
    }
    // SAFETY: likewise.
    unsafe { atomic::add(cell.word, u64::from(limit.interval) << cell.shift) };
    true
}

/// Takes one from a limiter if that conforms.
///
/// Whoever loses to other CPUs at each attempt takes it on top of what they took: a storm of clients that come back is
/// no time to refuse by chance. So there may be one more per CPU than the burst for an instant, but never more in the
/// long run, as what is on top counts.
#[inline(always)]
fn take(arrival: *mut u64, now: u64, rate: Rate) -> bool {
    // SAFETY: `arrival` points into a map element.
    let mut seen = unsafe { arrival.read_volatile() };
    for _ in 0..ATTEMPTS {
        let start = if seen > now { seen } else { now };
        if start - now > rate.tolerance {
            return false;
        }
        // SAFETY: likewise.
        match unsafe { atomic::replace(arrival, seen, start + rate.interval) } {
            Ok(()) => return true,
            Err(found) => seen = found,
        }
    }
    // SAFETY: likewise.
    unsafe { atomic::add(arrival, rate.interval) };
    true
}
