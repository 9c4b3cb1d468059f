//! The entry program (see [`lb_ebpf::harness`]) and how it is run.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use lb_ebpf::harness::{Packet, Turn};

/// XDP's verdicts (`linux/bpf.h`).
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;

/// Frames that the kernel runs through the program at a time, when they are sent for real: the most it takes.
const BATCH: u32 = 256;

/// What the entry program calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The program under test.
    Tested,
    /// An empty program, which answers XDP_TX.
    Empty,
}

impl Target {
    fn entry(self) -> &'static str {
        match self {
            Target::Tested => "drover_harness",
            Target::Empty => "drover_baseline",
        }
    }
}

/// What came of a run.
pub(crate) struct Run {
    /// XDP's verdict on the last packet.
    pub(crate) verdict: u32,
    /// Mean time of one packet, in whole nanoseconds as the kernel gives it.
    pub(crate) nanoseconds: u32,
    /// The last packet's frame.
    pub(crate) frame: Vec<u8>,
}

/// The loaded entry program.
pub(crate) struct Harness {
    object: Ebpf,
    packet: Array<MapData, Packet>,
    turn: PerCpuArray<MapData, Turn>,
    targets: ProgramArray<MapData>,
    arrived: PerCpuArray<MapData, u64>,
}

impl Harness {
    pub(crate) fn load() -> Result<Self> {
        let mut object = Ebpf::load(dataplane::BENCHMARK_HARNESS).context("cannot load the entry program")?;
        for name in ["drover_harness", "drover_baseline", "drover_empty", "drover_sink"] {
            let program: &mut Xdp = object.program_mut(name).with_context(|| missing(name))?.try_into()?;
            program.load().with_context(|| format!("the kernel refuses {name}"))?;
        }
        let mut map = |name: &str| object.take_map(name).with_context(|| missing(name));
        let (packet, turn) = (map("PACKET")?.try_into()?, map("TURN")?.try_into()?);
        let (mut targets, arrived) = (ProgramArray::try_from(map("TARGETS")?)?, map("ARRIVED")?.try_into()?);
        let empty: &Xdp =
            object.program("drover_empty").with_context(|| missing("drover_empty"))?.try_into()?;
        targets.set(1, empty.fd()?, 0).context("the empty program cannot be a target")?;
        Ok(Self { object, packet, turn, targets, arrived })
    }

    fn program(&self, name: &str) -> Result<&Xdp> {
        Ok(self.object.program(name).with_context(|| missing(name))?.try_into()?)
    }

    /// The program that counts frames and drops them, to be attached where they arrive.
    pub(crate) fn sink(&mut self) -> Result<&mut Xdp> {
        Ok(self.object.program_mut("drover_sink").with_context(|| missing("drover_sink"))?.try_into()?)
    }

    /// Frames that have reached the sink.
    pub(crate) fn arrived(&self) -> Result<u64> {
        Ok(self.arrived.get(&0, 0)?.iter().sum())
    }

    /// Makes this the program under test.
    pub(crate) fn aim_at(&mut self, program: &ProgramFd) -> Result<()> {
        self.targets
            .set(0, program, 0)
            .context("the kernel does not let the entry program call the one under test")
    }

    /// Begins a case's packets with their first.
    pub(crate) fn rewind(&mut self, packet: &Packet) -> Result<()> {
        self.packet.set(0, packet, 0)?;
        self.skip_to(Turn::default())
    }

    /// Makes this the turn of the next packet.
    pub(crate) fn skip_to(&mut self, turn: Turn) -> Result<()> {
        let turns = vec![turn; self.turn.get(&0, 0)?.len()];
        self.turn.set(0, PerCpuValues::try_from(turns)?, 0)?;
        Ok(())
    }

    /// Runs the target on the next `count` packets; `frame` is any of them.
    pub(crate) fn run(&self, target: Target, frame: &[u8], count: u32) -> Result<Run> {
        let mut out = vec![0; 512];
        let run = self.program(target.entry())?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat: count,
            ..TestRunOptions::default()
        })?;
        out.truncate(run.data_size_out as usize);
        let nanoseconds = u32::try_from(run.duration.as_nanos()).unwrap_or(u32::MAX);
        Ok(Run { verdict: run.return_value, nanoseconds, frame: out })
    }

    /// Lets the next `count` packets arrive on an interface of this thread's network namespace and go where the
    /// program under test sends them. Returns the mean time of one packet.
    pub(crate) fn run_live(&self, frame: &[u8], count: u32, ifindex: u32) -> Result<Duration> {
        // struct xdp_md (`linux/bpf.h`): data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, u32::try_from(frame.len())?, 0, ifindex, 0, 0].map(u32::to_ne_bytes).concat();
        let run = self
            .program(Target::Tested.entry())?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(&context),
                repeat: count,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })
            .context("live frames (Linux 5.18) cannot be sent")?;
        Ok(run.duration)
    }
}

fn missing(name: &str) -> String {
    format!("the BPF object has no {name}: the build is broken")
}
