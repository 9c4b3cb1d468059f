//! Two or three hosts of the testbed, and what the tests do with them.

use dataplane::nexthop::resolve::Problem;
use dataplane::nexthop::{Follower, Mac, NextHops, Wanted};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::fs;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use testbed::Lab;
use tokio::sync::watch;

/// Time limit of everything. The slowest, an unannounced change of a MAC address, takes some 20 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host of the testbed in a lab of its own, so that each test has what it makes.
pub(crate) struct Host {
    host: testbed::Host,
    _lab: Lab,
}

impl Host {
    /// A new host with nothing but a loopback interface, up.
    pub(crate) fn new() -> Self {
        let lab = Lab::new().expect("a lab (needs root)");
        Host { host: lab.host("host").expect("a network namespace"), _lab: lab }
    }

    /// Runs a test inside the host, on a runtime of its own.
    pub(crate) fn run(&self, test: impl Future<Output = ()> + Send) {
        let job = || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(test);
        };
        self.host.enter(job).expect("the host's namespace");
    }

    /// Runs `ip` with the given arguments inside the host.
    pub(crate) fn ip(&self, arguments: &str) {
        self.host.ip(arguments).expect("`ip` does it");
    }

    /// Returns whether the kernel has VLAN devices at all (CONFIG_VLAN_8021Q).
    pub(crate) fn knows_vlans(&self) -> bool {
        let probe = "link add link lo name probe type vlan id 1".split(' ');
        let tried = self.host.command("ip").args(probe).output().expect("`ip` ends");
        if tried.status.success() {
            self.ip("link del probe");
            return true;
        }
        let unknown = tried.stderr.contains("Unknown device type");
        assert!(unknown, "cannot tell whether this kernel has VLAN devices: {}", tried.stderr);
        false
    }

    /// Runs several `ip` commands, one per line.
    pub(crate) fn batch(&self, commands: &str) {
        let file = self.host.dir().join("batch");
        fs::write(&file, commands).expect("a file");
        self.host.command("ip").arg("-batch").arg(file).run().expect("`ip` does it");
    }

    /// Runs `ethtool` with the given arguments inside the host.
    pub(crate) fn ethtool(&self, arguments: &[&str]) {
        self.host.command("ethtool").args(arguments).run().expect("`ethtool` does it");
    }

    /// Returns what `ip` prints inside the host.
    pub(crate) fn output(&self, arguments: &[&str]) -> String {
        self.host.command("ip").args(arguments).run().expect("`ip` does it")
    }

    /// Lays a cable (a veth pair) to another host.
    pub(crate) fn cable(&self, own_end: &str, other: &Host, other_end: &str) {
        self.ip(&format!(
            "link add {own_end} type veth peer name {other_end} netns {}",
            other.host.namespace()
        ));
        self.ip(&format!("link set {own_end} up"));
        other.ip(&format!("link set {other_end} up"));
    }

    /// Gives an interface addresses (that need no check for duplicates), and sets it up.
    pub(crate) fn address(&self, interface: &str, addresses: &[&str]) {
        for address in addresses {
            let checked = if address.contains(':') { "nodad" } else { "" };
            self.ip(&format!("address add {address} dev {interface} {checked}"));
        }
        self.ip(&format!("link set {interface} up"));
    }

    /// Sets one of the host's own parameters below `/proc/sys/net`.
    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        self.host.sysctl(&format!("net/{name}"), value).expect("the kernel takes it");
    }
}

/// An interface's MAC address, as the kernel's own tool tells it.
pub(crate) fn mac(host: &Host, interface: &str) -> Mac {
    let output = host.output(&["-brief", "link", "show", interface]);
    let text = output.split_whitespace().nth(2).expect("a MAC address");
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a hexadecimal byte")).collect();
    bytes.try_into().expect("six bytes")
}

/// A MAC address as `ip` writes it.
pub(crate) fn colons(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

pub(crate) fn wanted(addresses: &[&str]) -> Wanted {
    Arc::new(addresses.iter().map(|address| address.parse().expect("an address")).collect())
}

/// Follows the next hops of a fixed set of addresses, with nothing learnt about their paths.
pub(crate) async fn follow(front: u32, addresses: &[&str]) -> Follower {
    let (wanting, wanted) = watch::channel(wanted(addresses));
    let (_, path_mtus) = watch::channel(Arc::default());
    let follower = dataplane::nexthop::spawn(front, wanted, path_mtus).await.expect("netlink");
    // For as long as the test's runtime lives.
    tokio::spawn(async move { wanting.closed().await });
    follower
}

/// Looks again and again until something is so.
pub(crate) async fn eventually(is_so: impl Fn() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("not so after a minute");
}

/// Waits until the next hops are as expected.
pub(crate) async fn until(follower: &mut Follower, expected: impl Fn(&NextHops) -> bool) {
    let waited = tokio::time::timeout(PATIENCE, follower.next_hops.wait_for(|hops| expected(hops))).await;
    let reached = matches!(waited, Ok(Ok(_)));
    drop(waited);
    let (hops, problems) = (follower.next_hops.borrow(), follower.problems.borrow());
    assert!(reached, "after {PATIENCE:?}: {hops:#?}, {problems:#?}");
}

/// Waits until an address has the expected problem.
pub(crate) async fn until_problem(
    follower: &mut Follower,
    address: IpAddr,
    expected: impl Fn(&Problem) -> bool,
) {
    let found = |problems: &Arc<dataplane::nexthop::Problems>| problems.get(&address).is_some_and(&expected);
    let waited = tokio::time::timeout(PATIENCE, follower.problems.wait_for(found)).await;
    let reached = matches!(waited, Ok(Ok(_)));
    drop(waited);
    assert!(reached, "after {PATIENCE:?}: {:#?}", follower.problems.borrow());
}

/// An IPv4 packet that must not be fragmented. The kernel fills in the checksum.
pub(crate) fn v4_packet(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(20 + payload.len()).expect("short").to_be_bytes();
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(source.parse::<Ipv4Addr>().expect("an address").octets());
    packet.extend(destination.parse::<Ipv4Addr>().expect("an address").octets());
    packet.extend(payload);
    packet
}

/// An IPv6 packet.
pub(crate) fn v6_packet(source: &str, destination: &str, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(payload.len()).expect("short").to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, high, low, next_header, 64];
    packet.extend(source.parse::<Ipv6Addr>().expect("an address").octets());
    packet.extend(destination.parse::<Ipv6Addr>().expect("an address").octets());
    packet.extend(payload);
    packet
}

/// Sends a packet as it is, IP header included, from the host that the thread is in.
pub(crate) fn send(destination: IpAddr, packet: &[u8]) {
    const RAW: i32 = 255;
    let domain = if destination.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW))).expect("a raw socket");
    let sent = socket.send_to(packet, &SockAddr::from(SocketAddr::new(destination, 0)));
    assert_eq!(sent.expect("the packet is sent"), packet.len());
}
