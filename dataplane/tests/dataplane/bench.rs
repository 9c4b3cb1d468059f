//! A data plane on an interface of its own, and packets run through its program.

use crate::packet::{NODE_MAC, routed};
use aya::maps::{Array, Map, MapData};
use dataplane::nexthop::{Mac, NextHop, NextHops};
use dataplane::program::{Program, RealProgram, VipProgram};
use dataplane::{Applied, Dataplane, Settings, Start, Statistics};
use lb_ebpf::lb::Config;
use rustix::thread::{CapabilitySet, CapabilitySets};
use slot_table::flow::{self, Flow, Seed};
use slot_table::maglev::{Real, TableSize, build};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use zk_schema::{Affinity, Capacity, Encapsulation, Limits, Protocol, Unserved, XdpMode};

pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;
pub(crate) const XDP_REDIRECT: u32 = 4;

pub(crate) const INTERFACE: &str = "front";
pub(crate) const BPFFS: &str = "/sys/fs/bpf";
pub(crate) const NODE_4: &str = "10.9.0.7";
pub(crate) const NODE_6: &str = "fd00:9::7";
pub(crate) const VIP_4: &str = "198.51.100.1";
pub(crate) const VIP_6: &str = "2001:db8:5::1";
pub(crate) const CLIENT_4: &str = "203.0.113.9";
pub(crate) const CLIENT_6: &str = "2001:db8:c::9";
pub(crate) const GUE_PORT: u16 = 6080;
pub(crate) const PATH_MTU: u32 = 1500;
/// Slots of a table, where the test does not care.
pub(crate) const SLOTS: u32 = 251;

pub(crate) const SEED: Seed = Seed { k0: 0x0123_4567_89ab_cdef, k1: 0xfedc_ba98_7654_3210 };

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn socket(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    pub(crate) fn vip(self) -> &'static str {
        if self == Self::V4 { VIP_4 } else { VIP_6 }
    }

    pub(crate) fn client(self) -> &'static str {
        if self == Self::V4 { CLIENT_4 } else { CLIENT_6 }
    }

    pub(crate) fn digit(self) -> u8 {
        if self == Self::V4 { 4 } else { 6 }
    }
}

/// Settings with room for what the tests need and little more.
pub(crate) fn settings() -> Settings {
    Settings {
        interface: INTERFACE.into(),
        xdp_mode: XdpMode::Auto,
        source_v4: Some(NODE_4.parse().unwrap()),
        source_v6: Some(NODE_6.parse().unwrap()),
        gue_port: GUE_PORT,
        unserved: Unserved::Drop,
        accept_macs: vec![],
        capacity: Capacity { vips: 32, reals: 128, tables: 40 },
        table_size: SLOTS,
        bpffs: PathBuf::from(BPFFS),
    }
}

/// Runs `test` on a thread of its own that has been [isolated](isolate).
pub(crate) fn alone<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        isolate();
        test()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `test` as [`alone`], with the capabilities in force that the unit and the manifests give to lb-node.
pub(crate) fn as_the_unit<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    alone(|| {
        set_rights(
            CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW,
        );
        test()
    })
}

/// Does what the unit's capabilities do not suffice for.
pub(crate) fn with_all_rights<T>(job: impl FnOnce() -> T) -> T {
    let before = rights();
    set_rights(before.permitted);
    let done = job();
    set_rights(before.effective);
    done
}

fn rights() -> CapabilitySets {
    rustix::thread::capabilities(None).unwrap()
}

/// Puts exactly these capabilities in force for this thread; they can be raised again.
fn set_rights(effective: CapabilitySet) {
    rustix::thread::set_capabilities(None, CapabilitySets { effective, ..rights() }).unwrap();
}

/// Gives the thread network and mount namespaces of its own, with a veth `front` (its other end is `back`) and an
/// empty bpffs. They end with the thread.
pub(crate) fn isolate() {
    // SAFETY: the calls take no pointers that outlive them, and concern this thread only.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS), 0, "needs root");
        let private = libc::MS_REC | libc::MS_PRIVATE;
        assert_eq!(libc::mount(c"".as_ptr(), c"/".as_ptr(), c"".as_ptr(), private, std::ptr::null()), 0);
        let (kind, at) = (c"bpf".as_ptr(), c"/sys/fs/bpf".as_ptr());
        assert_eq!(libc::mount(kind, at, kind, 0, std::ptr::null()), 0, "a bpffs");
    }
    // The kernel's own packets would be counted among the test's.
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    ip_link(&format!("link add {INTERFACE} address 02:00:00:00:00:01 type veth peer name back"));
    ip_link(&format!("link set {INTERFACE} up"));
    ip_link("link set back up");
}

