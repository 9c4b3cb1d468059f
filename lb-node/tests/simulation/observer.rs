//! What must hold at every moment, whatever happens.
//!
//! The observer reads the store's journal and what nodes put in force, both complete and in order. A real is **sound**
//! for a VIP and a node if, for [`GRACE`] and until now, it has answered, every node has found it answering (one wrong
//! node of many should not matter either, but may be the only one that votes), and the operator wanted it in the
//! table: the last good record gave it a weight, and no flag drained it. A sound real never leaves a table, also where its
//! record vanishes and nobody meant that. What a leader holds by name stays until it has been there again, or confirmed.

use crate::world::{ACK, Apply, SESSION, World, lock, members};
use coordination::memory::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use zk_schema::tree::{Applied, Assignment, Event, Head, Mode, StateRecord as _, Term, Vote, paths};
use zk_schema::{NodeName, RealName, VipName};

/// How long a real must have been well until nobody may take it out any more: longer than votes of the past live.
const GRACE: Duration = Duration::from_secs(15);

/// How long a node may go on leaving out what it found down while it was on its own.
const AUTONOMY_ENDS: Duration = Duration::from_secs(60);

/// An assignment as the leader wrote it.
struct Written {
    assignment: Assignment,
    /// How often the VIP had been removed before.
    life: u64,
}

/// What a node has in force.
struct InForce {
    start: u64,
    order: (u64, u64),
    weights: BTreeMap<VipName, (BTreeMap<RealName, u16>, u64)>,
}

/// Watches a [`World`].
pub(crate) struct Observer {
    began: Instant,
    verbose: bool,
    trace: DefaultHasher,
    /// How many lines the trace has.
    pub(crate) lines: u64,
    /// The term in the tree.
    term: u64,
    /// The line of candidates: number, and the session that owns it.
    line: BTreeMap<String, i64>,
    /// Assignments in the tree and their lives, and all that ever were, by digest.
    current: BTreeMap<VipName, Arc<Written>>,
    lives: BTreeMap<VipName, u64>,
    assignments: HashMap<(VipName, String), Arc<Written>>,
    /// Heads by epoch, and the newest one's order.
    heads: BTreeMap<u64, Head>,
    newest: (u64, u64),
    /// Epochs of heads that somebody else overwrote.
    overwritten: BTreeSet<u64>,
    /// The epoch of a head that has no event yet.
    untold: Option<u64>,
    in_force: BTreeMap<NodeName, InForce>,
    /// The newest start of each node.
    starts: BTreeMap<NodeName, u64>,
    /// VIPs whose assignments an operator damaged and no leader has written since.
    damaged: BTreeSet<VipName>,
    /// What nodes reported last: the start, and the order.
    reported: BTreeMap<NodeName, (u64, (u64, u64))>,
    /// Tables by VIP and its assignment's epoch, with who had it first.
    tables: BTreeMap<(VipName, u64), (u64, NodeName)>,
    digests: HashMap<usize, (Arc<slot_table::maglev::Table>, u64)>,
    /// When each node was on its own last.
    alone: BTreeMap<NodeName, Instant>,
    up_since: BTreeMap<RealName, Instant>,
    /// When each VIP's weights were announced, by the announcement's epoch.
    announced: BTreeMap<(VipName, u64), Instant>,
    /// Nodes that are there, since when, and the epochs that they acknowledged.
    present: BTreeMap<NodeName, Instant>,
    acknowledged: BTreeMap<NodeName, u64>,
    /// VIPs of which operators confirm whatever change.
    confirmed: BTreeSet<VipName>,
    /// True if operators confirm that VIPs go.
    confirmed_vips: bool,
    /// Records of VIPs and reals that are there.
    records: BTreeSet<String>,
    /// The records of what leaders hold, and whether each has been there since, or was confirmed.
    held: BTreeMap<String, bool>,
    nodes: BTreeSet<NodeName>,
    seeing_since: BTreeMap<NodeName, Instant>,
    wanted_since: BTreeMap<(VipName, RealName), Instant>,
}

