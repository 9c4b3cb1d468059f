//! Counters, summed over CPUs.

use super::selftest::Tally;
use super::state::State;
use super::{Error, Statistics};
use aya::Pod;
use aya::maps::{MapData, PerCpuArray};
use lb_ebpf::lb::{DROP_REASONS, EVENT_NAMES, REASON_NAMES, RealCounters};

/// Reads all counters; what self-tests added is taken off.
pub(super) fn read(state: &State, tests: &Tally) -> Result<Statistics, Error> {
    let mut statistics = Statistics::default();
    for (vip, real, handle) in state.reals() {
        let mut counters = sum(&state.maps.counters, "COUNTERS", handle.index, add_real)?;
        let own = tests.of(handle.index);
        counters.packets = counters.packets.saturating_sub(own.packets);
        counters.bytes = counters.bytes.saturating_sub(own.bytes);
        statistics.reals.insert((vip.clone(), real.clone()), counters);
    }
    let vips =
        std::iter::once((None, 0)).chain(state.vips().map(|(name, handle)| (Some(name), handle.index)));
    for (name, index) in vips {
        for (&reason, offset) in REASON_NAMES.iter().zip(0..) {
            let dropped = sum(&state.maps.drops, "DROPS", index * DROP_REASONS + offset, |a, b| a + b)?;
            statistics.drops.insert((name.cloned(), reason), dropped);
        }
    }
    for (&event, index) in EVENT_NAMES.iter().zip(0..) {
        statistics.events.insert(event, sum(&state.maps.events, "EVENTS_SEEN", index, |a, b| a + b)?);
    }
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

fn sum<T: Pod + Default>(
    map: &PerCpuArray<MapData, T>,
    name: &'static str,
    index: u32,
    add: impl Fn(T, T) -> T,
) -> Result<T, Error> {
    let values = map.get(&index, 0).map_err(|source| Error::Map { name, source: Box::new(source) })?;
    Ok(values.iter().copied().fold(T::default(), add))
}
