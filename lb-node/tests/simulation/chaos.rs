//! A cluster's life by chance: everything that may happen does, then all is repaired, and the cluster must come to rest.

use crate::observer::Observer;
use crate::world::{World, lock, real, real_name, vip, vip_name};
use coordination::{Change, Error, Session as _, Store as _};
use dataplane::compile::TableCache;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use zk_schema::tree::{Applied, Assignment, Mode, Registrant, StateRecord as _, paths};
use zk_schema::{NodeName, RealName, VipName, VipState, to_json};

/// How long chance rules.
const CHAOS: Duration = Duration::from_secs(100);
/// How often what happened is looked at.
const STEP: Duration = Duration::from_millis(250);
/// Within which a repaired cluster comes to rest.
const REST: Duration = Duration::from_secs(90);
/// For how long it must stay there.
const STAYS: Duration = Duration::from_secs(25);

/// Flags that name nothing: more than a head tells of.
const FLAGS: usize = 150;

/// What a node that never was has in force.
const GHOST: &str = "/drover/applied/ghost";

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    /// Of all that happened.
    pub(crate) hash: u64,
    /// How much.
    pub(crate) lines: u64,
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is above 0.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn of<'a, T>(&mut self, things: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(things.len()).ok().filter(|count| *count > 0)?;
        usize::try_from(self.below(count)).ok().and_then(|index| things.get(index))
    }

    fn number(&mut self, from: u8, to: u8) -> u8 {
        from + u8::try_from(self.below(u64::from(to - from) + 1)).expect("below 256")
    }
}

/// A run.
struct Chaos {
    world: World,
    observer: Observer,
    chance: Chance,
    /// Reals there may be.
    reals: u8,
    outage: bool,
    paused: BTreeSet<NodeName>,
    cut: BTreeSet<NodeName>,
    deaf: BTreeSet<NodeName>,
    drained: BTreeSet<(VipName, RealName)>,
    /// What was seen to be wrong while an operator was at work.
    wrong: Option<String>,
    /// Flags that are set.
    flags: BTreeSet<String>,
}

/// Runs the seed's run.
///
/// # Errors
/// What should not have been.
pub(crate) fn run(seed: u64, tables: &TableCache, verbose: bool) -> Result<Trace, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut chance = Chance(seed);
        let (nodes, vips, reals) = (chance.number(3, 6), chance.number(1, 3), chance.number(2, 8));
        let mut wanted = BTreeMap::new();
        for number in 1..=vips {
            let members: Vec<u8> = (1..=reals).filter(|_| !chance.one_in(3)).collect();
            let members = if members.is_empty() { vec![1] } else { members };
            wanted.insert(vip_name(number), crate::world::vip_state(number, members));
        }
        let observer = Observer::new(verbose);
        let world = World::new(nodes, wanted, seed, tables.clone()).await;
        let mut chaos = Chaos {
            world,
            observer,
            chance,
            reals,
            outage: false,
            paused: BTreeSet::new(),
            cut: BTreeSet::new(),
            deaf: BTreeSet::new(),
            drained: BTreeSet::new(),
            wrong: None,
            flags: BTreeSet::new(),
        };
        let outcome = chaos.live().await;
        outcome.map(|()| Trace { hash: chaos.observer.trace(), lines: chaos.observer.lines })
    })
}

