//! What `lbctl` says beforehand that the leader will hold is what the leader holds, and nothing else is.
//!
//! Both on one store in this process: `lbctl` plans against the tree, the leader takes its turns on what is written.

use crate::edit::{Edit, FlagName, plan};
use crate::tree::Tree;
use coordination::memory::{MemorySession, MemoryStore};
use coordination::setup::{init, write_desired};
use coordination::{Change, Session as _, Store as _};
use policy::desk::Desk;
use policy::forecast;
use policy::leader::{Leader, Published, Timeouts};
use policy::removal::{ALONE, QUIET};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use zk_schema::tree::{Applied, Contents, Flag, Member, Mode, Registrant, StateRecord as _, Target, paths};
use zk_schema::{
    CheckKind, Cluster, Desired, HealthCheck, NodeName, Protocol, Real, Vip, VipName, VipState, to_json,
};

const TURN: Duration = Duration::from_millis(200);
/// Beyond all that the leader waits for before it judges what vanished.
const JUDGED: Duration = Duration::from_secs(13);
/// A leader's turn, and the time between two.
const SLACK: Duration = Duration::from_millis(400);

/// A cluster without packets.
struct Case {
    store: MemoryStore,
    operator: MemorySession,
    desk: Desk,
    now: Duration,
    nodes: Vec<NodeName>,
    /// The leader as it was foreseen after the last edit.
    foreseen: Option<Leader>,
}

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

fn remove(reals: &[&str]) -> Vec<Edit> {
    reals.iter().map(|real| Edit::RemoveReal(target(real))).collect()
}

fn remove_vips(vips: &[&str]) -> Vec<Edit> {
    vips.iter().map(|vip| Edit::RemoveVip(vip.parse().unwrap())).collect()
}

impl Case {
    /// All in force, and the leader settled. Reals are `<vip>/<real>`, or `<vip>/<real>=<weight>`.
    async fn new(nodes: usize, reals: &[&str]) -> Self {
        let mut desired = Desired::default();
        for (number, real) in (1..).zip(reals) {
            let (real, weight) = real.split_once('=').unwrap_or((real, "100"));
            let Target { vip, real } = target(real);
            let vips = u8::try_from(desired.vips.len()).unwrap();
            let state = desired.vips.entry(vip).or_insert_with(|| VipState {
                vip: Vip::new([198, 51, 100, vips].into(), 1883, Protocol::Tcp),
                reals: [].into(),
            });
            let record = Real { weight: weight.parse().unwrap(), ..Real::new([10, 0, 0, number].into()) };
            state.reals.insert(real, record);
        }
        let store = MemoryStore::new();
        let operator = store.client("operator").connect().await.unwrap();
        init(&operator, &Cluster::default()).await.unwrap();
        write_desired(&operator, &desired).await.unwrap();
        let nodes: Vec<NodeName> = (0..nodes).map(|node| format!("lb-{node}").parse().unwrap()).collect();
        let settings = Timeouts {
            session_timeout: Duration::from_secs(6),
            ack_timeout: Duration::from_secs(3),
            withdraw_after: Duration::from_secs(10),
        };
        let leader = Leader::new(1, settings, Published::default(), 0, Duration::ZERO);
        let contents = Arc::new(Contents::of(store.dump()));
        let desk = Desk::new(leader, contents, BTreeSet::new(), 0, Duration::ZERO);
        let mut case = Self { store, operator, desk, now: Duration::ZERO, nodes, foreseen: None };
        for node in case.nodes.clone() {
            let member = Member {
                instance: "1".to_owned(),
                boot: "1".to_owned(),
                source_v4: None,
                source_v6: None,
                admin: ([127, 0, 0, 1], 9940).into(),
                software: "1".to_owned(),
                started: 0,
                extra: Default::default(),
            };
            case.put(&paths::node(&node), member.bytes().unwrap()).await;
        }
        case.pass(Duration::from_secs(60)).await;
        let head = case.desk.leader().in_force().head.clone().unwrap();
        assert!(!head.settling && head.vips.len() == desired.vips.len(), "{head:?}");
        case
    }

