//! Registration: a real that is in the cluster's tree for as long as its agent runs.
//!
//! The real's records are ephemeral, one for each VIP that it serves, and there only when the host can take packets for
//! that VIP. What operators wrote is never touched. From the same tree the agent learns the addresses of VIPs and nodes;
//! without the tree, everything stays as it is.

mod learn;
mod options;
mod task;
#[cfg(test)]
mod tests;

pub use options::Options;
pub(super) use task::Registration;

use super::load;
use coordination::pace::{Backoff, Spread};
use coordination::presence::{self, Kept, Refusal, keep};
use coordination::{Change, Error, Mirror, Pattern, Session, State, Store};
use futures_util::future::join_all;
use host::clock::wall;
use learn::{Fitness, Remembered, SOURCE_GRACE, Seen, VIP_GRACE, fitness};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};
use zk_schema::tree::{Assignment, Load, Registrant, StateRecord as _, Znode, paths};
use zk_schema::{Protocol, Real, RealName, VipName, from_json, to_json};

/// Pause after the end of a session and after the first failure, to connect or to make a parent; doubled with each
/// further one. All are spread, so that agents that lost their sessions together do not come back together.
const RETRY: Duration = Duration::from_millis(500);
/// The longest such pause.
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// Longest wait of an agent that ends until its real has no slots any more.
const LEAVE: Duration = Duration::from_secs(5);
/// About how often the tree is read anew though nothing was told, and what it names no more is looked through.
const REREAD: Duration = Duration::from_secs(60);
/// Records that are read in one request.
const READ_AT_ONCE: usize = 64;

/// The identity that a real registers with.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// The VIPs.
    pub(super) vips: BTreeSet<VipName>,
    /// The real's name.
    pub(super) name: RealName,
    /// The real's record.
    pub(super) real: Real,
    /// This agent, as records name it.
    pub(super) registrant: Registrant,
    /// The VIPs' addresses that the host has; `None`: those that the tree says.
    pub(super) served: Option<BTreeSet<IpAddr>>,
}

/// Addresses that a real learns from the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TreeView {
    /// The addresses of its VIPs.
    pub(super) vips: BTreeSet<IpAddr>,
    /// Source addresses of the nodes' packets.
    pub(super) sources: BTreeSet<IpAddr>,
}

/// State of the registration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Standing {
    /// A server of ZooKeeper answers.
    pub(super) connected: bool,
    /// The reason why none does, if so.
    pub(super) problem: Option<String>,
    /// State for each VIP.
    pub(super) vips: BTreeMap<VipName, Place>,
}

/// State of the registration for a VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Place {
    /// The record is there, as far as is known: while no server answers, it may be gone.
    pub(super) registered: bool,
    /// The reason why the record is not wanted, or not wanted to change.
    unfit: Option<String>,
    /// The obstacle to writing the record.
    obstacle: Option<String>,
    /// Clients' connections that are established; `None` while they are not counted.
    pub(super) connections: Option<u64>,
}

impl Place {
    /// The problem, if there is one.
    pub(super) fn problem(&self) -> Option<&str> {
        self.unfit.as_deref().or(self.obstacle.as_deref())
    }
}

impl Standing {
    /// Everything that is wrong.
    pub(super) fn problems(&self) -> Vec<String> {
        let no_zookeeper = self.problem.iter().map(|problem| format!("no ZooKeeper: {problem}"));
        let places = self.vips.iter().filter_map(|(vip, place)| match place.problem() {
            Some(problem) => Some(format!("VIP {vip}: {problem}")),
            None if !place.registered && self.problem.is_none() => {
                Some(format!("VIP {vip}: not registered yet"))
            }
            None => None,
        });
        no_zookeeper.chain(places).collect()
    }
}

/// Keeps a real registered.
#[derive(Debug)]
pub(super) struct Registrar<S> {
    store: S,
    settings: Identity,
    /// The VIPs' addresses that packets can be taken for.
    in_place: watch::Receiver<BTreeSet<IpAddr>>,
    seen: watch::Sender<Option<Seen>>,
    /// The content that each VIP's record of this real is to have. It outlives sessions, and so does its basis, `seen`.
    contents: BTreeMap<VipName, watch::Sender<Option<Vec<u8>>>>,
    /// The content that each VIP's record of this real's load is to have.
    loads: BTreeMap<VipName, watch::Sender<Option<Vec<u8>>>>,
    learnt: watch::Sender<Option<TreeView>>,
    standing: watch::Sender<Standing>,
}

