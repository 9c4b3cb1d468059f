//! The largest packet that comes through to an address: ICMP echoes that may not be fragmented (RFC 792, RFC 4443).

use anyhow::{Context as _, Result};
use lb_ebpf::wire::{IPV4_LENGTH, IPV6_LENGTH, checksum, icmp, icmpv6};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Time for which answers are waited for.
const PATIENCE: Duration = Duration::from_millis(700);
/// Probes of a round. The first answers settle most of it.
const SIZES: u16 = 8;
/// A packet that every path takes (RFC 791 says 68, and that every host takes 576).
const SMALL: u16 = 128;

/// The result of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Through {
    /// Nothing.
    Nothing,
    /// Packets up to this size in bytes, with their IP header.
    UpTo(u16),
}

/// Finds the largest packet, of at most `wanted` bytes, that an address answers. Blocks for some seconds at most.
///
/// # Errors
/// If echoes cannot be sent, as without rights.
pub(super) fn largest(to: IpAddr, wanted: u16) -> Result<Through> {
    let mut echo = Echo::open(to)?;
    if !(echo.round(&[SMALL])?.contains(&SMALL) || echo.round(&[SMALL])?.contains(&SMALL)) {
        return Ok(Through::Nothing);
    }
    let (mut fits, mut too_big) = (SMALL, wanted.saturating_add(1));
    // The size that is hoped for, and what a narrower path is likely to take.
    let mut sizes: Vec<u16> = [wanted, 1500, 1492, 1476, 1400, 1280, 576].into();
    while too_big - fits > 1 {
        sizes.retain(|size| (fits + 1..too_big).contains(size));
        let answered = echo.round(&sizes)?;
        // Only what was lost twice is too big.
        let missing: Vec<u16> = sizes.iter().copied().filter(|size| !answered.contains(size)).collect();
        let again = if missing.is_empty() { BTreeSet::new() } else { echo.round(&missing)? };
        fits = answered.iter().chain(&again).copied().max().unwrap_or(fits).max(fits);
        let lost = missing.into_iter().filter(|size| *size > fits && !again.contains(size));
        too_big = lost.min().unwrap_or(too_big);
        let step = (too_big - fits).div_ceil(SIZES + 1);
        sizes = (1..=SIZES).map(|part| fits.saturating_add(step.saturating_mul(part))).collect();
        sizes.push(too_big - 1);
        sizes.push(fits + 1);
        sizes.sort_unstable();
        sizes.dedup();
    }
    Ok(Through::UpTo(fits))
}

/// Returns whether an address answers at all.
///
/// # Errors
/// If echoes cannot be sent.
pub(super) fn answers(to: IpAddr) -> Result<bool> {
    let mut echo = Echo::open(to)?;
    Ok(!echo.round(&[SMALL])?.is_empty() || !echo.round(&[SMALL])?.is_empty())
}

struct Echo {
    socket: Socket,
    v6: bool,
    /// Raw sockets get all echoes of the machine, and for IPv4 with the IP header.
    raw: bool,
    id: u16,
}

impl Echo {
    fn open(to: IpAddr) -> Result<Self> {
        let v6 = to.is_ipv6();
        let (domain, protocol) = match v6 {
            false => (Domain::IPV4, Protocol::ICMPV4),
            true => (Domain::IPV6, Protocol::ICMPV6),
        };
        // Whoever is in net.ipv4.ping_group_range needs no right; who has the right need not be in it.
        let (socket, raw) = match Socket::new(domain, Type::DGRAM, Some(protocol)) {
            Ok(socket) => (socket, false),
            Err(_) => {
                let socket = Socket::new(domain, Type::RAW, Some(protocol));
                (socket.context("ICMP echoes cannot be sent (CAP_NET_RAW is needed)")?, true)
            }
        };
        // DF is set, and what the kernel believes of the path is not asked.
        match v6 {
            false => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
            true => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
        }
        let address = SockAddr::from(SocketAddr::new(to, 0));
        socket.connect(&address).context("no way there")?;
        let mut id = [0; 2];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self { socket, v6, raw, id: u16::from_be_bytes(id) })
    }

    /// Sends an echo of each size (its number is the size), and gives those that are answered.
    fn round(&mut self, sizes: &[u16]) -> Result<BTreeSet<u16>> {
        let mut sent = BTreeSet::new();
        for size in sizes {
            match self.socket.send(&self.request(*size)) {
                Ok(_) => {
                    sent.insert(*size);
                }
                // Too big for the interface, or the news of an earlier one that was too big for the path.
                Err(_) => {
                    let _ = self.socket.take_error();
                    if self.socket.send(&self.request(*size)).is_ok() {
                        sent.insert(*size);
                    }
                }
            }
        }
        let mut answered = BTreeSet::new();
        let end = Instant::now() + PATIENCE;
        let mut buffer = vec![MaybeUninit::uninit(); 65_536];
        while answered.len() < sent.len() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    // SAFETY: the kernel has written that many bytes.
                    let bytes: Vec<u8> =
                        buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
                    answered.extend(self.answer(&bytes).filter(|size| sent.contains(size)));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // ICMP errors about earlier probes.
                Err(_) => {}
            }
        }
        Ok(answered)
    }

    /// An echo request that makes an IP packet of this size.
    fn request(&self, size: u16) -> Vec<u8> {
        let header = if self.v6 { IPV6_LENGTH } else { IPV4_LENGTH };
        let mut bytes = vec![0; usize::from(size).saturating_sub(header).max(8)];
        bytes[0] = if self.v6 { icmpv6::ECHO_REQUEST } else { icmp::ECHO };
        bytes[4..6].copy_from_slice(&self.id.to_be_bytes());
        bytes[6..8].copy_from_slice(&size.to_be_bytes());
        // For IPv6 the kernel does it, since the addresses count too.
        if !self.v6 {
            let sum = checksum(&bytes);
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// The number in an echo reply of ours.
    fn answer(&self, bytes: &[u8]) -> Option<u16> {
        let header = match (self.raw, self.v6) {
            (true, false) => usize::from(bytes.first()? & 0x0f) * 4,
            _ => 0,
        };
        let message = bytes.get(header..)?;
        let word = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
        let is_reply = *message.first()? == if self.v6 { icmpv6::ECHO_REPLY } else { icmp::ECHO_REPLY };
        // Of a socket that is not raw, the kernel chooses the identifier, and sees to it.
        let ours = !self.raw || word(4)? == self.id;
        if is_reply && ours { word(6) } else { None }
    }
}