impl Observer {
    /// An observer of what happens from now on; with `verbose` it tells.
    pub(crate) fn new(verbose: bool) -> Self {
        Self {
            began: Instant::now(),
            verbose,
            trace: DefaultHasher::new(),
            lines: 0,
            term: 0,
            line: BTreeMap::new(),
            current: BTreeMap::new(),
            lives: BTreeMap::new(),
            assignments: HashMap::new(),
            heads: BTreeMap::new(),
            newest: (0, 0),
            overwritten: BTreeSet::new(),
            untold: None,
            in_force: BTreeMap::new(),
            starts: BTreeMap::new(),
            damaged: BTreeSet::new(),
            reported: BTreeMap::new(),
            tables: BTreeMap::new(),
            digests: HashMap::new(),
            alone: BTreeMap::new(),
            up_since: BTreeMap::new(),
            announced: BTreeMap::new(),
            present: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            confirmed_vips: false,
            records: BTreeSet::new(),
            held: BTreeMap::new(),
            nodes: BTreeSet::new(),
            seeing_since: BTreeMap::new(),
            wanted_since: BTreeMap::new(),
        }
    }

    /// What all lines of the trace come to.
    pub(crate) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// Adds a line to the trace.
    pub(crate) fn note(&mut self, at: Instant, line: &str) {
        let milliseconds = at.duration_since(self.began).as_millis();
        (milliseconds, line).hash(&mut self.trace);
        self.lines += 1;
        if self.verbose {
            println!("{:>4}.{:03} {line}", milliseconds / 1000, milliseconds % 1000);
        }
    }

    /// Takes note of what operators want and how the reals are, after each change of either.
    pub(crate) fn circumstances(&mut self, world: &World, drained: &BTreeSet<(VipName, RealName)>) {
        let now = Instant::now();
        let truth = lock(&world.truth);
        self.nodes = world.machines.keys().cloned().collect();
        let reals = world.wanted.vips.values().flat_map(|state| state.reals.keys());
        let up: BTreeSet<RealName> = reals.filter(|real| !truth.down.contains(*real)).cloned().collect();
        keep(&mut self.up_since, up, now);
        let seeing = world.machines.keys().filter(|node| !truth.wrong.contains(*node)).cloned().collect();
        keep(&mut self.seeing_since, seeing, now);
        let pairs = world.wanted.vips.iter().flat_map(|(vip, state)| {
            let used = state.reals.iter().filter(|(_, real)| real.weight > 0);
            used.map(|(real, _)| (vip.clone(), real.clone()))
        });
        keep(&mut self.wanted_since, pairs.filter(|pair| !drained.contains(pair)).collect(), now);
    }

    /// Returns whether a real is sound for a VIP, and for one node or all.
    fn is_sound(&self, vip: &VipName, real: &RealName, node: Option<&NodeName>, at: Instant) -> bool {
        let long = |since: Option<&Instant>| since.is_some_and(|since| *since + GRACE <= at);
        let sees = |node: &NodeName| long(self.seeing_since.get(node));
        long(self.up_since.get(real))
            && long(self.wanted_since.get(&(vip.clone(), real.clone())))
            && node.map_or_else(|| self.nodes.iter().all(sees), sees)
    }

    /// Reads what has happened since it was called last.
    ///
    /// # Errors
    /// What should not have been.
    pub(crate) fn look(&mut self, world: &World) -> Result<(), String> {
        self.starts = world.machines.iter().map(|(node, machine)| (node.clone(), machine.starts)).collect();
        for entry in world.store.journal() {
            self.entry(&entry).map_err(|problem| self.blame(entry.at, &problem))?;
        }
        let now = Instant::now();
        if let Some(epoch) = self.untold {
            return Err(self.blame(now, &format!("the head of epoch {epoch} has no event")));
        }
        for (name, node) in world.running() {
            let reported = node.report.borrow().mode;
            if [reported, *node.learnt.mode.borrow()].contains(&Mode::Autonomous) {
                self.alone.insert(name.clone(), now);
            }
        }
        let applies = std::mem::take(&mut *lock(&world.applies));
        for apply in applies {
            self.apply(&apply).map_err(|problem| self.blame(apply.at, &problem))?;
        }
        for (name, node) in world.running() {
            let report = node.report.borrow().clone();
            let start = world.machines[name].starts;
            let Some(order) = report.order else { continue };
            let kept = world.machines[name].keeps;
            let before = self.reported.insert(name.clone(), (start, order));
            if before.is_some_and(|(then, last)| (then == start || kept) && last > order) {
                return Err(self.blame(now, &format!("{name} went back from {before:?} to {order:?}")));
            }
        }
        Ok(())
    }

