//! Leading: standing for election, and writing what [`Leader`] decides, fenced, for as long as the leadership lasts.

use super::history::{History, ListLost};

use coordination::election::{Candidate, ElectionError, Leadership};
use coordination::follow::Followed;
use coordination::pace::{Backoff, Spread};
use coordination::setup::ensure_skeleton;
use coordination::{Change, Error, Mirror, Pattern, Session, State};
use host::clock::wall;
use host::log_limit::LogLimit;
use policy::desk::Desk;
use policy::leader::{self, Leader, PATTERNS, Publication, Published};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};
use zk_schema::tree::{
    Applied, Contents, Decided, Decision, Head, StateRecord as _, Term, is_plausible, paths,
};
use zk_schema::{NodeName, RealName, RecordError, VipName};

/// Time between a leader's looks at the clock when nothing changes.
const TICK: Duration = Duration::from_millis(200);
/// Lines that may be logged at once of leaderships that end, and how often one more.
const LINES: u32 = 5;
const LINE_EVERY: Duration = Duration::from_secs(30);
/// Decisions that may be logged at once, and how often one more.
const DECISIONS: u32 = 50;
const DECISION_EVERY: Duration = Duration::from_millis(500);
/// About the pause before standing for election again.
const AGAIN: Duration = Duration::from_millis(500);
/// The first such pause of a node that found that it cannot lead, doubled each time, and the longest: others come first.
const CANNOT: Duration = Duration::from_secs(5);
const LONGEST_CANNOT: Duration = Duration::from_secs(60);
/// Within which a new leader must have read everything once, and for how long a leader may fail to decide, until it
/// makes way for another.
const COMPLETE_WITHIN: Duration = Duration::from_secs(60);
const UNDECIDED_FOR: Duration = Duration::from_secs(10);
/// The number of session timeouts for which a node that knows nothing of what is in force lets another lead that does.
const UNKNOWING: u32 = 3;
/// The most small records that are read at once.
const READ_AT_ONCE: usize = 100;
/// Bytes that one commit may hold: ZooKeeper breaks connections over requests near 1 MiB.
const COMMIT_BYTES: usize = 600 * 1024;

/// A node's knowledge of its own leadership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leading {
    /// The term, while it leads.
    pub term: Option<u64>,
    /// The reason why it cannot lead, if it cannot.
    pub problem: Option<String>,
}

/// A candidate and its settings.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The node.
    pub node: NodeName,
    /// This process.
    pub instance: String,
    /// The settings of its leadership.
    pub settings: leader::Timeouts,
    /// Time after which everything is read again.
    pub reread: Duration,
}

/// The reason why a leadership ended.
enum End {
    /// The session is over: nothing more to do in it.
    Expired,
    /// Somebody else leads, or may.
    SteppedDown(String),
    /// This node no longer leads, since it cannot.
    CannotDecide(String),
    /// Its place in the line was taken away, or somebody else was faster.
    Overtaken(Error),
}

/// A node's failure to lead, for as long as it counts.
struct Trouble<'a> {
    leading: &'a watch::Sender<Leading>,
    pauses: Backoff,
    /// The newest term when it failed: when one after it has decided something, that is over. `None`: it could not
    /// even stand for election.
    term: Option<u64>,
}

impl Trouble<'_> {
    /// Takes note of a failure; returns how long others come first.
    fn told(&mut self, problem: &str, term: Option<u64>) -> Duration {
        let is_new = self.leading.send_if_modified(|leading| {
            let is_new = leading.problem.as_deref() != Some(problem);
            leading.problem = Some(problem.to_owned());
            is_new
        });
        if is_new {
            warn!(problem, "cannot lead; trying again");
        }
        self.term = term;
        self.pauses.pause()
    }

    /// Takes note that the failure is over.
    fn over(&mut self) {
        self.pauses.reset();
        self.leading.send_if_modified(|leading| leading.problem.take().is_some());
    }

    /// Takes note of it when somebody has decided something in a later term.
    async fn until_another_decides(&mut self, followed: &watch::Receiver<Followed>) {
        let Some(term) = self.term else { return std::future::pending::<()>().await };
        let mut followed = followed.clone();
        let is_later =
            |followed: &Followed| followed.decided.as_ref().is_some_and(|decided| decided.head.term > term);
        if followed.wait_for(is_later).await.is_ok() {
            self.over();
        }
        std::future::pending::<()>().await;
    }
}

