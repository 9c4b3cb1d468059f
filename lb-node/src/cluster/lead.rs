//! Leading: standing for election, and writing what [`Leader`] decides, fenced, for as long as the leadership lasts.

use super::leader::{self, Leader, PATTERNS, Publication, Published, View};
use coordination::election::{Candidate, ElectionError, Leadership};
use coordination::follow::{Decided, Followed};
use coordination::setup::ensure_skeleton;
use coordination::{Change, Contents, Error, Mirror, Pattern, Session, State};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};
use zk_schema::tree::{Applied, Assignment, Head, StateRecord as _, paths};
use zk_schema::{NodeName, RecordError, VipName};

/// How often a leader looks at the clock when nothing changes.
const TICK: Duration = Duration::from_millis(200);
/// Pause before standing for election again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a leader gives its own writes to come back to it before it takes what it sees for somebody else's.
const ECHO: Duration = Duration::from_secs(3);
/// How long a node must have been away until what it had in force is deleted.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);
/// How many sessions' timeouts a node that knows nothing of what is in force waits for one that does to lead.
const UNKNOWING: u32 = 3;
/// How many small records are read at once.
const READ_AT_ONCE: usize = 100;
/// Bytes that one commit may hold: ZooKeeper breaks connections over requests near 1 MiB.
const COMMIT_BYTES: usize = 600 * 1024;

/// What a node knows of its own leadership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leading {
    /// The term, while it leads.
    pub term: Option<u64>,
    /// Why it cannot lead, if so.
    pub problem: Option<String>,
}

/// Who stands for election, and by what it goes.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The node.
    pub node: NodeName,
    /// This process.
    pub instance: String,
    /// What the leader goes by.
    pub settings: leader::Settings,
    /// How often everything is read again.
    pub reread: Duration,
}

