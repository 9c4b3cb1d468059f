//! Samples of packets for people to look at.

use crate::maps::{self, CAPTURES, CONFIG};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_xdp_load_bytes};
use lb_ebpf::lb::{CAPTURE_LENGTH, Capture, Event};
use lb_ebpf::packet::bounded;

/// Puts the frame into the ring if sampling is on, the VIP is meant and the dice say so.
///
/// Sampling ends by itself at [`Config::capture_until`], so that a reader that crashed costs nothing.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sample(ctx: *mut xdp_md, vip: u32, real: u32) -> u32 {
    let Some(config) = CONFIG.get(0) else { return 0 };
    let wanted = (config.capture >> 32) as u32;
    // SAFETY: helpers without pointers.
    let (time, dice) = unsafe { (bpf_ktime_get_ns(), bpf_get_prandom_u32()) };
    if time > config.capture_until || (wanted != 0 && wanted != vip) || dice & config.capture as u32 != 0 {
        return 0;
    }
    // SAFETY: the context is the program's own.
    let length = unsafe { (*ctx).data_end - (*ctx).data };
    let Some(kept) =
        bounded(if length < CAPTURE_LENGTH as u32 { length } else { CAPTURE_LENGTH as u32 }, CAPTURE_LENGTH)
    else {
        return 0;
    };
    let Some(mut entry) = CAPTURES.reserve::<Capture>(0) else { return 0 };
    let record = entry.as_mut_ptr();
    // SAFETY: the record is reserved memory of `Capture`'s size, all of which is written before it is
    // submitted; `kept` is at most CAPTURE_LENGTH.
    unsafe {
        (*record).time = time;
        (*record).vip = vip;
        (*record).real = real;
        (*record).length = length;
        (*record).data = [0; CAPTURE_LENGTH];
        (*record).kept = kept;
        if bpf_xdp_load_bytes(ctx, 0, (&raw mut (*record).data).cast(), kept) != 0 {
            entry.discard(0);
            return 0;
        }
    }
    entry.submit(0);
    maps::count(Event::Captured);
    1
}
