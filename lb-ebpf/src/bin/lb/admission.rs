//! Limits on new TCP connections: per VIP and per source prefix, for reconnect storms and floods.
//!
//! Both are the generic cell rate algorithm (ITU-T I.371): one word, the theoretical arrival time.
//! The words are shared by all CPUs. They are read and raised without a lock; two CPUs that find a
//! limiter idle at the same instant let one connection more through, which a limit of hundreds or
//! thousands a second does not feel.
//!
//! Source prefixes share a sketch of fixed size (a count-min sketch of arrival times): nothing is
//! inserted or evicted, a flood of spoofed sources costs no memory, and a prefix is refused only if
//! *both* of its cells are over the limit. Both lie in one cache line, so that a flood of new sources
//! costs one cache miss each.

use crate::maps::{ICMP_LIMITER, PREFIX_LIMITERS, VIP_LIMITERS};
use aya_ebpf::helpers::generated::bpf_jiffies64;
use lb_ebpf::lb::{Config, DropReason, PREFIX_LINES, PREFIX_TICK_SHIFT, VipEntry, vip_flags};

/// Whether a new connection may go to the VIP. `prefix` is the client's address under the VIP's mask.
#[inline(always)]
pub fn admit(config: &Config, index: u32, vip: &VipEntry, prefix: u64) -> Result<(), DropReason> {
    if vip.flags & (vip_flags::RATE_LIMIT | vip_flags::PREFIX_LIMIT) == 0 {
        return Ok(());
    }
    let now = now(config);
    if vip.flags & vip_flags::PREFIX_LIMIT != 0 && !admit_prefix(config, index, vip, prefix, now) {
        return Err(DropReason::PrefixRateLimited);
    }
    if vip.flags & vip_flags::RATE_LIMIT != 0
        && let Some(limiter) = VIP_LIMITERS.get_ptr_mut(index)
    {
        // SAFETY: a valid element; races are discussed above.
        let arrival = unsafe { &raw mut (*limiter).arrival };
        if !take(arrival, now, vip.rate_interval, vip.rate_tolerance) {
            return Err(DropReason::RateLimited);
        }
    }
    Ok(())
}

/// Whether the node may send one more ICMP error (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).
#[inline(always)]
pub fn may_send_icmp(config: &Config) -> bool {
    let Some(limiter) = ICMP_LIMITER.get_ptr_mut(0) else { return false };
    // SAFETY: a valid element.
    let arrival = unsafe { &raw mut (*limiter).arrival };
    take(arrival, now(config), config.icmp_interval, config.icmp_tolerance)
}

/// Monotonic time in ns, in steps of the kernel's tick. The verifier turns `bpf_jiffies64` into a load;
/// any other clock is a call.
#[inline(always)]
fn now(config: &Config) -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() }.wrapping_mul(u64::from(config.tick))
}

#[inline(always)]
fn admit_prefix(config: &Config, index: u32, vip: &VipEntry, prefix: u64, now: u64) -> bool {
    let x = (prefix ^ config.prefix_seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 32) ^ u64::from(index)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let Some(line) = PREFIX_LIMITERS.get_ptr_mut((x >> 40) as u32 & (PREFIX_LINES - 1)) else { return true };
    let first = (x >> 52) as usize & 15;
    let second = first ^ ((x >> 56) as usize & 14 | 1);
    // Both cells count; one of them under the limit is enough.
    // SAFETY: both are below sixteen.
    let (first, second) = unsafe { (line.cast::<u32>().add(first), line.cast::<u32>().add(second)) };
    let (now, interval, tolerance) =
        ((now >> PREFIX_TICK_SHIFT) as u32, vip.prefix_interval as u32, vip.prefix_tolerance as u32);
    let in_first = take_ticks(first, now, interval, tolerance);
    let in_second = take_ticks(second, now, interval, tolerance);
    in_first | in_second
}

/// [`take`] with 32 bits of ticks, which wrap: a time that is further ahead than the algorithm ever sets
/// one is a remnant, and as good as none.
#[inline(always)]
fn take_ticks(arrival: *mut u32, now: u32, interval: u32, tolerance: u32) -> bool {
    // SAFETY: `arrival` points into a map element; plain 32-bit loads and stores do not tear.
    unsafe {
        let ahead = arrival.read_volatile().wrapping_sub(now);
        // Without a branch, as half of them would be mispredicted; opaque, or LLVM makes one of it. The
        // mask is all ones for a remnant, zero otherwise.
        let room = core::hint::black_box(u64::from(tolerance + interval).wrapping_sub(u64::from(ahead)));
        let remnant = (room.cast_signed() >> 63) as u32;
        let ahead = ahead & !remnant;
        if ahead > tolerance {
            return false;
        }
        arrival.write_volatile(now.wrapping_add(ahead + interval));
    }
    true
}

/// Takes one cell if the limiter conforms.
#[inline(always)]
fn take(arrival: *mut u64, now: u64, interval: u64, tolerance: u64) -> bool {
    // SAFETY: `arrival` points into a map element; plain 64-bit loads and stores do not tear.
    unsafe {
        let expected = arrival.read_volatile();
        let start = if expected > now { expected } else { now };
        if start - now > tolerance {
            return false;
        }
        arrival.write_volatile(start + interval);
    }
    true
}
