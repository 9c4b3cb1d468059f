//! The whole on a host of its own: a client's kernel talks TCP and UDP to a VIP, a node (here: this
//! test, behind a tun device) puts its packets into tunnels, and the real answers directly.
//!
//! ```text
//!   client and node                              real
//!   tun0 <- route to the VIPs      r0: 10.77.0.2, fd77::2
//!   c0: 10.77.0.1, fd77::1 ------- lo: the VIPs, put there by what is tested
//! ```

use crate::packet::{self, GUE_PORT, inner_protocol};
use agent::{Options, Prefix, XdpMode, detach, run_until};
use lb_ebpf::real::Encapsulation;
use rustix::mount::UnmountFlags;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::future::pending;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Tells the agent's process where its pins live.
const BPFFS: &str = "DROVER_TEST_BPFFS";
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
const ADMIN: &str = "127.0.0.1:9941";
const PORT: u16 = 1883;
const VIP_4: &str = "198.51.100.1";
const VIP_6: &str = "2001:db8:5::1";
/// A VIP that the operator has put on the loopback.
const VIP_BY_HAND: &str = "198.51.100.2";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A thread in network and mount namespaces of its own, which end with it and all that it started:
/// nothing is left to sweep, whatever becomes of the test. It runs what it is sent.
struct Host {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    thread: i32,
}

impl Host {
    fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            // SAFETY: the calls take no pointers that outlive them, and concern this thread only.
            let thread = unsafe {
                assert_eq!(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS), 0, "needs root");
                let private = libc::MS_REC | libc::MS_PRIVATE;
                let root = c"/".as_ptr();
                assert_eq!(libc::mount(c"".as_ptr(), root, c"".as_ptr(), private, std::ptr::null()), 0);
                libc::gettid()
            };
            tell.send(thread).unwrap();
            for job in inbox {
                job();
            }
        });
        let host = Self { jobs, thread: told.recv().unwrap() };
        host.sh("ip link set lo up");
        host
    }

    /// Runs `job` on the host and waits for its result.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(answer.send(job())))).unwrap();
        answered.recv().expect("the job has panicked: see above")
    }

    /// Starts `job` in a thread of its own on the host.
    fn spawn<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        self.run(|| thread::spawn(job))
    }

    /// Runs a command on the host and returns what it prints.
    fn sh(&self, command: &str) -> String {
        let command = command.to_owned();
        self.run(move || {
            let mut words = command.split(' ');
            let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{command}: {error}");
            String::from_utf8(output.stdout).unwrap()
        })
    }

    fn has_address(&self, interface: &str, address: &str) -> bool {
        self.sh(&format!("ip -o addr show dev {interface}")).contains(&format!(" {address}/"))
    }

    /// The number of the XDP program on `r0`.
    fn program(&self) -> Option<u32> {
        let link = self.sh("ip -d link show dev r0");
        let mut words = link.split_whitespace().skip_while(|word| *word != "prog/xdp");
        words.nth(2).map(|id| id.parse().unwrap())
    }

    /// What is pinned, other than what a bpffs has by itself.
    fn pins(&self) -> String {
        self.sh("find /sys/fs/bpf -mindepth 1 -not -name *.debug")
    }

    fn arp_settings(&self) -> [String; 2] {
        ["arp_ignore", "arp_announce"].map(|name| {
            self.run(move || fs::read_to_string(format!("/proc/sys/net/ipv4/conf/r0/{name}")).unwrap())
                .trim()
                .to_owned()
        })
    }
}

/// How the node sends a packet on.
#[derive(Clone, Copy, Debug)]
struct Tunnel {
    encapsulation: Encapsulation,
    source: IpAddr,
    real: IpAddr,
}

