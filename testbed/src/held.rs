//! Long-lived TCP connections that are used all the time, so that a break is seen at once.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;

use crate::host::Host;
use crate::wait::wait_until;

/// An exchange that takes longer means that the connection is broken.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);
const PACE: Duration = Duration::from_millis(5);

/// Connections from one host to the echo service at one address, held by a thread that sends by each in turn and
/// waits for the echo. None is ever opened again.
#[derive(Debug)]
pub struct Held {
    connections: Arc<Mutex<Vec<Connection>>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What is known of a held connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The server at its other end.
    pub server: String,
    /// How many messages have come back.
    pub echoes: u64,
    /// Why it broke, if it did.
    pub broken: Option<String>,
}

impl Held {
    /// Opens `count` connections.
    ///
    /// # Errors
    ///
    /// When one cannot be opened.
    pub fn open(client: &Host, at: SocketAddr, count: usize) -> Result<Held> {
        let mut streams = client.enter(|| (0..count).map(|_| connect(at)).collect::<Result<Vec<_>>>())??;
        let servers = streams.iter().map(|(server, _)| server.clone());
        let connections = servers.map(|server| Connection { server, echoes: 0, broken: None }).collect();
        let connections = Arc::new(Mutex::new(connections));
        let (stop, stopped) = watch::channel(false);
        let shared = connections.clone();
        let thread = thread::Builder::new().name(format!("held {}", client.name())).spawn(move || {
            for round in 0_u64.. {
                for (index, (_, stream)) in streams.iter_mut().enumerate() {
                    if *stopped.borrow() {
                        return;
                    }
                    if locked(&shared)[index].broken.is_some() {
                        continue;
                    }
                    let outcome = exchange(stream, round);
                    let connection = &mut locked(&shared)[index];
                    match outcome {
                        Ok(()) => connection.echoes += 1,
                        Err(error) => connection.broken = Some(format!("{error:#}")),
                    }
                }
                sleep(PACE);
            }
        })?;
        Ok(Held { connections, stop, thread: Some(thread) })
    }

    /// The connections as they are now.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        locked(&self.connections).clone()
    }

    /// How many connections each server holds that are not broken.
    #[must_use]
    pub fn whole(&self) -> BTreeMap<String, usize> {
        let mut whole = BTreeMap::new();
        for connection in self.connections().into_iter().filter(|connection| connection.broken.is_none()) {
            *whole.entry(connection.server).or_default() += 1;
        }
        whole
    }

    /// Waits until each connection has had two more messages back since now, or has broken: afterwards
    /// [`Held::connections`] tells what holds *after* this call began.
    ///
    /// # Errors
    ///
    /// When that takes longer than a minute.
    pub fn settle(&self) -> Result<()> {
        let before = self.connections();
        wait_until("every held connection to be used or to break", Duration::from_secs(60), || {
            let settled = |(before, now): (&Connection, &Connection)| {
                now.broken.is_some() || now.echoes >= before.echoes + 2
            };
            Ok(before.iter().zip(&self.connections()).all(settled).then_some(()))
        })
    }

    /// Panics unless all connections have outlived this moment.
    ///
    /// # Panics
    ///
    /// As it says, with the reasons.
    pub fn assert_all_live(&self) {
        self.settle().expect("held connections settle");
        let broken: Vec<Connection> =
            self.connections().into_iter().filter(|connection| connection.broken.is_some()).collect();
        assert!(broken.is_empty(), "{} connections broke: {broken:?}", broken.len());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn connect(at: SocketAddr) -> Result<(String, BufReader<TcpStream>)> {
    let stream =
        TcpStream::connect_timeout(&at, EXCHANGE_LIMIT).with_context(|| format!("connecting to {at}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(EXCHANGE_LIMIT))?;
    stream.set_write_timeout(Some(EXCHANGE_LIMIT))?;
    let mut stream = BufReader::new(stream);
    let mut server = String::new();
    stream.read_line(&mut server).context("waiting for the server's name")?;
    Ok((server.trim_end().to_owned(), stream))
}

fn exchange(stream: &mut BufReader<TcpStream>, round: u64) -> Result<()> {
    stream.get_mut().write_all(&round.to_be_bytes()).context("sending")?;
    let mut echo = [0; 8];
    stream.read_exact(&mut echo).context("waiting for the echo")?;
    anyhow::ensure!(u64::from_be_bytes(echo) == round, "another message came back");
    Ok(())
}

fn locked(connections: &Mutex<Vec<Connection>>) -> MutexGuard<'_, Vec<Connection>> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}
