//! The servers' part and the clients' part of sessions, and the network between them: a state machine that is told
//! the time.

use super::Entry;
use super::tree::{Step, Tree, split};
use crate::{Error, State};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// Time that a process which runs again takes to look at its connections.
const WAKE_UP: Duration = Duration::from_millis(10);

/// A server's work when a request arrives; returns the client's work for when the answer arrives.
pub(super) type Request = Box<dyn FnOnce(&mut Server, i64, Instant) -> Answer + Send>;

/// A client's work when an answer arrives. If none ever does, it is dropped.
pub(super) type Answer = Box<dyn FnOnce() + Send>;

/// Everything.
pub(super) struct Server {
    pub(super) tree: Tree,
    /// Transactions of clients that wrote something.
    pub(super) writes: u64,
    pub(super) timeout: Duration,
    /// Time after which a client notices a cut, if not 0.4 of the timeout.
    pub(super) notice_after: Option<Duration>,
    /// Of one way.
    pub(super) latency: Duration,
    outage: bool,
    clients: BTreeMap<String, Client>,
    sessions: BTreeMap<i64, Session>,
    last_session: i64,
    /// The changes since it was last taken, if they are kept.
    pub(super) journal: Option<Vec<Entry>>,
    /// Znodes that may not be read, each by path and the transaction that created it.
    forbidden: BTreeMap<String, i64>,
    /// The time at which the driver looks again by itself.
    pub(super) wakes: Option<Instant>,
}

/// A process with sessions, and its link to the servers.
pub(super) struct Client {
    pub(super) cut: bool,
    pub(super) paused: bool,
    pub(super) lose_replies: bool,
    pub(super) lose_notifications: bool,
    /// Since when it takes part again after a pause.
    awake: Option<Instant>,
    /// It can begin a session.
    reachable: watch::Sender<bool>,
}

/// A session, until both sides have forgotten it.
struct Session {
    client: String,
    /// It lives on the servers' side.
    alive: bool,
    /// The time at which the servers end it unless they hear from it.
    expires: Option<Instant>,
    /// Since when the client has not heard from the servers.
    silent_since: Option<Instant>,
    /// The state as the client sees it.
    state: Arc<watch::Sender<State>>,
    /// Requests on their way, with their arrival.
    up: VecDeque<(Instant, Request)>,
    /// Messages on their way to the client, with their arrival.
    down: VecDeque<(Instant, Message)>,
    /// Requests that the paused client has yet to send.
    unsent: Vec<Request>,
    watches: BTreeMap<(Kind, String), Vec<oneshot::Sender<()>>>,
    /// Watches that have fired and were not told to the client.
    lost: Vec<oneshot::Sender<()>>,
}

/// A message from a server.
enum Message {
    Answer(Answer),
    Fire(oneshot::Sender<()>),
    Expired,
}

/// The part of a znode that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Znode,
    Children,
}

/// An event that time brings. Of those due at one moment, the first variant goes first: a client gives up before the
/// servers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Request,
    Message,
    Notice,
    GiveUp,
    Expiry,
}

impl Server {
    pub(super) fn new() -> Self {
        Self {
            tree: Tree::new(),
            writes: 0,
            timeout: Duration::from_secs(6),
            notice_after: None,
            latency: Duration::ZERO,
            outage: false,
            clients: BTreeMap::new(),
            sessions: BTreeMap::new(),
            last_session: 0,
            journal: None,
            forbidden: BTreeMap::new(),
            wakes: None,
        }
    }

