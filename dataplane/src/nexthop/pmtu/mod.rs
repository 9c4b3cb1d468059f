//! Path MTUs of the tunnels, learnt from routers on the way to reals.
//!
//! The kernel does not do this by itself: the packets are not its own, and it believes ICMP only
//! about its own. Raw sockets hear "fragmentation needed" and "packet too big" about the outer
//! packets; `parse` believes those that can be true, `table` remembers them for a while.

mod parse;
mod table;

pub use parse::{Expect, FLOOR_V4, FLOOR_V6, PathMtu, parse_v4, parse_v6};
pub use table::{LIFETIME, Table};

use super::Wanted;
use super::sources::Sources;
use host::log_limit::LogLimit;
use lb_ebpf::wire::{icmp, icmpv6};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Largest packets that the paths to reals are known to take, in bytes, by the real's address. An
/// address about which nothing has been heard is absent.
pub type PathMtus = BTreeMap<IpAddr, u32>;

/// Pause after each batch. With [`BATCH`] it bounds what a flood of forged ICMP can cost, and how
/// often the published value changes.
const PAUSE: Duration = Duration::from_millis(100);
/// Messages read at a time.
const BATCH: usize = 256;
/// Of an ICMP error the headers matter; what does not fit is cut off.
const LONGEST: usize = 2048;
/// Lines that may be logged at once of what was learnt, and how often one more.
const LINES: u32 = 20;
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Time between looks for expired entries.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// The reason why path MTUs cannot be learnt.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for {what}: {source} (a raw socket needs CAP_NET_RAW)")]
pub struct ListenError {
    what: &'static str,
    source: io::Error,
}

/// Starts the task that listens for ICMP errors about packets from `sources` to the `wanted`
/// addresses, by IPIP or by GUE to UDP port `gue_port`. It ends when nobody listens to it any more,
/// or nobody wants any address.
///
/// Must be called within a tokio runtime, in the network namespace to listen in.
///
/// # Errors
///
/// If a raw socket cannot be opened.
pub fn spawn(
    sources: Sources,
    gue_port: u16,
    wanted: watch::Receiver<Wanted>,
) -> Result<watch::Receiver<Arc<PathMtus>>, ListenError> {
    let error = |what| move |source| ListenError { what, source };
    let v4 = sources.v4.map(|_| icmp_socket()).transpose().map_err(error("ICMP"))?;
    let v6 = sources.v6.map(|_| icmpv6_socket()).transpose().map_err(error("ICMPv6"))?;
    let (published, receiver) = watch::channel(Arc::default());
    let log_limit = LogLimit::new(LINES, LINE_EVERY);
    let listener =
        Listener { v4, v6, sources, gue_port, wanted, table: Table::default(), published, log_limit };
    tokio::spawn(listener.run());
    Ok(receiver)
}

struct Listener {
    v4: Option<AsyncFd<Socket>>,
    v6: Option<AsyncFd<Socket>>,
    sources: Sources,
    gue_port: u16,
    wanted: watch::Receiver<Wanted>,
    table: Table,
    published: watch::Sender<Arc<PathMtus>>,
    log_limit: LogLimit,
}

impl Listener {
    async fn run(mut self) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        loop {
            tokio::select! {
                () = self.published.closed() => return,
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = readable(self.v4.as_ref()) => {}
                () = readable(self.v6.as_ref()) => {}
                _ = housekeeping.tick() => {}
            }
            let wanted = self.wanted.borrow_and_update().clone();
            let expect = Expect { sources: self.sources, gue_port: self.gue_port, reals: &wanted };
            let now = Instant::now();
            hear(self.v4.as_ref(), |bytes| {
                learn(&mut self.table, &mut self.log_limit, parse_v4(bytes, &expect), now);
            });
            hear(self.v6.as_ref(), |bytes| {
                learn(&mut self.table, &mut self.log_limit, parse_v6(bytes, &expect), now);
            });
            self.table.expire(&wanted, now);
            self.publish();
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn publish(&self) {
        let current = self.table.path_mtus();
        self.published.send_if_modified(|published| {
            let differs = **published != current;
            if differs {
                *published = Arc::new(current);
            }
            differs
        });
    }
}

fn learn(table: &mut Table, log_limit: &mut LogLimit, heard: Option<PathMtu>, now: Instant) {
    if let Some(heard) = heard.filter(|heard| table.learn(*heard, now))
        && let Some(skipped) = log_limit.allows(tokio::time::Instant::from_std(now))
    {
        tracing::info!(real = %heard.real, mtu = heard.mtu, skipped, "path MTU learnt");
    }
}

async fn readable(socket: Option<&AsyncFd<Socket>>) {
    let Some(socket) = socket else { return std::future::pending().await };
    match socket.readable().await {
        Ok(mut guard) => guard.retain_ready(),
        // Only while the runtime shuts down.
        Err(_) => std::future::pending().await,
    }
}

/// Reads what there is, up to [`BATCH`] messages.
fn hear(socket: Option<&AsyncFd<Socket>>, mut message: impl FnMut(&[u8])) {
    let Some(socket) = socket else { return };
    let mut buffer = [0; LONGEST];
    for _ in 0..BATCH {
        let read = socket.try_io(Interest::READABLE, |socket| {
            let mut reader: &Socket = socket;
            io::Read::read(&mut reader, &mut buffer)
        });
        match read {
            Ok(length) => message(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // A raw socket reports errors about the host's other traffic too; none says that it is dead.
            Err(error) => tracing::debug!(%error, "reading a raw ICMP socket"),
        }
    }
}

/// From linux/icmp.h: a mask of the types that the socket does *not* get.
const ICMP_FILTER: libc::c_int = 1;
/// From linux/icmpv6.h, likewise, for 256 types.
const ICMPV6_FILTER: libc::c_int = 1;

fn icmp_socket() -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    let all_but_unreachable = !(1_u32 << icmp::UNREACHABLE);
    set_option(&socket, libc::SOL_RAW, ICMP_FILTER, &[all_but_unreachable])?;
    nonblocking(socket)
}

fn icmpv6_socket() -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    let mut filter = [u32::MAX; 8];
    filter[0] &= !(1 << icmpv6::PACKET_TOO_BIG);
    set_option(&socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)?;
    nonblocking(socket)
}

fn nonblocking(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    socket.set_nonblocking(true)?;
    // SAFETY: `Socket` owns its descriptor, names no other, and is closed only when dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

fn set_option(socket: &Socket, level: libc::c_int, name: libc::c_int, value: &[u32]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(value)).map_err(io::Error::other)?;
    // SAFETY: `value` is `length` readable bytes, which the kernel copies before it returns.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
