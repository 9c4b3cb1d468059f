//! A node's life in the tree: one session after another, and in each of them everything that a node does there.
//!
//! All of it runs in one task: following the head, keeping what tells of this node, watching its flags, and standing for
//! election.

use super::lead::{Campaign, Leading};
use super::link::Link;
use super::peers::Overtaken;
use super::vote::shortened;
use crate::control::forwarding::locked;
use crate::control::report::Report;
use coordination::follow::{Followed, follow};
use coordination::pace::{Backoff, Spread};
use coordination::presence::{Kept, Refusal, keep};
use coordination::setup::ensure_skeleton;
use coordination::{Error, Session, State, Store};
use host::clock::wall;
use host::log_limit::LogLimit;
use policy::leader;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};
use zk_schema::NodeName;
use zk_schema::tree::{
    Applied, Decided, Flag, Member, Mode, Replaced, StateRecord as _, Znode, machine, paths,
};

/// Pause after the end of a session and after the first failure to connect; doubled with each further one. All are
/// spread, so that nodes that lost their sessions together do not come back together.
const RETRY: Duration = Duration::from_millis(500);
/// The longest such pause.
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// Lines that may be logged at once of what keeps failing, and how often one more.
const LINES: u32 = 3;
const LINE_EVERY: Duration = Duration::from_secs(60);
/// Longest problem that is told in the tree, in bytes.
const LONGEST_PROBLEM: usize = 1000;
/// About how often a tree that is not there yet is looked for, and flags are read again.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A node's settings.
#[derive(Clone, Debug)]
pub struct MemberSettings {
    /// The node.
    pub node: NodeName,
    /// Its record, for other nodes to read.
    pub member: Member,
    /// Its settings as a leader.
    pub leader: leader::Timeouts,
    /// Cut off for longer, it probes all reals itself and leaves dead ones out.
    pub autonomy_after: Duration,
    /// Time after which everything is read again.
    pub reread: Duration,
}

/// A node's knowledge of the cluster.
#[derive(Clone, Debug)]
pub struct ClusterView {
    /// The leader's decision.
    pub followed: watch::Receiver<Followed>,
    /// The standing of the node to the tree.
    pub mode: watch::Receiver<Mode>,
    /// Tells whether operators took it out of service.
    pub maintenance: watch::Receiver<bool>,
    /// Tells whether it leads.
    pub leading: watch::Receiver<Leading>,
    /// The state of its connection.
    pub link: watch::Receiver<Link>,
    /// The owner of its name.
    pub name: watch::Receiver<Name>,
    /// Tells whether others have something newer while it is cut off, where somebody asks them.
    pub overtaken: watch::Receiver<Option<Overtaken>>,
    /// The former owner of its name.
    pub past: watch::Receiver<NameHistory>,
}

/// The former owner of a node's name, by what the tree shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameHistory {
    /// True if the tree has been looked at in this session.
    pub known: bool,
    /// Another machine's, that had it lately.
    pub replaced: Option<Replaced>,
    /// Boot id and addresses of this machine.
    own: (String, BTreeSet<IpAddr>),
}

impl NameHistory {
    /// Returns what to tell operators at `now`, in seconds since 1970.
    #[must_use]
    pub fn words(&self, now: u64) -> Option<String> {
        let replaced = self.replaced.as_ref().filter(|replaced| replaced.counts(now))?;
        Some(replaced.words(&self.own.0, &self.own.1, now))
    }
}

/// The owner of a node's name, by what the tree shows in this session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Name {
    /// The tree has not been looked at.
    #[default]
    Unknown,
    /// Its own.
    Own,
    /// Another node's, that is there: in words, with the fix. Whoever wrote in that one's name would pass for it.
    Taken(String),
}

/// A node in the tree.
#[derive(Debug)]
pub struct Agent<S> {
    store: S,
    settings: MemberSettings,
    report: watch::Receiver<Arc<Report>>,
    vote: watch::Receiver<Option<Vec<u8>>>,
    announced: watch::Receiver<Option<BTreeSet<IpAddr>>>,
    followed: watch::Sender<Followed>,
    mode: watch::Sender<Mode>,
    maintenance: watch::Sender<bool>,
    leading: watch::Sender<Leading>,
    link: watch::Sender<Link>,
    name: watch::Sender<Name>,
    past: watch::Sender<NameHistory>,
    log_limit: Mutex<LogLimit>,
}

