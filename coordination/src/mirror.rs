//! A copy of part of the tree that is kept current: what nodes follow instead of asking.

use crate::pace::Spread;
use crate::{Error, Session, State, Watch};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use zk_schema::tree::{Contents, Znode};

/// The most reads with a watch that are under way at once: enough to fill a connection's round trip.
const CONCURRENT: usize = 64;

/// The most znodes that a re-read asks for at once: their answer stays well below a server's limit of 1 MiB while a
/// znode has less than 5 KiB.
const CHUNK: usize = 200;

/// The longest time that a change waits for others that are being read, to be published with them.
const GATHER: Duration = Duration::from_millis(10);

/// About how long after a failed read the same is tried anew.
const RETRY: Duration = Duration::from_millis(500);

/// About how long after a read that was refused the same is tried anew: nothing tells when it would be granted.
const RETRY_REFUSED: Duration = Duration::from_secs(2);

/// A path in which `*` stands for any one name, as in `/drover/vips/*/reals/*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<String>,
}

impl Pattern {
    /// A pattern of this text: a path of at least one name, some of them perhaps `*`.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self { parts: pattern.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect() }
    }

    /// Returns whether it matches this path.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let parts = names(path);
        parts.len() == self.parts.len() && self.begins(&parts)
    }

    /// Returns whether the children of this path matter: something below it can match, by any next name.
    fn lists(&self, path: &str) -> bool {
        let parts = names(path);
        self.begins(&parts) && self.parts.get(parts.len()).is_some_and(|part| part == "*")
    }

    /// Returns whether this path, or something below it, can match.
    fn begins(&self, parts: &[&str]) -> bool {
        parts.len() <= self.parts.len()
            && self.parts.iter().zip(parts).all(|(part, name)| part == "*" || part == name)
    }

    /// Names from here on down to the next `*` or the end: `/a/b` for `/a/b/*/c` at the root.
    fn fixed_below(&self, path: &str) -> String {
        let rest = self.parts.iter().skip(names(path).len()).take_while(|part| *part != "*");
        rest.fold(path.trim_end_matches('/').to_owned(), |path, part| path + "/" + part)
    }
}

fn names(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty()).collect()
}

/// A copy of the znodes that match some patterns, kept current by watches for as long as its session lasts.
///
/// Each znode is as it is now or was a moment ago; two of them may be of different moments. While the session is
/// disconnected, what was read last stays; when it is connected again, all is read anew, and so it is now and then
/// without a reason, lest a notification that never came leave the copy stale for long. A znode that the session may not
/// read is told as such, and all others are mirrored all the same.
#[derive(Debug)]
pub struct Mirror {
    contents: watch::Receiver<Arc<Contents>>,
    task: JoinHandle<()>,
}

impl Mirror {
    /// Mirrors what matches any of `patterns`; reads all anew about every `period`, spread a little by the session so that
    /// not all nodes read at once.
    #[must_use]
    pub fn new<S: Session>(session: S, patterns: Vec<Pattern>, period: Duration) -> Self {
        let (sender, contents) = watch::channel(Arc::default());
        let task = tokio::spawn(async move { Task::new(session, patterns, period, sender).run().await });
        Self { contents, task }
    }

    /// The content. Empty and not complete until all has been read once. Closed when the session has expired; it then
    /// keeps what was there last.
    #[must_use]
    pub fn contents(&self) -> watch::Receiver<Arc<Contents>> {
        self.contents.clone()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A thing to keep current: a znode's data, or the list of its children.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Data(String),
    Children(String),
}

/// The result of a read.
enum Answer {
    Data(Option<Znode>),
    Children(Option<Vec<String>>),
}

/// An event that a mirror reacts to.
enum Event {
    /// An item was read, with a watch.
    Read(Item, Result<(Answer, Watch), Error>),
    /// An item's watch fired.
    Fired(Item),
    /// Some items were read without a watch; `None`: the store refused that.
    Reread(Vec<(Item, Option<Answer>)>),
}

/// The task behind a mirror.
struct Task<S> {
    session: S,
    patterns: Vec<Pattern>,
    period: Duration,
    sender: watch::Sender<Arc<Contents>>,
    /// Items to be read with a watch, in this order.
    queue: VecDeque<Item>,
    /// Items in the queue or being read with a watch. Each is in there once, so that its answers come in order.
    pending: BTreeSet<Item>,
    /// Reads with a watch that are under way.
    reading: usize,
    /// Items that could not be read.
    failed: BTreeSet<Item>,
    /// Items that the store refuses to have read, with the reason. They are tried again at `retry_refused`.
    refused: BTreeMap<Item, String>,
    retry_refused: Option<Instant>,
    /// All that is kept current. An item that is not here any more is forgotten wherever it turns up.
    items: BTreeSet<Item>,
    lists: BTreeMap<String, Vec<String>>,
    contents: Contents,
    work: FuturesUnordered<BoxFuture<'static, Event>>,
    /// The time at which failed items are tried again.
    retry: Option<Instant>,
    /// Keeps sessions from reading together.
    spread: Spread,
    /// Since when something is known that has not been published.
    unpublished: Option<Instant>,
}

impl<S: Session> Task<S> {
    fn new(
        session: S,
        patterns: Vec<Pattern>,
        period: Duration,
        sender: watch::Sender<Arc<Contents>>,
    ) -> Self {
        Self {
            spread: Spread::of_session(session.id(), "mirror"),
            session,
            patterns,
            period,
            sender,
            queue: VecDeque::new(),
            pending: BTreeSet::new(),
            reading: 0,
            failed: BTreeSet::new(),
            refused: BTreeMap::new(),
            retry_refused: None,
            items: BTreeSet::new(),
            lists: BTreeMap::new(),
            contents: Contents::default(),
            work: FuturesUnordered::new(),
            retry: None,
            unpublished: None,
        }
    }

