//! A hostile tree: whatever stands in the znodes, a leader decides only what followers take over, followers take over
//! only what is greater in (term, epoch) and whole, and garbage empties no table.
//!
//! An input is text. It is applied line by line to the tree of a cluster at rest (see `healthy`):
//!
//! ```text
//! /drover/vips/mqtt {"address":...}     writes a znode
//! -/drover/vips/mqtt                    deletes it, and what is below
//! +500                                  half a second passes; the leader decides, nodes acknowledge
//! ```

use coordination::follow::{Followed, follow};
use coordination::memory::MemoryStore;
use coordination::{Change, Session as _, Store as _};
use policy::leader::{Leader, Published, Timeouts, View};
use policy::local::{Exclusions, adopt};
use slot_table::placement::{TableParams, weighted};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use zk_schema::Picture;
use zk_schema::tree::{
    Applied, Assignment, Contents, Decided, Head, Member, Mode, StateRecord as _, Vote, Znode, paths,
};
use zk_schema::{
    CheckKind, Cluster, HealthCheck, NodeName, Protocol, Real, RealName, RecordError, Vip, VipName,
    from_json, to_json,
};

const SETTINGS: Timeouts = Timeouts {
    session_timeout: Duration::from_secs(6),
    ack_timeout: Duration::from_secs(3),
    withdraw_after: Duration::from_secs(10),
};
const NODES: [&str; 3] = ["lb-1", "lb-2", "lb-3"];
/// Lines of an input that count: what more do could be done by another input.
const LINES: usize = 24;

/// Tables that are remembered to have been built.
const MOST_BUILT: usize = 10_000;

type Znodes = BTreeMap<String, Vec<u8>>;
type Weights = BTreeMap<VipName, BTreeMap<RealName, u16>>;

thread_local! {
    static HEALTHY: World = healthy();
    static BUILT: RefCell<HashSet<(TableParams, Vec<(RealName, u16)>)>> = RefCell::default();
}

/// A tree, who leads there, and what a node has in force.
struct World {
    znodes: Znodes,
    leader: Leader,
    now: Duration,
    in_force: Option<Arc<Decided>>,
    /// The paths that the input wrote or deleted.
    touched: BTreeSet<String>,
}

fn name<T: std::str::FromStr<Err = zk_schema::NameError>>(text: &str) -> T {
    text.parse().unwrap()
}

/// A cluster at rest: three nodes, the VIPs `mqtt` (probed) and `web` (not), two reals each.
fn healthy() -> World {
    let mut znodes: Znodes = paths::SKELETON.iter().map(|path| ((*path).to_owned(), Vec::new())).collect();
    znodes.insert(paths::CLUSTER.into(), to_json(&Cluster::default()).unwrap());
    for (vip, number) in [("mqtt", 1), ("web", 2)] {
        let mut record = Vip::new([198, 51, 100, number].into(), 1883, Protocol::Tcp);
        record.health = (vip == "mqtt").then(|| HealthCheck::new(CheckKind::Tcp));
        let vip = name(vip);
        znodes.insert(paths::vip(&vip), to_json(&record).unwrap());
        znodes.insert(paths::reals(&vip), Vec::new());
        for real in ["a", "b"] {
            let record = Real::new([10, 0, number, real.as_bytes()[0]].into());
            znodes.insert(paths::real(&vip, &name(real)), to_json(&record).unwrap());
        }
    }
    for node in NODES {
        let member = Member {
            instance: node.into(),
            boot: node.into(),
            source_v4: None,
            source_v6: None,
            admin: ([127, 0, 0, 1], 9940).into(),
            software: "fuzzed".into(),
            started: 0,
            extra: Default::default(),
        };
        znodes.insert(paths::node(&name(node)), member.bytes().unwrap());
    }
    let leader = Leader::new(1, SETTINGS, Published::default(), 0, Duration::ZERO);
    let mut world = World { znodes, leader, now: Duration::ZERO, in_force: None, touched: BTreeSet::new() };
    for _ in 0..4 {
        world.pass(Duration::from_secs(30)).unwrap();
    }
    assert!(world.weights().values().all(|weights| weights.len() == 2), "{:?}", world.weights());
    world.touched.clear();
    world
}

