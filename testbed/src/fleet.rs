//! Many MQTT clients on one host, each with one connection that it holds as long as it can.
//!
//! A client subscribes to a topic of its own and publishes to it. Its message comes back only if request path, broker
//! and reply path work for this very connection: the brokers know nothing of each other. It never reconnects, so
//! that a connection that broke is seen to be broken.

use std::convert::Infallible;
use std::mem;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::host::Host;
use crate::wait::wait_until;

/// A connection attempt that takes longer has failed, as one without an answer to its first message.
const CONNECT_LIMIT: Duration = Duration::from_secs(4);
/// Pause between a message's return and the next one.
const PACE: Duration = Duration::from_millis(200);
/// A message that has not come back in this time counts as a broken connection.
const ECHO_LIMIT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What is known of one client.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its MQTT client identifier.
    pub id: String,
    /// The VIP that it connected to.
    pub vip: SocketAddr,
    /// How it fares.
    pub state: SessionState,
    /// How many of its messages have come back.
    pub echoes: u64,
    /// The longest that one of them took, since [`Fleet::take_slowest`].
    pub slowest: Duration,
}

/// How a client fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// No message has come back yet.
    Connecting,
    /// Connected, and at least one message has come back.
    Alive,
    /// Gone, or never come to be; with the time and the reason.
    Broken {
        /// When it was noticed.
        at: Instant,
        /// The client library's words.
        why: String,
    },
}