/// Client and real, wired up.
struct Lab {
    client: Host,
    real: Host,
    tunnel: Arc<Mutex<Tunnel>>,
    bpffs: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let client = Host::new();
        let real = Host::new();
        client.sh("ip tuntap add dev tun0 mode tun");
        client.sh("ip link set tun0 mtu 1300 up");
        // A bare host: what is tested mounts the BPF file system itself.
        real.run(|| while rustix::mount::unmount("/sys/fs/bpf", UnmountFlags::empty()).is_ok() {});
        wire(&client, &real);
        let tunnel =
            Tunnel { encapsulation: Encapsulation::Gue, source: ip("10.77.0.1"), real: ip("10.77.0.2") };
        let tunnel = Arc::new(Mutex::new(tunnel));
        let shared = Arc::clone(&tunnel);
        client.spawn(move || node(&shared));
        Self { client, real, tunnel, bpffs: "/sys/fs/bpf/drover".into() }
    }

    fn set_tunnel(&self, tunnel: Tunnel) {
        *self.tunnel.lock().unwrap() = tunnel;
    }

    fn options(&self, vips: &[&str]) -> Options {
        options(self.bpffs.clone(), vips)
    }

    /// Starts what is tested, and waits until it says that it is healthy.
    fn start(&self, options: Options) -> Running {
        let running = self.launch(options);
        eventually("healthz says ok", || {
            assert!(!running.thread.is_finished(), "it has ended early");
            self.real.run(|| http_get("/healthz")).is_some_and(|(status, _)| status == 200)
        });
        running
    }

    /// Starts what is tested.
    fn launch(&self, options: Options) -> Running {
        let (stop, stopped) = oneshot::channel::<End>();
        let thread = self.real.spawn(move || {
            runtime().block_on(async move {
                let (tell, told) = oneshot::channel::<()>();
                let running = run_until(options, async { drop(told.await) });
                tokio::pin!(running);
                tokio::select! {
                    result = &mut running => return result,
                    end = stopped => match end {
                        Ok(End::Stop) => drop(tell),
                        // The future is dropped where it is.
                        Ok(End::Crash) | Err(_) => return Ok(()),
                    }
                }
                running.await
            })
        });
        Running { stop, thread }
    }

    fn detach(&self) {
        let bpffs = self.bpffs.clone();
        self.real.run(move || runtime().block_on(detach("r0", &bpffs)).unwrap());
    }

    /// The counters of packets by name and labels, as `/metrics` shows them.
    fn metrics(&self) -> BTreeMap<String, u64> {
        let (_, body) = self.real.run(|| http_get("/metrics")).unwrap();
        let samples = body.lines().filter(|line| line.starts_with("drover_decap"));
        samples
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').unwrap();
                (name.to_owned(), value.parse().unwrap())
            })
            .collect()
    }

    /// Sends a line to the VIP over UDP and says whether it came back.
    fn echoes(&self, vip: &str) -> bool {
        let vip = SocketAddr::new(ip(vip), PORT);
        self.client.run(move || {
            let any: IpAddr =
                if vip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket.connect(vip).unwrap();
            let mut answer = [0; 16];
            // An ICMP error makes either call fail.
            socket.send(b"hello").is_ok() && matches!(socket.recv(&mut answer), Ok(5))
        })
    }

    fn connect(&self, vip: &str) -> TcpStream {
        let vip = SocketAddr::new(ip(vip), PORT);
        self.client.run(move || {
            let stream = TcpStream::connect_timeout(&vip, PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        })
    }

    /// Puts echo servers on every address, as a server that knows nothing of VIPs has them.
    fn serve_echo(&self) {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        let (tcp, vips) = self.real.run(move || {
            let udp = |vip: &str| UdpSocket::bind((ip(vip), PORT)).unwrap();
            (TcpListener::bind(any).unwrap(), [VIP_4, VIP_6].map(udp))
        });
        self.real.spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
            }
        });
        for socket in vips {
            self.real.spawn(move || {
                let mut line = [0; 1500];
                while let Ok((length, from)) = socket.recv_from(&mut line) {
                    socket.send_to(&line[..length], from).unwrap();
                }
            });
        }
    }
}

fn options(bpffs: PathBuf, vips: &[&str]) -> Options {
    Options {
        interface: "r0".into(),
        vips: vips.iter().map(|vip| ip(vip)).collect(),
        from: ["10.77.0.1", "fd77::1"].map(|from| Prefix::from(ip(from))).to_vec(),
        gue_port: GUE_PORT,
        admin: Some(ADMIN.parse().unwrap()),
        admin_files: Default::default(),
        bpffs,
        xdp_mode: XdpMode::Auto,
        registration: Default::default(),
    }
}