impl World {
    /// Time passes: the leader decides and writes, a node follows, all acknowledge.
    fn pass(&mut self, time: Duration) -> Result<(), RecordError> {
        self.now += time;
        let contents = std::sync::Arc::new(contents(&self.znodes));
        let view = View::of(&Picture::parse(&contents), self.now.as_secs());
        let damaged = self.damaged();
        if let Some(publication) = self.leader.decide(&view, &damaged, self.now)? {
            let before = self.in_force.as_ref().map(|decided| decided.head.order());
            assert!(
                Some(publication.head.order()) > before,
                "{:?} after {before:?}",
                publication.head.order()
            );
            for (vip, assignment) in &publication.changed {
                match assignment {
                    Some(assignment) => self.znodes.insert(paths::assignment(vip), assignment.bytes()?),
                    None => self.znodes.remove(&paths::assignment(vip)),
                };
            }
            self.znodes.insert(paths::ASSIGNMENTS.into(), publication.head.bytes()?);
            self.leader.published(publication, self.now);
            let raw_head = &self.znodes[paths::ASSIGNMENTS];
            let head = Head::parse(raw_head).unwrap();
            let bytes = |vip: &VipName| self.znodes.get(&paths::assignment(vip)).cloned();
            let decided = Decided::assemble(head, raw_head, bytes, self.in_force.as_deref());
            let decided =
                decided.unwrap_or_else(|problem| panic!("no node takes over what was decided: {problem}"));
            compiles(&decided);
            self.in_force = Some(Arc::new(decided));
        }
        self.acknowledge();
        Ok(())
    }

    fn damaged(&self) -> BTreeSet<VipName> {
        let Some(head) = &self.leader.in_force().head else { return BTreeSet::new() };
        let is_own = |vip: &VipName, digest: &str| {
            let znode = self.znodes.get(&paths::assignment(vip));
            znode.is_some_and(|znode| Assignment::digest(znode) == digest)
        };
        head.vips
            .iter()
            .filter(|(vip, entry)| !is_own(vip, &entry.digest))
            .map(|(vip, _)| vip.clone())
            .collect()
    }

    /// Writes what nodes write of their own, unless somebody else did.
    fn acknowledge(&mut self) {
        let Some(decided) = &self.in_force else { return };
        let applied = Applied {
            term: decided.head.term,
            epoch: decided.head.epoch,
            digest: String::new(),
            mode: Mode::Live,
            announced: None,
            sources: Default::default(),
            boot: None,
            replaced: None,
            problem: None,
            extra: Default::default(),
        };
        let vote = Vote { targets: decided.head.targets, ..Vote::default() };
        for node in NODES {
            let node: NodeName = name(node);
            for (path, bytes) in
                [(paths::applied(&node), applied.bytes()), (paths::health(&node), vote.bytes())]
            {
                if !self.touched.contains(&path) {
                    self.znodes.insert(path, bytes.unwrap());
                }
            }
        }
    }

    fn weights(&self) -> Weights {
        let assignments = self.in_force.iter().flat_map(|decided| &decided.assignments);
        assignments.map(|(vip, assignment)| (vip.clone(), assignment.weights.clone())).collect()
    }

    fn edit(&mut self, line: &str) -> Result<(), RecordError> {
        if let Some(time) = line.strip_prefix('+') {
            return self.pass(Duration::from_millis(time.trim().parse().unwrap_or(500).min(100_000)));
        }
        if let Some(path) = line.strip_prefix('-') {
            let below = format!("{path}/");
            let gone: Vec<String> = self
                .znodes
                .keys()
                .filter(|other| *other == path || other.starts_with(&below))
                .cloned()
                .collect();
            for path in gone {
                self.znodes.remove(&path);
                self.touched.insert(path);
            }
            return Ok(());
        }
        let (path, content) = line.split_once(' ').unwrap_or((line, ""));
        if path.starts_with(paths::CLUSTER) {
            self.znodes.insert(path.to_owned(), content.as_bytes().to_vec());
            self.touched.insert(path.to_owned());
        }
        Ok(())
    }

