//! The task that keeps next hops fresh: hears the kernel's news, asks it again where news does not
//! say enough, kicks neighbours, publishes what changed.

use super::events::{Events, News};
use super::kernel::Kernel;
use super::kick::Kicks;
use super::pmtu::PathMtus;
use super::resolve::{Picture, Problem, Problems, Resolver};
use super::{NextHops, Wanted};
use host::log_limit::LogLimit;
use host::netlink::NetlinkError;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// Pause between the first news and the reaction: changes come in groups.
const SETTLE: Duration = Duration::from_millis(20);

/// After asking the kernel for everything, this many times as long as that took is spent otherwise:
/// under a flood of changes (a routing daemon that loads a full table) at most a tenth of a core.
const REST: u32 = 10;
/// The longest such rest, so that a slow answer does not delay the reaction to a change for long.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// The kernel is asked for everything this often, since lost news is not always announced.
const FULL: Duration = Duration::from_secs(30);
/// Time between looks for neighbours to kick.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Before a broken netlink connection is opened again.
const REOPEN: Duration = Duration::from_secs(1);
/// Time between log lines that say that this failed.
const REOPEN_TOLD: Duration = Duration::from_secs(60);
/// The most reals that are named when next hops of many change at once.
const NAMED: usize = 10;

/// The task's publications. It ends when nobody listens to `next_hops` any more, or nobody can want any.
#[derive(Clone, Debug)]
pub struct Follower {
    /// Next hops of the wanted addresses, as far as they are or were known. Changes only when
    /// something in it does.
    pub next_hops: watch::Receiver<Arc<NextHops>>,
    /// The addresses that have no fresh next hop, with the reason. An address in both has its last known next hop.
    pub problems: watch::Receiver<Arc<Problems>>,
}

/// Resolves what is wanted now, as far as the kernel knows it already, and starts the task that
/// follows changes. `front` is the index of the interface that the balancer's program is on.
///
/// Must be called within a tokio runtime, in the network namespace to look at.
///
/// # Errors
///
/// If netlink sockets cannot be opened, or the kernel does not answer. Later such failures are
/// logged, and fixed by opening new sockets; the last next hops stay in force meanwhile.
pub async fn spawn(
    front: u32,
    wanted: watch::Receiver<Wanted>,
    path_mtus: watch::Receiver<Arc<PathMtus>>,
) -> Result<Follower, NetlinkError> {
    let (next_hops, next_hops_receiver) = watch::channel(Arc::default());
    let (problems, problems_receiver) = watch::channel(Arc::default());
    let mut task = Task {
        wanted,
        path_mtus,
        path_mtus_end: false,
        resolver: Resolver::new(front),
        picture: Picture::default(),
        kicks: Kicks::default(),
        next_hops,
        problems,
    };
    let kernel = Connection::open()?;
    task.ask(&kernel.kernel).await?;
    task.publish();
    tokio::spawn(task.run(kernel));
    Ok(Follower { next_hops: next_hops_receiver, problems: problems_receiver })
}

/// Events are subscribed to before the first question, so that no change falls in between.
struct Connection {
    events: Events,
    kernel: Kernel,
}

impl Connection {
    fn open() -> Result<Self, NetlinkError> {
        Ok(Connection { events: Events::open()?, kernel: Kernel::open()? })
    }
}

struct Task {
    wanted: watch::Receiver<Wanted>,
    path_mtus: watch::Receiver<Arc<PathMtus>>,
    /// Nobody teaches path MTUs any more.
    path_mtus_end: bool,
    resolver: Resolver,
    picture: Picture,
    kicks: Kicks,
    next_hops: watch::Sender<Arc<NextHops>>,
    problems: watch::Sender<Arc<Problems>>,
}