impl<S: Store> Registrar<S> {
    /// A registrar for a host that can take packets for the VIPs at the addresses `in_place`.
    pub(super) fn new(store: S, settings: Identity, in_place: watch::Receiver<BTreeSet<IpAddr>>) -> Self {
        let vips = settings.vips.iter();
        let standing = Standing {
            problem: Some("not connected yet".to_owned()),
            vips: vips.clone().map(|vip| (vip.clone(), Place::default())).collect(),
            ..Standing::default()
        };
        Self {
            contents: vips.clone().map(|vip| (vip.clone(), watch::Sender::new(None))).collect(),
            loads: vips.map(|vip| (vip.clone(), watch::Sender::new(None))).collect(),
            store,
            settings,
            in_place,
            seen: watch::Sender::new(None),
            learnt: watch::Sender::new(None),
            standing: watch::Sender::new(standing),
        }
    }

    /// Follows the addresses that it learns; `None` until it has seen the tree.
    pub(super) fn learnt(&self) -> watch::Receiver<Option<TreeView>> {
        self.learnt.subscribe()
    }

    /// Follows its state.
    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Keeps the real registered until `stop` is ready, and takes it out of the tree then. `before` are the addresses
    /// that the host goes by until the tree has been seen, and for a while beyond.
    pub(super) async fn run(self, before: TreeView, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut always = pin!(async { tokio::join!(self.remember(before), self.decide(), self.measure()) });
        let seed = format!("{} {}", self.settings.name, self.settings.registrant.as_str());
        let mut pauses = Backoff::new(&seed, RETRY, LONGEST_RETRY);
        let mut pause = Duration::ZERO;
        loop {
            let connected = async {
                tokio::time::sleep(pause).await;
                self.store.connect().await
            };
            let connected = tokio::select! {
                biased;
                () = &mut stop => break,
                _ = &mut always => break,
                connected = connected => connected,
            };
            let session = match connected {
                Ok(session) => session,
                Err(error) => {
                    self.disconnected(error.to_string());
                    pause = pauses.pause();
                    continue;
                }
            };
            pauses.reset();
            let stopped = tokio::select! {
                biased;
                () = &mut stop => true,
                _ = &mut always => true,
                () = self.serve(&session) => false,
            };
            if stopped {
                self.take_leave(&session).await;
                session.close().await;
                info!(real = %self.settings.name, "left the tree");
                break;
            }
            warn!("the ZooKeeper session has ended; beginning another one");
            pause = pauses.pause();
            self.all_gone();
        }
        self.all_gone();
        self.standing.send_modify(|standing| {
            standing.connected = false;
            standing.problem = Some("stopping".to_owned());
        });
    }

    /// Tells the leader that this real ends on purpose, and waits for a while until it has no slots any more: a record
    /// that just vanishes is taken for a crash, and the real is used on.
    async fn take_leave(&self, session: &S::Session) {
        let leave = self.settings.vips.iter().map(|vip| self.take_leave_of(session, vip));
        let _ = tokio::time::timeout(LEAVE, join_all(leave)).await;
    }

    /// As [`Self::take_leave`], for one VIP. What fails here, the end of the session brings about later.
    async fn take_leave_of(&self, session: &S::Session, vip: &VipName) {
        let path = paths::real(vip, &self.settings.name);
        let Ok(there) = session.read(std::slice::from_ref(&path)).await else { return };
        let own = there.into_iter().flatten().find(|there| {
            there.owner.is_some() && registrant(there).as_ref() == Some(&self.settings.registrant)
        });
        let Some(own) = own else { return };
        let Ok(mut record) = from_json::<Real>(&own.data) else { return };
        Registrant::take_leave(&mut record);
        let Ok(data) = to_json(&record) else { return };
        if session.commit(vec![Change::Set { path, data, version: Some(own.version) }]).await.is_err() {
            return;
        }
        loop {
            let Ok((there, changed)) = session.watch(&paths::assignment(vip)).await else { return };
            let assignment = there.and_then(|there| Assignment::parse(&there.data).ok());
            if assignment.is_none_or(|assignment| !assignment.weights.contains_key(&self.settings.name)) {
                return;
            }
            changed.await;
        }
    }

    /// Everything in a session, until that has expired.
    async fn serve(&self, session: &S::Session) {
        let places = join_all(self.settings.vips.iter().map(|vip| self.keep(session, vip)));
        let loads = join_all(self.settings.vips.iter().map(|vip| self.keep_load(session, vip)));
        let in_tree = async {
            tokio::join!(self.look(session), places, loads);
            std::future::pending().await
        };
        tokio::select! {
            biased;
            () = self.keep_link(session) => {}
            () = in_tree => {}
        }
    }