    /// Does what is due; returns when it is to be called again.
    pub(super) fn run(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let (at, due, id) = self.sessions.keys().filter_map(|id| self.due(*id)).min()?;
            if at > now {
                return Some(at);
            }
            match due {
                Due::Request => self.serve(id, at),
                Due::Message => self.deliver(id, at),
                Due::Notice => self.disconnect(id),
                Due::GiveUp => self.end_at_client(id, at),
                Due::Expiry => self.expire(id, at),
            }
        }
    }

    /// A session's next event.
    fn due(&self, id: i64) -> Option<(Instant, Due, i64)> {
        let session = &self.sessions[&id];
        let client = &self.clients[&session.client];
        let linked = self.linked(client);
        let sends = linked || (client.lose_replies && !self.outage);
        let request = session.up.front().filter(|_| sends).map(|(at, _)| (*at, Due::Request));
        let expiry = session.expires.filter(|_| session.alive).map(|at| (at, Due::Expiry));
        let awake = |at: Instant| client.awake.map_or(at, |awake| awake.max(at));
        let message = session.down.front().filter(|_| linked).map(|(at, _)| (awake(*at), Due::Message));
        let silent = session.silent_since;
        let notice_after = self.notice_after.unwrap_or(self.timeout.mul_f64(0.4));
        let connected = *session.state.borrow() == State::Connected;
        let notice = silent.filter(|_| connected).map(|at| (awake(at + notice_after), Due::Notice));
        let give_up = silent
            .filter(|_| *session.state.borrow() != State::Expired)
            .map(|at| (awake(at + self.timeout), Due::GiveUp));
        let of_client = [message, notice, give_up].into_iter().flatten().filter(|_| !client.paused);
        let next = [request, expiry].into_iter().flatten().chain(of_client).min()?;
        Some((next.0, next.1, id))
    }

    /// A request arrives.
    fn serve(&mut self, id: i64, now: Instant) {
        if let Some((_, request)) = self.session(id).up.pop_front() {
            let answer = request(self, id, now);
            self.send(id, now, Message::Answer(answer));
        }
    }

    /// A message arrives.
    fn deliver(&mut self, id: i64, now: Instant) {
        match self.session(id).down.pop_front() {
            None => {}
            Some((_, Message::Answer(answer))) => answer(),
            Some((_, Message::Fire(watch))) => {
                let _ = watch.send(());
            }
            Some((_, Message::Expired)) => self.end_at_client(id, now),
        }
    }

    /// The client finds its connection broken.
    fn disconnect(&mut self, id: i64) {
        let session = self.session(id);
        session.state.send_replace(State::Disconnected);
        session.forget();
    }

    /// The client takes the session for ended.
    pub(super) fn end_at_client(&mut self, id: i64, now: Instant) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.state.send_replace(State::Expired);
            session.forget();
            session.unsent.clear();
            self.settle(id, now);
        }
    }

    /// The servers end the session, without the client's doing.
    fn expire(&mut self, id: i64, now: Instant) {
        self.end_at_server(id, now);
        self.send(id, now, Message::Expired);
        self.settle(id, now);
    }

    /// The session's ephemeral znodes vanish.
    pub(super) fn end_at_server(&mut self, id: i64, now: Instant) {
        self.session(id).alive = false;
        let steps = self.tree.delete_owned(id);
        self.fire(id, &steps, now);
    }

    /// Takes away the right to read a znode that is there, or gives it back.
    pub(super) fn forbid(&mut self, path: &str, forbid: bool) {
        self.forbidden.remove(path);
        let there = self.tree.znode(path).ok().flatten().filter(|_| forbid);
        self.forbidden.extend(there.map(|znode| (path.to_owned(), znode.created)));
    }

    /// Refuses to have a znode read that may not be. One that is not there may be looked for.
    pub(super) fn may_read(&self, path: &str) -> Result<(), Error> {
        let created = self.tree.znode(path)?.map(|znode| znode.created);
        match created.is_some() && self.forbidden.get(path).copied() == created {
            true => Err(Error::NoAuth(path.to_owned())),
            false => Ok(()),
        }
    }

    /// Returns whether the servers know the session.
    pub(super) fn alive(&self, id: i64) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.alive)
    }

    /// Fires what watches these changes, made by this session.
    pub(super) fn fire(&mut self, id: i64, steps: &[Step], now: Instant) {
        self.note(id, steps, now);
        for step in steps {
            let (path, itself) = match step {
                Step::Created(path) | Step::Deleted(path, _) => (path, true),
                Step::Written(path, _) => (path, false),
            };
            let mut touched = vec![(Kind::Znode, path.clone())];
            if itself {
                touched.push((Kind::Children, path.clone()));
                touched.extend(split(path).map(|(parent, _)| (Kind::Children, parent.to_owned())));
            }
            let arrival = now + self.latency;
            for session in self.sessions.values_mut() {
                if session.alive {
                    let watches = touched.iter().filter_map(|key| session.watches.remove(key)).flatten();
                    if self.clients[&session.client].lose_notifications {
                        session.lost.extend(watches);
                        continue;
                    }
                    session.down.extend(watches.map(|watch| (arrival, Message::Fire(watch))));
                }
            }
        }
    }

    /// Notes changes in the journal, if it is kept.
    fn note(&mut self, id: i64, steps: &[Step], at: Instant) {
        let Some(journal) = &mut self.journal else { return };
        let client = &self.sessions[&id].client;
        for step in steps {
            let path = match step {
                Step::Created(path) | Step::Written(path, _) | Step::Deleted(path, _) => path,
            };
            let znode = self.tree.znode(path).ok().flatten();
            let (path, client) = (path.clone(), client.clone());
            journal.push(Entry { at, client, session: id, path, data: znode.map(|znode| znode.data) });
        }
    }

    /// Has a session watch.
    pub(super) fn watch(&mut self, id: i64, kind: Kind, path: &str, watch: oneshot::Sender<()>) {
        let watches = self.session(id).watches.entry((kind, path.to_owned())).or_default();
        watches.retain(|watch| !watch.is_closed());
        watches.push(watch);
    }

    /// Returns the number of watches that somebody waits for.
    pub(super) fn watches(&self) -> usize {
        let all = self.sessions.values().flat_map(|session| session.watches.values().flatten());
        all.filter(|watch| !watch.is_closed()).count()
    }

    /// Sends something to a client.
    fn send(&mut self, id: i64, now: Instant, message: Message) {
        let arrival = now + self.latency;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.down.push_back((arrival, message));
        }
    }

    /// A client sends a request.
    pub(super) fn request(&mut self, id: i64, now: Instant, request: Request) -> Result<(), Error> {
        let arrival = now + self.latency;
        let Some(session) = self.sessions.get_mut(&id) else { return Err(Error::Expired) };
        let state = *session.state.borrow();
        if self.clients[&session.client].paused {
            session.unsent.push(request);
            return Ok(());
        }
        match state {
            State::Connected => session.up.push_back((arrival, request)),
            State::Disconnected => return Err(Error::Lost(format!("{} is cut off", session.client))),
            State::Expired => return Err(Error::Expired),
        }
        Ok(())
    }

    /// Begins a session, if the client can.
    pub(super) fn begin(&mut self, client: &str) -> Option<(i64, Arc<watch::Sender<State>>)> {
        if !*self.clients[client].reachable.borrow() {
            return None;
        }
        self.last_session += 1;
        let state = Arc::new(watch::Sender::new(State::Connected));
        let session = Session {
            client: client.to_owned(),
            alive: true,
            expires: None,
            silent_since: None,
            state: Arc::clone(&state),
            up: VecDeque::new(),
            down: VecDeque::new(),
            unsent: Vec::new(),
            watches: BTreeMap::new(),
            lost: Vec::new(),
        };
        self.sessions.insert(self.last_session, session);
        Some((self.last_session, state))
    }

    /// Adds a client, unless there is one of that name.
    pub(super) fn add_client(&mut self, name: &str) {
        let reachable = !self.outage;
        self.clients.entry(name.to_owned()).or_insert_with(|| Client {
            cut: false,
            paused: false,
            lose_replies: false,
            lose_notifications: false,
            awake: None,
            reachable: watch::Sender::new(reachable),
        });
    }

    /// Tells whether a client can begin a session, always current.
    pub(super) fn reachable(&self, client: &str) -> watch::Receiver<bool> {
        self.clients[client].reachable.subscribe()
    }

    /// Changes a client's circumstances.
    pub(super) fn change(&mut self, client: &str, now: Instant, change: impl FnOnce(&mut Client)) {
        let client = self.clients.get_mut(client).expect("clients stay");
        let paused = client.paused;
        change(client);
        if paused && !client.paused {
            client.awake = Some(now + WAKE_UP);
        }
        self.settle_all(now);
    }

    /// All servers stop, or run again.
    pub(super) fn outage(&mut self, outage: bool, now: Instant) {
        self.outage = outage;
        self.settle_all(now);
    }

    /// The servers end a client's sessions.
    pub(super) fn expire_all(&mut self, client: &str, now: Instant) {
        let of_client = |(_, session): &(&i64, &Session)| session.alive && session.client == client;
        let ids: Vec<i64> = self.sessions.iter().filter(of_client).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.expire(id, now));
    }

    /// Draws the conclusions of changed circumstances.
    fn settle_all(&mut self, now: Instant) {
        for client in self.clients.values() {
            client.reachable.send_replace(self.linked(client) && !client.paused);
        }
        let ids: Vec<i64> = self.sessions.keys().copied().collect();
        ids.into_iter().for_each(|id| self.settle(id, now));
    }

    /// Sets a session's clocks going or stops them, lets its client find the servers again, and forgets a session that
    /// both sides have ended.
    fn settle(&mut self, id: i64, now: Instant) {
        let (timeout, latency, outage) = (self.timeout, self.latency, self.outage);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let client = &self.clients[&session.client];
        let linked = !client.cut && !outage;
        if linked {
            session.silent_since = None;
        } else {
            session.silent_since.get_or_insert(now);
        }
        let state = *session.state.borrow();
        if linked && !client.paused && state == State::Disconnected {
            session.state.send_replace(if session.alive { State::Connected } else { State::Expired });
        }
        let state = *session.state.borrow();
        if !client.paused {
            let unsent = std::mem::take(&mut session.unsent);
            if state == State::Connected {
                session.up.extend(unsent.into_iter().map(|request| (now + latency, request)));
            }
        }
        let heard = linked && !client.paused && state != State::Expired;
        session.expires =
            if heard || outage { None } else { session.expires.or_else(|| Some(now + timeout)) };
        if !session.alive && state == State::Expired {
            self.sessions.remove(&id);
        }
    }

    fn linked(&self, client: &Client) -> bool {
        !client.cut && !self.outage
    }

    fn session(&mut self, id: i64) -> &mut Session {
        self.sessions.get_mut(&id).expect("a session that something is due for is there")
    }
}

impl Session {
    /// The connection is gone, with all that was on its way; the client's watches fire, and its operations fail.
    fn forget(&mut self) {
        self.up.clear();
        self.down.clear();
        self.watches.clear();
        self.lost.clear();
    }
}
