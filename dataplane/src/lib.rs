//! The data plane as user space sees it: loads the programs, owns the maps, applies a [`Program`].
//!
//! Start with [`Dataplane`]. It knows nothing of clusters and of health: [`compile()`](compile::compile) makes a [`Program`]
//! of records and weights, whoever decided on them.
//!
//! | module | what it is |
//! |---|---|
//! | [`compile`] | weights to tables; pure |
//! | [`program`] | what the data plane is to do, in full |
//! | [`nexthop`] | how frames reach the reals: routes and neighbours by netlink, path MTUs by ICMP |
//! | [`probe_route`] | the way that marked probes take to the egress program |
//! | [`attachment`] | whether the programs are on their interface |
//! | [`capture`] | samples of packets, through the pinned maps |

pub mod attachment;
pub mod capture;
pub mod compile;
mod entries;
mod error;
mod index;
mod maps;
pub mod nexthop;
mod pins;
pub mod probe_route;
pub mod program;
mod selftest;
mod state;
mod statistics;

pub use error::Error;

use crate::attachment::{Attachment, Lost};
use crate::nexthop::{NextHops, Obstacle};
use crate::program::Program;
use aya::Ebpf;
use aya::programs::{SchedClassifier, Xdp};
pub(crate) use entries::vip_id;
use host::{attached, interface};
use lb_ebpf::lb::{self, Config, RealCounters};
pub(crate) use maps::Mapped;
use maps::Maps;
use pins::{PROBE_PROGRAM, Pins, Size, XDP_PROGRAM};
pub(crate) use selftest::{CLIENT_V4, CLIENT_V6};
use state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zk_schema::{
    Capacity, Desired, MacAddress, OLDEST_KERNEL, RealName, Unserved, VipName, XdpMode, kernel_version,
};

/// The BPF object of the data plane's benchmark (`drover-harness` of `lb-ebpf`).
pub static BENCHMARK_HARNESS: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/drover-harness"));

/// The settings of a data plane.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Interface that clients' packets arrive on.
    pub interface: String,
    /// The mode in which XDP attaches.
    pub xdp_mode: XdpMode,
    /// Outer IPv4 source.
    pub source_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub source_v6: Option<Ipv6Addr>,
    /// UDP destination port of GUE.
    pub gue_port: u16,
    /// The fate of packets to VIPs' addresses that no VIP serves.
    pub unserved: Unserved,
    /// MAC addresses beside the interface's own whose frames are taken: at most [`zk_schema::Node::MOST_MACS`].
    pub accept_macs: Vec<MacAddress>,
    /// Room in the maps.
    pub capacity: Capacity,
    /// Slots per table (M).
    pub table_size: u32,
    /// Directory on a bpffs that pins go below.
    pub bpffs: PathBuf,
}

/// The way in which the data plane came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing was there.
    Fresh,
    /// The maps of a predecessor were taken over as they were.
    TakenOver,
    /// A predecessor's maps have another layout or size: new ones were made, and the predecessor's
    /// program goes on until the first [`Dataplane::apply`] replaces it.
    Replacing,
}

/// The effect of [`Dataplane::apply`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// VIPs whose slot table was switched.
    pub tables: usize,
    /// VIPs' addresses or ports changed.
    pub index: bool,
    /// From having the program in hand to packets on the new tables.
    pub duration: Duration,
}

/// Counters since the maps were made; a real's are gone when it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Packets by VIP and real.
    pub reals: BTreeMap<(VipName, RealName), RealCounters>,
    /// Drops by VIP (`None`: before the VIP was known) and reason.
    pub drops: BTreeMap<(Option<VipName>, &'static str), u64>,
    /// Counters of the packets' other fates, by name.
    pub events: BTreeMap<&'static str, u64>,
}

/// Outcome of a self-test.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelfTest {
    /// VIPs through which a packet was sent.
    pub tested: usize,
    /// The failures, by VIP.
    pub failures: BTreeMap<VipName, String>,
}