impl Chaos {
    async fn live(&mut self) -> Result<(), String> {
        let end = Instant::now() + CHAOS;
        self.observer.circumstances(&self.world, &self.drained);
        self.pass(Duration::from_secs(8)).await?;
        while Instant::now() < end {
            let what = self.happen().await;
            self.observer.note(Instant::now(), &format!("** {what}"));
            self.wrong.take().map_or(Ok(()), Err)?;
            self.observer.circumstances(&self.world, &self.drained);
            // Often one thing comes right after another.
            let pause = if self.chance.one_in(3) { self.chance.below(400) } else { self.chance.below(7_000) };
            self.pass(Duration::from_millis(pause)).await?;
        }
        self.repair().await?;
        let rest = Instant::now() + REST;
        while let Err(unrest) = self.world.unrest() {
            if Instant::now() > rest {
                return Err(format!("no rest after {REST:?}: {unrest}"));
            }
            self.pass(STEP).await?;
        }
        self.observer.note(Instant::now(), "** at rest");
        let order = self.world.head().map(|head| head.order());
        self.pass(STAYS).await?;
        match self.world.head().map(|head| head.order()) {
            now if now == order => self.world.unrest(),
            now => Err(format!("went on from {order:?} to {now:?} without a reason")),
        }
    }

    /// Lets time pass.
    async fn pass(&mut self, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        loop {
            self.observer.look(&self.world)?;
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            sleep(STEP.min(end - now)).await;
        }
    }

    /// Lets something happen; returns what.
    async fn happen(&mut self) -> String {
        let nodes: Vec<NodeName> = self.world.machines.keys().cloned().collect();
        let node = self.chance.of(&nodes).expect("there are nodes").clone();
        let client = self.world.machines[&node].client.clone();
        let runs = self.world.machines[&node].node.is_some();
        match self.chance.below(22) {
            0..=2 if runs => {
                let one = self.chance.one_in(3);
                if one && !self.outage && !self.cut.contains(&node) && !self.paused.contains(&node) {
                    self.world.stop(&node).await;
                    return format!("{node} stops");
                }
                self.world.crash(&node);
                format!("{node} crashes")
            }
            0..=4 if !runs => {
                let empty = self.chance.one_in(3);
                if empty {
                    self.world.machines.get_mut(&node).expect("it is there").cached = None;
                }
                self.world.start(&node);
                format!("{node} starts, its disk empty: {empty}")
            }
            3 => {
                let pause = toggle(&mut self.paused, &node);
                client.pause(pause);
                format!("{node} stands still: {pause}")
            }
            4 | 5 => {
                let cut = toggle(&mut self.cut, &node);
                client.partition(cut);
                format!("{node} is cut off: {cut}")
            }
            6 => {
                let deaf = toggle(&mut self.deaf, &node);
                client.lose_replies(deaf);
                format!("{node} gets no replies while it is cut off: {deaf}")
            }
            7 => {
                client.expire_now();
                format!("{node}'s sessions end")
            }
            8 | 9 => {
                self.outage = !self.outage;
                self.world.store.outage(self.outage);
                format!("the store is away: {}", self.outage)
            }
            10 => {
                let latency = *self.chance.of(&[0, 1, 5, 40, 200]).expect("not empty");
                self.world.store.latency(Duration::from_millis(latency));
                format!("messages take {latency} ms")
            }
            11..=13 => {
                let real = real_name(self.chance.number(1, self.reals));
                let down = toggle(&mut lock(&self.world.truth).down, &real);
                format!("{real} is down: {down}")
            }
            14 => {
                let wrong = toggle(&mut lock(&self.world.truth).wrong, &node);
                format!("{node} finds everything down: {wrong}")
            }
            _ if self.outage => "nothing".to_owned(),
            _ => self.operate(&node).await,
        }
    }