impl Campaign {
    /// Stands for election and leads, again and again, until the session has expired.
    pub async fn run<S: Session>(
        &self,
        session: &S,
        followed: watch::Receiver<Followed>,
        leading: &watch::Sender<Leading>,
    ) {
        let mut state = session.state();
        let mut list_lost = ListLost::default();
        let mut log_limit = LogLimit::new(LINES, LINE_EVERY);
        let pauses = Backoff::new(&self.instance, CANNOT, LONGEST_CANNOT);
        let mut trouble = Trouble { leading, pauses, term: None };
        let mut spread = Spread::of_session(session.id(), paths::ELECTION);
        loop {
            if !State::wait_connected(&mut state).await {
                return;
            }
            let end = self.once(session, &followed, &mut trouble, &mut list_lost).await;
            leading.send_if_modified(|leading| leading.term.take().is_some());
            let pause = match end {
                Ok(End::Expired) | Err(ElectionError::Store(Error::Expired)) => return,
                Ok(End::SteppedDown(why)) => {
                    if let Some(skipped) = log_limit.allows(tokio::time::Instant::now()) {
                        info!(why, skipped, "no longer leads");
                    }
                    spread.around(AGAIN)
                }
                Ok(End::CannotDecide(why)) => trouble.told(&why, trouble.term),
                Ok(End::Overtaken(error)) => {
                    debug!(%error, "standing for election anew");
                    spread.around(AGAIN)
                }
                // That is no trouble of the election's, and told where the connection is.
                Err(ElectionError::Store(error)) if error.is_lost() => {
                    debug!(%error, "cannot stand for election for now");
                    spread.around(AGAIN)
                }
                Err(error) => trouble.told(&error.to_string(), trouble.term),
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn once<S: Session>(
        &self,
        session: &S,
        followed: &watch::Receiver<Followed>,
        trouble: &mut Trouble<'_>,
        list_lost: &mut ListLost,
    ) -> Result<End, ElectionError> {
        let had_stood = trouble.term.take();
        // Somebody may have deleted a part of the tree since this session began.
        if !ensure_skeleton(session).await? {
            return Err(Error::NoNode(paths::CLUSTER.to_owned()).into());
        }
        self.learn(followed).await;
        let candidate = Candidate::stand(session.clone(), self.node.clone(), &self.instance).await?;
        let newest = || followed.borrow().decided.as_ref().map_or(0, |decided| decided.head.term);
        if had_stood.is_none() {
            trouble.over();
        }
        trouble.term = Some(had_stood.unwrap_or_else(newest));
        let end = self.in_line(session, &candidate, followed, trouble, list_lost).await;
        let lost = match &end {
            Ok(end) => matches!(end, End::Expired),
            Err(ElectionError::Store(error)) => error.is_lost() || *error == Error::Expired,
            Err(ElectionError::Term(_)) => false,
        };
        // Whoever cannot lead stands in nobody's way.
        if !lost && *session.state().borrow() == State::Connected {
            // If it stays, it is deleted when this node stands again.
            let left = candidate.leave().await;
            debug!(?left, "out of the line");
        }
        end
    }

    async fn in_line<S: Session>(
        &self,
        session: &S,
        candidate: &Candidate<S>,
        followed: &watch::Receiver<Followed>,
        trouble: &mut Trouble<'_>,
        list_lost: &mut ListLost,
    ) -> Result<End, ElectionError> {
        let overtaken =
            |error: &Error| matches!(error, Error::NoNode(_) | Error::BadVersion(_) | Error::Exists(_));
        let waited = tokio::select! {
            biased;
            waited = candidate.wait(self.reread) => waited,
            () = trouble.until_another_decides(followed) => Ok(()),
        };
        match waited {
            Err(error) if overtaken(&error) => return Ok(End::Overtaken(error)),
            waited => waited?,
        }
        let (known, in_force) = {
            let followed = followed.borrow();
            (followed.decided.clone(), followed.order())
        };
        let beyond = greatest(session, in_force).await?;
        let leadership = match candidate.lead(beyond.term, wall()).await {
            Err(ElectionError::Store(error)) if overtaken(&error) => return Ok(End::Overtaken(error)),
            leadership => leadership?,
        };
        debug!(term = leadership.term(), "leads");
        trouble.term = Some(leadership.term());
        trouble.leading.send_modify(|leading| leading.term = Some(leadership.term()));
        Ok(self.lead(session, &leadership, known.as_deref(), beyond.epoch, trouble, list_lost).await)
    }

    /// Waits until this node knows what is in force, for some time: somebody who knows it should lead, since what is in
    /// the tree may be damaged.
    async fn learn(&self, followed: &watch::Receiver<Followed>) {
        let mut followed = followed.clone();
        let known = followed.wait_for(|followed| followed.current || followed.decided.is_some());
        let _ = tokio::time::timeout(self.settings.session_timeout * UNKNOWING, known).await;
    }

    /// Leads until that is over. What is damaged in the tree is taken from what is `known` here; no epoch up to
    /// `beyond` is written.
    async fn lead<S: Session>(
        &self,
        session: &S,
        leadership: &Leadership<S>,
        known: Option<&Decided>,
        beyond: u64,
        trouble: &mut Trouble<'_>,
        list_lost: &mut ListLost,
    ) -> End {
        let start = Instant::now();
        let mut state = session.state();
        let patterns = PATTERNS.iter().map(|pattern| Pattern::new(pattern)).collect();
        let mirror = Mirror::new(session.clone(), patterns, self.reread);
        let mut contents = mirror.contents();
        // Nothing is decided before everything has been seen.
        let first = tokio::select! {
            biased;
            _ = state.wait_for(|state| *state != State::Connected) => None,
            first = contents.wait_for(|contents| contents.complete) => first.ok().map(|first| first.clone()),
            () = tokio::time::sleep(COMPLETE_WITHIN) => {
                return End::CannotDecide(format!("the tree could not be read within {COMPLETE_WITHIN:?}"));
            }
        };
        let Some(first) = first else { return over(session) };
        let mut published = Published::parse(&first);
        let mut damaged = published.complete(known);
        // What can neither be read nor is known here would be taken for a VIP that is new.
        let unknown = unreadable(&first).find(|name| !published.assignments.contains_key(name));
        if let Some(path) = unknown.map(|name| paths::assignment(&name)) {
            let why = first.unreadable.get(&path).map_or("", String::as_str);
            return End::CannotDecide(format!("{path}: {why}"));
        }
        damaged.extend(unreadable(&first));
        let newest = published.epoch().max(beyond);
        let mut told = LogLimit::new(DECISIONS, DECISION_EVERY);
        let mut history = History::new(self.node.clone());
        history.look(session, newest, list_lost).await;
        let mut look_again = Instant::now() + self.reread;
        let leader = Leader::new(leadership.term(), self.settings, published, beyond, start.elapsed())
            .after(leadership.predecessor().cloned());
        let mut own = match session.watch(leadership.candidate()).await {
            Ok((Some(_), gone)) => gone,
            Ok((None, _)) => return End::SteppedDown("its candidate's znode is gone".to_owned()),
            Err(Error::Expired) => return End::Expired,
            Err(error) if error.is_of_one_znode() => return End::CannotDecide(error.to_string()),
            Err(error) => return End::SteppedDown(error.to_string()),
        };
        let mut failed: Option<(String, Instant)> = None;
        let seen = Arc::clone(&contents.borrow_and_update());
        let mut desk = Desk::new(leader, seen, damaged, wall(), start.elapsed());
        loop {
            let newest = Arc::clone(&contents.borrow_and_update());
            let before = Instant::now();
            desk.look(&newest, wall(), start.elapsed());
            if let Some(old) = desk.long_gone(start.elapsed()) {
                let delete = Change::Delete { path: paths::applied(&old), version: None };
                match leadership.commit(vec![delete]).await {
                    Err(error) if leadership.is_over(&error) => return End::SteppedDown(error.to_string()),
                    Ok(()) | Err(Error::NoNode(_)) => {
                        info!(node = %old, "forgot a node that has been gone for long")
                    }
                    Err(error) if error.is_of_one_znode() => {
                        warn!(%error, node = %old, "cannot be forgotten")
                    }
                    Err(error) => return End::SteppedDown(error.to_string()),
                }
            }
            if let Some(why) = desk.view().blind(desk.leader().in_force().head.is_some()) {
                return End::CannotDecide(why);
            }
            if let Some(term) = desk.leader().outranked(desk.view()) {
                return End::SteppedDown(format!(
                    "a node has term {term} in force, and follows only who leads with a greater one"
                ));
            }
            match desk.decide(start.elapsed()) {
                Ok(None) => {
                    failed = None;
                    trouble.over();
                }
                Ok(Some(publication)) => {
                    match write(session, leadership, &publication, &newest, &mut history).await {
                        Ok(()) => {
                            trouble.over();
                            tell(&publication, &mut told);
                            desk.published(publication, start.elapsed());
                            failed = None;
                        }
                        Err(WriteError::Store(Error::Expired)) => return End::Expired,
                        Err(WriteError::Store(error)) if leadership.is_over(&error) || error.is_lost() => {
                            return End::SteppedDown(error.to_string());
                        }
                        Err(error) => {
                            // What is in the tree is not what this leader thinks: it begins anew.
                            return End::CannotDecide(format!("the decision cannot be written: {error}"));
                        }
                    }
                }
                Err(error) => {
                    let problem = format!("the decision cannot be written: {error}");
                    if failed.as_ref().is_none_or(|(last, _)| *last != problem) {
                        error!(%error, "the decision cannot be written");
                    }
                    let since = failed.map_or_else(Instant::now, |(_, since)| since);
                    if since.elapsed() >= UNDECIDED_FOR {
                        return End::CannotDecide(problem);
                    }
                    failed = Some((problem, since));
                }
            }
            if Instant::now() >= look_again {
                history.look(session, desk.leader().in_force().epoch().max(beyond), list_lost).await;
                look_again = Instant::now() + self.reread;
                // Its watch may have been lost.
                own = match session.watch(leadership.candidate()).await {
                    Ok((Some(_), gone)) => gone,
                    Ok((None, _)) => return End::SteppedDown("its candidate's znode is gone".to_owned()),
                    Err(Error::Expired) => return End::Expired,
                    Err(error) if error.is_of_one_znode() => return End::CannotDecide(error.to_string()),
                    Err(error) => return End::SteppedDown(error.to_string()),
                };
            }
            let old = history.superfluous();
            if !old.is_empty() {
                match leadership.commit(old.clone()).await {
                    Ok(()) => history.deleted(&old),
                    Err(error) if History::is_to_blame(&error) => history.not_deleted(&error),
                    Err(Error::Expired) => return End::Expired,
                    Err(error) => return End::SteppedDown(error.to_string()),
                }
            }
            tokio::select! {
                biased;
                _ = state.wait_for(|state| *state != State::Connected) => return over(session),
                () = &mut own => return End::SteppedDown("its candidate's znode is gone".to_owned()),
                changed = contents.changed() => if changed.is_err() { return over(session) },
                () = tokio::time::sleep(TICK) => {}
            }
            // A process that was stopped for long finds itself here, and must not trust what it saw before.
            if before.elapsed() > self.settings.session_timeout {
                return End::SteppedDown(format!("stood still for {:?}", before.elapsed()));
            }
        }
    }
}

fn over<S: Session>(session: &S) -> End {
    match *session.state().borrow() {
        State::Expired => End::Expired,
        _ => End::SteppedDown("the connection to ZooKeeper was lost".to_owned()),
    }
}

/// The greatest term and the greatest epoch that anybody is known to have in force or to have written, which what is
/// new must exceed: a head may be lost, and with it its number. What is [made up](leader::credible) does not count.
struct Greatest {
    term: u64,
    epoch: u64,
}

async fn greatest<S: Session>(session: &S, in_force: Option<(u64, u64)>) -> Result<Greatest, Error> {
    // What cannot be read says nothing here; whoever has a greater number in force will say so.
    let names = match session.children(paths::APPLIED).await {
        Ok(names) => names.unwrap_or_default(),
        Err(error) if error.is_of_one_znode() => Vec::new(),
        Err(error) => return Err(error),
    };
    let own = [paths::ASSIGNMENTS.to_owned(), paths::LEADER.to_owned()];
    let mut leaders: Vec<(u64, u64)> = in_force.into_iter().collect();
    for znode in session.read_each(&own).await?.into_iter().flatten().flatten() {
        leaders.extend(Head::parse(&znode.data).map(|head| head.order()));
        leaders.extend(Term::parse(&znode.data).map(|term| (term.term, 0)));
    }
    leaders.retain(|order| is_plausible(*order));
    let greatest = |orders: &[(u64, u64)]| Greatest {
        term: orders.iter().map(|(term, _)| *term).max().unwrap_or(0),
        epoch: orders.iter().map(|(_, epoch)| *epoch).max().unwrap_or(0),
    };
    let Greatest { term, epoch } = greatest(&leaders);
    let paths: Vec<String> = names.iter().map(|name| format!("{}/{name}", paths::APPLIED)).collect();
    for paths in paths.chunks(READ_AT_ONCE) {
        for znode in session.read_each(paths).await?.into_iter().flatten().flatten() {
            let order = Applied::parse(&znode.data).ok().map(|applied| applied.order());
            leaders.extend(order.filter(|order| leader::credible(*order, (term, epoch))));
        }
    }
    Ok(greatest(&leaders))
}

/// VIPs whose assignments are there and cannot be read.
fn unreadable(seen: &Contents) -> impl Iterator<Item = VipName> {
    let below = |path: &String| path.strip_prefix(paths::ASSIGNMENTS)?.strip_prefix('/')?.parse().ok();
    seen.unreadable.keys().filter_map(below)
}

/// The reason why a publication was not written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Store(#[from] Error),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Writes a publication and its event, into the tree as it was `seen`; without the event where that is what fails.
async fn write<S: Session>(
    session: &S,
    leadership: &Leadership<S>,
    publication: &Publication,
    seen: &Contents,
    history: &mut History,
) -> Result<(), WriteError> {
    let unreadable: BTreeSet<VipName> = unreadable(seen).collect();
    let epoch = publication.head.epoch;
    for is_mended in [false, true] {
        let event = history.change(publication);
        let has_event = event.is_some();
        match write_with(session, leadership, publication, &unreadable, event).await {
            Ok(()) if has_event => {
                history.written(epoch);
                return Ok(());
            }
            Err(WriteError::Store(error)) if History::is_to_blame(&error) => match is_mended {
                false => history.repair(session, epoch, &error).await,
                true => history.pause(&error),
            },
            other => return other,
        }
    }
    write_with(session, leadership, publication, &unreadable, None).await
}

/// Writes assignments, and the head after all of them: nodes act on the head alone. The event goes with the head. Those
/// that are `unreadable` are made anew, since the rights to a znode go with it.
async fn write_with<S: Session>(
    session: &S,
    leadership: &Leadership<S>,
    publication: &Publication,
    unreadable: &BTreeSet<VipName>,
    event: Option<Change>,
) -> Result<(), WriteError> {
    let names = session.children(paths::ASSIGNMENTS).await?.unwrap_or_default();
    let names: BTreeSet<String> = names.into_iter().collect();
    let mut batches = Batches { leadership, changes: Vec::new(), bytes: 0 };
    for (name, data) in &publication.records {
        let (path, data) = (paths::assignment(name), data.clone());
        let create = |path| Change::Create { path, data: data.clone(), ephemeral: false };
        let changes = match names.contains(name.as_str()) {
            true if unreadable.contains(name) => {
                vec![Change::Delete { path: path.clone(), version: None }, create(path)]
            }
            true => vec![Change::Set { path, data, version: None }],
            false => vec![create(path)],
        };
        batches.add(changes).await?;
    }
    let (path, data) = (paths::ASSIGNMENTS.to_owned(), publication.head.bytes()?);
    let mut head = vec![Change::Set { path, data, version: None }];
    head.extend(event);
    batches.add(head).await?;
    // Those that go, go after the head that no longer lists them.
    let gone = publication.changed.iter().filter(|(_, assignment)| assignment.is_none());
    for (name, _) in gone.filter(|(name, _)| names.contains(name.as_str())) {
        batches.add(vec![Change::Delete { path: paths::assignment(name), version: None }]).await?;
    }
    batches.commit().await?;
    Ok(())
}

/// Changes in commits of a size that ZooKeeper takes.
struct Batches<'a, S> {
    leadership: &'a Leadership<S>,
    changes: Vec<Change>,
    bytes: usize,
}

impl<S: Session> Batches<'_, S> {
    /// Adds changes that are to be made together.
    async fn add(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        let size: usize = changes.iter().map(size).sum();
        if self.bytes + size > COMMIT_BYTES && !self.changes.is_empty() {
            self.commit().await?;
        }
        self.bytes += size;
        self.changes.extend(changes);
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Error> {
        self.bytes = 0;
        self.leadership.commit(std::mem::take(&mut self.changes)).await
    }
}

fn size(change: &Change) -> usize {
    match change {
        Change::Create { data, .. } | Change::Set { data, .. } => data.len(),
        Change::Check { .. } | Change::Delete { .. } => 0,
    }
}

/// One line per decision, as long as they are not too many: all of them are in the events.
fn tell(publication: &Publication, log_limit: &mut LogLimit) {
    let Head { term, epoch, .. } = publication.head;
    for Decision { kind, vip, real, text, .. } in &publication.decisions {
        let Some(skipped) = log_limit.allows(Instant::now()) else { continue };
        let vip = vip.as_ref().map(VipName::as_str);
        let real = real.as_ref().map(RealName::as_str);
        match kind.as_str() {
            "held" | "lagging" | "cut-off" | "refused" => {
                warn!(term, epoch, kind, vip, real, text, skipped, "decided")
            }
            _ => info!(term, epoch, kind, vip, real, text, skipped, "decided"),
        }
    }
}