/// Why a leadership ended.
enum End {
    /// The session is over: nothing more to do in it.
    Expired,
    /// Somebody else leads, or may.
    SteppedDown(String),
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
        loop {
            if !State::wait_connected(&mut state).await {
                return;
            }
            let end = self.once(session, &followed, leading).await;
            leading.send_if_modified(|leading| leading.term.take().is_some());
            match end {
                Ok(End::Expired) => return,
                Ok(End::SteppedDown(why)) => info!(why, "leads no longer"),
                Err(problem) => {
                    let problem = problem.to_string();
                    let is_new = leading.send_if_modified(|leading| {
                        let is_new = leading.problem.as_ref() != Some(&problem);
                        leading.problem = Some(problem.clone());
                        is_new
                    });
                    if is_new {
                        warn!(problem, "cannot stand for election; trying again");
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn once<S: Session>(
        &self,
        session: &S,
        followed: &watch::Receiver<Followed>,
        leading: &watch::Sender<Leading>,
    ) -> Result<End, ElectionError> {
        // Somebody may have deleted a part of the tree since this session began.
        if !ensure_skeleton(session).await? {
            return Err(Error::NoNode(paths::CLUSTER.to_owned()).into());
        }
        self.learn(followed).await;
        let candidate = Candidate::stand(session.clone(), self.node.clone(), &self.instance).await?;
        candidate.wait().await?;
        let known = followed.borrow().decided.clone();
        let beyond = greatest(session, known.as_deref()).await?;
        let leadership = candidate.lead(beyond.term, wall()).await?;
        info!(term = leadership.term(), "leads");
        leading.send_replace(Leading { term: Some(leadership.term()), problem: None });
        let end = self.lead(session, &leadership, known.as_deref(), beyond.epoch).await;
        if !matches!(end, End::Expired) && *session.state().borrow() == State::Connected {
            candidate.leave().await?;
        }
        Ok(end)
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
        };
        let Some(first) = first else { return over(session) };
        let mut published = Published::parse(&first);
        let mut damaged = published.complete(known);
        let mut leader = Leader::new(leadership.term(), self.settings, published, beyond, start.elapsed());
        let own = match session.watch(leadership.candidate()).await {
            Ok((Some(_), gone)) => gone,
            Ok((None, _)) => return End::SteppedDown("its candidate's znode is gone".to_owned()),
            Err(Error::Expired) => return End::Expired,
            Err(error) => return End::SteppedDown(error.to_string()),
        };
        let mut own = std::pin::pin!(own);
        let mut echoed_by = Instant::now() + ECHO;
        let mut failed: Option<String> = None;
        let mut gone: BTreeMap<NodeName, Instant> = BTreeMap::new();
        let mut seen = contents.borrow_and_update().clone();
        let mut view = View::parse(&seen, wall());
        loop {
            let newest = contents.borrow_and_update().clone();
            if !Arc::ptr_eq(&newest, &seen) || view.until.is_some_and(|end| wall() >= end) {
                seen = newest;
                view = View::parse(&seen, wall());
            }
            if Instant::now() > echoed_by {
                damaged.extend(damage(&seen, &leader));
            }
            let before = Instant::now();
            if let Some(old) = long_gone(&mut gone, &view, before) {
                let delete = Change::Delete { path: paths::applied(&old), version: None };
                match leadership.commit(vec![delete]).await {
                    Err(error) if leadership.is_over(&error) => return End::SteppedDown(error.to_string()),
                    Ok(()) | Err(Error::NoNode(_)) => info!(node = %old, "forgotten, since it is long gone"),
                    Err(error) => return End::SteppedDown(error.to_string()),
                }
            }
            match leader.decide(&view, &damaged, start.elapsed()) {
                Ok(None) => {}
                Ok(Some(publication)) => match write(session, leadership, &publication).await {
                    Ok(()) => {
                        tell(&publication, &leader);
                        leader.published(publication, start.elapsed());
                        damaged.clear();
                        echoed_by = Instant::now() + ECHO;
                        failed = None;
                    }
                    Err(WriteError::Store(Error::Expired)) => return End::Expired,
                    Err(WriteError::Store(error)) if leadership.is_over(&error) || error.is_lost() => {
                        return End::SteppedDown(error.to_string());
                    }
                    Err(error) => {
                        // What is in the tree is not what this leader thinks: it begins anew.
                        return End::SteppedDown(format!("the decision cannot be written: {error}"));
                    }
                },
                Err(error) => {
                    let error = error.to_string();
                    if failed.as_ref() != Some(&error) {
                        error!(error, "the decision cannot be written");
                        failed = Some(error);
                    }
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

/// A node that has not been there for so long that what it had in force is of no interest any more.
fn long_gone(gone: &mut BTreeMap<NodeName, Instant>, view: &View, now: Instant) -> Option<NodeName> {
    gone.retain(|node, _| view.applied.contains_key(node) && !view.nodes.contains(node));
    for node in view.applied.keys().filter(|node| !view.nodes.contains(*node)) {
        gone.entry(node.clone()).or_insert(now);
    }
    let old = gone.iter().find(|(_, since)| now.duration_since(**since) >= FORGET_AFTER)?.0.clone();
    gone.remove(&old);
    Some(old)
}

/// The greatest term and the greatest epoch that anybody is known to have in force or to have written, which what is
/// new must exceed: a head may be lost, and with it its number.
struct Greatest {
    term: u64,
    epoch: u64,
}

async fn greatest<S: Session>(session: &S, known: Option<&Decided>) -> Result<Greatest, Error> {
    let names = session.children(paths::APPLIED).await?.unwrap_or_default();
    let mut paths: Vec<String> = names.iter().map(|name| format!("{}/{name}", paths::APPLIED)).collect();
    paths.push(paths::ASSIGNMENTS.to_owned());
    let mut orders: Vec<(u64, u64)> = known.iter().map(|known| known.head.order()).collect();
    for paths in paths.chunks(READ_AT_ONCE) {
        for znode in session.read(paths).await?.into_iter().flatten() {
            orders.extend(Applied::parse(&znode.data).map(|applied| (applied.term, applied.epoch)));
            orders.extend(Head::parse(&znode.data).map(|head| head.order()));
        }
    }
    let term = orders.iter().map(|(term, _)| *term).max().unwrap_or(0);
    Ok(Greatest { term, epoch: orders.iter().map(|(_, epoch)| *epoch).max().unwrap_or(0) })
}

/// Assignments that are not as this leader wrote them; with the head, all of them.
fn damage(seen: &Contents, leader: &Leader) -> BTreeSet<VipName> {
    let Some(head) = &leader.in_force().head else { return BTreeSet::new() };
    if head.term != leader.term() {
        return BTreeSet::new();
    }
    let is_own = seen
        .znodes
        .get(paths::ASSIGNMENTS)
        .is_some_and(|znode| Head::parse(&znode.data).is_ok_and(|seen| seen == *head));
    let is_damaged = |name: &VipName, digest: &str| {
        let znode = seen.znodes.get(&paths::assignment(name));
        !is_own || znode.is_none_or(|znode| Assignment::digest(&znode.data) != digest)
    };
    let damaged = head.vips.iter().filter(|(name, entry)| is_damaged(name, &entry.digest));
    damaged.map(|(name, _)| name.clone()).collect()
}

/// Why a publication was not written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Store(#[from] Error),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Writes assignments, and the head after all of them: nodes act on the head alone.
async fn write<S: Session>(
    session: &S,
    leadership: &Leadership<S>,
    publication: &Publication,
) -> Result<(), WriteError> {
    let mut wanted: Vec<(String, Option<Vec<u8>>)> = Vec::new();
    for (name, assignment) in &publication.changed {
        let data = assignment.as_ref().map(|assignment| assignment.bytes()).transpose()?;
        wanted.push((paths::assignment(name), data));
    }
    // Those that go, go after the head that no longer lists them.
    wanted.sort_by_key(|(_, data)| data.is_none());
    let first_gone = wanted.iter().position(|(_, data)| data.is_none()).unwrap_or(wanted.len());
    wanted.insert(first_gone, (paths::ASSIGNMENTS.to_owned(), Some(publication.head.bytes()?)));

    let names = session.children(paths::ASSIGNMENTS).await?.unwrap_or_default();
    let names: BTreeSet<String> =
        names.into_iter().map(|name| format!("{}/{name}", paths::ASSIGNMENTS)).collect();

    let mut changes: Vec<Change> = Vec::new();
    let mut bytes = 0;
    for (path, data) in wanted {
        let exists = path == paths::ASSIGNMENTS || names.contains(&path);
        let size = data.as_ref().map_or(0, Vec::len);
        if bytes + size > COMMIT_BYTES && !changes.is_empty() {
            leadership.commit(std::mem::take(&mut changes)).await?;
            bytes = 0;
        }
        bytes += size;
        match (data, exists) {
            (Some(data), true) => changes.push(Change::Set { path, data, version: None }),
            (Some(data), false) => changes.push(Change::Create { path, data, ephemeral: false }),
            (None, true) => changes.push(Change::Delete { path, version: None }),
            (None, false) => {}
        }
    }
    leadership.commit(changes).await?;
    Ok(())
}

/// One line per decision.
fn tell(publication: &Publication, leader: &Leader) {
    let head = &publication.head;
    let before = leader.in_force().head.as_ref();
    for (vip, assignment) in &publication.changed {
        match assignment {
            Some(assignment) => {
                info!(term = head.term, epoch = head.epoch, %vip, why = assignment.why, "decided");
                let held = leader.in_force().assignments.get(vip).and_then(|old| old.held.as_ref());
                if let Some(reason) = &assignment.held
                    && held != Some(reason)
                {
                    warn!(%vip, reason, "removals are held");
                }
            }
            None => info!(term = head.term, epoch = head.epoch, %vip, why = "the VIP was removed", "decided"),
        }
    }
    let none = BTreeSet::new();
    for problem in head.problems.difference(before.map_or(&none, |head| &head.problems)) {
        warn!(problem, "not accepted");
    }
    let nobody = BTreeSet::new();
    for node in head.lagging.difference(before.map_or(&nobody, |head| &head.lagging)) {
        warn!(%node, epoch = before.map_or(0, |head| head.epoch), "the node has not acknowledged in time");
    }
    debug!(
        term = head.term,
        epoch = head.epoch,
        nodes = head.nodes.len(),
        settling = head.settling,
        "published"
    );
}

/// Seconds since 1970.
pub(crate) fn wall() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