    async fn put(&self, path: &str, data: Vec<u8>) {
        let path = path.to_owned();
        let is_there = self.store.dump().contains_key(&path);
        let change = match is_there {
            true => Change::Set { path, data, version: None },
            false => Change::Create { path, data, ephemeral: false },
        };
        self.operator.commit(vec![change]).await.unwrap();
    }

    /// One turn of the leader's, upon which every node applies what it says.
    async fn turn(&mut self) {
        self.now += TURN;
        let contents = Arc::new(Contents::of(self.store.dump()));
        self.desk.look(&contents, 0, self.now);
        let Some(publication) = self.desk.decide(self.now).unwrap() else { return };
        for vip in publication.changed.keys() {
            match publication.records.get(vip) {
                Some(data) => self.put(&paths::assignment(vip), data.clone()).await,
                None => {
                    let path = paths::assignment(vip);
                    self.operator.commit(vec![Change::Delete { path, version: None }]).await.unwrap();
                }
            }
        }
        self.put(paths::ASSIGNMENTS, publication.head.bytes().unwrap()).await;
        let applied = Applied {
            term: publication.head.term,
            epoch: publication.head.epoch,
            digest: String::new(),
            mode: Mode::Live,
            problem: None,
            announced: None,
            sources: Default::default(),
            boot: None,
            replaced: None,
            extra: Default::default(),
        };
        self.desk.published(publication, self.now);
        for node in &self.nodes {
            self.put(&paths::applied(node), applied.bytes().unwrap()).await;
        }
    }

    async fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.turn().await;
        }
    }

    /// Makes the edits, and returns whether `lbctl` said that the leader would hold something of them.
    async fn edit(&mut self, edits: Vec<Edit>) -> bool {
        let tree = Tree::read(&self.operator).await.unwrap();
        let plan = plan::plan(&tree, edits, 0).unwrap();
        for step in &plan.steps {
            self.operator.commit(step.changes.clone()).await.unwrap();
        }
        let after = Tree::read(&self.operator).await.unwrap();
        self.foreseen = Some(forecast::at_rest(&after.view(0), after.published()).unwrap());
        plan.remarks.iter().any(|remark| remark.text.contains("the leader will hold that"))
    }

    /// The leader has come to what was foreseen.
    fn is_as_foreseen(&self) {
        let foreseen = self.foreseen.as_ref().unwrap();
        let leader = self.desk.leader();
        assert_eq!(leader.problems(), foreseen.problems());
        let all = |leader: &Leader| -> Vec<_> {
            let assignments = leader.in_force().assignments.iter();
            let of_vip = |(vip, assignment): (&VipName, &Arc<zk_schema::tree::Assignment>)| {
                let hold = leader.hold(vip).cloned();
                let assignment = (**assignment).clone();
                let (weights, held) = (assignment.weights, assignment.held_reals);
                (vip.clone(), assignment.vip, assignment.reals, weights, held, hold)
            };
            assignments.map(of_vip).collect()
        };
        assert_eq!(all(leader), all(foreseen));
    }

    /// Whether the leader holds anything.
    fn holds(&self) -> bool {
        let in_force = self.desk.leader().in_force();
        let head = in_force.head.as_ref().unwrap();
        let holds_reals = in_force.assignments.values().any(|assignment| !assignment.held_reals.is_empty());
        holds_reals || !head.held_vips.is_empty()
    }

    /// What is in force: VIPs and reals.
    fn served(&self) -> BTreeSet<String> {
        let of_vip = |(vip, assignment): (&VipName, &Arc<zk_schema::tree::Assignment>)| {
            let reals: Vec<String> = assignment.reals.keys().map(|real| format!("{vip}/{real}")).collect();
            [vip.to_string()].into_iter().chain(reals)
        };
        self.desk.leader().in_force().assignments.iter().flat_map(of_vip).collect()
    }

    /// How long what is in force stays as it is, at most as long as the leader may wait.
    async fn stays(&mut self) -> Option<Duration> {
        let (before, began) = (self.served(), self.now);
        while self.now < began + JUDGED {
            self.turn().await;
            if self.served() != before {
                return Some(self.now - began);
            }
        }
        None
    }

    async fn flag(&self, path: &str) {
        self.put(path, b"{}".to_vec()).await;
    }
}