    /// Until the session expires.
    async fn run(mut self) {
        let mut state = self.session.state();
        loop {
            let connected = state.wait_for(|state| *state != State::Disconnected).await;
            if !connected.is_ok_and(|state| *state == State::Connected) {
                return;
            }
            self.begin();
            let mut reread = Instant::now() + self.spread.around(self.period);
            loop {
                self.read_queued();
                let (retry, refused, publication) = (self.retry, self.retry_refused, self.publication());
                tokio::select! {
                    biased;
                    // Whatever the state is now: it has changed, so watches may have fired for nobody.
                    _ = state.changed() => break,
                    Some(event) = self.work.next() => self.handle(event),
                    // From here on nothing was ready: what has gathered is published.
                    () = sleep_until(publication.unwrap_or(reread)), if publication.is_some() => self.publish(),
                    () = sleep_until(retry.unwrap_or(reread)), if retry.is_some() => {
                        self.retry = None;
                        let failed = std::mem::take(&mut self.failed);
                        failed.into_iter().for_each(|item| self.enqueue(item));
                    }
                    () = sleep_until(refused.unwrap_or(reread)), if refused.is_some() => {
                        self.retry_refused = None;
                        let refused: Vec<Item> = self.refused.keys().cloned().collect();
                        refused.into_iter().for_each(|item| self.enqueue(item));
                    }
                    () = sleep_until(reread) => {
                        self.reread();
                        reread = Instant::now() + self.spread.around(self.period);
                    }
                }
            }
        }
    }

    /// Reads everything, as if nothing were known; what is known stays published meanwhile.
    fn begin(&mut self) {
        self.work.clear();
        self.queue.clear();
        self.pending.clear();
        self.reading = 0;
        self.failed.clear();
        self.retry = None;
        self.retry_refused = None;
        self.items = self.wanted();
        let items: Vec<Item> = self.items.iter().cloned().collect();
        items.into_iter().for_each(|item| self.enqueue(item));
    }

    /// All that is to be kept current, as far as the lists of children tell.
    fn wanted(&self) -> BTreeSet<Item> {
        let mut wanted = BTreeSet::new();
        for pattern in &self.patterns {
            let mut open = vec![pattern.fixed_below("/")];
            while let Some(path) = open.pop() {
                if pattern.matches(&path) {
                    wanted.insert(Item::Data(path));
                } else if pattern.lists(&path) {
                    let children = self.lists.get(&path).into_iter().flatten();
                    open.extend(children.map(|name| {
                        let child = format!("{}/{name}", path.trim_end_matches('/'));
                        pattern.fixed_below(&child)
                    }));
                    wanted.insert(Item::Children(path));
                }
            }
        }
        wanted
    }

    /// After a list of children has changed: what has come is read, what has gone is forgotten.
    fn adapt(&mut self) {
        let wanted = self.wanted();
        let before = std::mem::replace(&mut self.items, wanted);
        let new: Vec<Item> = self.items.difference(&before).cloned().collect();
        new.into_iter().for_each(|item| self.enqueue(item));
        for gone in before {
            if self.items.contains(&gone) {
                continue;
            }
            self.failed.remove(&gone);
            self.granted(&gone);
            match gone {
                Item::Data(path) => self.store(&path, None),
                Item::Children(path) => drop(self.lists.remove(&path)),
            }
        }
    }

    fn enqueue(&mut self, item: Item) {
        if self.pending.insert(item.clone()) {
            self.queue.push_back(item);
        }
    }

    /// Starts as many reads as may run at once.
    fn read_queued(&mut self) {
        while self.reading < CONCURRENT
            && let Some(item) = self.queue.pop_front()
        {
            self.reading += 1;
            let session = self.session.clone();
            self.work.push(Box::pin(async move {
                let result = match &item {
                    Item::Data(path) => {
                        session.watch(path).await.map(|(znode, watch)| (Answer::Data(znode), watch))
                    }
                    Item::Children(path) => {
                        let result = session.watch_children(path).await;
                        result.map(|(children, watch)| (Answer::Children(children), watch))
                    }
                };
                Event::Read(item, result)
            }));
        }
    }