/// The loaded programs with their maps.
pub struct Dataplane {
    settings: Settings,
    pins: Pins,
    object: Ebpf,
    state: State,
    /// This process's programs have been attached.
    attached: bool,
    /// The number of times that a program which had been taken off was put back.
    restored: u64,
    /// The obstacles that were logged last.
    told: BTreeMap<(VipName, RealName), Obstacle>,
    /// The maps in use are still a predecessor's.
    replacing: bool,
    native: bool,
    program: Option<Program>,
    self_tests: selftest::Tally,
}

impl Dataplane {
    /// Loads the programs, taking over from a predecessor where there is one. Packets take no notice
    /// before the first [`Self::apply`].
    ///
    /// # Errors
    /// If the kernel is too old, the bpffs cannot be used, the kernel refuses a program or map, another daemon is at work
    /// on the interface, or a program is attached whose maps cannot be found.
    pub fn open(settings: &Settings) -> Result<(Self, Start), Error> {
        Self::open_on(&kernel_release(), settings)
    }

    /// [`Self::open`] on a kernel of this release.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn open_on(release: &str, settings: &Settings) -> Result<(Self, Start), Error> {
        check_kernel(release)?;
        let pins = Pins::open(&settings.bpffs, &settings.interface)?;
        pins.recover()?;
        let sizes = sizes(settings);
        #[allow(clippy::cast_possible_truncation, reason = "a small constant")]
        let config_size = size_of::<Config>() as u32;
        let start = match pins.matches(&sizes, config_size) {
            None => Start::Fresh,
            Some(true) if pins.layout() == Some(lb_ebpf::LAYOUT_VERSION) => Start::TakenOver,
            Some(_) => Start::Replacing,
        };
        let folder = if start == Start::Replacing { pins.next() } else { pins.maps() };
        let mut object = pins.load(&folder, &sizes)?;
        let maps = Maps::take(&mut object)?;
        let mut state = State::new(maps, settings)?;
        if start == Start::TakenOver {
            state.adopt();
        }
        let dataplane = Self {
            settings: settings.clone(),
            pins,
            object,
            state,
            attached: false,
            restored: 0,
            told: BTreeMap::new(),
            replacing: start == Start::Replacing,
            native: false,
            program: None,
            self_tests: selftest::Tally::default(),
        };
        Ok((dataplane, start))
    }

    /// Makes the maps say what `program` says, and attaches the programs if they are not yet.
    ///
    /// Idempotent. A packet sees a VIP's old table or its new one, never a mixture.
    ///
    /// # Errors
    /// If the program does not fit the maps (nothing is changed then), or a system call fails (calling
    /// again repairs what was left half done).
    pub fn apply(&mut self, program: &Program, hops: &NextHops) -> Result<Applied, Error> {
        let started = Instant::now();
        self.state.check(program)?;
        self.state.refresh_mac();
        let applied = self.state.apply(program, hops);
        self.self_tests.forget(&self.state.restarted());
        let mut applied = applied?;
        if !self.attached {
            self.attach()?;
        }
        if self.state.set_native(self.native) {
            self.state.apply_next_hops(hops)?;
        }
        self.tell_obstacles();
        applied.duration = started.elapsed();
        self.state.reclaim();
        self.program = Some(program.clone());
        Ok(applied)
    }

    fn attach(&mut self) -> Result<(), Error> {
        // The program that a kernel is the likelier to refuse goes first: clients' packets must not meet a program that
        // nobody looks after.
        let probe: &mut SchedClassifier = self
            .object
            .program_mut(PROBE_PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or(Error::NoProgram { name: PROBE_PROGRAM })?;
        self.pins.attach_probe(probe, &self.settings.interface)?;
        let folder = if self.replacing { self.pins.next() } else { self.pins.maps() };
        let xdp: &mut Xdp = self
            .object
            .program_mut(XDP_PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or(Error::NoProgram { name: XDP_PROGRAM })?;
        self.native = self.pins.attach_xdp(xdp, &folder, &self.settings.interface, self.settings.xdp_mode)?;
        if self.replacing {
            self.pins.adopt_next()?;
            self.replacing = false;
        }
        self.attached = true;
        Ok(())
    }

    /// Looks whether the programs are still on the interface, and puts back what was taken off. Before the first
    /// [`Self::apply`] nothing is missing. Takes note of a new MAC address of the interface, too.
    pub fn look_after_attachment(&mut self) -> Attachment {
        self.state.refresh_mac();
        let problem = if self.attached { self.reattach().err() } else { None };
        Attachment { problem, restored: self.restored }
    }

    fn reattach(&mut self) -> Result<(), Lost> {
        let name = self.settings.interface.clone();
        let front = self.state.front();
        match interface::index(&name) {
            Ok(Some(index)) if index == front => {}
            Ok(Some(index)) => {
                return Err(Lost::Interface(format!(
                    "interface {name} was made anew (it was number {front} and is {index}): lb-node has to start anew, too"
                )));
            }
            Ok(None) => return Err(Lost::Interface(format!("interface {name} is gone"))),
            Err(error) => {
                return Err(Lost::Program(format!("interface {name} cannot be looked at: {error}")));
            }
        }
        let Err((program, why)) = self.all_attached(front) else { return Ok(()) };
        match self.attach() {
            Ok(()) => {
                self.restored += 1;
                tracing::warn!(interface = %name, "{program} was taken off and has been put back: {why}");
                Ok(())
            }
            Err(error) => Err(Lost::Program(format!(
                "{program} was taken off {name} ({why}) and cannot be put back: {error}"
            ))),
        }
    }

    /// Checks that both programs are on the interface with this number. The error names the one that is not, and why.
    fn all_attached(&self, front: u32) -> Result<(), (&'static str, String)> {
        for (program, pin) in
            [(XDP_PROGRAM, self.pins.xdp_link(self.native)), (PROBE_PROGRAM, self.pins.probe_link())]
        {
            let id = self.object.program(program).and_then(|program| program.info().ok());
            let Some(id) = id.map(|info| info.id()) else { continue };
            attached::check(&pin, id, front).map_err(|why| (program, why.to_string()))?;
        }
        Ok(())
    }

    /// Makes the reals' next hops and path MTUs what `hops` says. Addresses that are absent keep what
    /// they had.
    ///
    /// # Errors
    /// If there are more next hops than fit.
    pub fn apply_next_hops(&mut self, hops: &NextHops) -> Result<(), Error> {
        // The interface may have another MAC address, which next hops show as well.
        self.state.refresh_mac();
        self.state.set_native(self.native);
        self.state.apply_next_hops(hops)?;
        self.state.reclaim_next_hops();
        self.tell_obstacles();
        Ok(())
    }

    /// Keeps with the tables which decision they are from, by (term, epoch); `None` on a node that decides itself.
    pub fn set_order(&mut self, order: Option<(u64, u64)>) {
        self.state.set_order(order.unwrap_or_default());
    }

    /// Reals that this node cannot send packets to although they have a next hop, and why.
    #[must_use]
    pub fn obstacles(&self) -> BTreeMap<(VipName, RealName), Obstacle> {
        self.state.obstacles()
    }

    /// Logs what is new of obstacles.
    fn tell_obstacles(&mut self) {
        let now = self.state.obstacles();
        for ((vip, real), obstacle) in &now {
            if self.told.get(&(vip.clone(), real.clone())) != Some(obstacle) {
                tracing::error!(%vip, %real, "this node sends nothing to the real: {obstacle}");
            }
        }
        for (vip, real) in self.told.keys().filter(|key| !now.contains_key(*key)) {
            tracing::info!(%vip, %real, "packets can reach the real again");
        }
        self.told = now;
    }

    /// Reals whose next hop is not known (packets to them are dropped).
    #[must_use]
    pub fn unresolved(&self) -> BTreeSet<(VipName, RealName)> {
        self.state.unresolved()
    }

    /// SO_MARK of a probe to each real.
    #[must_use]
    pub fn probe_marks(&self) -> BTreeMap<(VipName, RealName), u32> {
        self.state
            .reals()
            .map(|(vip, real, handle)| ((vip.clone(), real.clone()), lb::PROBE_MARK | handle.index))
            .collect()
    }

    /// Returns the desired reals that hold slots in the tables in force, which a predecessor left behind.
    #[must_use]
    pub fn in_force(&self, desired: &Desired) -> BTreeSet<(VipName, RealName)> {
        self.state.in_force(desired)
    }

    /// Digests of the tables in the maps, as [`Table::digest`](slot_table::maglev::Table::digest) has them, of those VIPs
    /// of the last applied program that `wanted` chooses.
    #[must_use]
    pub fn table_digests(&self, wanted: &dyn Fn(&VipName) -> bool) -> BTreeMap<VipName, u64> {
        let program = self.program.as_ref();
        program.map(|program| self.state.table_digests(program, wanted)).unwrap_or_default()
    }

    /// Reads all counters. The packets of self-tests are not among them.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        statistics::read(&self.state, &self.self_tests)
    }

    /// Sends a packet for each VIP of the last applied program through the loaded program and compares
    /// what comes out with what the program says.
    pub fn self_test(&mut self) -> SelfTest {
        self.state.refresh_mac();
        let Some(program) = &self.program else { return SelfTest::default() };
        let xdp = self.object.program(XDP_PROGRAM).and_then(|program| <&Xdp>::try_from(program).ok());
        let Some(xdp) = xdp else { return SelfTest::default() };
        selftest::run(xdp, program, &self.state, &self.settings, &mut self.self_tests)
    }

    /// The XDP program, for benchmarks and tests that run packets through it.
    ///
    /// # Errors
    /// If the object has none, which would be a fault of the build.
    pub fn xdp(&self) -> Result<&Xdp, Error> {
        self.object
            .program(XDP_PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or(Error::NoProgram { name: XDP_PROGRAM })
    }

    /// Returns whether XDP runs in the driver (native) rather than in the network stack.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.native
    }
}