    /// An operator does something; returns what.
    async fn operate(&mut self, node: &NodeName) -> String {
        let vips: Vec<VipName> = self.world.wanted.vips.keys().cloned().collect();
        let Some(name) = self.chance.of(&vips).cloned() else { return "nothing".to_owned() };
        let state = self.world.wanted.vips[&name].clone();
        let reals: Vec<RealName> = state.reals.keys().cloned().collect();
        let some = self.chance.of(&reals).cloned();
        let number = self.chance.number(1, self.reals);
        let mut new = state.clone();
        match (self.chance.below(20), some) {
            (0 | 1, Some(some)) => {
                let weight = *self.chance.of(&[0, 50, 100, 200]).expect("not empty");
                new.reals.get_mut(&some).expect("it is there").weight = weight;
                self.write(&name, Some(new)).await;
                format!("{name}: {some} gets the weight {weight}")
            }
            (2, _) => {
                new.reals.insert(real_name(number), real(number, 100));
                self.write(&name, Some(new)).await;
                format!("{name}: real-{number} is added")
            }
            (3, Some(some)) => {
                new.reals.remove(&some);
                self.write(&name, Some(new)).await;
                format!("{name}: {some} is removed")
            }
            (4, _) => {
                let vip_number = self.chance.number(1, 3);
                let name = vip_name(vip_number);
                if self.world.wanted.vips.contains_key(&name) {
                    self.write(&name, None).await;
                    return format!("{name} is removed");
                }
                self.write(&name, Some(crate::world::vip_state(vip_number, 1..=number))).await;
                format!("{name} is added with {number} reals")
            }
            (5, _) => {
                new.vip.panic_threshold = *self.chance.of(&[0, 30, 50, 100]).expect("not empty");
                let threshold = new.vip.panic_threshold;
                self.write(&name, Some(new)).await;
                format!("{name}: panic threshold {threshold}")
            }
            (6, _) => {
                let check = vip(1).health;
                new.vip.health = if self.chance.one_in(4) { None } else { check };
                if let Some(check) = &mut new.vip.health {
                    check.unhealthy_threshold = u32::from(self.chance.number(1, 3));
                }
                self.write(&name, Some(new)).await;
                format!("{name}: another health check")
            }
            (7 | 8, Some(some)) => {
                let drain = toggle(&mut self.drained, &(name.clone(), some.clone()));
                self.flag(&paths::drain(&name, &some), drain).await;
                format!("{name}: {some} is drained: {drain}")
            }
            (9, _) => self.toggle_flag(&paths::maintenance(node)).await,
            (10, _) => self.toggle_flag(paths::FREEZE).await,
            (11, _) => {
                let confirm =
                    [paths::confirm(&name), paths::CONFIRM_VIPS.into(), paths::CONFIRM_NODES.into()];
                let path = self.chance.of(&confirm).expect("not empty").clone();
                self.toggle_flag(&path).await
            }
            (12, _) => {
                let mut garbage = vec![paths::vip(&name), paths::CLUSTER.to_owned()];
                garbage.extend(reals.iter().map(|real| paths::real(&name, real)));
                self.scribble(&garbage).await
            }
            (13, _) if self.chance.one_in(3) => self.spoil_history().await,
            (13, _) => {
                let mut garbage = vec![paths::ASSIGNMENTS.to_owned()];
                garbage.extend(vips.iter().map(paths::assignment));
                garbage.extend([paths::health(node), paths::applied(node), paths::node(node)]);
                self.scribble(&garbage).await
            }
            (14, _) if self.chance.one_in(3) => {
                let outcome =
                    self.change(Change::Delete { path: paths::LEADER.to_owned(), version: None }).await;
                format!("the record of terms is deleted: {outcome:?}")
            }
            (14, _) => {
                let outcome =
                    self.change(Change::Delete { path: paths::assignment(&name), version: None }).await;
                format!("the assignment of {name} is deleted: {outcome:?}")
            }
            (15, _) => self.forge_orders().await,
            (16, Some(some)) => self.swell(&name, &some).await,
            // What is confirmed may go, so nothing could be told of it.
            _ if self.flags.iter().any(|path| path.starts_with(paths::CONFIRM)) => "nothing".to_owned(),
            (17, Some(some)) => self.flap(&name, &some).await,
            _ => self.wipe().await,
        }
    }

