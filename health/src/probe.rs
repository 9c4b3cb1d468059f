//! One probe of one target.
//!
//! All of a probe, from `connect` to the last byte that is read, shares one deadline, and what is read is
//! bounded: no answer of a real can hold a probe up, grow memory or panic.
//!
//! # Whose fault
//!
//! | what happened | counted as |
//! |---|---|
//! | socket, its options or `connect` fail at once (no route, no port or descriptor left, no permission) | inconclusive: decided within this node, nothing was sent |
//! | the same errors later, when they mean this node (EADDRNOTAVAIL, ENOBUFS, ENOMEM, ENETDOWN, EPERM, EACCES) | inconclusive |
//! | refused, reset, timed out; unreachable by ICMP or for want of an ARP or ND answer | failure: clients' packets would fare alike |
//! | a wrong answer, or none in time | failure |
//! | the deadline's timer itself fired very late | inconclusive: this node did not run |
//! | a tunnel probe without a mark, a check that cannot be sent | inconclusive |
//!
//! # How connections end
//!
//! Every probe's socket has SO_LINGER 0, so that closing it sends RST and leaves no TIME_WAIT. Tunnel probes of
//! all reals of a VIP go to one address and port; at 500 ms and 60 s of TIME_WAIT, 235 reals would use up the
//! 28,232 ephemeral ports. HTTP and MQTT are ended in the protocol's own way first (`Connection: close`,
//! DISCONNECT); a server that then closes within a moment gets a FIN for its FIN and keeps the TIME_WAIT, any
//! other is reset. A bare TCP probe has no such way: servers see a connection that is reset once it is accepted.

mod http;
mod mqtt;
mod tcp;
mod tls;

#[cfg(test)]
mod tests;

use super::Target;
use super::scheduler::Probe;
use super::state::Outcome;
use socket2::SockRef;
use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use zk_schema::{CheckKind, NodeName, ProbePath};

/// Time that a server which has answered may take to close the connection before it is reset.
const CLOSING: Duration = Duration::from_millis(200);

/// A server that keeps sending while it ought to close is cut off after this many bytes.
const CLOSING_BYTES: usize = 64 * 1024;

/// A timer that fires later than the deadline by this, or by the timeout if that is longer, tells that this node
/// stood still (suspended, starved); what the real did meanwhile cannot be known.
const STALLED: Duration = Duration::from_millis(500);

/// Characters of a server's own words that a reason quotes.
const QUOTED: usize = 120;

/// Probes real servers through sockets.
pub struct Prober {
    node: NodeName,
    tls: tls::Configs,
}

impl Prober {
    /// A prober for the node of that name, by which servers can tell its probes apart.
    ///
    /// The system's trust roots are read when the first `https` check that verifies is run; certificates that
    /// are added later count after a restart.
    #[must_use]
    pub fn new(node: NodeName) -> Self {
        Self { node, tls: tls::Configs::default() }
    }

    async fn run(&self, target: &Target) -> Result<(), Fault> {
        let check = &target.check;
        let mark = match (check.path, target.mark) {
            (ProbePath::Direct, mark) => mark,
            (ProbePath::Tunnel, Some(mark)) => Some(mark),
            (ProbePath::Tunnel, None) => {
                return Err(Fault::node("no mark leads the probe to this real through the tunnel"));
            }
        };
        if let CheckKind::Https(https) = &check.kind {
            // Reading the trust roots may take longer than a short timeout: not on the real's account.
            self.tls.config(https.verify_tls)?;
        }
        let deadline = Deadline::after(Duration::from_millis(u64::from(check.timeout_ms)));
        let stream = deadline.limit("connecting", tcp::connect(target.connect, mark)).await?;
        match &check.kind {
            CheckKind::Tcp => Ok(()),
            CheckKind::Http(http) => http::check(stream, target.connect, "http", http, deadline).await,
            CheckKind::Https(https) => {
                let config = self.tls.config(https.verify_tls)?;
                let stream = tls::connect(stream, target.connect, https, config, deadline).await?;
                http::check(stream, target.connect, "https", https, deadline).await
            }
            CheckKind::Mqtt(mqtt) => {
                let client_id = format!("{}-{}-{}-{}", mqtt.client_id, self.node, target.vip, target.real);
                mqtt::check(stream, mqtt.version, client_id, deadline).await
            }
        }
    }
}

impl Probe for Prober {
    async fn probe(&self, target: Arc<Target>) -> Outcome {
        match self.run(&target).await {
            Ok(()) => Outcome::Success,
            Err(Fault::Real(reason)) => Outcome::Failure(reason),
            Err(Fault::Node(reason)) => Outcome::Inconclusive(reason),
        }
    }
}

/// The reason why a probe did not succeed, by whose fault it is.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    Real(String),
    Node(String),
}

impl Fault {
    fn real(reason: impl Into<String>) -> Self {
        Self::Real(reason.into())
    }

    fn node(reason: impl Into<String>) -> Self {
        Self::Node(reason.into())
    }
}

/// The end of a probe.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    fn after(timeout: Duration) -> Self {
        Self { at: Instant::now() + timeout, timeout }
    }

    /// Runs one step of the probe, named `doing` in the fault if the deadline comes first.
    async fn limit<T>(self, doing: &str, step: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        match tokio::time::timeout_at(self.at, step).await {
            Ok(result) => result,
            Err(_) => Err(self.passed(doing)),
        }
    }

    fn passed(self, doing: &str) -> Fault {
        let late = self.at.elapsed();
        let timeout = self.timeout.as_millis();
        if late > self.timeout.max(STALLED) {
            let late = late.as_millis();
            return Fault::node(format!(
                "this node stood still: a timer of {timeout} ms fired {late} ms late"
            ));
        }
        Fault::real(format!("timed out after {timeout} ms while {doing}"))
    }

    /// Gives the end of a connection a moment. How it ends has no bearing on the outcome: the worst is a RST.
    async fn closing(self, end: impl Future<Output = ()>) {
        let _ = tokio::time::timeout_at(self.at.min(Instant::now() + CLOSING), end).await;
    }
}

/// A connection that a probe talks through.
trait Connection: AsyncRead + AsyncWrite + Unpin + Send {
    /// The TCP connection underneath, without what was still to be read above it.
    fn into_tcp(self) -> TcpStream;
}

impl Connection for TcpStream {
    fn into_tcp(self) -> TcpStream {
        self
    }
}

/// Waits until the server has closed the connection, and then closes this end without a RST. If the server never
/// does, or sends too much meanwhile, dropping `stream` resets the connection.
async fn closed(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    let mut total = 0;
    while let Ok(count) = stream.read(&mut buffer).await {
        if count == 0 {
            // The server closed first, so TIME_WAIT is with it. Should this fail, the end is a RST after all.
            let _ = SockRef::from(&stream).set_linger(None);
            return;
        }
        total += count;
        if total > CLOSING_BYTES {
            return;
        }
    }
}

/// A server's own words, made fit for a log line.
fn quoted(text: &str) -> Cow<'_, str> {
    if text.chars().count() <= QUOTED && !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut clean: String =
        text.chars().take(QUOTED).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(QUOTED).is_some() {
        clean.push('…');
    }
    Cow::Owned(clean)
}
