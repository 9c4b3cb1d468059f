//! Hosts in network namespaces, and what the tests do with them.

use dataplane::nexthop::resolve::Problem;
use dataplane::nexthop::{Follower, Mac, NextHops, Wanted};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::fs::{self, File};
use std::future::Future;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Time limit of everything. The slowest, an unannounced change of a MAC address, takes some 20 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// A network namespace without a name.
pub(crate) struct Host {
    namespace: File,
}

impl Host {
    /// A new host with nothing but a loopback interface, up.
    pub(crate) fn new() -> Self {
        let namespace = std::thread::spawn(|| {
            // SAFETY: CLONE_NEWNET unshares no memory and no file descriptors.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace (needs root)");
            File::open("/proc/thread-self/ns/net").expect("the thread's own namespace")
        });
        let host = Host { namespace: namespace.join().expect("the thread ends") };
        host.ip("link set lo up");
        host
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    /// Runs something on a thread of its own inside the host.
    fn enter<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("the host's namespace");
                job()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a test inside the host, on a runtime of its own.
    pub(crate) fn run(&self, test: impl Future<Output = ()> + Send) {
        self.enter(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(test);
        });
    }

    /// Runs `ip` with the given arguments inside the host.
    pub(crate) fn ip(&self, arguments: &str) {
        self.batch(&format!("{arguments}\n"));
    }

    /// Returns whether the kernel has VLAN devices at all (CONFIG_VLAN_8021Q).
    pub(crate) fn knows_vlans(&self) -> bool {
        let tried = self.try_batch("link add link lo name probe type vlan id 1\nlink del probe\n");
        match tried {
            Ok(()) => true,
            Err(errors) if errors.contains("Unknown device type") => false,
            Err(errors) => panic!("cannot tell whether this kernel has VLAN devices: {errors}"),
        }
    }

    /// Runs several `ip` commands, one per line.
    pub(crate) fn batch(&self, commands: &str) {
        if let Err(errors) = self.try_batch(commands) {
            panic!("ip {}: {errors}", commands.lines().next().unwrap_or_default());
        }
    }

    fn try_batch(&self, commands: &str) -> Result<(), String> {
        let output = self.enter(|| {
            let mut ip = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("`ip` of iproute2");
            let mut input = ip.stdin.take().expect("a pipe");
            input.write_all(commands.as_bytes()).expect("`ip` reads its commands");
            drop(input);
            ip.wait_with_output().expect("`ip` ends")
        });
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(errors) }
    }

    /// Runs `ethtool` with the given arguments inside the host.
    pub(crate) fn ethtool(&self, arguments: &[&str]) {
        let output = self.enter(|| Command::new("ethtool").args(arguments).output()).expect("`ethtool`");
        assert!(
            output.status.success(),
            "ethtool {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Returns what `ip` prints inside the host.
    pub(crate) fn output(&self, arguments: &[&str]) -> String {
        let output = self.enter(|| Command::new("ip").args(arguments).output()).expect("`ip` of iproute2");
        assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Lays a cable (a veth pair) to another host.
    pub(crate) fn cable(&self, own_end: &str, other: &Host, other_end: &str) {
        self.ip(&format!("link add {own_end} type veth peer name {other_end} netns {}", other.path()));
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
        self.enter(|| fs::write(format!("/proc/sys/net/{name}"), value)).unwrap_or_else(|error| {
            panic!("net/{name} = {value}: {error}");
        });
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
