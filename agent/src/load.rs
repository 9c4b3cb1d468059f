//! Counts the connections that clients hold to a VIP on this host, by the kernel's `sock_diag` (sock_diag(7)), and
//! decides when a count is worth telling others.

use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use zk_schema::VipName;

/// Interval of counts.
pub(super) const EVERY: Duration = Duration::from_secs(2);
/// The least time between two writes of a record.
const LEAST_PAUSE: Duration = Duration::from_secs(4);
/// After this long, whatever differs is written.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Connections that a step has at least; more where there are many: a twentieth of them.
const LEAST_STEP: u64 = 10;
/// Longest wait for the kernel's answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Of a part of the answer.
const BUFFER: usize = 64 * 1024;

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `TCP_ESTABLISHED`, as a bit of a set of states.
const ESTABLISHED: u32 = 1 << 1;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Counts the established TCP connections of this network namespace at each of these addresses; port 0 stands for all.
///
/// # Errors
/// If the kernel refuses, or does not know of `sock_diag` (`CONFIG_INET_DIAG`).
pub(super) fn count(at: &BTreeMap<VipName, SocketAddr>) -> io::Result<BTreeMap<VipName, u64>> {
    let mut counts: BTreeMap<VipName, u64> = at.keys().map(|vip| (vip.clone(), 0)).collect();
    // A socket for IPv6 also holds connections over IPv4.
    for family in [libc::AF_INET, libc::AF_INET6] {
        established(family, |local| {
            for (vip, wanted) in at {
                if local.ip() == wanted.ip() && (wanted.port() == 0 || local.port() == wanted.port()) {
                    *counts.entry(vip.clone()).or_default() += 1;
                }
            }
        })?;
    }
    Ok(counts)
}

/// Calls `each` with the local end of each established connection.
fn established(family: libc::c_int, mut each: impl FnMut(SocketAddr)) -> io::Result<()> {
    let mut socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::DGRAM.cloexec(),
        Some(Protocol::from(libc::NETLINK_SOCK_DIAG)),
    )?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send(&request(u8::try_from(family).unwrap_or_default()))?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = socket.read(&mut buffer)?;
        if parse(&buffer[..length], &mut each)? == Part::Last {
            return Ok(());
        }
    }
}

/// A `struct nlmsghdr` with a `struct inet_diag_req_v2` that asks for all established connections.
fn request(family: u8) -> Vec<u8> {
    const LENGTH: u32 = 16 + 56;
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or_default();
    let mut bytes = Vec::with_capacity(LENGTH as usize);
    bytes.extend(LENGTH.to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, u8::try_from(libc::IPPROTO_TCP).unwrap_or_default(), 0, 0]);
    bytes.extend(ESTABLISHED.to_ne_bytes());
    bytes.resize(LENGTH as usize, 0);
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    More,
    Last,
}

/// Reads one part of the answer: netlink messages, each with a `struct inet_diag_msg`.
fn parse(mut bytes: &[u8], each: &mut impl FnMut(SocketAddr)) -> io::Result<Part> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut short");
    while bytes.len() >= HEADER {
        let length =
            usize::try_from(u32::from_ne_bytes(array(bytes, 0).ok_or_else(cut)?)).map_err(|_| cut())?;
        let kind = i32::from(u16::from_ne_bytes(array(bytes, 4).ok_or_else(cut)?));
        let message = bytes.get(HEADER..length).ok_or_else(cut)?;
        match kind {
            libc::NLMSG_DONE => return Ok(Part::Last),
            libc::NLMSG_ERROR => {
                let code = i32::from_ne_bytes(array(message, 0).ok_or_else(cut)?);
                return Err(io::Error::from_raw_os_error(-code));
            }
            _ => each(local(message).ok_or_else(cut)?),
        }
        // Messages begin at multiples of four.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Part::More)
}