    /// All VIPs are deleted, at once or in steps, and written again likewise.
    async fn wipe(&mut self) -> String {
        let mut all: Vec<String> = self.world.store.dump().into_keys().collect();
        all.retain(|path| path.starts_with("/drover/vips/"));
        all.reverse();
        let in_steps = self.chance.one_in(2);
        let at_once = if in_steps { 1 + self.chance.below(3) } else { 1000 };
        let at_once = usize::try_from(at_once).expect("small");
        let delete = |path: &String| Change::Delete { path: path.clone(), version: None };
        for paths in all.chunks(at_once) {
            let outcome = self.world.operate(paths.iter().map(delete).collect()).await;
            if outcome.is_err() {
                break;
            }
            // Whatever deletes a tree, two steps of it are less apart than what is removed alone has to wait.
            self.wait(if in_steps { 1_500 } else { 1 }).await;
        }
        self.wait(8_000).await;
        let good = self.world.wanted.vips.clone();
        if in_steps && !self.outage {
            let there = self.world.wanted.vips.clone();
            self.world.wanted.vips.clear();
            for (name, state) in there {
                let VipState { vip, reals } = state;
                self.world.wanted.vips.insert(name.clone(), VipState { vip, reals: BTreeMap::new() });
                for (real, record) in reals {
                    self.wait(4_000).await;
                    let state = self.world.wanted.vips.get_mut(&name).expect("it is there");
                    state.reals.insert(real, record);
                    self.world.write_wanted().await;
                }
            }
        }
        self.world.wanted.vips = good;
        if !self.outage {
            self.world.write_wanted().await;
        }
        format!("all VIPs are deleted and written again, in steps: {in_steps}")
    }

    /// Lets up to so many milliseconds pass, and keeps what goes wrong.
    async fn wait(&mut self, most: u64) {
        let pause = Duration::from_millis(self.chance.below(most));
        let wrong = self.pass(pause).await.err();
        self.wrong = self.wrong.take().or(wrong);
    }

    /// A real goes over to an agent of its own, which loses its registration; the record is there again before the time is
    /// over for which the real is kept.
    async fn flap(&mut self, vip: &VipName, real: &RealName) -> String {
        let path = paths::real(vip, real);
        let Ok(data) = to_json(&self.world.wanted.vips[vip].reals[real]) else { return "nothing".to_owned() };
        let Ok(agent) = self.world.store.client("agent").connect().await else { return "nothing".to_owned() };
        let again = |ephemeral| {
            let delete = Change::Delete { path: path.clone(), version: None };
            vec![delete, Change::Create { path: path.clone(), data: data.clone(), ephemeral }]
        };
        let registered = agent.commit(again(true)).await;
        self.wait(12_000).await;
        let assignment = self.world.store.dump().remove(&paths::assignment(vip));
        let assignment = assignment.and_then(|there| Assignment::parse(&there.data).ok());
        let known = assignment.as_ref().and_then(|assignment| assignment.reals.get(real));
        let is_known = known.is_some_and(Registrant::is_registered);
        // What no leader has seen registered vanishes as an operator's record does.
        if !is_known && registered.is_ok() {
            let _ = agent.commit(again(false)).await;
        }
        agent.close().await;
        self.wait(12_000).await;
        self.world.write_wanted().await;
        format!("{vip}/{real} is registered ({registered:?}) and loses that, known to be so: {is_known}")
    }

    /// Somebody claims to have an order in force that nobody wrote.
    async fn forge_orders(&mut self) -> String {
        let ahead = |number: u64, by: u64| number.saturating_add(by);
        let (term, epoch) = self.world.head().map_or((0, 0), |head| head.order());
        let forged = [(0, 5_000), (2, 0), (u64::MAX, u64::MAX), (0, u64::MAX), (1 << 40, 3), (0, 0)];
        let (by_term, by_epoch) = *self.chance.of(&forged).expect("not empty");
        let record = Applied {
            term: ahead(term, by_term),
            epoch: ahead(epoch, by_epoch),
            digest: String::new(),
            mode: Mode::Live,
            problem: None,
            announced: None,
            sources: BTreeSet::new(),
            boot: None,
            replaced: None,
            extra: BTreeMap::new(),
        };
        let order = record.order();
        let (path, data) = (GHOST.to_owned(), record.bytes().expect("it is small"));
        let create = Change::Create { path: path.clone(), data: data.clone(), ephemeral: false };
        if self.change(create).await.is_err() {
            let _ = self.change(Change::Set { path, data, version: None }).await;
        }
        format!("a ghost has {order:?} in force")
    }