    /// Returns whether this VIP has at least one real that nobody with a right to do so touched: what stands there, if it
    /// is not as it was, cannot be read.
    fn is_sound(&self, vip: &VipName, weights: &BTreeMap<RealName, u16>) -> bool {
        let kept = |path: &str, is_read: fn(&[u8]) -> bool| match self.znodes.get(path) {
            None => false,
            Some(bytes) => !self.touched.contains(path) || !is_read(bytes),
        };
        let votes = self.touched.iter().any(|path| {
            path.starts_with(paths::HEALTH)
                && self.znodes.get(path).is_some_and(|bytes| Vote::parse(bytes).is_ok())
        });
        let has_votes = votes || self.touched.iter().any(|path| path.starts_with(paths::NODES));
        let vip_kept = kept(&paths::vip(vip), |bytes| from_json::<Vip>(bytes).is_ok());
        vip_kept
            && !has_votes
            && weights.keys().any(|real| {
                kept(&paths::real(vip, real), |bytes| from_json::<Real>(bytes).is_ok())
                    && !self.touched.contains(&paths::drain(vip, real))
            })
    }

    /// Returns whether nobody but the leader wrote a head or an assignment that can be read.
    fn is_leaders_own(&self) -> bool {
        self.touched.iter().filter(|path| path.starts_with(paths::ASSIGNMENTS)).all(|path| {
            self.znodes
                .get(path)
                .is_none_or(|bytes| Head::parse(bytes).is_err() && Assignment::parse(bytes).is_err())
        })
    }
}

/// Tables follow from it.
fn compiles(decided: &Decided) {
    let adopted = adopt(decided, &Exclusions::default());
    assert_eq!(adopted.vips.len(), decided.assignments.len());
    let params = TableParams::of(&decided.head.cluster).unwrap();
    for (vip, assignment) in &decided.assignments {
        let key = (params, weighted(assignment.reals.keys(), &adopted.vips[vip].weights));
        BUILT.with_borrow_mut(|built| {
            if !built.contains(&key) {
                params.table(&key.1).unwrap();
                if built.len() >= MOST_BUILT {
                    built.clear();
                }
                built.insert(key);
            }
        });
    }
}

fn contents(znodes: &Znodes) -> Contents {
    let znode =
        |data: &Vec<u8>| Znode { data: data.clone(), version: 0, created: 1, modified: 1, owner: None };
    Contents::of(znodes.iter().map(|(path, data)| (path.clone(), znode(data))))
}

/// Applies an input.
///
/// # Panics
/// If leader or follower do what they must not.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut world = HEALTHY.with(|healthy| World {
        znodes: healthy.znodes.clone(),
        leader: Leader::new(2, SETTINGS, Published::parse(&contents(&healthy.znodes)), 0, Duration::ZERO),
        now: Duration::ZERO,
        in_force: healthy.in_force.clone(),
        touched: BTreeSet::new(),
    });
    let before = world.weights();
    let last = world.in_force.clone();
    for line in text.lines().take(LINES) {
        if world.edit(line).is_err() {
            return;
        }
    }
    follows(&world.znodes, last.clone());
    if world.pass(Duration::from_secs(100)).is_err() || world.pass(Duration::from_secs(1)).is_err() {
        return;
    }
    check(&world, &before);

    // A successor goes on from what it finds.
    let mut published = Published::parse(&contents(&world.znodes));
    let own = world.is_leaders_own();
    let _ = published.complete(world.in_force.as_deref());
    let beyond = world.in_force.as_ref().map_or(0, |decided| decided.head.epoch);
    let term = published.head.iter().map(|head| head.term).max().unwrap_or(0).max(2).saturating_add(1);
    if published.epoch() > u64::MAX - 16 || term > u64::MAX - 16 {
        return;
    }
    world.leader = Leader::new(term, SETTINGS, published, beyond, world.now);
    for _ in 0..3 {
        if world.pass(Duration::from_secs(50)).is_err() {
            return;
        }
    }
    if own {
        check(&world, &before);
    }
}

/// Garbage has emptied no table.
fn check(world: &World, before: &Weights) {
    let after = world.weights();
    for (vip, weights) in before {
        if world.is_sound(vip, weights) {
            assert!(
                after.get(vip).is_some_and(|weights| !weights.is_empty()),
                "{vip} lost its reals: {after:?}"
            );
        }
    }
}

