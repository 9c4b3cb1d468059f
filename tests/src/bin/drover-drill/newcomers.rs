//! Clients that come all the time: each connects, gets an answer to its CONNECT and to a ping, and leaves.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drover_tests::crowd::Way;

/// A client that has no answer after this long has failed.
const LIMIT: Duration = Duration::from_secs(4);
/// Between the beginnings of two clients, of all ways together.
const PACE: Duration = Duration::from_millis(50);

/// New connections under way, without end, by each of several ways. They end with this.
#[derive(Debug)]
pub(crate) struct Newcomers {
    seen: Arc<Mutex<Vec<Newcomer>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// How a new connection fared.
#[derive(Clone, Debug)]
pub(crate) struct Newcomer {
    /// When it began.
    pub(crate) at: Instant,
    /// How long it took from the first packet to the last answer, or to its failure.
    pub(crate) took: Duration,
    /// Why it was not served, if so.
    pub(crate) failed: Option<String>,
}

impl Newcomers {
    /// Begins to send clients by each of these ways.
    pub(crate) fn start(ways: &[Way]) -> Result<Newcomers> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut newcomers = Newcomers { seen, stop, threads: Vec::new() };
        let pace = PACE * u32::try_from(ways.len())?;
        for way in ways {
            let (way, seen, stop) = (way.clone(), newcomers.seen.clone(), newcomers.stop.clone());
            let name = format!("newcomers {} {}", way.from.name(), way.name);
            newcomers
                .threads
                .push(thread::Builder::new().name(name).spawn(move || come(&way, pace, &seen, &stop))?);
        }
        Ok(newcomers)
    }

    /// Those that began at `since` or later, and are over.
    pub(crate) fn since(&self, since: Instant) -> Vec<Newcomer> {
        locked(&self.seen).iter().filter(|one| one.at >= since).cloned().collect()
    }
}

impl Drop for Newcomers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn come(way: &Way, pace: Duration, seen: &Mutex<Vec<Newcomer>>, stop: &AtomicBool) {
    let entered = way.from.enter(|| {
        for number in 1_u64.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let at = Instant::now();
            let id = format!("new-{}-{}-{number}", way.from.name(), way.name);
            let failed = visit(way.to, &id).err().map(|error| format!("{id}: {error:#}"));
            let took = at.elapsed();
            locked(seen).push(Newcomer { at, took, failed });
            sleep(pace.saturating_sub(took));
        }
    });
    if let Err(error) = entered {
        let failed = Some(format!("cannot be on {}: {error:#}", way.from.name()));
        locked(seen).push(Newcomer { at: Instant::now(), took: Duration::ZERO, failed });
    }
}

/// One MQTT 3.1.1 client (section 3): CONNECT, CONNACK, PINGREQ, PINGRESP, DISCONNECT.
fn visit(vip: SocketAddr, id: &str) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&vip, LIMIT).context("connecting")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(&connect(id)?).context("sending CONNECT")?;
    expect(&mut stream, [0x20, 2, 0, 0], "CONNACK")?;
    stream.write_all(&[0xc0, 0]).context("sending PINGREQ")?;
    expect(&mut stream, [0xd0, 0], "PINGRESP")?;
    stream.write_all(&[0xe0, 0]).context("sending DISCONNECT")?;
    Ok(())
}

fn connect(id: &str) -> Result<Vec<u8>> {
    // Protocol name and level, clean session, keep alive of 60 s.
    let mut body = b"\x00\x04MQTT\x04\x02\x00\x3c".to_vec();
    body.extend(u16::try_from(id.len()).context("a client identifier that long")?.to_be_bytes());
    body.extend(id.as_bytes());
    let length = u8::try_from(body.len()).ok().filter(|length| *length < 0x80);
    let length = length.with_context(|| format!("the client identifier {id} is too long"))?;
    Ok([&[0x10, length], body.as_slice()].concat())
}

fn expect<const N: usize>(stream: &mut TcpStream, wanted: [u8; N], what: &str) -> Result<()> {
    let mut got = [0; N];
    stream.read_exact(&mut got).with_context(|| format!("waiting for {what}"))?;
    ensure!(got == wanted, "{got:?} instead of {what}");
    Ok(())
}

fn locked(seen: &Mutex<Vec<Newcomer>>) -> MutexGuard<'_, Vec<Newcomer>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_is_as_the_standard_has_it() {
        // MQTT 3.1.1, figures 3.2 to 3.6, without will, user name and password.
        let expected = [&[0x10, 14, 0, 4], b"MQTT".as_slice(), &[4, 2, 0, 60, 0, 2], b"me"].concat();
        assert_eq!(connect("me").unwrap(), expected);
        assert!(connect(&"x".repeat(200)).is_err());
    }
}