/// Lays the cable between the two, and the routes that lead over it.
fn wire(client: &Host, real: &Host) {
    client.sh(&format!("ip link add c0 type veth peer name r0 netns {}", real.thread));
    for command in [
        "ip addr add 10.77.0.1/24 dev c0",
        "ip addr add 10.77.0.66/24 dev c0",
        "ip addr add fd77::1/64 dev c0 nodad",
        "ip link set c0 up",
        "ip route add 198.51.100.0/24 dev tun0 src 10.77.0.1",
        "ip route replace 2001:db8:5::/64 dev tun0 src fd77::1",
    ] {
        client.sh(command);
    }
    // Answers come from the VIP by another interface than questions leave.
    for interface in ["all", "c0", "tun0"] {
        client.run(move || {
            fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), "0").unwrap();
        });
    }
    real.sh("ip addr add 10.77.0.2/24 dev r0");
    real.sh("ip addr add fd77::2/64 dev r0 nodad");
    real.sh("ip link set r0 up");
}

enum End {
    Stop,
    Crash,
}

struct Running {
    stop: oneshot::Sender<End>,
    thread: thread::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Stops as a signal would.
    fn stop(self) {
        assert!(self.stop.send(End::Stop).is_ok());
        self.thread.join().unwrap().unwrap();
    }

    /// Ends without a chance to clean up.
    fn crash(self) {
        assert!(self.stop.send(End::Crash).is_ok());
        self.thread.join().unwrap().unwrap();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Reads the client's packets to the VIPs from the tun device and sends them through the tunnel.
fn node(tunnel: &Mutex<Tunnel>) {
    let mut tun = open_tun("tun0");
    let mut buffer = [0; 2000];
    loop {
        let length = match tun.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let inner = &buffer[..length];
        let Tunnel { encapsulation, source, real } = *tunnel.lock().unwrap();
        // Raw sockets, so that one way serves both; the kernel writes the outer IP header.
        let (protocol, payload) = match encapsulation {
            Encapsulation::Ipip => (inner_protocol(inner), inner.to_vec()),
            Encapsulation::Gue => (17, packet::gue(3, inner)),
        };
        let domain = if real.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol)))).unwrap();
        // While the cable is cut there is no such address and no route; packets are lost then.
        let sent = socket
            .bind(&SockAddr::from(SocketAddr::new(source, 0)))
            .and_then(|()| socket.send_to(&payload, &SockAddr::from(SocketAddr::new(real, 0))));
        drop(sent);
    }
}

fn open_tun(name: &str) -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const IFF_TUN: u16 = 1;
    const IFF_NO_PI: u16 = 0x1000;
    let tun = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
    // SAFETY: the request is as large as the kernel's `struct ifreq` and outlives the call.
    assert_eq!(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) }, 0);
    tun
}

fn http_get(path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&ADMIN.parse().ok()?, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: real\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(POLL);
    }
}

/// Sends `data` and reads as much back.
fn round_trip(stream: &mut TcpStream, data: &[u8]) {
    let mut sender = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || sender.write_all(data).unwrap());
        let mut echo = vec![0; data.len()];
        stream.read_exact(&mut echo).unwrap();
        assert!(echo == data, "the bytes came back changed");
    });
}

fn data() -> Vec<u8> {
    (0..200_000u32).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect()
}