    /// Keeps what was seen of the tree current, until the session has expired.
    async fn look(&self, session: &S::Session) {
        let vips = self.settings.vips.iter().map(|vip| Pattern::new(&paths::vip(vip)));
        let patterns = vips.chain([Pattern::new(&format!("{}/*", paths::NODES))]).collect();
        let mirror = Mirror::new(session.clone(), patterns, REREAD);
        let mut contents = mirror.contents();
        if contents.wait_for(|contents| contents.complete).await.is_err() {
            return;
        }
        let mut lingering = BTreeSet::new();
        let mut spread = Spread::of_session(session.id(), paths::APPLIED);
        // At once for the first time.
        let mut look_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(look_at) => {
                    look_at = Instant::now() + spread.around(REREAD);
                    let present: BTreeSet<String> =
                        contents.borrow().children(paths::NODES).map(|(node, _)| node.to_owned()).collect();
                    match lingering_sources(session, &present).await {
                        Ok(found) => lingering = found,
                        Err(error) => debug!(%error, "nodes that are not in the tree are as before"),
                    }
                }
                changed = contents.changed() => if changed.is_err() { return },
            }
            let seen = Seen::parse(&contents.borrow_and_update(), &self.settings.vips, &lingering);
            self.seen.send_if_modified(|current| replace(current, Some(seen)));
        }
    }

    /// Keeps what is learnt current, for ever.
    async fn remember(&self, before: TreeView) {
        let mut seen = self.seen.subscribe();
        let now = Instant::now();
        let mut vips = Remembered::new(VIP_GRACE, before.vips, now);
        let mut sources = Remembered::new(SOURCE_GRACE, before.sources, now);
        loop {
            let now = Instant::now();
            if let Some(seen) = &*seen.borrow_and_update() {
                vips.see(&seen.addresses(), now);
                sources.see(&seen.sources, now);
                let learnt = TreeView { vips: vips.addresses(), sources: sources.addresses() };
                self.learnt.send_if_modified(|current| replace(current, Some(learnt)));
            }
            tokio::select! {
                biased;
                changed = seen.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(REREAD) => {}
            }
        }
    }

    /// Keeps what the records are to hold current, as long as the host is one.
    async fn decide(&self) {
        let mut seen = self.seen.subscribe();
        let mut in_place = self.in_place.clone();
        loop {
            if let Some(seen) = &*seen.borrow_and_update() {
                let in_place = in_place.borrow_and_update().clone();
                for (vip, content) in &self.contents {
                    self.decide_on(vip, content, seen, &in_place);
                }
            }
            tokio::select! {
                biased;
                changed = seen.changed() => if changed.is_err() { return },
                changed = in_place.changed() => if changed.is_err() { return },
            }
        }
    }

    fn decide_on(
        &self,
        vip: &VipName,
        content: &watch::Sender<Option<Vec<u8>>>,
        seen: &Seen,
        in_place: &BTreeSet<IpAddr>,
    ) {
        let record = seen.vips.get(vip).and_then(Option::as_ref);
        let Identity { name, real, served, .. } = &self.settings;
        let fitness = fitness(vip, record, (name, real), served.as_ref(), in_place);
        let is_wanted = match &fitness {
            Fitness::Fit => true,
            Fitness::Unclear(_) => content.borrow().is_some(),
            Fitness::Unfit(_) => false,
        };
        let mut signed = real.clone();
        self.settings.registrant.sign(&mut signed);
        let (data, unfit) = match (fitness, to_json(&signed)) {
            (_, Err(error)) => (None, Some(format!("--address {}: {error}", real.address))),
            (Fitness::Fit, Ok(data)) => (Some(data), None),
            (Fitness::Unclear(problem) | Fitness::Unfit(problem), Ok(data)) => (Some(data), Some(problem)),
        };
        content.send_if_modified(|current| replace(current, data.filter(|_| is_wanted)));
        self.place(vip, |place| place.unfit = unfit);
    }

    /// Keeps the record for a VIP, until the session has expired.
    async fn keep(&self, session: &S::Session, vip: &VipName) {
        let content = &self.contents[vip];
        let path = paths::real(vip, &self.settings.name);
        let kept = Kept { path: path.clone(), ephemeral: true, content: content.subscribe() };
        // An operator's record is no agent's, even if it began as a copy of one.
        let is_own = |there: &Znode| {
            there.owner.is_some() && registrant(there).as_ref() == Some(&self.settings.registrant)
        };
        let obstacle = |obstacle: Option<Refusal>| {
            let registered = obstacle.is_none() && content.borrow().is_some();
            let obstacle = obstacle.map(|obstacle| match obstacle {
                Refusal::Occupied(there) => occupied(&path, &there),
                Refusal::Failing(error) => error.to_string(),
            });
            self.place(vip, |place| {
                place.registered = registered;
                place.obstacle = obstacle;
            });
        };
        let parent = [paths::reals(vip)];
        tokio::join!(keep(session, kept, is_own, obstacle), keep_parents(session, &parent, content));
    }

    /// Keeps the record of the load for a VIP, until the session has expired.
    async fn keep_load(&self, session: &S::Session, vip: &VipName) {
        let content = &self.loads[vip];
        let path = paths::load(vip, &self.settings.name);
        let kept = Kept { path, ephemeral: true, content: content.subscribe() };
        // Who is registered tells of the load: whatever else is there is a predecessor's.
        let is_own = |there: &Znode| there.owner.is_some();
        let failing = AtomicBool::new(false);
        let obstacle = |obstacle: Option<Refusal>| {
            let is_new = !failing.swap(obstacle.is_some(), Ordering::Relaxed);
            match obstacle {
                // Its parent may be about to be made.
                None | Some(Refusal::Failing(Error::NoNode(_) | Error::Lost(_))) => {}
                Some(obstacle) if is_new => warn!(%vip, ?obstacle, "the load of this real cannot be told"),
                Some(_) => {}
            }
        };
        let parents = [paths::LOAD.to_owned(), paths::loads(vip)];
        tokio::join!(keep(session, kept, is_own, obstacle), keep_parents(session, &parents, content));
    }

    /// Counts connections, and decides when to tell of them, for ever.
    async fn measure(&self) {
        let mut ticks = tokio::time::interval(load::EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told: BTreeMap<VipName, (u64, Instant)> = BTreeMap::new();
        let mut failed = false;
        loop {
            ticks.tick().await;
            let at = self.registered_at();
            let counted = match at.is_empty() {
                true => Ok(Ok(BTreeMap::new())),
                false => tokio::task::spawn_blocking(move || load::count(&at)).await,
            };
            let counts = match counted.map_err(std::io::Error::other).flatten() {
                Ok(counts) => {
                    failed = false;
                    counts
                }
                Err(error) => {
                    if !std::mem::replace(&mut failed, true) {
                        warn!(%error, "connections cannot be counted, and nobody is told of the load");
                    }
                    BTreeMap::new()
                }
            };
            let now = Instant::now();
            for (vip, content) in &self.loads {
                let count = counts.get(vip).copied();
                self.place(vip, |place| place.connections = count);
                let Some(connections) = count else {
                    told.remove(vip);
                    content.send_if_modified(|content| content.take().is_some());
                    continue;
                };
                let last = told.get(vip).map(|(count, at)| (*count, now - *at));
                if load::is_due(last, connections) {
                    told.insert(vip.clone(), (connections, now));
                    let record = Load { connections, at: wall(), extra: Default::default() };
                    content.send_replace(record.bytes().ok());
                }
            }
        }
    }

    /// The addresses of the VIPs that this real is registered for and that have connections.
    fn registered_at(&self) -> BTreeMap<VipName, SocketAddr> {
        let standing = self.standing.borrow();
        let seen = self.seen.borrow();
        let vips = seen.iter().flat_map(|seen| &seen.vips);
        let registered =
            vips.filter(|(vip, _)| standing.vips.get(*vip).is_some_and(|place| place.registered));
        let records = registered.filter_map(|(vip, record)| Some((vip, record.as_ref()?.as_ref().ok()?)));
        let with_connections = records.filter(|(_, record)| record.protocol == Protocol::Tcp);
        with_connections
            .map(|(vip, record)| (vip.clone(), SocketAddr::new(record.address, record.port)))
            .collect()
    }

    /// Follows the session's state until it has expired.
    async fn keep_link(&self, session: &S::Session) {
        let mut states = session.state();
        loop {
            let state = *states.borrow_and_update();
            match state {
                State::Connected => {
                    let is_new = self.standing.send_if_modified(|standing| {
                        standing.problem = None;
                        !std::mem::replace(&mut standing.connected, true)
                    });
                    if is_new {
                        info!(session = format!("{:#x}", session.id()), "connected to ZooKeeper");
                    }
                }
                State::Disconnected => self.disconnected("the connection was lost".to_owned()),
                State::Expired => {
                    self.disconnected("the session has expired".to_owned());
                    return;
                }
            }
            if states.changed().await.is_err() {
                return;
            }
        }
    }

    fn disconnected(&self, problem: String) {
        let is_new = self.standing.send_if_modified(|standing| {
            standing.connected = false;
            replace(&mut standing.problem, Some(problem.clone()))
        });
        if is_new {
            warn!(problem, "no ZooKeeper; VIPs and known nodes stay as they are");
        }
    }

    /// Changes how the registration for a VIP stands, and tells what is new of that.
    fn place(&self, vip: &VipName, change: impl FnOnce(&mut Place)) {
        self.standing.send_if_modified(|standing| {
            let place = standing.vips.entry(vip.clone()).or_default();
            let before = place.clone();
            change(place);
            if place.registered != before.registered {
                let what = if place.registered { "registered" } else { "not registered any more" };
                info!(%vip, real = %self.settings.name, address = %self.settings.real.address, "{what}");
            }
            if let Some(problem) = place.problem().filter(|problem| before.problem() != Some(problem)) {
                warn!(%vip, real = %self.settings.name, problem, "not registered as it should be");
            }
            *place != before
        });
    }

    fn all_gone(&self) {
        for vip in &self.settings.vips {
            self.place(vip, |place| {
                place.registered = false;
                place.obstacle = None;
            });
        }
    }
}

