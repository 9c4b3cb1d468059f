//! The data plane as user space sees it: loads the programs, owns the maps, applies a [`Program`].

use crate::nexthop::NextHops;
use crate::program::Program;
use lb_ebpf::lb::RealCounters;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;
use zk_schema::{Capacity, Desired, RealName, VipName, XdpMode};

/// What a data plane is made for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Interface that clients' packets arrive on.
    pub interface: String,
    /// How XDP attaches.
    pub xdp_mode: XdpMode,
    /// Outer IPv4 source, and source of the node's own ICMP errors.
    pub source_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub source_v6: Option<Ipv6Addr>,
    /// UDP destination port of GUE.
    pub gue_port: u16,
    /// Room in the maps.
    pub capacity: Capacity,
    /// Slots per table (M).
    pub table_size: u32,
    /// Directory on a bpffs that pins go below.
    pub bpffs: PathBuf,
}

/// How the data plane came to be.
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

/// What [`Dataplane::apply`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// VIPs whose slot table was switched.
    pub tables: usize,
    /// Whether VIPs' addresses or ports changed.
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
    /// What else became of packets, by name.
    pub events: BTreeMap<&'static str, u64>,
}

/// Outcome of a self-test.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelfTest {
    /// VIPs through which a packet was sent.
    pub tested: usize,
    /// What was wrong, by VIP.
    pub failures: BTreeMap<VipName, String>,
}

/// Errors name the map, program or file at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Placeholder until the loader lands.
    #[error("the data plane is not there yet")]
    Missing,
}

/// The loaded programs with their maps.
pub struct Dataplane {}

#[allow(unused_variables, clippy::missing_errors_doc, reason = "skeleton, filled in next")]
impl Dataplane {
    /// Loads the programs, taking over from a predecessor where there is one.
    pub fn open(settings: &Settings) -> Result<(Self, Start), Error> {
        Err(Error::Missing)
    }

    /// Makes the maps say what `program` says, and attaches the programs if they are not yet.
    pub fn apply(&mut self, program: &Program, hops: &NextHops) -> Result<Applied, Error> {
        Err(Error::Missing)
    }

    /// Makes the reals' next hops and path MTUs what `hops` says. Addresses that are absent keep what
    /// they had.
    pub fn apply_next_hops(&mut self, hops: &NextHops) -> Result<(), Error> {
        Err(Error::Missing)
    }

    /// Reals whose next hop is not known (packets to them are dropped).
    #[must_use]
    pub fn unresolved(&self) -> BTreeSet<(VipName, RealName)> {
        BTreeSet::new()
    }

    /// SO_MARK of a probe to each real.
    #[must_use]
    pub fn probe_marks(&self) -> BTreeMap<(VipName, RealName), u32> {
        BTreeMap::new()
    }

    /// Which of the desired reals hold slots in the tables in force: what a predecessor left behind.
    #[must_use]
    pub fn in_force(&self, desired: &Desired) -> BTreeSet<(VipName, RealName)> {
        BTreeSet::new()
    }

    /// Reads all counters.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        Err(Error::Missing)
    }

    /// Sends a packet for each VIP of the last applied program through the loaded program and compares
    /// what comes out with what the program says.
    pub fn self_test(&mut self) -> SelfTest {
        SelfTest::default()
    }

    /// Whether XDP runs in the driver (native) rather than in the network stack.
    #[must_use]
    pub fn is_native(&self) -> bool {
        false
    }
}

/// Removes programs and pins of an interface; true if there was anything.
///
/// # Errors
/// If a pin cannot be removed.
pub fn detach(interface: &str, bpffs: &std::path::Path) -> Result<bool, Error> {
    let _ = (interface, bpffs);
    Err(Error::Missing)
}