/// A node that has `last` in force follows that tree.
fn follows(znodes: &Znodes, last: Option<Arc<Decided>>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let found = runtime.block_on(async {
        let store = MemoryStore::new();
        let session = store.client("node").connect().await.unwrap();
        let create = |path: &str, data: &[u8]| {
            vec![Change::Create { path: path.to_owned(), data: data.to_vec(), ephemeral: false }]
        };
        for (path, data) in znodes {
            // Parents that the input has not named; what is no path is refused.
            for (slash, _) in path.match_indices('/').skip(1) {
                if !znodes.contains_key(&path[..slash]) {
                    let _ = session.commit(create(&path[..slash], b"")).await;
                }
            }
            let _ = session.commit(create(path, data)).await;
        }
        let followed = Followed { decided: last.clone(), ..Followed::default() };
        let (followed, _receiver) = watch::channel(followed);
        let time = tokio::time::sleep(Duration::from_secs(3));
        tokio::select! {
            () = follow(&session, &followed, Duration::from_secs(1)) => panic!("the session ended"),
            () = time => {}
        }
        session.close().await;
        followed.borrow().clone()
    });
    match (last, found.decided) {
        (None, None) => {}
        (Some(_), None) => panic!("what was in force is gone"),
        (None, Some(decided)) => compiles(&decided),
        (Some(last), Some(decided)) if last == decided => {}
        (Some(last), Some(decided)) => {
            assert!(decided.head.order() > last.head.order(), "{:?}", decided.head.order());
            compiles(&decided);
        }
    }
}

/// Edits as operators make them, and as nobody should; and the whole tree of a cluster at rest.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "/drover/vips/mqtt {\"address\":\"198.51.100.1\",\"port\":1883,\"protocol\":\"tcp\",\"panic_threshold\":100}\n+500\n",
        "/drover/vips/mqtt/reals/a {\"address\":\"10.0.1.97\",\"weight\":50}\n+500\n+500\n",
        "/drover/vips/mqtt/reals/c {\"address\":\"10.0.1.99\"}\n+500\n-/drover/vips/mqtt/reals/a\n",
        "/drover/vips/mqtt x\n/drover/vips/mqtt/reals/a x\n/drover/vips/mqtt/reals/b x\n+500\n/drover x\n",
        "/drover/vips/aaa {\"address\":\"198.51.100.1\",\"port\":1883,\"protocol\":\"tcp\"}\n/drover/vips/aaa/reals/a {\"address\":\"10.0.1.97\"}\n",
        "/drover/ops/drain/mqtt.a {\"by\":\"anna\",\"until\":50}\n+60000\n",
        "/drover/ops/freeze {}\n-/drover/vips\n+500\n-/drover/ops/freeze\n",
        "/drover/ops/confirm/_vips {}\n/drover/ops/confirm/_nodes {}\n/drover/ops/confirm/mqtt {}\n-/drover/vips/web\n",
        "/drover/health/lb-1 {\"targets\":3,\"down\":{\"mqtt/a\":{\"since\":1,\"reason\":\"refused\"}}}\n/drover/health/lb-2 {\"targets\":3,\"down\":{\"mqtt/a\":{\"since\":1,\"reason\":\"refused\"}}}\n+1\n",
        "-/drover/nodes\n+500\n-/drover/assignments\n+500\n-/drover\n+500\n",
        "/drover/assignments x\n+500\n/drover/assignments/mqtt {}\n/drover/leader {\"node\":\"lb-2\",\"term\":9,\"since\":1}\n",
        "/drover/applied/lb-1 {\"term\":9,\"epoch\":18446744073709551615,\"digest\":\"\",\"mode\":\"static\"}\n+3000\n",
        "/drover/nodes/lb-4 {\"instance\":\"i\",\"boot\":\"b\",\"admin\":\"127.0.0.1:1\",\"software\":\"s\",\"started\":1}\n+500\n-/drover/nodes/lb-1\n-/drover/nodes/lb-2\n-/drover/nodes/lb-3\n",
    ];
    let mut whole = String::new();
    HEALTHY.with(|healthy| {
        for (path, data) in healthy.znodes.iter().filter(|(_, data)| !data.is_empty()).rev().take(LINES) {
            whole += &format!("{path} {}\n", String::from_utf8_lossy(data));
        }
    });
    texts.into_iter().chain([whole.as_str()]).map(|text| text.as_bytes().to_vec()).collect()
}