#[test]
fn tcp_and_udp_reach_a_vip_through_every_tunnel() {
    let lab = Lab::new();
    let running = lab.start(lab.options(&[VIP_4, VIP_6]));
    lab.serve_echo();
    let data = data();
    for encapsulation in Encapsulation::ALL {
        for (source, real) in [("10.77.0.1", "10.77.0.2"), ("fd77::1", "fd77::2")] {
            lab.set_tunnel(Tunnel { encapsulation, source: ip(source), real: ip(real) });
            for vip in [VIP_4, VIP_6] {
                eventually(&format!("{encapsulation:?} over {real} to {vip}"), || lab.echoes(vip));
                round_trip(&mut lab.connect(vip), &data);
            }
        }
    }
    let metrics = lab.metrics();
    for encapsulation in ["gue", "ipip"] {
        for inner in ["ipv4", "ipv6"] {
            let labels = format!("{{encapsulation=\"{encapsulation}\",inner=\"{inner}\"}}");
            // Two transfers of the data, in packets of less than 1300 bytes.
            assert!(metrics[&format!("drover_decap_packets_total{labels}")] > 300, "{metrics:?}");
            assert!(metrics[&format!("drover_decap_bytes_total{labels}")] > 400_000, "{metrics:?}");
        }
    }

    // A source that is no node reaches nothing and is counted.
    let stranger =
        Tunnel { encapsulation: Encapsulation::Gue, source: ip("10.77.0.66"), real: ip("10.77.0.2") };
    lab.set_tunnel(stranger);
    assert!(!lab.echoes(VIP_4));
    // More than the one if earlier connections' last segments still leave, by the stranger's tunnel now.
    assert!(lab.metrics()["drover_decap_drops_total{reason=\"unknown_source\"}"] >= 1);

    // A new address of the interface is a tunnel endpoint as soon as it is there.
    lab.set_tunnel(Tunnel { source: ip("10.77.0.1"), real: ip("10.77.0.3"), ..stranger });
    assert!(!lab.echoes(VIP_4));
    lab.real.sh("ip addr add 10.77.0.3/24 dev r0");
    eventually("packets to the new address are decapsulated", || lab.echoes(VIP_4));
    lab.real.sh("ip addr del 10.77.0.3/24 dev r0");

    // The host does not choose a VIP as the source of connections of its own.
    assert!(lab.real.sh("ip -4 addr show dev lo").contains("198.51.100.1/32 scope host"));
    let loopback = lab.real.sh("ip -6 addr show dev lo");
    assert!(loopback.contains("2001:db8:5::1/128 scope global nodad deprecated"), "{loopback}");

    // The host never offers its VIPs by ARP.
    assert_eq!(lab.real.arp_settings(), ["1", "2"]);
    lab.client.sh("ip route replace 198.51.100.0/24 dev c0 src 10.77.0.1");
    assert!(!lab.echoes(VIP_4));
    let neighbours = lab.client.sh("ip neigh show dev c0");
    let vip = neighbours.lines().find(|line| line.starts_with(VIP_4)).unwrap_or_default();
    assert!(!vip.contains("lladdr"), "{neighbours}");
    running.stop();
}

#[test]
fn forwarding_outlives_the_process_and_a_successor_takes_over() {
    let lab = Lab::new();
    lab.real.sh(&format!("ip addr add {VIP_BY_HAND}/32 dev lo"));
    let vips = [VIP_4, VIP_6, VIP_BY_HAND];
    let running = lab.start(lab.options(&vips));
    lab.serve_echo();
    let data = data();
    let mut stream = lab.connect(VIP_4);
    round_trip(&mut stream, &data);
    let first = lab.real.program().unwrap();
    let packets = "drover_decap_packets_total{encapsulation=\"gue\",inner=\"ipv4\"}";
    let before = lab.metrics()[packets];

    // Crash, and a successor, under a connection that stays open.
    running.crash();
    assert_eq!(lab.real.program(), Some(first));
    round_trip(&mut stream, &data);
    let running = lab.start(lab.options(&vips));
    let second = lab.real.program().unwrap();
    assert_ne!(first, second, "the successor has put its own program behind the link");
    round_trip(&mut stream, &data);
    assert!(lab.metrics()[packets] > before + 300, "the counters go on");

    // A second process is told off, and disturbs nothing.
    let mut options = lab.options(&vips);
    options.admin = None;
    let error = lab.real.run(move || runtime().block_on(run_until(options, async {})).unwrap_err());
    assert!(error.to_string().contains("another `lb-node real`"), "{error:#}");
    assert_eq!(lab.real.program(), Some(second));

    // A VIP that is no longer named leaves; one that the operator put there stays.
    running.stop();
    assert!(lab.real.has_address("lo", VIP_6));
    let running = lab.start(lab.options(&[VIP_4]));
    assert!(!lab.real.has_address("lo", VIP_6));
    assert!(lab.real.has_address("lo", VIP_4));
    assert!(lab.real.has_address("lo", VIP_BY_HAND));
    assert!(!lab.echoes(VIP_6));
    assert_eq!(lab.metrics()["drover_decap_drops_total{reason=\"not_a_vip\"}"], 1);
    round_trip(&mut stream, &data);

    // What somebody takes away comes back by itself.
    lab.real.sh(&format!("ip addr del {VIP_4}/32 dev lo"));
    eventually("the VIP is back", || lab.real.has_address("lo", VIP_4));
    running.stop();

    // Detach leaves the host as it was, and may be repeated.
    for _ in 0..2 {
        lab.detach();
        assert_eq!(lab.real.program(), None);
        assert!(!lab.real.has_address("lo", VIP_4));
        assert!(lab.real.has_address("lo", VIP_BY_HAND));
        assert_eq!(lab.real.arp_settings(), ["0", "0"]);
        assert_eq!(lab.real.pins(), "");
    }
    // And the way back is open.
    let running = lab.start(lab.options(&[VIP_4]));
    assert!(lab.echoes(VIP_4));
    running.stop();
}

