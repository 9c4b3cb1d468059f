//! New flows, one after the other or at once, and which servers they meet.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::server::Protocol;

/// How many flows are under way at once.
const AT_ONCE: usize = 16;

/// How a number of new flows fared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visits {
    /// How many of them each server served.
    pub served: BTreeMap<String, usize>,
    /// Why the others failed.
    pub failed: Vec<String>,
}

impl Visits {
    /// The servers that were met.
    #[must_use]
    pub fn servers(&self) -> Vec<&str> {
        self.served.keys().map(String::as_str).collect()
    }
}

/// Opens `count` new flows from `client` to the echo service at `at`, and sends `message` by each. One that has no
/// answer after `limit` has failed, as has one whose message comes back changed.
///
/// # Errors
///
/// When the client cannot be entered.
pub fn visit(
    client: &Host,
    protocol: Protocol,
    at: SocketAddr,
    count: usize,
    message: &[u8],
    limit: Duration,
) -> Result<Visits> {
    // Threads belong to the namespace of the thread that starts them.
    let one = || match protocol {
        Protocol::Tcp => visit_tcp(at, message, limit),
        Protocol::Udp => visit_udp(at, message, limit),
    };
    let outcomes: Vec<Result<String>> = client.enter(|| {
        let mut outcomes = Vec::new();
        while outcomes.len() < count {
            let batch = AT_ONCE.min(count - outcomes.len());
            thread::scope(|scope| {
                let flows: Vec<_> = (0..batch).map(|_| scope.spawn(one)).collect();
                outcomes.extend(flows.into_iter().map(|flow| flow.join().expect("a visit does not panic")));
            });
        }
        outcomes
    })?;
    let mut visits = Visits::default();
    for outcome in outcomes {
        match outcome {
            Ok(server) => *visits.served.entry(server).or_default() += 1,
            Err(error) => visits.failed.push(format!("{error:#}")),
        }
    }
    Ok(visits)
}

fn visit_tcp(at: SocketAddr, message: &[u8], limit: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, limit).context("connecting")?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(message).context("sending")?;
    let mut reader = BufReader::new(stream);
    let mut name = String::new();
    reader.read_line(&mut name).context("waiting for the server's name")?;
    let mut echo = vec![0; message.len()];
    reader.read_exact(&mut echo).context("waiting for the echo")?;
    ensure!(echo == message, "the echo differs from what was sent");
    Ok(name.trim_end().to_owned())
}

fn visit_udp(at: SocketAddr, message: &[u8], limit: Duration) -> Result<String> {
    let socket = UdpSocket::bind((unspecified_like(at.ip()), 0))?;
    socket.set_read_timeout(Some(limit))?;
    socket.connect(at)?;
    socket.send(message).context("sending")?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    let length = socket.recv(&mut answer).context("waiting for the echo")?;
    let (name, echo) = split_answer(&answer[..length]).context("an answer without the server's name")?;
    ensure!(echo == message, "the echo differs from what was sent");
    Ok(name)
}

/// Takes a datagram of the echo service apart: the server's name, and what it was sent.
pub(crate) fn split_answer(answer: &[u8]) -> Option<(String, &[u8])> {
    let end = answer.iter().position(|byte| *byte == b'\n')?;
    Some((String::from_utf8_lossy(&answer[..end]).into_owned(), &answer[end + 1..]))
}

/// The unspecified address of this address's family, to bind to.
#[must_use]
pub fn unspecified_like(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