impl<S: Store> Agent<S> {
    /// An agent that begins with `cached`, or, without it, takes over nothing below `floor`: the (term, epoch) of what a
    /// predecessor left in force. It tells others what `report` and `vote` say, as soon as there is something.
    #[must_use]
    pub fn new(
        store: S,
        settings: MemberSettings,
        cached: Option<Arc<Decided>>,
        floor: Option<(u64, u64)>,
        report: watch::Receiver<Arc<Report>>,
        vote: watch::Receiver<Option<Vec<u8>>>,
    ) -> (Self, ClusterView) {
        let now = Instant::now();
        let own = (settings.member.boot.clone(), settings.member.sources().collect());
        let agent = Self {
            store,
            settings,
            report,
            vote,
            announced: watch::channel(None).1,
            followed: watch::Sender::new(Followed { decided: cached, floor, ..Followed::default() }),
            mode: watch::Sender::new(Mode::Static),
            maintenance: watch::Sender::new(false),
            leading: watch::Sender::default(),
            link: watch::Sender::new(Link { connected: false, since: now, problem: None, sessions: 0 }),
            name: watch::Sender::default(),
            past: watch::Sender::new(NameHistory { own, ..NameHistory::default() }),
            log_limit: Mutex::new(LogLimit::new(LINES, LINE_EVERY)),
        };
        let learnt = ClusterView {
            followed: agent.followed.subscribe(),
            mode: agent.mode.subscribe(),
            maintenance: agent.maintenance.subscribe(),
            leading: agent.leading.subscribe(),
            link: agent.link.subscribe(),
            name: agent.name.subscribe(),
            overtaken: watch::channel(None).1,
            past: agent.past.subscribe(),
        };
        (agent, learnt)
    }

    /// Tells others also what it announces to routers, once that is known.
    #[must_use]
    pub fn announcing(self, announced: watch::Receiver<Option<BTreeSet<IpAddr>>>) -> Self {
        Self { announced, ..self }
    }

