//! A turn's work, counted: it follows from what changed, not from what there is.

use super::*;
use crate::leader::{Published, Timeouts};
use zk_schema::testing::{checked_vip, desired, name};
use zk_schema::tree::{Applied, Member, Mode, Vote};
use zk_schema::{Cluster, Desired, VipState, to_json};

const SETTINGS: Timeouts = Timeouts {
    session_timeout: Duration::from_secs(6),
    ack_timeout: Duration::from_secs(3),
    withdraw_after: Duration::from_secs(10),
};
const NODES: [&str; 3] = ["lb-1", "lb-2", "lb-3"];

/// A leader and a tree in which all that it writes arrives.
struct Case {
    desk: Desk,
    contents: Contents,
    now: Duration,
}

impl Case {
    /// A leader that has settled, with these VIPs.
    fn new(desired: &Desired) -> Self {
        let mut contents = Contents::of([]);
        put(&mut contents, paths::CLUSTER, to_json(&Cluster::default()).unwrap());
        for (vip, VipState { vip: record, reals }) in &desired.vips {
            put(&mut contents, &paths::vip(vip), to_json(record).unwrap());
            for (real, record) in reals {
                put(&mut contents, &paths::real(vip, real), to_json(record).unwrap());
            }
        }
        for node in NODES {
            let member = r#"{"instance":"i","boot":"b","admin":"127.0.0.1:1","software":"1","started":1}"#;
            put(&mut contents, &paths::node(&name(node)), member.into());
            assert!(Member::parse(member.as_bytes()).is_ok());
        }
        let leader = Leader::new(1, SETTINGS, Published::default(), 0, Duration::ZERO);
        let seen = Arc::new(contents.clone());
        let desk = Desk::new(leader, seen, BTreeSet::new(), 0, Duration::ZERO);
        let mut case = Self { desk, contents, now: Duration::ZERO };
        case.settle();
        case.now = Duration::from_secs(100);
        case.settle();
        case
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            if !self.turn() {
                return;
            }
            self.acknowledge();
        }
        panic!("the leader does not come to rest");
    }

    /// Returns whether anything is written.
    fn turn(&mut self) -> bool {
        self.now += Duration::from_millis(200);
        let seen = Arc::new(self.contents.clone());
        self.desk.look(&seen, 0, self.now);
        let Some(publication) = self.desk.decide(self.now).unwrap() else { return false };
        for vip in publication.changed.keys() {
            match publication.records.get(vip) {
                Some(data) => put(&mut self.contents, &paths::assignment(vip), data.clone()),
                None => drop(self.contents.remove(&paths::assignment(vip))),
            }
        }
        put(&mut self.contents, paths::ASSIGNMENTS, publication.head.bytes().unwrap());
        self.desk.published(publication, self.now);
        true
    }

    fn acknowledge(&mut self) {
        let head = self.desk.leader().in_force().head.clone().unwrap();
        for node in NODES {
            let applied = Applied {
                term: head.term,
                epoch: head.epoch,
                digest: String::new(),
                mode: Mode::Live,
                problem: None,
                announced: None,
                sources: Default::default(),
                boot: None,
                replaced: None,
                extra: Default::default(),
            };
            put(&mut self.contents, &paths::applied(&name(node)), applied.bytes().unwrap());
            let vote = Vote { targets: head.targets, ..Vote::default() };
            put(&mut self.contents, &paths::health(&name(node)), vote.bytes().unwrap());
        }
    }

    /// The work of what `turns` does.
    fn work(&mut self, turns: impl FnOnce(&mut Self)) -> Work {
        let before = self.desk.work();
        turns(self);
        let after = self.desk.work();
        Work { parsed: after.parsed - before.parsed, compared: after.compared - before.compared }
    }
}

fn put(contents: &mut Contents, path: &str, data: Vec<u8>) {
    if contents.get(path).is_some_and(|znode| znode.data == data) {
        return;
    }
    contents.insert(path, Arc::new(Znode { data, version: 0, created: 0, modified: 0, owner: None }));
}

fn three_vips() -> Case {
    let vip = || checked_vip(&[("a", 100), ("b", 100), ("c", 100)]);
    Case::new(&desired([("v1", vip()), ("v2", vip()), ("v3", vip())]))
}

#[test]
fn a_turn_in_which_nothing_changed_does_nothing() {
    let mut case = three_vips();
    // The first one finds its own writes in the tree.
    case.now += ECHO * 2;
    assert!(!case.turn());
    let work = case.work(|case| {
        for _ in 0..10 {
            assert!(!case.turn());
        }
    });
    assert_eq!(work, Work::default());
}

#[test]
fn one_change_is_one_record_parsed_and_what_is_written_is_compared_once() {
    let mut case = three_vips();
    case.now += ECHO * 2;
    assert!(!case.turn());
    let (vip, real) = (name("v2"), name("b"));
    let mut record = zk_schema::testing::unchecked_vip(&[("b", 50)]).reals.remove("b").unwrap();
    record.address = case.desk.leader().in_force().assignments["v2"].reals["b"].address;
    put(&mut case.contents, &paths::real(&vip, &real), to_json(&record).unwrap());
    let work = case.work(|case| assert!(case.turn()));
    assert_eq!(work, Work { parsed: 1, ..Work::default() });
    case.acknowledge();
    case.settle();
    case.now += ECHO * 2;
    let work = case.work(|case| assert!(!case.turn()));
    assert_eq!(
        work,
        Work { compared: 2, ..Work::default() },
        "the assignment and the head, and neither again"
    );
    assert_eq!(case.work(|case| assert!(!case.turn())), Work::default());
}

#[test]
fn what_somebody_else_wrote_over_an_assignment_is_found_and_written_anew() {
    let mut case = three_vips();
    let path = paths::assignment(&name("v3"));
    let good = case.contents.get(&path).cloned().unwrap();
    put(&mut case.contents, &path, b"{}".to_vec());
    assert!(!case.turn(), "its own writes may not have come back yet");
    case.now += ECHO * 2;
    assert!(case.turn());
    assert_ne!(case.contents.get(&path).unwrap().data, good.data, "of a new epoch");
    let all = case.desk.leader().in_force();
    assert_eq!(all.assignments["v3"].epoch, all.head.as_ref().unwrap().epoch);
    assert!(all.assignments["v1"].epoch < all.assignments["v3"].epoch);

    case.contents.remove(paths::ASSIGNMENTS);
    case.now += ECHO * 2;
    assert!(case.turn());
    let all = case.desk.leader().in_force();
    let epochs: BTreeSet<u64> = all.assignments.values().map(|assignment| assignment.epoch).collect();
    assert_eq!(epochs, [all.head.as_ref().unwrap().epoch].into(), "with the head, all of them");
}

#[test]
fn a_node_is_forgotten_when_it_has_been_gone_for_a_day() {
    let mut case = three_vips();
    case.contents.remove(&paths::node(&name("lb-3")));
    case.turn();
    let since = case.now;
    assert_eq!(case.desk.long_gone(since), None);
    assert_eq!(case.desk.long_gone(since + FORGET_AFTER - Duration::from_secs(1)), None);
    assert_eq!(case.desk.long_gone(since + FORGET_AFTER), Some(name("lb-3")));
}