    /// Reads all that is known without waiting for watches.
    fn reread(&mut self) {
        let mut paths = Vec::new();
        for item in &self.items {
            match item {
                Item::Data(path) => paths.push(path.clone()),
                Item::Children(path) => {
                    let (session, path) = (self.session.clone(), path.clone());
                    self.work.push(Box::pin(async move {
                        Event::Reread(match session.children(&path).await {
                            Ok(children) => vec![(Item::Children(path), Some(Answer::Children(children)))],
                            Err(error) if error.is_of_one_znode() => vec![(Item::Children(path), None)],
                            Err(_) => Vec::new(),
                        })
                    }));
                }
            }
        }
        for chunk in paths.chunks(CHUNK) {
            let (session, chunk) = (self.session.clone(), chunk.to_vec());
            self.work.push(Box::pin(async move {
                let outcomes = session.read_each(&chunk).await.unwrap_or_default();
                let items = chunk.into_iter().map(Item::Data).zip(outcomes);
                let answer = |outcome: crate::Outcome| outcome.ok().map(Answer::Data);
                Event::Reread(items.map(|(item, outcome)| (item, answer(outcome))).collect())
            }));
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Read(item, result) => {
                self.reading -= 1;
                self.pending.remove(&item);
                if !self.items.contains(&item) {
                    return;
                }
                match result {
                    Ok((answer, watch)) => {
                        self.granted(&item);
                        self.learn(item, answer, watch);
                    }
                    Err(error) if error.is_of_one_znode() => self.refuse(item, &error),
                    Err(error) => {
                        tracing::debug!(%error, ?item, "cannot be mirrored; tried again soon");
                        self.failed.insert(item);
                        self.retry.get_or_insert_with(|| Instant::now() + self.spread.around(RETRY));
                    }
                }
            }
            Event::Fired(item) if self.items.contains(&item) => self.enqueue(item),
            Event::Fired(_) => {}
            // What differs is read again, with a watch: this answer may be older than what is known.
            Event::Reread(answers) => {
                for (item, answer) in answers {
                    let is_known = answer.is_some_and(|answer| self.knows(&item, &answer));
                    if self.items.contains(&item) && !is_known {
                        self.enqueue(item);
                    }
                }
            }
        }
    }

    /// Takes note that something cannot be read. What was known of it stays.
    fn refuse(&mut self, item: Item, error: &Error) {
        self.retry_refused.get_or_insert_with(|| Instant::now() + self.spread.around(RETRY_REFUSED));
        let why = error.unreadable();
        if self.refused.get(&item) != Some(&why) {
            tracing::debug!(%error, ?item, "cannot be mirrored");
            self.refused.insert(item, why);
            self.unpublished.get_or_insert_with(Instant::now);
        }
    }

    /// Takes note that something can be read, or need not be.
    fn granted(&mut self, item: &Item) {
        if self.refused.remove(item).is_some() {
            self.unpublished.get_or_insert_with(Instant::now);
        }
    }

    /// Takes what was read, and waits for the watch.
    fn learn(&mut self, item: Item, answer: Answer, watch: Watch) {
        if !self.knows(&item, &answer) {
            match (&item, answer) {
                (Item::Data(path), Answer::Data(znode)) => self.store(path, znode),
                (Item::Children(path), Answer::Children(children)) => {
                    self.lists.insert(path.clone(), children.unwrap_or_default());
                    self.adapt();
                }
                _ => unreachable!("a read answers what was asked"),
            }
        }
        self.work.push(Box::pin(async move {
            watch.await;
            Event::Fired(item)
        }));
    }

    /// Returns whether this answer brings no news.
    fn knows(&self, item: &Item, answer: &Answer) -> bool {
        match (item, answer) {
            (Item::Data(path), Answer::Data(znode)) => {
                self.contents.get(path).map(|known| &**known) == znode.as_ref()
            }
            (Item::Children(path), Answer::Children(children)) => {
                let known = self.lists.get(path).map(Vec::as_slice);
                known.unwrap_or_default() == children.as_deref().unwrap_or_default()
            }
            _ => false,
        }
    }

    fn store(&mut self, path: &str, znode: Option<Znode>) {
        let changed = match znode {
            Some(znode) => {
                let znode = Arc::new(znode);
                self.contents.insert(path, Arc::clone(&znode)) != Some(znode)
            }
            None => self.contents.remove(path).is_some(),
        };
        if changed {
            self.unpublished.get_or_insert_with(Instant::now);
        }
    }

    /// Returns the time to publish at, if there is news: as soon as no answer is awaited, or after a while. The first
    /// time, everything must have been read.
    fn publication(&self) -> Option<Instant> {
        let reading = self.reading > 0 || !self.queue.is_empty();
        if !self.sender.borrow().complete {
            return (!reading && self.failed.is_empty()).then(Instant::now);
        }
        self.unpublished.map(|since| if reading { since + GATHER } else { since })
    }

    fn publish(&mut self) {
        self.unpublished = None;
        let path = |item: &Item| match item {
            Item::Data(path) | Item::Children(path) => path.clone(),
        };
        self.contents.unreadable = self.refused.iter().map(|(item, why)| (path(item), why.clone())).collect();
        self.contents.complete = true;
        self.sender.send_replace(Arc::new(self.contents.clone()));
    }
}

#[cfg(test)]
mod tests;