/// The (term, epoch) of the decision that an interface's pinned tables are from; `None` where there are none, or they are not
/// from a cluster's leader. A daemon that starts must not apply anything older.
#[must_use]
pub fn pinned_order(interface: &str, bpffs: &Path) -> Option<(u64, u64)> {
    let [term, epoch] = pins::pinned_config(bpffs, interface)?.order;
    (term > 0 || epoch > 0).then_some((term, epoch))
}

/// The running kernel's release.
#[must_use]
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Checks that a node runs on a kernel of this release. A release that cannot be read counts as new enough.
///
/// # Errors
/// If it is too old.
pub fn check_kernel(release: &str) -> Result<(), Error> {
    match kernel_version(release) {
        Some(version) if version < OLDEST_KERNEL => Err(Error::OldKernel { release: release.to_owned() }),
        _ => Ok(()),
    }
}

/// Removes programs and pins of an interface; true if there was anything.
///
/// # Errors
/// If a pin cannot be removed, or a daemon is at work on the interface.
pub fn detach(interface: &str, bpffs: &Path) -> Result<bool, Error> {
    match Pins::open_existing(bpffs, interface)? {
        Some(pins) => pins.clear().map(|()| true),
        None => Ok(false),
    }
}

/// Sizes of all maps for what the settings ask.
fn sizes(settings: &Settings) -> Vec<Size> {
    let Capacity { vips, reals, .. } = settings.capacity;
    let cells = u64::from(settings.capacity.slot_tables()) * u64::from(settings.table_size);
    let pairs = u32::try_from(cells.div_ceil(2)).unwrap_or(u32::MAX);
    let all_reals = reals + state::spare_reals(reals);
    // Index 0 means "none" everywhere.
    vec![
        ("CONFIG", None),
        ("ADDRESSES", None),
        ("SERVICES", None),
        ("VIPS", Some(vips + 1)),
        ("SLOTS", Some(pairs)),
        ("REALS", Some(all_reals + 1)),
        ("NEXT_HOPS", Some(all_reals + state::SPARE_NEXT_HOPS)),
        ("COUNTERS", Some(all_reals + 1)),
        ("DROPS", Some((vips + 1) * lb::DROP_REASONS)),
        ("EVENTS_SEEN", None),
        ("VIP_LIMITERS", Some(vips + 1)),
        ("PREFIX_LIMITERS", None),
        ("PREFIX_PACKET_LIMITERS", None),
        ("ICMP_LIMITERS", None),
        ("FRAGMENT_LIMITER", None),
        ("FRAGMENTS", None),
        ("CAPTURES", None),
        ("SCRATCH", None),
        ("PENDING", None),
    ]
}