#[test]
fn a_start_repairs_what_another_layout_or_a_crash_left_behind() {
    let lab = Lab::new();
    let running = lab.start(lab.options(&[VIP_4, VIP_6]));
    lab.serve_echo();
    running.crash();
    let first = lab.real.program().unwrap();
    // The maps of another layout; a map of ours that cannot be what it claims; a missing one.
    for command in [
        "mkdir /sys/fs/bpf/drover/r0/real/v0",
        "mv /sys/fs/bpf/drover/r0/real/v1/DROPS /sys/fs/bpf/drover/r0/real/v0/DROPS",
        "mv /sys/fs/bpf/drover/r0/real/v1/VIPS /sys/fs/bpf/drover/r0/real/v0/VIPS",
        "mv /sys/fs/bpf/drover/r0/real/v1/DECAPSULATED /sys/fs/bpf/drover/r0/real/v1/VIPS",
    ] {
        lab.real.sh(command);
    }
    assert!(lab.echoes(VIP_4), "pins are not what forwarding depends on");
    let running = lab.start(lab.options(&[VIP_4, VIP_6]));
    assert_ne!(lab.real.program(), Some(first));
    assert!(lab.echoes(VIP_4));
    assert_eq!(lab.metrics()["drover_decap_packets_total{encapsulation=\"gue\",inner=\"ipv4\"}"], 1);
    let pins = lab.real.sh("ls /sys/fs/bpf/drover/r0/real");
    assert_eq!(pins.split_whitespace().collect::<Vec<_>>(), ["host", "link", "v1"]);

    // The interface goes and comes back under the same name, while the process runs.
    lab.real.sh("ip link del r0");
    eventually("healthz tells of it", || {
        lab.real
            .run(|| http_get("/healthz"))
            .is_some_and(|(status, body)| status == 503 && body.contains("r0"))
    });
    wire(&lab.client, &lab.real);
    eventually("the program is on the new interface", || lab.echoes(VIP_4));
    eventually("healthz is content", || {
        lab.real.run(|| http_get("/healthz")).is_some_and(|(status, _)| status == 200)
    });

    // The mode is changed on request.
    running.stop();
    let mut options = lab.options(&[VIP_4, VIP_6]);
    options.xdp_mode = XdpMode::Generic;
    let running = lab.start(options);
    assert!(lab.real.sh("ip link show dev r0").contains("xdpgeneric"));
    assert!(lab.echoes(VIP_4), "generic mode decapsulates as well");
    let tunnel = *lab.tunnel.lock().unwrap();
    lab.set_tunnel(Tunnel { encapsulation: Encapsulation::Ipip, ..tunnel });
    assert!(lab.echoes(VIP_4), "generic mode decapsulates as well");
    running.stop();
    lab.detach();
    assert_eq!(lab.real.program(), None);
}