/// Runs `ip` in the thread's namespace and returns what it prints.
pub(crate) fn ip_link(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("`ip` of iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The counters' increments during one run, by name: `events/…`, `reals/<vip>/<real>/…`, `drops/<vip or nothing>/…`.
/// Zeros are left out.
pub(crate) type Counted = BTreeMap<String, u64>;

/// The fate of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) verdict: u32,
    pub(crate) frame: Vec<u8>,
    pub(crate) counted: Counted,
}

/// A data plane with what was applied to it.
pub(crate) struct Bench {
    pub(crate) dataplane: Dataplane,
    pub(crate) program: Program,
    pub(crate) hops: NextHops,
}

impl Bench {
    /// A data plane with the settings above and no VIPs yet.
    pub(crate) fn new() -> Self {
        Self::with(settings())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let (bench, start) = Self::open(settings);
        assert_eq!(start, Start::Fresh);
        bench
    }

    pub(crate) fn open(settings: Settings) -> (Self, Start) {
        let (dataplane, start) = Dataplane::open(&settings).unwrap_or_else(|error| panic!("{error:?}"));
        let table_size = settings.table_size;
        let program = Program { epoch: 1, seed: SEED, table_size, vips: BTreeMap::new() };
        (Self { dataplane, program, hops: NextHops::new() }, start)
    }

    /// Adds a VIP with next hops to its reals; in force after [`Self::apply`].
    pub(crate) fn add(&mut self, name: &str, vip: VipProgram) {
        let front = front();
        for real in &vip.reals {
            self.hops.entry(real.address).or_insert_with(|| hop(front, real.address));
        }
        self.program.vips.insert(name.parse().unwrap(), vip);
    }

    /// The VIP `name`, to be changed; in force after [`Self::apply`].
    pub(crate) fn vip(&mut self, name: &str) -> &mut VipProgram {
        self.program.vips.get_mut(name).unwrap()
    }

    pub(crate) fn apply(&mut self) -> Applied {
        self.dataplane.apply(&self.program, &self.hops).unwrap_or_else(|error| panic!("{error:?}"))
    }

    pub(crate) fn apply_next_hops(&mut self) {
        self.dataplane.apply_next_hops(&self.hops).unwrap_or_else(|error| panic!("{error:?}"));
    }

    /// The program, to be run whatever happens to the data plane meanwhile.
    pub(crate) fn program_fd(&self) -> OwnedFd {
        self.dataplane.xdp().unwrap().fd().unwrap().as_fd().try_clone_to_owned().unwrap()
    }

    /// All counters that are not zero.
    pub(crate) fn counters(&self) -> Counted {
        rise(&Statistics::default(), &self.statistics())
    }

    pub(crate) fn statistics(&self) -> Statistics {
        self.dataplane.statistics().unwrap()
    }

    /// Runs one frame through the program.
    pub(crate) fn run(&self, input: &[u8]) -> Ran {
        self.run_from(&mut self.statistics(), input)
    }

    /// The same with the counters' present values in hand; they are brought up to date.
    pub(crate) fn run_from(&self, before: &mut Statistics, input: &[u8]) -> Ran {
        let (verdict, frame) = test_run(&self.program_fd(), input, None);
        let after = self.statistics();
        let counted = rise(before, &after);
        *before = after;
        Ran { verdict, frame, counted }
    }

    /// A map of the data plane, by its pin.
    pub(crate) fn map(name: &str) -> MapData {
        MapData::from_pin(Path::new(BPFFS).join(INTERFACE).join("lb/maps").join(name)).unwrap()
    }

    /// Has the program answer every ping.
    pub(crate) fn answer_all_echoes() {
        let mut config: Array<_, Config> = Array::try_from(Map::Array(Self::map("CONFIG"))).unwrap();
        let unlimited = Config { echoes: Default::default(), ..config.get(&0, 0).unwrap() };
        config.set(0, unlimited, 0).unwrap();
    }

    /// Runs a frame that must be dropped, counted once and for this reason.
    pub(crate) fn drops(&self, input: &[u8], reason: &str) {
        let ran = self.run(input);
        assert_eq!((ran.verdict, ran.counted), (XDP_DROP, counted(&[&format!("drops/{reason}")])));
    }

    /// Runs a frame that must be left to the kernel as it is.
    pub(crate) fn passes(&self, input: &[u8], event: &str) {
        let ran = self.run(input);
        assert_eq!((ran.verdict, ran.counted), (XDP_PASS, counted(&[&format!("events/{event}")])));
        assert_eq!(ran.frame, input);
    }

    /// The real that a flow belongs to, by the table.
    pub(crate) fn owner(&self, name: &str, client: SocketAddr, service_port: u16) -> &RealProgram {
        let vip = &self.program.vips[name];
        let flow = Flow { client, service_port };
        let hash = match vip.affinity {
            Affinity::Flow => flow.hash(self.program.seed),
            Affinity::Source => flow.hash_source(self.program.seed),
        };
        let slot = flow::slot(hash, self.program.table_size);
        &vip.reals[vip.table.owner(slot).unwrap()]
    }

    /// Runs a frame around `packet` that must reach the VIP's real for the flow, and says whether it did so
    /// untouched but for the TTL. What else was counted is returned.
    pub(crate) fn forwards(
        &self,
        name: &str,
        client: SocketAddr,
        service_port: u16,
        input: &[u8],
        packet: &[u8],
    ) -> Counted {
        let real = self.owner(name, client, service_port).clone();
        let mut ran = self.run(input);
        assert_eq!(ran.verdict, XDP_TX, "{:?}", ran.counted);
        let encapsulation = self.program.vips[name].encapsulation;
        let (destination, inner) = unwrap(&ran.frame, encapsulation);
        let expected = if encapsulation == Encapsulation::L2 { client_of(packet).1 } else { real.address };
        assert_eq!(destination, expected);
        assert_eq!(&ran.frame[..6], &mac_of(real.address));
        // Behind the packet there may be padding.
        let length = packet.len();
        assert_eq!(&inner[..length], routed(packet), "the inner packet");
        let prefix = format!("reals/{name}/{}", real.name.as_str());
        assert_eq!(ran.counted.remove(&format!("{prefix}/packets")), Some(1));
        assert_eq!(ran.counted.remove(&format!("{prefix}/bytes")), Some(length as u64));
        ran.counted
    }
}

/// By how much counters rose, those that did.
pub(crate) fn rise(before: &Statistics, after: &Statistics) -> Counted {
    let mut all = Counted::new();
    let mut note = |name: &dyn Fn() -> String, before: u64, after: u64| {
        let rise = after.checked_sub(before).expect("counters never fall");
        if rise != 0 {
            all.insert(name(), rise);
        }
    };
    for (key @ (vip, real), after) in &after.reals {
        let before = before.reals.get(key).copied().unwrap_or_default();
        for (what, before, after) in [
            ("packets", before.packets, after.packets),
            ("bytes", before.bytes, after.bytes),
            ("connections", before.connections, after.connections),
            ("icmp_errors", before.icmp_errors, after.icmp_errors),
        ] {
            note(&|| format!("reals/{vip}/{real}/{what}"), before, after);
        }
    }
    for (key @ (vip, reason), after) in &after.drops {
        let vip = vip.as_ref().map_or("", |vip| vip.as_str());
        let before = before.drops.get(key).copied().unwrap_or_default();
        note(&|| format!("drops/{vip}/{reason}"), before, *after);
    }
    for (event, after) in &after.events {
        note(&|| format!("events/{event}"), before.events.get(event).copied().unwrap_or_default(), *after);
    }
    all
}

/// Counters that each rose by one.
pub(crate) fn counted(names: &[&str]) -> Counted {
    names.iter().map(|name| ((*name).to_owned(), 1)).collect()
}

/// Source and destination of an IP packet.
fn client_of(packet: &[u8]) -> (IpAddr, IpAddr) {
    if packet[0] >> 4 == 4 {
        (v4(&packet[12..16]), v4(&packet[16..20]))
    } else {
        (v6(&packet[8..24]), v6(&packet[24..40]))
    }
}

pub(crate) fn v4(bytes: &[u8]) -> IpAddr {
    IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap())
}