    /// Lives in the tree until `stop` is ready, and leaves it: its ephemeral znodes go at once.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut pauses = Backoff::new(&self.seed(), RETRY, LONGEST_RETRY);
        let mut pause = Duration::ZERO;
        let mut modes = pin!(self.keep_mode());
        loop {
            let connected = async {
                tokio::time::sleep(pause).await;
                self.store.connect().await
            };
            let connected = tokio::select! {
                biased;
                () = &mut stop => return,
                () = &mut modes => return,
                connected = connected => connected,
            };
            let session = match connected {
                Ok(session) => session,
                Err(error) => {
                    self.unlinked(error.to_string());
                    pause = pauses.pause();
                    continue;
                }
            };
            pauses.reset();
            self.link.send_modify(|link| link.sessions += 1);
            let end = tokio::select! {
                biased;
                () = &mut stop => End::Stopped,
                () = &mut modes => End::Stopped,
                end = self.serve(&session) => end,
            };
            match end {
                End::Stopped => {
                    session.close().await;
                    return;
                }
                End::Expired => {
                    warn!("the ZooKeeper session has ended; beginning another one");
                    pause = pauses.pause();
                }
                // What it has written in that name goes with the session.
                End::Displaced => {
                    session.close().await;
                    pause = Duration::ZERO;
                }
            }
            self.followed.send_modify(|followed| followed.current = false);
        }
    }

    /// The seed of chance: no other process's.
    fn seed(&self) -> String {
        format!("{} {}", self.settings.node, self.settings.member.instance)
    }

    fn unlinked(&self, problem: String) {
        // What keeps failing fails in several ways; the first is told at once, the others now and then.
        let is_new = self.link.borrow().problem.as_ref() != Some(&problem);
        let skipped = is_new.then(|| locked(&self.log_limit).allows(Instant::now())).flatten();
        if let Some(skipped) = skipped {
            warn!(problem, skipped, "no ZooKeeper; what is in force stays");
        }
        self.link.send_modify(|link| {
            if link.connected {
                link.since = Instant::now();
            }
            link.connected = false;
            link.problem = Some(problem);
        });
    }

    /// Everything that a node does in a session, until that has expired, or the node has lost its name to another.
    async fn serve(&self, session: &S::Session) -> End {
        self.name.send_replace(Name::Unknown);
        // Another machine may have had the name since.
        self.past.send_modify(|past| past.known = false);
        let registered = watch::Sender::new(None);
        let voted = watch::Sender::new(None);
        let applied = watch::Sender::new(None);
        let campaign = Campaign {
            node: self.settings.node.clone(),
            instance: self.settings.member.instance.clone(),
            settings: self.settings.leader,
            reread: self.settings.reread,
        };
        let own = {
            let (boot, instance) = (self.settings.member.boot.clone(), self.settings.member.instance.clone());
            move |there: &Znode| {
                Member::parse(&there.data).is_ok_and(|other| other.boot == boot || other.instance == instance)
            }
        };
        let node = &self.settings.node;
        let presence = Kept { path: paths::node(node), ephemeral: true, content: registered.subscribe() };
        let health = Kept { path: paths::health(node), ephemeral: true, content: voted.subscribe() };
        let in_force = Kept { path: paths::applied(node), ephemeral: false, content: applied.subscribe() };
        let in_tree = async {
            if !self.wait_for_tree(session).await {
                return;
            }
            let in_its_name = async {
                self.is_named(|name| *name == Name::Own).await;
                tokio::join!(
                    campaign.run(session, self.followed.subscribe(), &self.leading),
                    keep(session, health, |_| true, |_| ()),
                    async {
                        self.look_back(session).await;
                        keep(session, in_force, |_| true, |_| ()).await;
                    },
                );
            };
            tokio::join!(
                follow(session, &self.followed, self.settings.reread),
                keep(session, presence, own, |obstacle| self.occupied(obstacle)),
                in_its_name,
                self.keep_flags(session),
            );
        };
        let displaced = async {
            self.is_named(|name| *name == Name::Own).await;
            self.is_named(|name| matches!(name, Name::Taken(_))).await;
        };
        let end = tokio::select! {
            biased;
            () = self.keep_link(session) => End::Expired,
            () = displaced => End::Displaced,
            () = self.keep_contents(&registered, &voted, &applied) => End::Expired,
            () = async { in_tree.await; std::future::pending().await } => End::Expired,
        };
        self.leading.send_modify(|leading| leading.term = None);
        end
    }

    /// Waits until this node's name is as it should be.
    async fn is_named(&self, is_so: impl FnMut(&Name) -> bool) {
        if self.name.subscribe().wait_for(is_so).await.is_err() {
            std::future::pending().await
        }
    }

    /// Finds out, before its record is overwritten, who had this node's name last.
    async fn look_back(&self, session: &S::Session) {
        let path = paths::applied(&self.settings.node);
        let mut state = session.state();
        let mut pauses = Backoff::new(&self.seed(), RETRY, LONGEST_RETRY);
        let there = loop {
            if !State::wait_connected(&mut state).await {
                return;
            }
            match session.read(std::slice::from_ref(&path)).await {
                Ok(there) => break there.into_iter().flatten().next(),
                Err(Error::Expired) => return,
                Err(error) if error.is_of_one_znode() => {
                    warn!(%error, "it cannot be told whether another machine had this node's name");
                    break None;
                }
                Err(_) => tokio::time::sleep(pauses.pause()).await,
            }
        };
        let there = there.and_then(|there| Applied::parse(&there.data).ok());
        let now = wall();
        self.past.send_modify(|past| {
            let (boot, sources) = &past.own;
            let replaced = there.and_then(|there| there.predecessor(boot, sources, now));
            let is_new = replaced.is_some() && past.replaced != replaced;
            past.known = true;
            past.replaced = replaced;
            if let Some(words) = past.words(now).filter(|_| is_new) {
                warn!("{path}: {words}");
            }
        });
    }

    /// Waits for the cluster's record, and makes what is missing of the skeleton. `false`: the session is over.
    async fn wait_for_tree(&self, session: &S::Session) -> bool {
        let mut told = false;
        let mut spread = Spread::of_session(session.id(), paths::CLUSTER);
        loop {
            match ensure_skeleton(session).await {
                Ok(true) => return true,
                Ok(false) if !told => {
                    let problem = format!(
                        "{}: no such znode, so there is no cluster to join; `create {} '{{\"seed\":\"<32 hexadecimal digits>\"}}'` \
                         makes one, with what `openssl rand -hex 16` prints as its seed",
                        paths::CLUSTER,
                        paths::CLUSTER
                    );
                    error!("{problem}");
                    self.followed.send_modify(|followed| followed.problem = Some(problem));
                    told = true;
                }
                Ok(false) => {}
                Err(Error::Expired) => return false,
                Err(error) => {
                    if !error.is_lost() {
                        error!(%error, "the tree cannot be used");
                    }
                }
            }
            tokio::time::sleep(spread.around(LOOK_EVERY)).await;
        }
    }

    fn occupied(&self, obstacle: Option<Refusal>) {
        match obstacle {
            Some(Refusal::Occupied(znode)) => {
                let words = |member: &Member| machine(&member.boot, &member.sources().collect());
                let who = match Member::parse(&znode.data) {
                    Ok(other) => format!("instance {}, at {}", other.instance, words(&other)),
                    Err(_) => "somebody else".to_owned(),
                };
                let problem = format!(
                    "{}: another node of this name is there ({who}), and this one is at {}; give this one another name, or \
                     wait until that one has left",
                    paths::node(&self.settings.node),
                    words(&self.settings.member)
                );
                let taken = Name::Taken(problem.clone());
                if self.name.send_replace(taken.clone()) != taken {
                    error!("{problem}");
                }
            }
            Some(Refusal::Failing(error)) if !error.is_lost() => {
                if let Some(skipped) = locked(&self.log_limit).allows(Instant::now()) {
                    warn!(%error, skipped, "this node cannot be announced in the tree");
                }
            }
            Some(Refusal::Failing(_)) => {}
            None => {
                self.name.send_if_modified(|name| {
                    let is_new = *name != Name::Own;
                    *name = Name::Own;
                    is_new
                });
            }
        }
    }

    /// Follows the session's state until it has expired.
    async fn keep_link(&self, session: &S::Session) {
        let mut states = session.state();
        loop {
            let state = *states.borrow_and_update();
            match state {
                State::Connected => {
                    let is_new = self.link.send_if_modified(|link| {
                        let is_new = !link.connected;
                        if is_new {
                            *link = Link { connected: true, since: Instant::now(), problem: None, ..*link };
                        }
                        is_new
                    });
                    if is_new {
                        info!(session = format!("{:#x}", session.id()), "connected to ZooKeeper");
                    }
                }
                State::Disconnected => self.unlinked("the connection was lost".to_owned()),
                State::Expired => {
                    self.unlinked("the session has expired".to_owned());
                    return;
                }
            }
            if states.changed().await.is_err() {
                return;
            }
        }
    }

    /// Derives the mode from the connection, for ever.
    async fn keep_mode(&self) {
        let mut link = self.link.subscribe();
        loop {
            let (connected, since) = {
                let link = link.borrow_and_update();
                (link.connected, link.since)
            };
            let alone_at = since + self.settings.autonomy_after;
            let mode = match connected {
                true => Mode::Live,
                false if Instant::now() >= alone_at => Mode::Autonomous,
                false => Mode::Static,
            };
            let is_new = self.mode.send_if_modified(|current| {
                let is_new = *current != mode;
                *current = mode;
                is_new
            });
            if is_new && mode == Mode::Autonomous {
                warn!("cut off from ZooKeeper: probing every real, and leaving dead ones out");
            }
            tokio::select! {
                biased;
                changed = link.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(alone_at), if mode == Mode::Static => {}
            }
        }
    }

    /// Keeps what the session's znodes are to hold. A node is there once it has the newest decision in force and has
    /// passed its self-test; what it finds counts from then on.
    async fn keep_contents(
        &self,
        registered: &watch::Sender<Option<Vec<u8>>>,
        voted: &watch::Sender<Option<Vec<u8>>>,
        applied: &watch::Sender<Option<Vec<u8>>>,
    ) {
        let (mut report, mut vote, mut followed) =
            (self.report.clone(), self.vote.clone(), self.followed.subscribe());
        let mut announced = self.announced.clone();
        let mut past = self.past.subscribe();
        let mut is_in = false;
        loop {
            let now = Arc::clone(&report.borrow_and_update());
            let (wanted, refused) = {
                let followed = followed.borrow_and_update();
                let order = followed.decided.as_ref().map(|decided| decided.head.order());
                // The tree has gone back, and nothing is known but where the tables in the kernel are from: that is what
                // the next leader has to go beyond.
                let refused = followed.floor.zip(followed.problem.clone()).filter(|_| order.is_none());
                (order.filter(|_| followed.current), refused)
            };
            is_in |=
                now.healthy && now.order.is_some() && wanted.is_some_and(|wanted| now.order >= Some(wanted));
            let in_force = now.order.or(refused.as_ref().map(|(floor, _)| *floor));
            let before = past.borrow_and_update().clone();
            if let Some((term, epoch)) = in_force.filter(|_| before.known) {
                let problem = now.problem.clone().or(refused.map(|(_, problem)| problem));
                let record = Applied {
                    term,
                    epoch,
                    digest: now.digest.clone(),
                    mode: now.mode,
                    problem: problem.as_deref().map(|problem| shortened(problem, LONGEST_PROBLEM)),
                    announced: announced.borrow_and_update().clone(),
                    sources: self.settings.member.sources().collect(),
                    boot: Some(self.settings.member.boot.clone()),
                    replaced: before.replaced.filter(|replaced| replaced.counts(wall())),
                    extra: Default::default(),
                };
                put(applied, record.bytes().ok());
            }
            let votes = vote.borrow_and_update().clone();
            if is_in {
                put(registered, self.settings.member.bytes().ok());
                put(voted, votes);
            }
            tokio::select! {
                biased;
                Ok(()) = report.changed() => {}
                Ok(()) = vote.changed() => {}
                Ok(()) = followed.changed() => {}
                Ok(()) = announced.changed() => {}
                Ok(()) = past.changed() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// Follows this node's flags until the session has expired.
    async fn keep_flags(&self, session: &S::Session) {
        let path = paths::maintenance(&self.settings.node);
        let mut state = session.state();
        let mut spread = Spread::of_session(session.id(), &path);
        let mut pauses = Backoff::new(&self.seed(), RETRY, LONGEST_RETRY);
        loop {
            if !State::wait_connected(&mut state).await {
                return;
            }
            let (flag, changed) = match session.watch(&path).await {
                Ok(watched) => watched,
                Err(Error::Expired) => return,
                Err(_) => {
                    tokio::time::sleep(pauses.pause()).await;
                    continue;
                }
            };
            pauses.reset();
            let flag = flag.map(|znode| Flag::read(&znode.data)).filter(|flag| flag.counts(wall()));
            let wanted = flag.is_some();
            let is_new = self.maintenance.send_if_modified(|current| {
                let is_new = *current != wanted;
                *current = wanted;
                is_new
            });
            match (is_new, flag) {
                (true, Some(flag)) => info!(by = flag.by, why = flag.why, "taken out of service"),
                (true, None) => info!("back in service"),
                _ => {}
            }
            tokio::select! {
                biased;
                () = changed => {}
                // A flag ends by itself, too.
                () = tokio::time::sleep(spread.around(LOOK_EVERY)) => {}
            }
        }
    }
}

/// The reason why a session is over.
enum End {
    Stopped,
    Expired,
    Displaced,
}

fn put(sender: &watch::Sender<Option<Vec<u8>>>, content: Option<Vec<u8>>) {
    sender.send_if_modified(|current| {
        let differs = *current != content;
        *current = content;
        differs
    });
}

#[cfg(test)]
mod tests;