    /// A record swells, or there are flags by the hundred that name nothing.
    async fn swell(&mut self, vip: &VipName, real: &RealName) -> String {
        if self.chance.one_in(2) {
            let mut record = self.world.wanted.vips[vip].reals[real].clone();
            record.extra.insert("note".into(), "x".repeat(60_000).into());
            let data = to_json(&record).expect("it is not too large");
            let path = paths::real(vip, real);
            let outcome = self.change(Change::Set { path: path.clone(), data, version: None }).await;
            self.wait(5_000).await;
            self.world.write_wanted().await;
            return format!("{path} has a note of 60 kB for a while: {outcome:?}");
        }
        let flags: Vec<String> =
            (0..FLAGS).map(|number| format!("{}/No Name {number}", paths::DRAIN)).collect();
        let create =
            |path: &String| Change::Create { path: path.clone(), data: Vec::new(), ephemeral: false };
        let outcome = self.world.operate(flags.iter().map(create).collect()).await;
        self.wait(5_000).await;
        // All at once, as they came: each alone would be another head.
        let delete = |path: &String| Change::Delete { path: path.clone(), version: None };
        let gone = self.world.operate(flags.iter().map(delete).collect()).await;
        format!("{FLAGS} flags name nothing for a while: {outcome:?}, {gone:?}")
    }

    /// Writes over one of these, or what is wrong with that.
    async fn scribble(&mut self, paths: &[String]) -> String {
        let path = self.chance.of(paths).expect("not empty").clone();
        let data = self.chance.of(&["{\"", "{}", "", "[1]", "{\"version\":99}"]).expect("not empty");
        let data = data.as_bytes().to_vec();
        let outcome =
            self.change(Change::Set { path: path.clone(), data: data.clone(), version: None }).await;
        format!("{path} is overwritten with {:?}: {outcome:?}", String::from_utf8_lossy(&data))
    }

    /// Deletes all events with their parent, or adds many that no leader wrote.
    async fn spoil_history(&mut self) -> String {
        let there = self.world.store.dump().into_keys();
        let events: Vec<String> = there.filter(|path| path.starts_with(paths::EVENTS)).rev().collect();
        if self.chance.one_in(2) {
            let delete = |path| Change::Delete { path, version: None };
            let outcome = self.world.operate(events.into_iter().map(delete).collect()).await;
            return format!("all events are deleted: {outcome:?}");
        }
        let first = *self.chance.of(&[1, 30, u64::MAX - 500]).expect("not empty");
        let forged = (first..first + 400).map(paths::event).chain([format!("{}/0-notes", paths::EVENTS)]);
        let forged = forged.filter(|path| !events.contains(path));
        let create = |path| Change::Create { path, data: b"{".to_vec(), ephemeral: false };
        let outcome = self.world.operate(forged.map(create).collect()).await;
        format!("400 events are forged from {first} on: {outcome:?}")
    }

    async fn change(&self, change: Change) -> Result<(), Error> {
        self.world.operate(vec![change]).await
    }

    async fn toggle_flag(&mut self, path: &str) -> String {
        let set = toggle(&mut self.flags, &path.to_owned());
        self.flag(path, set).await;
        format!("{path}: {set}")
    }

    async fn flag(&self, path: &str, set: bool) {
        let path = path.to_owned();
        let change = match set {
            true => Change::Create { path, data: b"{}".to_vec(), ephemeral: false },
            false => Change::Delete { path, version: None },
        };
        // It is there, or gone, already if this fails: the store runs.
        let _ = self.change(change).await;
    }