#[test]
fn settings_that_only_the_host_can_change_are_named_and_end_neither_the_agent_nor_its_life() {
    let lab = Lab::new();
    lab.real.sh("mount --bind /proc/sys /proc/sys");
    lab.real.sh("mount -o remount,bind,ro /proc/sys");
    let running = lab.launch(lab.options(&[VIP_4]));
    let page = |path: &'static str| lab.real.run(move || http_get(path));
    eventually("readyz names the file", || {
        assert!(!running.thread.is_finished(), "it has ended");
        page("/readyz").is_some_and(|(status, body)| {
            status == 503 && body.contains("/proc/sys/net/ipv4/conf/r0/arp_ignore")
        })
    });
    assert_eq!(page("/livez").map(|(status, _)| status), Some(200));
    assert!(!lab.real.has_address("lo", VIP_4), "the host would answer ARP for it");

    lab.real.sh("umount /proc/sys");
    // The kernel tells of this, and the agent looks again.
    lab.real.sh("ip link set r0 txqueuelen 999");
    eventually("the VIP is there", || lab.real.has_address("lo", VIP_4));
    eventually("healthz says ok", || page("/healthz").is_some_and(|(status, _)| status == 200));
    running.stop();
}

/// The agent as a process of its own, which a test starts. Among the tests, where nobody says what it is to do, it is none.
#[test]
fn agent() {
    let Ok(bpffs) = env::var(BPFFS) else { return };
    runtime().block_on(run_until(options(bpffs.into(), &[VIP_4]), pending())).unwrap();
}

#[test]
fn settings_that_only_the_host_can_change_do_not_starve_the_watchdog() {
    let lab = Lab::new();
    lab.real.sh("mount --bind /proc/sys /proc/sys");
    lab.real.sh("mount -o remount,bind,ro /proc/sys");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let bpffs = lab.bpffs.clone();
    let agent = lab.real.run(move || {
        let mut command = Command::new(env::current_exe().unwrap());
        // Its tests' results are not those of this program.
        command.args(["--exact", "host::agent", "--nocapture"]).stdout(Stdio::null());
        Killed(command.env(BPFFS, bpffs).env("NOTIFY_SOCKET", path).spawn().unwrap())
    });
    let mut looks = 0;
    let mut hear = |what: &str| {
        eventually(&format!("the manager is told {what}"), || {
            // The kernel tells of this, and the agent looks again.
            looks += 1;
            lab.real.sh(&format!("ip link set r0 txqueuelen {}", 100 + looks % 900));
            let mut buffer = [0; 4096];
            let Ok(length) = manager.recv(&mut buffer) else { return false };
            String::from_utf8_lossy(&buffer[..length]).contains(what)
        });
    };
    hear("READY=1");
    hear("/proc/sys/net/ipv4/conf/r0/arp_ignore");
    for _ in 0..2 {
        hear("WATCHDOG=1");
    }
    drop(agent);
    lab.detach();
}

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_interface_that_is_taken_or_missing_is_said_so() {
    let lab = Lab::new();
    let attempt = |interface: &str, mode| {
        let mut options = lab.options(&[VIP_4]);
        options.interface = interface.into();
        options.xdp_mode = mode;
        options.admin = None;
        let error = lab.real.run(move || runtime().block_on(run_until(options, async {})));
        format!("{:#}", error.unwrap_err())
    };
    assert!(attempt("r1", XdpMode::Auto).contains("no interface r1"));
    let error = attempt("lo", XdpMode::Native);
    assert!(error.contains("cannot attach to lo"), "{error}");

    // Another's program: here our own, by way of another directory.
    let running = lab.start(Options { bpffs: "/sys/fs/bpf/other".into(), ..lab.options(&[VIP_4]) });
    let taken = lab.real.program();
    let error = attempt("r0", XdpMode::Auto);
    assert!(error.contains("another XDP program is attached to r0"), "{error}");
    assert_eq!(lab.real.program(), taken);
    running.stop();
    let detach_from = |directory: &'static str, interface: &'static str| {
        lab.real.run(move || runtime().block_on(detach(interface, Path::new(directory))).unwrap());
    };
    detach_from("/sys/fs/bpf/drover", "lo");
    detach_from("/sys/fs/bpf/drover", "r0");
    assert_eq!(lab.real.program(), taken, "only our own link is removed");
    detach_from("/sys/fs/bpf/other", "r0");
    assert_eq!(lab.real.pins(), "");
}