impl Task {
    async fn run(mut self, connection: Connection) {
        let mut connection = Some(connection);
        let mut log_limit = LogLimit::new(1, REOPEN_TOLD);
        loop {
            let followed = match connection.take().map_or_else(Connection::open, Ok) {
                Ok(connection) => self.follow(&connection).await,
                Err(error) => Err(error),
            };
            match followed {
                Ok(()) => return,
                Err(error) => {
                    if let Some(skipped) = log_limit.allows(Instant::now()) {
                        tracing::warn!(%error, skipped, "next hops stay as they are; trying again in {REOPEN:?}");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(REOPEN) => {}
                () = self.next_hops.closed() => return,
            }
        }
    }

    /// Follows changes until nobody needs that any more.
    async fn follow(&mut self, connection: &Connection) -> Result<(), NetlinkError> {
        let mut full = tokio::time::interval(FULL);
        full.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rest_until = Instant::now();
        // When to react to what happened, and whether that takes asking for everything.
        let (mut due, mut ask) = (None, false);
        loop {
            let react_at = (Instant::now() + SETTLE).max(rest_until);
            tokio::select! {
                () = self.next_hops.closed() => return Ok(()),
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    (due, ask) = (due.or(Some(react_at)), true);
                }
                changed = self.path_mtus.changed(), if !self.path_mtus_end => {
                    self.path_mtus_end = changed.is_err();
                }
                _ = full.tick() => (due, ask) = (due.or(Some(react_at)), true),
                arrived = connection.events.arrive(), if due.is_none() => {
                    arrived?;
                    due = Some(react_at);
                }
                () = tokio::time::sleep_until(due.unwrap_or(react_at)), if due.is_some() => {
                    let news = connection.events.take()?;
                    if std::mem::take(&mut ask) || news.ask_again {
                        let start = Instant::now();
                        self.ask(&connection.kernel).await?;
                        rest_until = Instant::now() + (start.elapsed() * REST).min(LONGEST_REST);
                    } else {
                        self.apply(news);
                    }
                    due = None;
                }
                _ = housekeeping.tick() => {}
            }
            self.publish();
            self.kick(&connection.kernel).await?;
        }
    }

    async fn ask(&mut self, kernel: &Kernel) -> Result<(), NetlinkError> {
        let wanted = self.wanted.borrow_and_update().clone();
        self.picture = kernel.picture(&wanted).await?;
        self.resolver.update(&self.picture);
        Ok(())
    }

    fn apply(&mut self, news: News) {
        let in_use = self.picture.neighbours_in_use();
        for (key, neighbour) in news.neighbours {
            match neighbour {
                Some(neighbour) if in_use.contains(&key) => {
                    self.picture.neighbours.insert(key, neighbour);
                }
                Some(_) => {}
                None => {
                    self.picture.neighbours.remove(&key);
                }
            }
        }
        self.resolver.update(&self.picture);
    }

    fn publish(&mut self) {
        let next_hops = self.resolver.next_hops(&self.path_mtus.borrow_and_update());
        let problems = self.resolver.problems();
        report(&self.problems.borrow(), problems, &next_hops);
        replace(&self.next_hops, &next_hops);
        replace(&self.problems, problems);
    }

    async fn kick(&mut self, kernel: &Kernel) -> Result<(), NetlinkError> {
        for key in self.kicks.due(&self.picture, Instant::now().into_std()) {
            match kernel.kick(key).await {
                // A link that is down, a full neighbour table: the address stays in `problems`.
                Err(NetlinkError::Request { reason: rtnetlink::Error::NetlinkError(refusal), .. }) => {
                    tracing::debug!(neighbour = %key.1, ifindex = key.0, %refusal, "the kernel does not resolve");
                }
                kicked => kicked?,
            }
        }
        Ok(())
    }
}

/// Publishes a value if it differs from the one there is.
fn replace<K: Ord + Clone, V: PartialEq + Clone>(
    sender: &watch::Sender<Arc<BTreeMap<K, V>>>,
    new: &BTreeMap<K, V>,
) {
    sender.send_if_modified(|current| {
        let differs = **current != *new;
        if differs {
            *current = Arc::new(new.clone());
        }
        differs
    });
}

/// Logs each change once; of many at once, the first few and how many more.
fn report(before: &Problems, after: &Problems, next_hops: &NextHops) {
    let news = after.iter().filter(|(address, problem)| before.get(address) != Some(problem));
    let mut more = 0_usize;
    for (number, (address, problem)) in news.enumerate() {
        match (problem, next_hops.contains_key(address)) {
            (Problem::Resolving { .. }, _) => tracing::debug!(real = %address, %problem, "next hop"),
            _ if number >= NAMED => more += 1,
            (_, true) => tracing::warn!(real = %address, %problem, "keeping the last next hop"),
            (_, false) => tracing::warn!(real = %address, %problem, "no next hop"),
        }
    }
    if more > 0 {
        tracing::warn!(more, "more reals have no next hop, or keep the last");
    }
    let resolved = before.keys().filter(|real| !after.contains_key(real) && next_hops.contains_key(real));
    let mut more = 0_usize;
    for (number, address) in resolved.enumerate() {
        match number < NAMED {
            true => tracing::info!(real = %address, "next hop resolved"),
            false => more += 1,
        }
    }
    if more > 0 {
        tracing::info!(more, "next hops of more reals resolved");
    }
}
