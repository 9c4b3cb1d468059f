//! Counters, summed over CPUs.

use super::selftest::Tally;
use super::state::State;
use super::{Error, Statistics};
use lb_ebpf::lb::{DROP_REASONS, EVENT_NAMES, EVENTS, REASON_NAMES, RealCounters};

/// Reads all counters; what self-tests added is taken off.
pub(super) fn read(state: &State, tests: &Tally) -> Result<Statistics, Error> {
    let mut statistics = Statistics::default();
    // Indices are given out lowest first, so what is in use is a dense beginning of each map.
    let reals = state.reals().map(|(_, _, handle)| handle.index + 1).max().unwrap_or(0);
    let counters = state.maps.counters.sums(reals, add_real)?;
    for (vip, real, handle) in state.reals() {
        let mut counters = counters.get(handle.index as usize).copied().unwrap_or_default();
        let own = tests.of(handle.index);
        counters.packets = counters.packets.saturating_sub(own.packets);
        counters.bytes = counters.bytes.saturating_sub(own.bytes);
        statistics.reals.insert((vip.clone(), real.clone()), counters);
    }
    let vips = state.vips().map(|(_, handle)| handle.index + 1).max().unwrap_or(1);
    let drops = state.maps.drops.sums(vips * DROP_REASONS, |a, b| a + b)?;
    let vips =
        std::iter::once((None, 0)).chain(state.vips().map(|(name, handle)| (Some(name), handle.index)));
    for (name, index) in vips {
        for (&reason, offset) in REASON_NAMES.iter().zip(0..) {
            let at = index * DROP_REASONS + offset;
            let dropped = drops.get(at as usize).copied().unwrap_or_default();
            let dropped = dropped.saturating_sub(tests.dropped(at));
            statistics.drops.insert((name.cloned(), reason), dropped);
        }
    }
    let events = state.maps.events.sums(EVENTS, |a, b| a + b)?;
    statistics.events = EVENT_NAMES.into_iter().zip(events).collect();
    Ok(statistics)
}

fn add_real(a: RealCounters, b: RealCounters) -> RealCounters {
    RealCounters {
        packets: a.packets + b.packets,
        bytes: a.bytes + b.bytes,
        connections: a.connections + b.connections,
        icmp_errors: a.icmp_errors + b.icmp_errors,
    }
}