/// Reads the source addresses of nodes that are not among those `present` but may still forward. Their records change
/// with every epoch, so they are not watched.
async fn lingering_sources<S: Session>(
    session: &S,
    present: &BTreeSet<String>,
) -> Result<BTreeSet<IpAddr>, Error> {
    let names = session.children(paths::APPLIED).await?.unwrap_or_default();
    let absent = names.iter().filter(|name| !present.contains(*name));
    let absent: Vec<String> = absent.map(|name| format!("{}/{name}", paths::APPLIED)).collect();
    let mut sources = BTreeSet::new();
    for paths in absent.chunks(READ_AT_ONCE) {
        let found = session.read(paths).await?;
        sources.extend(learn::lingering(found.iter().flatten().map(|znode| &znode.data[..])));
    }
    Ok(sources)
}

/// Makes `parents`, the last of which is the parent of what holds `content`, where they are missing while there is
/// some, until the session has expired. They are looked at whenever something is told of the last, and about every
/// [`REREAD`](presence::REREAD), as what they are for.
async fn keep_parents<S: Session>(session: &S, parents: &[String], content: &watch::Sender<Option<Vec<u8>>>) {
    let Some(path) = parents.last() else { return };
    let mut content = content.subscribe();
    let mut state = session.state();
    let mut spread = Spread::of_session(session.id(), path);
    let mut pauses = Backoff::new(&format!("{:x} {path}", session.id()), RETRY, LONGEST_RETRY);
    loop {
        if !State::wait_connected(&mut state).await {
            return;
        }
        let is_wanted = content.borrow_and_update().is_some();
        let made = match session.watch(path).await {
            Ok((None, _)) if is_wanted => make(session, parents).await,
            Ok((_, changed)) => {
                pauses.reset();
                tokio::select! {
                    biased;
                    () = changed => {}
                    () = tokio::time::sleep(spread.around(presence::REREAD)) => {}
                    changed = content.changed() => if changed.is_err() { return },
                }
                continue;
            }
            Err(error) => Err(error),
        };
        match made {
            // It is looked at again.
            Ok(()) => {}
            Err(Error::Expired) => return,
            // What keeps it from being made keeps the record from it too, which tells.
            Err(_) => tokio::time::sleep(pauses.pause()).await,
        }
    }
}

/// Makes what is missing of these znodes, each the parent of the next.
async fn make<S: Session>(session: &S, parents: &[String]) -> Result<(), Error> {
    for path in parents {
        let create = Change::Create { path: path.clone(), data: Vec::new(), ephemeral: false };
        match session.commit(vec![create]).await {
            Ok(()) | Err(Error::Exists(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The agent that registered a record, if one did.
fn registrant(there: &Znode) -> Option<Registrant> {
    Registrant::of(&from_json(&there.data).ok()?)
}

/// Explains why a record that is there stays.
fn occupied(path: &str, there: &Znode) -> String {
    match (there.owner, registrant(there)) {
        (None, _) => format!(
            "{path}: an operator's record is there, and counts; delete it, or start this agent by another --name"
        ),
        (Some(_), Some(other)) => format!(
            "{path}: registered by {}, another host unless this one was booted just now; waiting for it to go, else \
             give this one another --name",
            other.as_str()
        ),
        (Some(session), None) => {
            format!("{path}: there already, of session {session:#x}; give this agent another --name")
        }
    }
}

/// Replaces what differs; returns whether it did.
fn replace<T: PartialEq>(current: &mut T, new: T) -> bool {
    let differs = *current != new;
    *current = new;
    differs
}