const USUAL: [&str; 9] =
    ["mqtt/a", "mqtt/b", "mqtt/c", "mqtt/d", "web/a", "web/b", "dns/a", "dns/b", "dns/c"];

#[tokio::test(start_paused = true)]
async fn what_is_said_to_be_held_is_held_and_what_is_not_goes_in_time() {
    for (edits, held, goes_after) in [
        // Alone: it waits for company, and goes.
        (remove(&["mqtt/a"]), false, ALONE),
        (remove(&["web/a"]), false, ALONE),
        (remove_vips(&["web"]), false, ALONE),
        // In company: until nothing more has vanished for a while.
        (remove(&["mqtt/a", "mqtt/b"]), false, QUIET),
        (remove(&["mqtt/a", "web/a"]), false, QUIET),
        // Most, or all that there is.
        (remove(&["mqtt/a", "mqtt/b", "mqtt/c"]), true, Duration::ZERO),
        (remove(&["web/a", "web/b"]), true, Duration::ZERO),
        (remove_vips(&["web", "dns"]), true, Duration::ZERO),
        // No VIP alone, but most of all.
        ([remove_vips(&["mqtt"]), remove(&["web/a", "dns/a"])].concat(), true, Duration::ZERO),
    ] {
        let mut case = Case::new(1, &USUAL).await;
        let told = format!("{edits:?}");
        assert_eq!(case.edit(edits).await, held, "{told}");
        match (held, case.stays().await) {
            (true, None) => assert!(case.holds(), "{told}"),
            (false, Some(after)) if after >= goes_after && after <= goes_after + SLACK => {
                assert!(!case.holds(), "{told}");
            }
            (_, after) => panic!("{told}: goes after {after:?}"),
        }
        case.pass(SLACK).await;
        case.is_as_foreseen();
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_edited_the_leader_comes_to_what_was_foreseen() {
    let drain = |real| Edit::PutFlag(FlagName::Drain(target(real)), Flag::default(), None);
    let real = |name, weight: u8| {
        let record = Real { weight: weight.into(), ..Real::new([10, 0, 7, weight].into()) };
        Edit::PutReal(target(name), record)
    };
    let vip = |address| Vip::new([198, 51, 100, address].into(), 1883, Protocol::Tcp);
    let checked = Vip { health: Some(HealthCheck::new(CheckKind::Tcp)), ..vip(0) };
    for edits in [
        vec![real("mqtt/a", 50)],
        vec![real("mqtt/new", 10), real("web/a", 0)],
        vec![drain("web/a")],
        vec![drain("web/a"), drain("web/b")],
        vec![Edit::PutVip("mqtt".parse().unwrap(), Vip { panic_threshold: 10, ..checked })],
        vec![Edit::PutVip("new".parse().unwrap(), vip(9)), real("new/a", 100), real("new/b", 5)],
        vec![Edit::PutFlag(FlagName::Freeze, Flag::default(), None), real("mqtt/a", 50)],
    ] {
        let mut case = Case::new(3, &USUAL).await;
        let told = format!("{edits:?}");
        assert!(!case.edit(edits).await, "{told}");
        case.pass(JUDGED).await;
        println!("{told}");
        case.is_as_foreseen();
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_count_among_all_that_there_is() {
    let edits = || [remove_vips(&["mqtt"]), remove(&["web/a", "dns/a"])].concat();
    let mut case = Case::new(30, &USUAL).await;
    assert!(!case.edit(edits()).await, "most VIPs and reals are few beside the nodes");
    assert!(case.stays().await.is_some() && !case.holds());
}

#[tokio::test(start_paused = true)]
async fn a_lone_removal_counts_with_what_is_missing_or_held_already() {
    // Two of four went a moment ago, and are judged with the third.
    let mut case = Case::new(1, &USUAL).await;
    assert!(!case.edit(remove(&["mqtt/a", "mqtt/b"])).await);
    case.pass(Duration::from_secs(5)).await;
    assert!(case.edit(remove(&["mqtt/c"])).await);
    assert_eq!(case.stays().await, None);
    assert!(case.holds());
    case.is_as_foreseen();
    // What is held stays so beside what goes alone.
    assert!(!case.edit(remove(&["dns/a"])).await);
    assert!(case.stays().await.is_some());
    assert!(case.edit(remove(&["mqtt/d"])).await);
    assert_eq!(case.stays().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_lone_removal_that_leaves_nothing_to_take_connections_is_held() {
    for (number, what) in ["a weight of 0", "a drain", "an agent that ends"].iter().enumerate() {
        let weight = if number == 0 { "web/b=0" } else { "web/b" };
        let mut case = Case::new(1, &["web/a", weight, "mqtt/a", "mqtt/b", "dns/a"]).await;
        match number {
            1 => case.flag(&paths::drain(&"web".parse().unwrap(), &"b".parse().unwrap())).await,
            2 => {
                let mut record = Real::new([10, 0, 0, 99].into());
                Registrant::take_leave(&mut record);
                let path = paths::real(&"web".parse().unwrap(), &"b".parse().unwrap());
                let create =
                    Change::Create { path: path.clone(), data: to_json(&record).unwrap(), ephemeral: true };
                let delete = Change::Delete { path, version: None };
                case.operator.commit(vec![delete, create]).await.unwrap();
            }
            _ => {}
        }
        case.pass(Duration::from_secs(20)).await;
        assert!(case.edit(remove(&["web/a"])).await, "{what}");
        assert_eq!(case.stays().await, None, "{what}");
        assert!(case.holds(), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_confirmed_beforehand_is_not_said_to_be_held_and_goes_at_once() {
    let mut case = Case::new(1, &USUAL).await;
    case.flag(&paths::confirm(&"mqtt".parse().unwrap())).await;
    assert!(!case.edit(remove(&["mqtt/a", "mqtt/b", "mqtt/c"])).await);
    assert!(case.stays().await.is_some_and(|after| after <= SLACK));
    for flags in [
        &[paths::CONFIRM_VIPS.to_owned()][..],
        &["web", "dns"].map(|vip| paths::confirm(&vip.parse().unwrap())),
    ] {
        let mut case = Case::new(1, &USUAL).await;
        for path in flags {
            case.flag(path).await;
        }
        assert!(!case.edit(remove_vips(&["web", "dns"])).await, "{flags:?}");
        assert!(case.stays().await.is_some_and(|after| after <= SLACK), "{flags:?}");
    }
}

/// The tree does not tell what was let go a moment ago, so `lbctl` cannot foresee that the leader counts it.
#[tokio::test(start_paused = true)]
async fn what_went_within_the_last_seconds_counts_for_the_leader_and_is_not_foreseen() {
    let five = [&USUAL[..], &["mqtt/e"]].concat();
    let mut case = Case::new(1, &five).await;
    assert!(!case.edit(remove(&["mqtt/a"])).await);
    case.pass(ALONE + SLACK).await;
    assert!(!case.edit(remove(&["mqtt/b", "mqtt/c"])).await, "two of four, as far as the tree tells");
    assert_eq!(case.stays().await, None);
    assert!(case.holds(), "three of five within ten seconds");
    // Later, they are two of what is left.
    let mut case = Case::new(1, &five).await;
    for reals in [&["mqtt/a"][..], &["mqtt/b", "mqtt/c"]] {
        assert!(!case.edit(remove(reals)).await, "{reals:?}");
        case.pass(JUDGED).await;
    }
    assert!(!case.holds());
}