/// The local end in a `struct inet_diag_msg`. An IPv4 address in an IPv6 one comes out as what it is.
fn local(message: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(array(message, 4)?);
    let address = match libc::c_int::from(*message.first()?) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(array::<4>(message, 8)?)),
        _ => IpAddr::from(Ipv6Addr::from(array::<16>(message, 8)?)).to_canonical(),
    };
    Some(SocketAddr::new(address, port))
}

fn array<const N: usize>(bytes: &[u8], from: usize) -> Option<[u8; N]> {
    bytes.get(from..from + N)?.try_into().ok()
}

/// Returns whether `count` is to be written. `last` is the count that was written before, and its age.
pub(super) fn is_due(last: Option<(u64, Duration)>, count: u64) -> bool {
    let Some((before, ago)) = last else { return true };
    let moved = before.abs_diff(count);
    let is_step = moved >= LEAST_STEP.max(before / 20) || (before == 0) != (count == 0);
    moved > 0 && ago >= if is_step { LEAST_PAUSE } else { LONGEST_PAUSE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use zk_schema::testing::name;

    #[test]
    fn connections_are_counted_by_the_address_and_port_that_clients_use() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dual = TcpListener::bind("[::]:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mapped = SocketAddr::new(at.ip(), dual.local_addr().unwrap().port());
        let wanted: BTreeMap<VipName, SocketAddr> = [
            (name("one"), at),
            (name("mapped"), mapped),
            (name("other"), SocketAddr::new([127, 0, 0, 2].into(), at.port())),
        ]
        .into();
        let connect = |to: SocketAddr| TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        let clients: Vec<TcpStream> = (0..3).map(|_| connect(at)).collect();
        let _mapped = connect(mapped);
        let _served: Vec<_> = (0..3).map(|_| listener.accept().unwrap()).collect();
        let _served_too = dual.accept().unwrap();
        let counts = |vip: &str| count(&wanted).unwrap()[vip];
        assert_eq!((counts("one"), counts("mapped"), counts("other")), (3, 1, 0));
        drop(clients);
        // The servers' ends are in CLOSE_WAIT now.
        assert_eq!(counts("one"), 0);
    }

    #[test]
    fn a_part_that_is_cut_short_is_an_error_and_a_refusal_is_told() {
        let mut none = |_| unreachable!("there is no connection");
        let message = |kind: u16, body: &[u8]| {
            let length = u32::try_from(HEADER + body.len()).unwrap();
            [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat()
        };
        let refused = message(2, &(-libc::ENOENT).to_ne_bytes());
        assert_eq!(parse(&refused, &mut none).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert_eq!(parse(&message(3, &[0; 4]), &mut none).unwrap(), Part::Last);
        assert_eq!(parse(&[], &mut none).unwrap(), Part::More);
        parse(&message(BY_FAMILY, &[2, 1]), &mut none).unwrap_err();
        parse(&message(BY_FAMILY, &[0; 72])[..40], &mut none).unwrap_err();
        let mut zero = message(BY_FAMILY, &[]);
        zero[..4].fill(0);
        parse(&zero, &mut none).unwrap_err();
    }

    #[test]
    fn a_count_is_told_when_it_moves_by_a_step_and_not_too_often() {
        let seconds = Duration::from_secs;
        assert!(is_due(None, 0));
        assert!(!is_due(Some((100, seconds(1000))), 100), "nothing new");
        assert!(!is_due(Some((100, seconds(10))), 109) && is_due(Some((100, seconds(10))), 110));
        assert!(!is_due(Some((100, seconds(3))), 500), "too soon");
        assert!(!is_due(Some((10_000, seconds(10))), 10_499) && is_due(Some((10_000, seconds(10))), 10_500));
        assert!(is_due(Some((0, seconds(10))), 1) && is_due(Some((1, seconds(10))), 0));
        assert!(is_due(Some((100, seconds(60))), 101), "in the end, any");
    }
}