/// Clients that live on one host. Dropping the fleet disconnects them.
#[derive(Debug)]
pub struct Fleet {
    sessions: Arc<Mutex<Vec<Session>>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    /// Connects one client per identifier to `vip`, all at once, and waits until each is alive or broken.
    ///
    /// # Errors
    ///
    /// When the thread for the clients cannot be started. A failed connection is not an error but a
    /// [`SessionState::Broken`].
    pub fn connect(host: &Host, vip: SocketAddr, ids: impl IntoIterator<Item = String>) -> Result<Fleet> {
        let session =
            |id| Session { id, vip, state: SessionState::Connecting, echoes: 0, slowest: Duration::ZERO };
        let sessions: Arc<Mutex<Vec<_>>> = Arc::new(Mutex::new(ids.into_iter().map(session).collect()));
        let (stop, stopped) = watch::channel(false);
        let thread = {
            let (host, sessions) = (host.clone(), sessions.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            thread::Builder::new().name(format!("mqtt {}", host.name())).spawn(move || {
                // A runtime of one thread: all its sockets belong to the namespace that this thread enters.
                match host.enter_this_thread() {
                    Ok(()) => runtime.block_on(run_all(vip, &sessions, &stopped)),
                    Err(error) => {
                        for index in 0..locked(&sessions).len() {
                            broken(&sessions, index, format!("{error:#}"));
                        }
                    }
                }
            })?
        };
        let fleet = Fleet { sessions, stop, thread: Some(thread) };
        wait_until(
            format_args!("the clients on {} to connect to {vip}", host.name()),
            CONNECT_LIMIT * 3,
            || {
                let undecided = fleet.sessions().iter().any(|s| s.state == SessionState::Connecting);
                Ok((!undecided).then_some(()))
            },
        )?;
        Ok(fleet)
    }

    /// The clients as they are now.
    #[must_use]
    pub fn sessions(&self) -> Vec<Session> {
        locked(&self.sessions).clone()
    }

    /// The identifiers of those that live.
    #[must_use]
    pub fn alive(&self) -> Vec<String> {
        let sessions = locked(&self.sessions);
        sessions.iter().filter(|s| s.state == SessionState::Alive).map(|s| s.id.clone()).collect()
    }

    /// The longest that any message has taken to come back since the last call of this.
    #[must_use]
    pub fn take_slowest(&self) -> Duration {
        let mut sessions = locked(&self.sessions);
        sessions.iter_mut().map(|session| mem::take(&mut session.slowest)).max().unwrap_or_default()
    }

    /// Waits until each client that lives has had `more` messages back since now, or has broken: afterwards
    /// [`Fleet::sessions`] tells what holds *after* this call began.
    ///
    /// # Errors
    ///
    /// When that takes longer than a message may take.
    pub fn settle(&self, more: u64) -> Result<()> {
        let before = self.sessions();
        let rounds = u32::try_from(more).unwrap_or(u32::MAX);
        wait_until(
            "every client to have a message back or to break",
            (PACE + ECHO_LIMIT) * (rounds + 1),
            || {
                let now = self.sessions();
                let settled = before.iter().zip(&now).all(|(before, now)| {
                    now.state != SessionState::Alive || now.echoes >= before.echoes.saturating_add(more)
                });
                Ok(settled.then_some(()))
            },
        )
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run_all(vip: SocketAddr, sessions: &Arc<Mutex<Vec<Session>>>, stopped: &watch::Receiver<bool>) {
    let ids: Vec<String> = locked(sessions).iter().map(|session| session.id.clone()).collect();
    let mut clients = JoinSet::new();
    for (index, id) in ids.into_iter().enumerate() {
        let (sessions, mut stopped) = (sessions.clone(), stopped.clone());
        clients.spawn(async move {
            let (client, mut events) = new_client(vip, &id);
            let told_to_stop = async {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            let ended = tokio::select! {
                ended = live(&client, &mut events, &id, |took| alive(&sessions, index, took)) => Some(ended),
                () = told_to_stop => None,
            };
            match ended {
                None => farewell(&client, &mut events).await,
                Some(Err(error)) => broken(&sessions, index, format!("{error:#}")),
                Some(Ok(never)) => match never {},
            }
        });
    }
    clients.join_all().await;
}

fn new_client(vip: SocketAddr, id: &str) -> (AsyncClient, EventLoop) {
    let host = match vip {
        SocketAddr::V4(vip) => vip.ip().to_string(),
        SocketAddr::V6(vip) => format!("[{}]", vip.ip()),
    };
    let mut options = MqttOptions::new(id, host, vip.port());
    options.set_keep_alive(KEEP_ALIVE);
    let (client, mut events) = AsyncClient::new(options, 16);
    let mut network = events.network_options();
    network.set_connection_timeout(CONNECT_LIMIT.as_secs());
    network.set_tcp_nodelay(true);
    events.set_network_options(network);
    (client, events)
}

/// Publishes to itself, one message at a time, until the connection breaks.
async fn live(
    client: &AsyncClient,
    events: &mut EventLoop,
    id: &str,
    mut echoed: impl FnMut(Duration),
) -> Result<Infallible> {
    let topic = format!("drover/echo/{id}");
    let mut sent = 0_u64;
    let mut sent_at = Instant::now();
    let mut deadline = sent_at + CONNECT_LIMIT;
    let mut next_message: Option<Instant> = None;
    loop {
        let wake = next_message.unwrap_or(deadline);
        let event = tokio::select! {
            event = events.poll() => event?,
            () = tokio::time::sleep_until(wake.into()) => {
                if next_message.take().is_none() {
                    bail!("message {sent} has not come back in time");
                }
                sent += 1;
                client.publish(&topic, QoS::AtMostOnce, false, sent.to_string()).await?;
                sent_at = Instant::now();
                deadline = sent_at + ECHO_LIMIT;
                continue;
            }
        };
        match event {
            Event::Incoming(Packet::ConnAck(_)) => client.subscribe(&topic, QoS::AtMostOnce).await?,
            Event::Incoming(Packet::SubAck(_)) => next_message = Some(Instant::now()),
            Event::Incoming(Packet::Publish(message)) => {
                if message.payload != sent.to_string() {
                    bail!("message {sent} came back as {:?}", message.payload);
                }
                echoed(sent_at.elapsed());
                next_message = Some(Instant::now() + PACE);
            }
            Event::Incoming(Packet::Disconnect) => bail!("the broker disconnected the client"),
            _ => {}
        }
    }
}

/// Leaves with a DISCONNECT, so that the broker does not take it for a fault; without waiting for anything.
async fn farewell(client: &AsyncClient, events: &mut EventLoop) {
    if client.try_disconnect().is_err() {
        return;
    }
    let sent = async {
        loop {
            match events.poll().await {
                Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect)) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), sent).await;
}

fn alive(sessions: &Mutex<Vec<Session>>, index: usize, took: Duration) {
    let session = &mut locked(sessions)[index];
    session.echoes += 1;
    session.slowest = session.slowest.max(took);
    session.state = SessionState::Alive;
}

fn broken(sessions: &Mutex<Vec<Session>>, index: usize, why: String) {
    locked(sessions)[index].state = SessionState::Broken { at: Instant::now(), why };
}

fn locked(sessions: &Mutex<Vec<Session>>) -> MutexGuard<'_, Vec<Session>> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}