pub(crate) fn v6(bytes: &[u8]) -> IpAddr {
    IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap())
}

/// The (outer) destination of a frame without or with one tag, and the IP packet inside.
pub(crate) fn unwrap(frame: &[u8], encapsulation: Encapsulation) -> (IpAddr, &[u8]) {
    let l3 = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
    let packet = &frame[l3..];
    let gue = if encapsulation == Encapsulation::Gue { 12 } else { 0 };
    let header = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let inner = if encapsulation == Encapsulation::L2 { packet } else { &packet[header + gue..] };
    (client_of(packet).1, inner)
}

/// Opens a pin.
pub(crate) fn open_pin(pin: &Path) -> OwnedFd {
    const BPF_OBJ_GET: libc::c_long = 7;
    let path = CString::new(pin.to_str().unwrap()).unwrap();
    // The part of `union bpf_attr` that BPF_OBJ_GET reads: the path, and no flags.
    let attributes = [path.as_ptr() as u64, 0];
    // SAFETY: the attributes have the kernel's layout, and the path lives until the call is over.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, attributes.as_ptr(), size_of_val(&attributes)) };
    assert!(fd >= 0, "{}: {}", pin.display(), std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else knows.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
}

/// Runs a program on a frame: verdict and what the frame has become. `context` is a `__sk_buff`, or an `xdp_md`.
pub(crate) fn test_run(program: &OwnedFd, input: &[u8], context: Option<&[u8]>) -> (u32, Vec<u8>) {
    let mut output = vec![0_u8; input.len() + 2048];
    let mut attributes = TestRun {
        size_out: size(&output),
        data_out: output.as_mut_ptr() as u64,
        context_in: context.map_or(0, |context| context.as_ptr() as u64),
        context_in_size: context.map_or(0, size),
        ..TestRun::of(program, input)
    };
    attributes.run();
    output.truncate(attributes.size_out as usize);
    (attributes.verdict, output)
}

/// Runs a program on a frame, again and again.
pub(crate) fn flood(program: &OwnedFd, input: &[u8], count: u32) {
    for _ in 0..count {
        TestRun::of(program, input).run();
    }
}

/// Runs a program on this CPU as fast as it goes. Only the first 256 times the frame is as given; from then on it is as
/// the program left it one of the times before, which must not matter.
pub(crate) fn flood_live(program: &OwnedFd, input: &[u8], count: u32) {
    const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
    let attributes = TestRun::of(program, input);
    TestRun { repeat: count, batch: 256, flags: BPF_F_TEST_XDP_LIVE_FRAMES, ..attributes }.run();
}

/// Keeps this thread on one CPU.
pub(crate) fn pin(cpu: usize) {
    // SAFETY: all zeros are a valid set, which lives while the call reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set), 0);
    }
}

