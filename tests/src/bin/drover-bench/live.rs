//! Packets per second: frames that really leave by a veth and arrive at its other end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::XdpMode;
use drover_tests::{Lab, interrupt, wait_until};

use crate::bed::{Bed, PEER};
use crate::case::Case;
use crate::frame::Frames;
use crate::harness::Harness;

/// Names of the live cases: `live/` and the case whose packets are sent.
pub(crate) const CASES: [&str; 3] =
    ["live/tcp4/ipip/flows=100000", "live/tcp4/gue/flows=100000", "live/tcp6/ipip/flows=100000"];

/// How long frames may take to reach the other end after the last was sent.
const STRAGGLERS: Duration = Duration::from_millis(200);

/// What a live case came to.
pub(crate) struct Live {
    pub(crate) name: &'static str,
    /// Packets of one round.
    pub(crate) sent: u32,
    /// Fewest packets of a round that reached the other end.
    pub(crate) arrived: u64,
    /// Packets per second that arrived, per round.
    pub(crate) per_second: Vec<f64>,
}

/// Sends a case's packets for real, several times.
pub(crate) fn measure(
    lab: &Lab,
    harness: &mut Harness,
    name: &'static str,
    rounds: u32,
    packets: u32,
) -> Result<Live> {
    let case = Case::all(true).into_iter().find(|case| name.ends_with(&case.name));
    let case = case.with_context(|| format!("{name} names no case"))?;
    let mut bed = Bed::new(lab, &name.replace(['/', '='], "-"), 1)?;
    bed.apply(case.scenario)?;
    let frames = Frames::new(&case)?;
    let ifindex = bed.ifindex();
    harness.aim_at(bed.dataplane().xdp()?.fd()?)?;

    let sink = bed.peer().enter(|| harness.sink()?.attach(PEER, XdpMode::Driver).context("the sink"))??;
    let mut live = Live { name, sent: packets, arrived: u64::from(packets), per_second: Vec::new() };
    for _ in 0..rounds {
        harness.rewind(frames.packet())?;
        let before = harness.arrived()?;
        let started = Instant::now();
        bed.node().enter(|| harness.run_live(frames.first(), packets, ifindex))??;
        let elapsed = started.elapsed();
        // The last batch may still be on its way; what has not come after so long was dropped by the link.
        let all = || Ok((harness.arrived()? - before >= u64::from(packets)).then_some(()));
        let _ = wait_until("the last frames", STRAGGLERS, all);
        interrupt::check()?;
        let arrived = harness.arrived()? - before;
        ensure!(arrived > 0, "{name}: no frame arrived at the other end of the link");
        live.arrived = live.arrived.min(arrived);
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        live.per_second.push(arrived as f64 / elapsed.as_secs_f64());
    }
    harness.sink()?.detach(sink)?;
    Ok(live)
}
