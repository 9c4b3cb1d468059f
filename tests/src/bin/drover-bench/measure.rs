//! One case, measured and checked.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use dataplane::Statistics;
use lb_ebpf::harness::Turn;
use lb_ebpf::lb::RealCounters;
use zk_schema::{RealName, VipName};

use crate::bed::{self, Bed};
use crate::case::Case;
use crate::frame::{self, Frames};
use crate::harness::{Harness, Target, XDP_PASS, XDP_TX};

/// Packets whose frames are compared before time is taken.
const COMPARED: u32 = 64;
/// Parts that a round's packets are measured in. Parts with the program under test and with the empty one take
/// turns, so that what disturbs the machine disturbs both.
const PARTS: u32 = 10;

/// A case's measurements.
pub(crate) struct Series {
    pub(crate) case: Case,
    /// Nanoseconds of the entry program with an empty program, per part.
    pub(crate) empty: Vec<u32>,
    /// Nanoseconds of the entry program with the one under test, per part.
    pub(crate) gross: Vec<u32>,
    /// Packets by VIP and real that a measurement must add, once they have been worked out.
    expected: Option<BTreeMap<(VipName, RealName), u64>>,
}

impl Series {
    pub(crate) fn new(case: Case) -> Self {
        Self { case, empty: Vec::new(), gross: Vec::new(), expected: None }
    }

    /// Measures once.
    ///
    /// # Errors
    ///
    /// When a packet was not treated as it should.
    pub(crate) fn measure(&mut self, bed: &mut Bed, harness: &mut Harness, packets: u32) -> Result<()> {
        let name = self.case.name.clone();
        self.try_measure(bed, harness, packets).with_context(|| format!("case {name}"))
    }

    fn try_measure(&mut self, bed: &mut Bed, harness: &mut Harness, packets: u32) -> Result<()> {
        bed.apply(self.case.scenario)?;
        let frames = Frames::new(&self.case)?;
        harness.aim_at(bed.dataplane().xdp()?.fd()?)?;
        self.compare(bed, harness, &frames)?;

        // The caches shall know the tables, but not the packets any better than in steady traffic.
        let part = packets / PARTS;
        let all = part * PARTS;
        harness.rewind(frames.packet())?;
        harness.run(Target::Tested, frames.first(), part)?;

        harness.rewind(frames.packet())?;
        let before = bed.statistics()?;
        for number in 1..=PARTS {
            let empty = harness.run(Target::Empty, frames.first(), part)?;
            harness.skip_to(frames.turn(part * (number - 1)))?;
            let run = harness.run(Target::Tested, frames.first(), part)?;
            let last = frames.turn(part * number - 1);
            ensure!(empty.verdict == XDP_TX, "the empty program answered {}", empty.verdict);
            frame::same(&empty.frame, &frames.of(last)).context("the entry program is at fault")?;
            self.check_frame(bed, &frames, last, run.verdict, &run.frame)?;
            self.empty.push(empty.nanoseconds);
            self.gross.push(run.nanoseconds);
        }
        let after = bed.statistics()?;
        self.check_counters(bed, &frames, all, &before, &after)
    }

    /// Sends packets one by one and looks at each.
    fn compare(&self, bed: &Bed, harness: &mut Harness, frames: &Frames) -> Result<()> {
        harness.rewind(frames.packet())?;
        let mut turn = Turn::default();
        for _ in 0..COMPARED {
            let run = harness.run(Target::Tested, frames.first(), 1)?;
            self.check_frame(bed, frames, turn, run.verdict, &run.frame)?;
            turn = frames.after(turn);
        }
        Ok(())
    }

    fn check_frame(&self, bed: &Bed, frames: &Frames, turn: Turn, verdict: u32, found: &[u8]) -> Result<()> {
        let sent = frames.of(turn);
        let wanted = if self.case.pass { XDP_PASS } else { XDP_TX };
        ensure!(verdict == wanted, "the program's verdict is {verdict} instead of {wanted}");
        if self.case.pass {
            return frame::same(found, &sent);
        }
        let (owner, hash) = bed.owner(&frames.flow(turn))?;
        let real = bed::real_address(self.case.scenario.real_version, u8::try_from(owner)?);
        let encapsulation = self.case.scenario.encapsulation();
        frame::same(found, &frame::forwarded(&sent, encapsulation, real, bed.hop(real)?, hash)?)
    }

    fn check_counters(
        &mut self,
        bed: &Bed,
        frames: &Frames,
        packets: u32,
        before: &Statistics,
        after: &Statistics,
    ) -> Result<()> {
        if self.expected.is_none() {
            self.expected = Some(self.shares(bed, frames, packets)?);
        }
        let expected = self.expected.as_ref().context("just worked out")?;
        let ip_bytes = u64::from(frames.packet().length) - 14;
        for (key, counters) in &after.reals {
            let old = before.reals.get(key).copied().unwrap_or_default();
            let packets = expected.get(key).copied().unwrap_or_default();
            let wanted = RealCounters {
                packets: old.packets + packets,
                bytes: old.bytes + packets * ip_bytes,
                connections: old.connections + if self.case.syn { packets } else { 0 },
                icmp_errors: old.icmp_errors,
            };
            ensure!(*counters == wanted, "{} of VIP {}: counters {counters:?}, not {wanted:?}", key.1, key.0);
        }
        for (key, &drops) in &after.drops {
            ensure!(before.drops.get(key) == Some(&drops), "packets were dropped: {}", key.1);
        }
        for (event, &count) in &after.events {
            let added = count - before.events.get(event).copied().unwrap_or_default();
            let wanted = if self.case.pass && *event == "passed" { u64::from(packets) } else { 0 };
            ensure!(added == wanted, "the counter `{event}` has grown by {added}, not by {wanted}");
        }
        Ok(())
    }

    /// How many of `packets` each real must get.
    fn shares(&self, bed: &Bed, frames: &Frames, packets: u32) -> Result<BTreeMap<(VipName, RealName), u64>> {
        let mut counts = BTreeMap::<(u64, usize), u64>::new();
        let mut turn = Turn::default();
        if !self.case.pass {
            for _ in 0..packets {
                let (owner, _) = bed.owner(&frames.flow(turn))?;
                *counts.entry((turn.destination, owner)).or_default() += 1;
                turn = frames.after(turn);
            }
        }
        let mut shares = BTreeMap::new();
        for ((vip, real), count) in counts {
            let key = (bed::vip_name(u16::try_from(vip)?)?, bed::real_name(u8::try_from(real)?).parse()?);
            shares.insert(key, count);
        }
        Ok(shares)
    }
}