/// The part of `union bpf_attr` that BPF_PROG_TEST_RUN reads (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_size: u32,
    context_out_size: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    reserved: u32,
}

fn size(bytes: impl AsRef<[u8]>) -> u32 {
    u32::try_from(bytes.as_ref().len()).unwrap()
}

impl TestRun {
    fn of(program: &OwnedFd, input: &[u8]) -> Self {
        Self {
            program: u32::try_from(program.as_raw_fd()).unwrap(),
            size_in: size(input),
            data_in: input.as_ptr() as u64,
            ..Self::default()
        }
    }

    /// The buffers that the attributes point to must live.
    fn run(&mut self) {
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        // SAFETY: the attributes have the kernel's layout, and their pointers are to live buffers of the sizes
        // given with them.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut *self, size_of::<Self>()) };
        assert_eq!(result, 0, "{} bytes: {}", self.size_in, std::io::Error::last_os_error());
    }
}

/// A VIP with `count` reals of one family, named `r0`, `r1` and so on, whose addresses contain `network`.
pub(crate) fn vip(
    (address, port, protocol): (&str, u16, Protocol),
    encapsulation: Encapsulation,
    family: Family,
    network: u8,
    count: u8,
) -> VipProgram {
    let reals = (0..count).map(|n| real(family, network, n)).collect();
    with_table(VipProgram {
        address: ip(address),
        port,
        protocol,
        encapsulation,
        affinity: Affinity::Flow,
        limits: Limits::default(),
        reals,
        table: Arc::new(build(SEED, &[], TableSize::prime(SLOTS).unwrap()).unwrap()),
    })
}

pub(crate) fn real(family: Family, network: u8, number: u8) -> RealProgram {
    let address = match family {
        Family::V4 => IpAddr::from([10, 1, network, number + 1]),
        Family::V6 => format!("fd00:1:{network:x}::{:x}", number + 1).parse().unwrap(),
    };
    let name = format!("r{number}");
    RealProgram { name: name.parse().unwrap(), address, weight: 1 }
}

/// The VIP with the table that its reals' weights ask for.
pub(crate) fn with_table(vip: VipProgram) -> VipProgram {
    with_table_of(vip, SLOTS)
}

pub(crate) fn with_table_of(mut vip: VipProgram, slots: u32) -> VipProgram {
    let reals: Vec<Real<'_>> =
        vip.reals.iter().map(|real| Real { id: real.name.as_str(), weight: real.weight }).collect();
    vip.table = Arc::new(build(SEED, &reals, TableSize::prime(slots).unwrap()).unwrap());
    vip
}

/// The interface's index.
pub(crate) fn front() -> u32 {
    let name = CString::new(INTERFACE).unwrap();
    // SAFETY: a C string that lives.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

/// A MAC address made from an address.
pub(crate) fn mac_of(address: IpAddr) -> Mac {
    let last = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => {
            vec![address.octets()[1], address.octets()[3], address.octets()[5], address.octets()[15]]
        }
    };
    [2, u8::from(address.is_ipv6()), last[0], last[1], last[2], last[3]]
}

pub(crate) fn hop(ifindex: u32, address: IpAddr) -> NextHop {
    NextHop {
        ifindex,
        source_mac: NODE_MAC,
        destination_mac: mac_of(address),
        vlan: None,
        mtu: PATH_MTU,
        on_link: true,
        takes_redirects: true,
    }
}