    /// Writes a VIP as operators do who touch only what they mean.
    async fn write(&mut self, name: &VipName, state: Option<VipState>) {
        match state {
            Some(state) => drop(self.world.wanted.vips.insert(name.clone(), state)),
            None => drop(self.world.wanted.vips.remove(name)),
        }
        self.world.write_wanted().await;
    }

    /// Repairs everything, but for a real that may stay dead.
    async fn repair(&mut self) -> Result<(), String> {
        let now = Instant::now();
        self.observer.note(now, "** all is repaired");
        self.world.store.outage(false);
        self.world.store.latency(Duration::from_millis(1));
        for (node, machine) in &self.world.machines {
            machine.client.pause(false);
            machine.client.partition(false);
            machine.client.lose_replies(false);
            self.observer.note(now, &format!("{node} runs: {}", machine.node.is_some()));
        }
        if self.world.running().next().is_none() {
            self.world.start(&vip_node());
        }
        let dead = real_name(self.chance.number(1, self.reals));
        for (number, state) in (1..).zip(self.world.wanted.vips.values_mut()) {
            let _: u8 = number;
            if state.reals.values().all(|real| real.weight == 0) {
                state.reals.insert(real_name(1), real(1, 100));
            }
        }
        let bearable = self.world.wanted.vips.values().all(|state| {
            let used = state.reals.iter().filter(|(_, real)| real.weight > 0).map(|(name, _)| name);
            let used: Vec<&RealName> = used.collect();
            let share = if used.contains(&&dead) { 100 } else { 0 };
            state.vip.health.is_some()
                && share <= used.len() * usize::from(state.vip.panic_threshold)
                && used.len() > 1
        });
        {
            let mut truth = lock(&self.world.truth);
            truth.wrong.clear();
            truth.down = if bearable { [dead].into() } else { BTreeSet::new() };
        }
        self.drained.clear();
        let there: Vec<String> = self.world.store.dump().into_keys().collect();
        let flags =
            there.into_iter().filter(|path| path.starts_with("/drover/ops/") && path.split('/').count() > 4);
        // What nodes that are gone had in force is kept for ever; where it is damaged, nobody but an operator repairs it.
        let damaged = self.world.store.dump().into_iter().filter(|(path, znode)| {
            path.starts_with("/drover/applied/") && Applied::parse(&znode.data).is_err()
        });
        let gone = damaged.map(|(path, _)| path).chain([GHOST.to_owned()]);
        let flags: Vec<String> = flags.chain(gone).chain([paths::FREEZE.to_owned()]).collect();
        for path in flags {
            self.flag(&path, false).await;
        }
        let data = to_json(&self.world.wanted.cluster).map_err(|error| error.to_string())?;
        let cluster = Change::Set { path: paths::CLUSTER.to_owned(), data, version: None };
        self.change(cluster).await.map_err(|error| error.to_string())?;
        self.world.write_wanted().await;
        self.observer.circumstances(&self.world, &self.drained);
        // What is held because it looked like an accident was meant.
        let confirm: Vec<String> = self
            .world
            .store
            .dump()
            .into_keys()
            .filter_map(|path| {
                path.strip_prefix("/drover/assignments/").map(|vip| format!("{}/{vip}", paths::CONFIRM))
            })
            .chain([paths::CONFIRM_VIPS.to_owned(), paths::CONFIRM_NODES.to_owned()])
            .collect();
        for path in &confirm {
            self.flag(path, true).await;
        }
        self.pass(Duration::from_secs(30)).await?;
        for path in &confirm {
            self.flag(path, false).await;
        }
        Ok(())
    }
}

fn vip_node() -> NodeName {
    crate::world::name("lb-1")
}

/// Puts a thing in or takes it out; returns whether it is in.
fn toggle<T: Ord + Clone>(set: &mut BTreeSet<T>, thing: &T) -> bool {
    if set.remove(thing) {
        return false;
    }
    set.insert(thing.clone())
}