    fn blame(&self, at: Instant, problem: &str) -> String {
        format!("after {:?}: {problem}", at.duration_since(self.began))
    }

    /// A change of the tree.
    fn entry(&mut self, entry: &Entry) -> Result<(), String> {
        let text = entry.data.as_ref().map(|data| String::from_utf8_lossy(data).into_owned());
        let by_leader = entry.client != "operator";
        let parts: Vec<&str> = entry.path.split('/').skip(2).collect();
        let shown = match (&parts[..], &entry.data) {
            (["leader"], Some(data)) => {
                Term::parse(data).map(|term| format!("{} {}", term.node, term.term)).ok()
            }
            (["health", _], Some(data)) => Vote::parse(data).ok().map(|vote| {
                let down: Vec<String> = vote.down.keys().map(ToString::to_string).collect();
                let unknown: Vec<String> = vote.unknown.iter().map(ToString::to_string).collect();
                format!("since {} suspect {} down {down:?} unknown {unknown:?}", vote.targets, vote.suspect)
            }),
            // It holds the time of day.
            (["events", _], Some(data)) => Event::parse(data).ok().map(|event| {
                let decisions =
                    event.decisions.iter().map(|decision| format!("{}: {}", decision.kind, decision.text));
                decisions.collect::<Vec<_>>().join("; ")
            }),
            _ => text.clone(),
        };
        let shown = shown.unwrap_or_else(|| "-".to_owned());
        self.note(entry.at, &format!("{} {} {shown}", entry.client, entry.path));
        match (&parts[..], &entry.data) {
            (["leader"], data) if !by_leader => {
                self.term = data.as_ref().and_then(|data| Term::parse(data).ok()).map_or(0, |term| term.term);
            }
            (["election", name], data) if by_leader => {
                let number = name.rsplit('-').next().unwrap_or(name).to_owned();
                match data {
                    Some(_) => drop(self.line.insert(number, entry.session)),
                    None => drop(self.line.remove(&number)),
                }
            }
            (["leader"], Some(data)) => {
                // A candidate of another session goes when that one does, and a leadership with it.
                if self.line.values().next() != Some(&entry.session) {
                    return Err(format!(
                        "{} leads by a candidate of another session: {:?}",
                        entry.client, self.line
                    ));
                }
                let term = Term::parse(data).map_err(|error| format!("/drover/leader: {error}"))?.term;
                if term <= self.term || term <= self.newest.0 {
                    return Err(format!("term {term} after {} and head {:?}", self.term, self.newest));
                }
                self.term = term;
            }
            (["nodes", node], data) => {
                let node: NodeName = node.parse().map_err(|error| format!("{node}: {error}"))?;
                match data {
                    Some(_) => drop(self.present.entry(node).or_insert(entry.at)),
                    None => drop(self.present.remove(&node)),
                }
            }
            (["applied", node], Some(data)) => {
                let node: NodeName = node.parse().map_err(|error| format!("{node}: {error}"))?;
                if let Ok(applied) = Applied::parse(data) {
                    self.acknowledged.insert(node, applied.epoch);
                }
            }
            (["ops", "confirm", "_vips"], data) => {
                self.confirmed_vips = data.is_some();
                self.released("/drover/vips/", |_| data.is_some());
            }
            (["ops", "confirm", vip], data) => {
                if let Ok(vip) = vip.parse() {
                    self.released(&paths::vip(&vip), |_| data.is_some());
                    match data {
                        Some(_) => drop(self.confirmed.insert(vip)),
                        None => drop(self.confirmed.remove(&vip)),
                    }
                }
            }
            (["vips", ..], Some(_)) => {
                self.released(&entry.path, |path| path == entry.path);
                self.records.insert(entry.path.clone());
            }
            (["vips", ..], None) => drop(self.records.remove(&entry.path)),
            // Whoever damages what a leader wrote takes the names from it.
            (["assignments"], _) if !by_leader => {
                self.held.clear();
                self.overwritten.insert(self.newest.1);
            }
            (["assignments"], Some(data)) if by_leader && !data.is_empty() => {
                let head = Head::parse(data).map_err(|error| format!("the head: {error}"))?;
                self.head(head)?;
            }
            (["events", name], Some(data)) if by_leader => {
                let event = Event::parse(data).map_err(|error| format!("{}: {error}", entry.path))?;
                let of = (event.term, event.epoch);
                if of != self.newest
                    || self.untold.take() != Some(event.epoch)
                    || name.parse() != Ok(event.epoch)
                {
                    return Err(format!("an event {name} of {of:?} after head {:?}", self.newest));
                }
            }
            (["assignments", vip], _) if !by_leader => {
                let name = vip.parse::<VipName>().map_err(|error| format!("{vip}: {error}"))?;
                self.released(&paths::vip(&name), |_| true);
                self.damaged.insert(name);
            }
            (["assignments", vip], Some(data)) if by_leader => {
                let vip: VipName = vip.parse().map_err(|error| format!("{vip}: {error}"))?;
                let assignment = Assignment::parse(data).map_err(|error| format!("{vip}: {error}"))?;
                // Where nobody is left who knows what was destroyed, the VIP is new.
                if self.damaged.remove(&vip) && self.knows_nothing(&entry.client) {
                    self.current.remove(&vip);
                    *self.lives.entry(vip.clone()).or_default() += 1;
                }
                self.assignment(vip, assignment, Assignment::digest(data), entry.at)?;
            }
            (["assignments", vip], None) if by_leader => {
                let vip: VipName = vip.parse().map_err(|error| format!("{vip}: {error}"))?;
                let lost = self.current.remove(&vip);
                if self.held.get(&paths::vip(&vip)) == Some(&false) {
                    return Err(format!("{vip} goes, which was held"));
                }
                let below = format!("{}/", paths::vip(&vip));
                self.held.retain(|path, _| *path != paths::vip(&vip) && !path.starts_with(&below));
                for real in lost.iter().flat_map(|lost| lost.assignment.weights.keys()) {
                    if self.is_sound(&vip, real, None, entry.at) {
                        return Err(format!("{vip} is gone with {real}, which is sound"));
                    }
                }
                *self.lives.entry(vip).or_default() += 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes note that what is held at `prefix` may go, as far as it `is_so`.
    fn released(&mut self, prefix: &str, is_so: impl Fn(&str) -> bool) {
        for (path, released) in &mut self.held {
            *released |= path.starts_with(prefix) && is_so(path);
        }
    }

    /// Takes note that the record at `path`, of the VIP, is held.
    fn hold(&mut self, vip: &VipName, path: String) {
        let confirmed = self.confirmed.contains(vip) || (self.confirmed_vips && path == paths::vip(vip));
        let released = confirmed || self.records.contains(&path);
        self.held.entry(path).or_insert(released);
    }

    /// Returns whether a node has had nothing in force since it started.
    fn knows_nothing(&self, client: &str) -> bool {
        let Ok(node) = client.parse::<NodeName>() else { return false };
        self.in_force.get(&node).map(|last| last.start) != self.starts.get(&node).copied()
    }

    fn head(&mut self, head: Head) -> Result<(), String> {
        if head.term != self.term {
            return Err(format!("a head of term {} in term {}", head.term, self.term));
        }
        if head.order() <= self.newest {
            return Err(format!("head {:?} after {:?}", head.order(), self.newest));
        }
        for (vip, entry) in &head.vips {
            if !self.assignments.contains_key(&(vip.clone(), entry.digest.clone())) {
                return Err(format!("head {:?} lists {vip} as nobody wrote it", head.order()));
            }
        }
        for vip in &head.held_vips {
            self.hold(vip, paths::vip(vip));
        }
        let is_vip = |path: &str| path.split('/').count() == 4;
        let ended = self.held.iter().find(|(path, released)| {
            is_vip(path) && !**released && !head.held_vips.iter().any(|vip| paths::vip(vip) == **path)
        });
        if let Some((path, _)) = ended {
            return Err(format!("{path} is no longer held, and has not returned"));
        }
        self.held
            .retain(|path, _| !is_vip(path) || head.held_vips.iter().any(|vip| paths::vip(vip) == *path));
        if let Some(epoch) = self.untold.replace(head.epoch) {
            return Err(format!("the head of epoch {epoch} has no event"));
        }
        self.newest = head.order();
        // The number of a head that was overwritten before any node had it in force is known to nobody; a greater term
        // may use it again.
        let is_lost = self.overwritten.contains(&head.epoch)
            && self.in_force.values().all(|last| last.order.1 != head.epoch);
        match self.heads.insert(head.epoch, head) {
            Some(other) if !is_lost => {
                Err(format!("two heads of epoch {}, terms {} and {}", other.epoch, other.term, self.term))
            }
            _ => Ok(()),
        }
    }

    fn assignment(
        &mut self,
        vip: VipName,
        new: Assignment,
        digest: String,
        at: Instant,
    ) -> Result<(), String> {
        if new.term != self.term {
            return Err(format!("an assignment of {vip} of term {} in term {}", new.term, self.term));
        }
        for real in &new.held_reals {
            self.hold(&vip, paths::real(&vip, real));
        }
        if let Some(before) = self.current.get(&vip) {
            let lost = before.assignment.reals.keys().filter(|real| !new.reals.contains_key(*real));
            let lost: Vec<String> = lost.map(|real| paths::real(&vip, real)).collect();
            if let Some(path) = lost.iter().find(|path| self.held.get(*path) == Some(&false)) {
                return Err(format!("{path} goes, which was held"));
            }
            self.held.retain(|path, _| !lost.contains(path));
        }
        if let Some(before) = self.current.get(&vip) {
            let gone = before.assignment.weights.keys().filter(|real| !new.weights.contains_key(*real));
            for real in gone {
                if self.is_sound(&vip, real, None, at) {
                    return Err(format!("{vip}: the leader takes out {real}, which is sound: {}", new.why));
                }
            }
            self.adoption(&vip, &before.assignment, &new, at)?;
            let emptied = new.weights.is_empty() && !before.assignment.weights.is_empty();
            if emptied && !new.reals.is_empty() && !self.confirmed.contains(&vip) {
                return Err(format!("{vip}: the leader empties the table: {}", new.why));
            }
        }
        if let Some(next) = &new.next {
            self.announced.entry((vip.clone(), next.epoch)).or_insert(at);
        }
        let life = self.lives.get(&vip).copied().unwrap_or(0);
        let written = Arc::new(Written { assignment: new, life });
        self.current.insert(vip.clone(), Arc::clone(&written));
        self.assignments.insert((vip, digest), written);
        Ok(())
    }

    /// Weights that were announced take effect when every node has acknowledged them or has had the time to; a leader
    /// that stood still may act on what it saw up to a session's timeout ago.
    fn adoption(&self, vip: &VipName, old: &Assignment, new: &Assignment, at: Instant) -> Result<(), String> {
        let Some(next) = old.next.as_ref().filter(|next| next.weights == new.weights) else { return Ok(()) };
        // Where nothing of the old table is left, there is nothing to wait with.
        let replaced = !old.weights.keys().any(|real| new.weights.contains_key(real));
        let waited = self.announced.get(&(vip.clone(), next.epoch)).is_none_or(|since| *since + ACK <= at);
        if old.weights == new.weights || replaced || waited {
            return Ok(());
        }
        let knows = |node: &NodeName| self.acknowledged.get(node).is_some_and(|epoch| *epoch >= next.epoch);
        let there = self.present.iter().filter(|(_, since)| **since + SESSION <= at).map(|(node, _)| node);
        let unaware: Vec<&NodeName> = there.filter(|node| !knows(node)).collect();
        match unaware.is_empty() {
            true => Ok(()),
            false => Err(format!("{vip} goes over to epoch {} while {unaware:?} do not know it", next.epoch)),
        }
    }

    /// A program that a node put in force.
    fn apply(&mut self, apply: &Apply) -> Result<(), String> {
        let Apply { at, node, start, program } = apply;
        let shown = program.vips.iter().map(|(vip, state)| {
            let members = members(state);
            let members = members.iter().map(|(real, weight)| format!("{real}={weight}"));
            format!("{vip}[{}]", members.collect::<Vec<_>>().join(" "))
        });
        let shown = shown.collect::<Vec<_>>().join(" ");
        self.note(*at, &format!("{node} applies {}: {shown}", program.epoch));
        let head = self.heads.get(&program.epoch);
        let head =
            head.ok_or_else(|| format!("{node} applies epoch {}, which nobody wrote", program.epoch))?;
        let order = head.order();
        let before = self.in_force.remove(node).filter(|before| before.start == *start);
        if before.as_ref().is_some_and(|before| before.order > order) {
            return Err(format!("{node} goes back to {order:?}"));
        }
        if head.vips.keys().ne(program.vips.keys()) {
            return Err(format!("{node} applies {order:?} with other VIPs than it lists"));
        }
        let alone = self.alone.get(node).is_some_and(|last| *last + AUTONOMY_ENDS >= *at);
        let mut weights = BTreeMap::new();
        let mut whole = Vec::new();
        for (vip, state) in &program.vips {
            let entry = &head.vips[vip];
            let written = &self.assignments[&(vip.clone(), entry.digest.clone())];
            let now = members(state);
            let decided = &written.assignment.weights;
            if now == *decided {
                whole.push((vip.clone(), entry.epoch, Arc::clone(&state.table)));
            } else if !alone || now.iter().any(|(real, weight)| decided.get(real) != Some(weight)) {
                return Err(format!("{node} serves {vip} at {order:?} by {now:?}, decided is {decided:?}"));
            }
            if now.is_empty() && !decided.is_empty() {
                return Err(format!("{node} empties {vip} at {order:?}, decided is {decided:?}"));
            }
            let last = before.as_ref().and_then(|before| before.weights.get(vip));
            if let Some((last, life)) = last.filter(|(_, life)| *life == written.life) {
                // What the leader took out, it was asked for when it did: a node that was cut off learns of it late.
                for real in last.keys().filter(|real| !now.contains_key(*real) && decided.contains_key(*real))
                {
                    if self.is_sound(vip, real, Some(node), *at) {
                        return Err(format!("{node} takes {real} out of {vip} at {order:?}, which is sound"));
                    }
                }
                let may_be = written.assignment.reals.is_empty() || self.confirmed.contains(vip);
                if now.is_empty() && !last.is_empty() && !may_be {
                    return Err(format!("{node} empties {vip} at {order:?}, life {life}"));
                }
            }
            weights.insert(vip.clone(), (now, written.life));
        }
        self.in_force.insert(node.clone(), InForce { start: *start, order, weights });
        for (vip, epoch, table) in whole {
            let digest = self.digest(&table);
            let (first, whose) =
                self.tables.entry((vip.clone(), epoch)).or_insert_with(|| (digest, node.clone()));
            if *first != digest {
                return Err(format!("{node} and {whose} have different tables of {vip} at epoch {epoch}"));
            }
        }
        Ok(())
    }

    /// The table's digest. Tables are kept, so that an address stands for one of them.
    fn digest(&mut self, table: &Arc<slot_table::maglev::Table>) -> u64 {
        let digest = || (Arc::clone(table), table.digest());
        self.digests.entry(Arc::as_ptr(table) as usize).or_insert_with(digest).1
    }
}

/// Keeps since when each thing has been without a break.
fn keep<T: Ord>(since: &mut BTreeMap<T, Instant>, there: BTreeSet<T>, now: Instant) {
    since.retain(|thing, _| there.contains(thing));
    for thing in there {
        since.entry(thing).or_insert(now);
    }
}
