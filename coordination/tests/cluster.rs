//! Tests of election, following, presence and setting up, on the store in memory.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use coordination::election::{Candidate, ElectionError, Leadership, line};
use coordination::follow::{Followed, follow};
use coordination::memory::{MemorySession, MemoryStore};
use coordination::presence::{Kept, Refusal, keep};
use coordination::setup::{ensure_skeleton, init, write_desired};
use coordination::{Change, Error, Session, Store};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use zk_schema::testing::name;
use zk_schema::tree::{Assignment, Entry, Head, MAX_ORDER, StateRecord as _, Term, Znode, paths};
use zk_schema::{Cluster, Desired, Protocol, Real, Vip, VipName, VipState};

const MOMENT: Duration = Duration::from_millis(1);
const REREAD: Duration = Duration::from_secs(45);

/// A store with a tree in it.
async fn tree() -> (MemoryStore, MemorySession) {
    let store = MemoryStore::new();
    let session = store.client("operator").connect().await.unwrap();
    assert!(init(&session, &Cluster::default()).await.unwrap());
    (store, session)
}

async fn candidate(store: &MemoryStore, node: &str) -> (MemorySession, Candidate<MemorySession>) {
    let session = store.client(node).connect().await.unwrap();
    let candidate = Candidate::stand(session.clone(), name(node), "instance").await.unwrap();
    (session, candidate)
}

async fn get(session: &MemorySession, path: &str) -> Option<Vec<u8>> {
    session.read(&[path.to_owned()]).await.unwrap().remove(0).map(|znode| znode.data)
}

fn put(path: &str, data: impl Into<Vec<u8>>) -> Change {
    Change::Set { path: path.to_owned(), data: data.into(), version: None }
}

fn create(path: &str, data: impl Into<Vec<u8>>, ephemeral: bool) -> Change {
    Change::Create { path: path.to_owned(), data: data.into(), ephemeral }
}

/// A candidate that waits for its turn in a task of its own.
fn in_line(candidate: Candidate<MemorySession>) -> JoinHandle<Leadership<MemorySession>> {
    tokio::spawn(async move {
        candidate.wait(REREAD).await.unwrap();
        candidate.lead(0, 0).await.unwrap()
    })
}

#[tokio::test(start_paused = true)]
async fn candidates_lead_one_after_the_other_and_the_term_rises() {
    let (store, operator) = tree().await;
    let (first_session, first) = candidate(&store, "lb-1").await;
    let (_second_session, second) = candidate(&store, "lb-2").await;
    first.wait(REREAD).await.unwrap();
    let leadership = first.lead(0, 5).await.unwrap();
    assert_eq!(leadership.term(), 1);
    let record = Term::parse(&get(&operator, paths::LEADER).await.unwrap()).unwrap();
    assert_eq!(record, Term { node: name("lb-1"), term: 1, since: 5 });

    let second = in_line(second);
    sleep(Duration::from_secs(60)).await;
    assert!(!second.is_finished());
    first_session.close().await;
    assert_eq!(second.await.unwrap().term(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_one_candidate_wakes_its_successor_and_nobody_else() {
    let (store, _operator) = tree().await;
    let mut sessions = Vec::new();
    let mut line = Vec::new();
    for node in ["lb-1", "lb-2", "lb-3", "lb-4", "lb-5"] {
        let (session, candidate) = candidate(&store, node).await;
        sessions.push(session);
        line.push(in_line(candidate));
    }
    sleep(MOMENT).await;
    // Each but the first watches the one before it, and nothing more.
    assert_eq!(store.watches(), 4);
    let second = sessions.remove(1);
    second.close().await;
    sleep(MOMENT).await;
    // The third watches the first now; it is the only one that did anything.
    assert_eq!(store.watches(), 3);
    assert!(line[0].is_finished() && line[2..].iter().all(|waiting| !waiting.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn who_lost_the_leadership_cannot_write_whether_it_knows_or_not() {
    let (store, operator) = tree().await;
    let (_session, first) = candidate(&store, "lb-1").await;
    let old = first.lead(0, 0).await.unwrap();
    old.commit(vec![put(paths::ASSIGNMENTS, "1")]).await.unwrap();

    // Its place in the line is taken away behind its back.
    operator.commit(vec![Change::Delete { path: first.path().to_owned(), version: None }]).await.unwrap();
    let error = old.commit(vec![put(paths::ASSIGNMENTS, "2")]).await.unwrap_err();
    assert!(old.is_over(&error), "{error}");

    let (_session, second) = candidate(&store, "lb-2").await;
    let new = second.lead(0, 0).await.unwrap();
    let error = old.commit(vec![put(paths::ASSIGNMENTS, "3")]).await.unwrap_err();
    assert!(old.is_over(&error), "{error}");
    assert_eq!(get(&operator, paths::ASSIGNMENTS).await.unwrap(), b"1");
    let unrelated = new.commit(vec![put("/drover/nowhere", "")]).await.unwrap_err();
    assert!(!new.is_over(&unrelated), "{unrelated}");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_stopped_beyond_its_session_cannot_write_when_it_goes_on() {
    let (store, operator) = tree().await;
    let (_session, first) = candidate(&store, "lb-1").await;
    let old = first.lead(0, 0).await.unwrap();
    let (_session, second) = candidate(&store, "lb-2").await;
    let second = in_line(second);
    store.client("lb-1").pause(true);
    assert_eq!(second.await.unwrap().term(), 2);
    store.client("lb-1").pause(false);
    // It still believes in its session.
    assert!(old.commit(vec![put(paths::ASSIGNMENTS, "stale")]).await.is_err());
    assert_eq!(get(&operator, paths::ASSIGNMENTS).await.unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn a_term_exceeds_what_the_tree_and_the_candidate_know() {
    let (store, operator) = tree().await;
    let (session, first) = candidate(&store, "lb-1").await;
    assert_eq!(first.lead(41, 0).await.unwrap().term(), 42);
    assert_eq!(first.lead(7, 0).await.unwrap().term(), 43);
    operator.commit(vec![put(paths::LEADER, "garbage")]).await.unwrap();
    let error = first.lead(0, 0).await.unwrap_err();
    assert!(matches!(error, ElectionError::Term(_)), "{error}");
    assert!(error.to_string().contains("/drover/leader"), "{error}");
    drop(session);
}

/// A leadership of this term, as a record.
fn term(term: u64) -> Vec<u8> {
    Term { node: name("lb-9"), term, since: 0 }.bytes().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_term_that_was_made_up_does_not_count_and_the_last_possible_one_does() {
    let (store, operator) = tree().await;
    let (_session, first) = candidate(&store, "lb-1").await;
    first.lead(0, 0).await.unwrap();
    for made_up in [u64::MAX, u64::MAX - 1, MAX_ORDER + 1] {
        operator.commit(vec![put(paths::LEADER, term(made_up))]).await.unwrap();
        let leadership = first.lead(41, 0).await.unwrap();
        assert_eq!(leadership.term(), 42, "{made_up}: what is in force says where to go on");
        assert_eq!(leadership.predecessor(), None, "{made_up}");
    }
    operator.commit(vec![put(paths::LEADER, term(MAX_ORDER - 1))]).await.unwrap();
    assert_eq!(first.lead(41, 0).await.unwrap().term(), MAX_ORDER);
}

#[tokio::test(start_paused = true)]
async fn nobody_leads_when_the_numbers_of_terms_are_used_up_and_nothing_is_written() {
    let (store, operator) = tree().await;
    let (_session, first) = candidate(&store, "lb-1").await;
    first.lead(6, 0).await.unwrap();
    let before = get(&operator, paths::LEADER).await;
    let error = first.lead(u64::MAX, 0).await.unwrap_err();
    assert!(matches!(error, ElectionError::Term(_)) && error.to_string().contains("used up"), "{error}");
    assert_eq!(get(&operator, paths::LEADER).await, before);
}

#[tokio::test(start_paused = true)]
async fn standing_again_after_a_lost_answer_takes_the_place_that_is_there() {
    let (store, operator) = tree().await;
    let (session, first) = candidate(&store, "lb-1").await;
    let again = Candidate::stand(session, name("lb-1"), "instance").await.unwrap();
    assert_eq!(first.path(), again.path());
    assert_eq!(operator.children(paths::ELECTION).await.unwrap().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_no_node_put_into_the_line_is_in_nobodys_way() {
    let (store, operator) = tree().await;
    let stray = |name: &str| format!("{}/{name}", paths::ELECTION);
    let record = "{\"node\":\"lb-9\"}";
    operator
        .commit(vec![
            create(&stray("x-0000000000"), "", false),
            create(&stray("lb-9-abc-0000000000"), record, false),
            create(&stray("y-0000000000"), "", true),
            create(&stray("lb-8-abc-0000000000"), record, true),
            create(&stray("lock"), "", false),
        ])
        .await
        .unwrap();
    let (_session, first) = candidate(&store, "lb-1").await;
    let (_other, second) = candidate(&store, "lb-2").await;
    first.wait(REREAD).await.unwrap();
    assert_eq!(first.lead(0, 0).await.unwrap().term(), 1);
    let line = line(&operator).await.unwrap();
    let places: Vec<&str> = line.candidates.iter().map(|place| place.path.as_str()).collect();
    assert_eq!(places, [first.path(), second.path()]);
    assert_eq!(line.strays.len(), 5);
    // A candidate that somebody wrote on is none any more, for itself as for the others: its successor leads.
    let second = in_line(second);
    sleep(MOMENT).await;
    assert!(!second.is_finished());
    let old = first.lead(0, 0).await.unwrap();
    operator.commit(vec![put(first.path(), "x")]).await.unwrap();
    assert_eq!(second.await.unwrap().term(), 3);
    assert!(old.is_over(&old.commit(Vec::new()).await.unwrap_err()));
    assert!(matches!(first.wait(REREAD).await, Err(Error::NoNode(_))));
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_may_not_be_read_keeps_its_place_for_all() {
    let (store, _operator) = tree().await;
    let (session, first) = candidate(&store, "lb-1").await;
    let (_other, second) = candidate(&store, "lb-2").await;
    store.forbid(first.path(), true);
    first.wait(REREAD).await.unwrap();
    let second = in_line(second);
    sleep(REREAD * 3).await;
    assert!(!second.is_finished());
    session.close().await;
    sleep(REREAD * 2).await;
    assert!(second.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_successor_whose_notification_was_lost_leads_after_a_while() {
    let (store, _operator) = tree().await;
    let (session, _first) = candidate(&store, "lb-1").await;
    let (_other, second) = candidate(&store, "lb-2").await;
    store.client("lb-2").lose_notifications(true);
    let second = in_line(second);
    sleep(MOMENT).await;
    session.close().await;
    sleep(REREAD * 2).await;
    assert!(second.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_place_of_an_earlier_session_is_given_up_for_one_of_this_session() {
    let (store, operator) = tree().await;
    let (_dying, old) = candidate(&store, "lb-1").await;
    let (session, new) = candidate(&store, "lb-1").await;
    assert_ne!(old.path(), new.path());
    let line = operator.children(paths::ELECTION).await.unwrap().unwrap();
    assert_eq!(line.len(), 1, "{line:?}");
    let there = operator.read(&[new.path().to_owned()]).await.unwrap().remove(0).unwrap();
    assert_eq!(there.owner, Some(session.id()));
}

/// A head of these VIPs, and what stands below it.
fn decision(term: u64, epoch: u64, vips: &[&str]) -> (Head, BTreeMap<VipName, Vec<u8>>) {
    let assignment = |number: usize| Assignment {
        term,
        epoch,
        vip: Vip::new([198, 51, 100, u8::try_from(number).unwrap()].into(), 1883, Protocol::Tcp),
        reals: [(name("a"), Real::new([10, 0, 0, 1].into()))].into(),
        weights: [(name("a"), 100)].into(),
        since: epoch,
        next: None,
        history: Vec::new(),
        held: None,
        held_reals: Default::default(),
        why: "a test".into(),
        extra: Default::default(),
    };
    let bytes: BTreeMap<VipName, Vec<u8>> =
        (1..).zip(vips).map(|(number, vip)| (name(vip), assignment(number).bytes().unwrap())).collect();
    let entry = |bytes: &Vec<u8>| Entry { epoch, digest: Assignment::digest(bytes) };
    let head = Head {
        term,
        epoch,
        cluster: Cluster::default(),
        nodes: Default::default(),
        peers: Default::default(),
        targets: epoch,
        settling: false,
        lagging: Default::default(),
        cut_off: Default::default(),
        held_vips: Default::default(),
        held_nodes: Default::default(),
        problems: Default::default(),
        vips: bytes.iter().map(|(vip, bytes)| (vip.clone(), entry(bytes))).collect(),
        extra: Default::default(),
    };
    (head, bytes)
}

async fn write(session: &MemorySession, (head, bytes): &(Head, BTreeMap<VipName, Vec<u8>>)) {
    let mut changes = Vec::new();
    for (vip, data) in bytes {
        let path = paths::assignment(vip);
        let is_there = get(session, &path).await.is_some();
        changes.push(if is_there { put(&path, data.clone()) } else { create(&path, data.clone(), false) });
    }
    changes.push(put(paths::ASSIGNMENTS, head.bytes().unwrap()));
    session.commit(changes).await.unwrap();
}

/// Follows in a task of its own.
fn follower(session: MemorySession) -> (watch::Receiver<Followed>, JoinHandle<()>) {
    let followed = watch::Sender::new(Followed::default());
    let receiver = followed.subscribe();
    (receiver, tokio::spawn(async move { follow(&session, &followed, REREAD).await }))
}

fn order(followed: &watch::Receiver<Followed>) -> Option<(u64, u64)> {
    followed.borrow().decided.as_ref().map(|decided| decided.head.order())
}

#[tokio::test(start_paused = true)]
async fn a_follower_has_each_decision_complete_and_never_goes_back() {
    let (store, operator) = tree().await;
    let (followed, _task) = follower(store.client("lb-1").connect().await.unwrap());
    sleep(MOMENT).await;
    assert_eq!((order(&followed), followed.borrow().current), (None, true));
    write(&operator, &decision(1, 5, &["mqtt", "other"])).await;
    sleep(MOMENT).await;
    assert_eq!(order(&followed), Some((1, 5)));
    assert_eq!(followed.borrow().decided.as_ref().unwrap().desired().vips.len(), 2);

    write(&operator, &decision(2, 3, &["mqtt"])).await;
    sleep(MOMENT).await;
    assert_eq!(order(&followed), Some((2, 3)), "the term counts first");
    write(&operator, &decision(1, 99, &[])).await;
    sleep(MOMENT).await;
    assert_eq!(order(&followed), Some((2, 3)));
    let problem = followed.borrow().problem.clone().unwrap();
    assert!(problem.contains("(1, 99) is not greater than (2, 3)"), "{problem}");
    operator.commit(vec![put(paths::ASSIGNMENTS, "")]).await.unwrap();
    sleep(MOMENT).await;
    assert_eq!(order(&followed), Some((2, 3)), "an empty tree empties nothing");
    write(&operator, &decision(2, 4, &["mqtt"])).await;
    sleep(MOMENT).await;
    assert_eq!((order(&followed), followed.borrow().problem.clone()), (Some((2, 4)), None));
}

#[tokio::test(start_paused = true)]
async fn a_follower_refuses_a_head_of_an_order_that_was_made_up_and_follows_the_next_sound_one() {
    let (store, operator) = tree().await;
    let (followed, _task) = follower(store.client("lb-1").connect().await.unwrap());
    for (number, made_up) in
        (1..).zip([(u64::MAX, u64::MAX), (1, u64::MAX), (MAX_ORDER + 1, 1), (1, MAX_ORDER + 1)])
    {
        let before = order(&followed);
        write(&operator, &decision(made_up.0, made_up.1, &["mqtt"])).await;
        sleep(MOMENT).await;
        assert_eq!(order(&followed), before, "{made_up:?} is not taken over");
        let problem = followed.borrow().problem.clone().unwrap();
        assert!(problem.contains(&format!("{made_up:?} was made up")), "{problem}");
        write(&operator, &decision(1, number, &["mqtt"])).await;
        sleep(MOMENT).await;
        assert_eq!((order(&followed), followed.borrow().problem.clone()), (Some((1, number)), None));
    }
    write(&operator, &decision(MAX_ORDER, MAX_ORDER, &["mqtt"])).await;
    sleep(MOMENT).await;
    assert_eq!(order(&followed), Some((MAX_ORDER, MAX_ORDER)), "the last possible order counts");
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_starts_takes_over_nothing_older_than_what_its_predecessor_left_in_force() {
    let (store, operator) = tree().await;
    write(&operator, &decision(3, 389, &["mqtt"])).await;
    let session = store.client("lb-1").connect().await.unwrap();
    let followed = watch::Sender::new(Followed { floor: Some((3, 390)), ..Followed::default() });
    let receiver = followed.subscribe();
    let _task = tokio::spawn(async move { follow(&session, &followed, REREAD).await });
    sleep(MOMENT).await;
    assert_eq!(order(&receiver), None);
    assert_eq!(receiver.borrow().order(), Some((3, 390)));
    let problem = receiver.borrow().problem.clone().unwrap();
    assert!(problem.contains("(3, 389) is less than (3, 390)"), "{problem}");
    write(&operator, &decision(3, 390, &["mqtt"])).await;
    sleep(MOMENT).await;
    assert_eq!(order(&receiver), Some((3, 390)), "what is in force itself is learnt");
    assert_eq!(receiver.borrow().problem, None);
}

#[tokio::test(start_paused = true)]
async fn a_follower_tells_which_assignment_it_may_not_read_and_goes_on_when_that_was_made_anew() {
    let (store, operator) = tree().await;
    let (followed, _task) = follower(store.client("lb-1").connect().await.unwrap());
    write(&operator, &decision(1, 1, &["mqtt", "other"])).await;
    sleep(MOMENT).await;
    let path = paths::assignment(&name("mqtt"));
    store.forbid(&path, true);
    let next = decision(1, 2, &["mqtt", "other"]);
    let data = next.1[&name::<VipName>("mqtt")].clone();
    let changes = next.1.iter().map(|(vip, data)| put(&paths::assignment(vip), data.clone()));
    let changes = changes.chain([put(paths::ASSIGNMENTS, next.0.bytes().unwrap())]);
    operator.commit(changes.collect()).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(order(&followed), Some((1, 1)));
    let problem = followed.borrow().problem.clone().unwrap();
    assert!(problem.starts_with(&path) && problem.contains("right"), "{problem}");
    let delete = Change::Delete { path: path.clone(), version: None };
    operator.commit(vec![delete, create(&path, data, false)]).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!((order(&followed), followed.borrow().problem.clone()), (Some((1, 2)), None));
}

#[tokio::test(start_paused = true)]
async fn a_tree_of_which_a_part_may_not_be_read_is_one() {
    let (store, operator) = tree().await;
    store.forbid(paths::VIPS, true);
    store.forbid(paths::CLUSTER, true);
    operator.commit(vec![Change::Delete { path: paths::EVENTS.to_owned(), version: None }]).await.unwrap();
    assert!(ensure_skeleton(&operator).await.unwrap());
    assert!(store.dump().contains_key(paths::EVENTS));
}

#[tokio::test(start_paused = true)]
async fn a_follower_takes_over_nothing_of_a_decision_that_is_torn() {
    let (store, operator) = tree().await;
    let (followed, _task) = follower(store.client("lb-1").connect().await.unwrap());
    write(&operator, &decision(1, 1, &["mqtt", "other"])).await;
    sleep(MOMENT).await;
    let next = decision(1, 2, &["mqtt", "other"]);
    operator.commit(vec![put(paths::ASSIGNMENTS, next.0.bytes().unwrap())]).await.unwrap();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(order(&followed), Some((1, 1)));
    assert!(followed.borrow().problem.as_ref().unwrap().contains("not what /drover/assignments lists"));
    // The assignments follow; nothing tells of them but reading again.
    for (vip, data) in &next.1 {
        operator.commit(vec![put(&paths::assignment(vip), data.clone())]).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!((order(&followed), followed.borrow().problem.clone()), (Some((1, 2)), None));
}

#[tokio::test(start_paused = true)]
async fn a_head_of_a_newer_schema_is_refused_and_what_is_in_force_stays() {
    let (store, operator) = tree().await;
    let (followed, _task) = follower(store.client("lb-1").connect().await.unwrap());
    write(&operator, &decision(1, 1, &["mqtt"])).await;
    sleep(MOMENT).await;
    operator.commit(vec![put(paths::ASSIGNMENTS, "{\"version\":99}")]).await.unwrap();
    sleep(MOMENT).await;
    assert_eq!(order(&followed), Some((1, 1)));
    let problem = followed.borrow().problem.clone().unwrap();
    assert!(problem.contains("schema version 99") && problem.contains("upgrade"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn what_was_written_while_a_follower_was_cut_off_is_found_on_its_return() {
    let (store, operator) = tree().await;
    let client = store.client("lb-1");
    let (followed, task) = follower(client.connect().await.unwrap());
    write(&operator, &decision(1, 1, &["mqtt"])).await;
    sleep(MOMENT).await;
    client.partition(true);
    sleep(Duration::from_secs(4)).await;
    write(&operator, &decision(1, 2, &["mqtt"])).await;
    client.partition(false);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(order(&followed), Some((1, 2)));
    client.partition(true);
    sleep(Duration::from_secs(30)).await;
    assert!(task.is_finished(), "an expired session is the end of it");
    assert_eq!(order(&followed), Some((1, 2)));
}

/// Keeps an ephemeral znode at this path in a task of its own.
fn keeper(
    session: MemorySession,
    path: &str,
    content: &str,
) -> (watch::Sender<Option<Vec<u8>>>, Seen, JoinHandle<()>) {
    let (content, receiver) = watch::channel(Some(content.as_bytes().to_vec()));
    let kept = Kept { path: path.to_owned(), ephemeral: true, content: receiver };
    let seen = Seen::default();
    let told = seen.clone();
    let task = tokio::spawn(async move {
        let own = |there: &Znode| there.data.starts_with(b"mine");
        keep(&session, kept, own, |obstacle| *told.0.lock().unwrap() = obstacle).await;
    });
    (content, seen, task)
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Option<Refusal>>>);

const HERE: &str = "/drover/nodes/lb-1";

#[tokio::test(start_paused = true)]
async fn a_kept_znode_returns_after_a_while_though_nothing_told_that_it_was_deleted() {
    let (store, operator) = tree().await;
    let (_content, _, _task) = keeper(store.client("lb-1").connect().await.unwrap(), HERE, "one");
    sleep(MOMENT).await;
    store.client("lb-1").lose_notifications(true);
    sleep(REREAD * 2).await;
    operator.commit(vec![Change::Delete { path: HERE.into(), version: None }]).await.unwrap();
    sleep(REREAD * 2).await;
    assert_eq!(get(&operator, HERE).await.unwrap(), b"one");
}

#[tokio::test(start_paused = true)]
async fn a_kept_znode_has_its_newest_content_and_returns_when_somebody_deletes_it() {
    let (store, operator) = tree().await;
    let session = store.client("lb-1").connect().await.unwrap();
    let (content, _, _task) = keeper(session.clone(), HERE, "one");
    sleep(MOMENT).await;
    assert_eq!(get(&operator, HERE).await.unwrap(), b"one");
    content.send_replace(Some(b"two".to_vec()));
    sleep(MOMENT).await;
    assert_eq!(get(&operator, HERE).await.unwrap(), b"two");
    operator.commit(vec![Change::Delete { path: HERE.into(), version: None }]).await.unwrap();
    sleep(MOMENT).await;
    assert_eq!(get(&operator, HERE).await.unwrap(), b"two");
    operator.commit(vec![put(HERE, "scribble")]).await.unwrap();
    sleep(MOMENT).await;
    assert_eq!(get(&operator, HERE).await.unwrap(), b"two");
    content.send_replace(None);
    sleep(MOMENT).await;
    assert_eq!(get(&operator, HERE).await, None);
}

#[tokio::test(start_paused = true)]
async fn what_a_predecessor_left_is_replaced_so_that_its_end_takes_nothing_away() {
    let (store, operator) = tree().await;
    let before = store.client("before").connect().await.unwrap();
    before.commit(vec![create(HERE, "mine, of before", true)]).await.unwrap();
    let session = store.client("lb-1").connect().await.unwrap();
    let (_content, _, _task) = keeper(session.clone(), HERE, "mine");
    sleep(MOMENT).await;
    before.close().await;
    sleep(MOMENT).await;
    let there = operator.read(&[HERE.to_owned()]).await.unwrap().remove(0).unwrap();
    assert_eq!((there.data.as_slice(), there.owner), (b"mine".as_slice(), Some(session.id())));
}

#[tokio::test(start_paused = true)]
async fn a_stranger_s_znode_is_told_and_waited_for() {
    let (store, operator) = tree().await;
    let stranger = store.client("stranger").connect().await.unwrap();
    stranger.commit(vec![create(HERE, "another machine", true)]).await.unwrap();
    let (_content, seen, _task) = keeper(store.client("lb-1").connect().await.unwrap(), HERE, "mine");
    sleep(Duration::from_secs(60)).await;
    let there = operator.read(&[HERE.to_owned()]).await.unwrap().remove(0).unwrap();
    assert_eq!(*seen.0.lock().unwrap(), Some(Refusal::Occupied(there)));
    assert_eq!(get(&operator, HERE).await.unwrap(), b"another machine");
    stranger.close().await;
    sleep(MOMENT).await;
    assert_eq!(get(&operator, HERE).await.unwrap(), b"mine");
    assert_eq!(*seen.0.lock().unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_tree_is_made_once_and_what_is_missing_of_its_skeleton_is_mended() {
    let store = MemoryStore::new();
    let session = store.client("operator").connect().await.unwrap();
    assert!(!ensure_skeleton(&session).await.unwrap(), "a node makes no cluster");
    assert_eq!(get(&session, paths::CLUSTER).await, None);
    assert!(init(&session, &Cluster::default()).await.unwrap());
    let other = Cluster { seed: 7.into(), ..Cluster::default() };
    assert!(!init(&session, &other).await.unwrap(), "a seed is for ever");
    session.commit(vec![Change::Delete { path: paths::HEALTH.into(), version: None }]).await.unwrap();
    assert!(ensure_skeleton(&session).await.unwrap());
    assert_eq!(get(&session, paths::HEALTH).await, Some(Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn a_desired_state_is_written_with_as_few_changes_as_it_takes() {
    let (store, session) = tree().await;
    let state = |reals: &[u8]| VipState {
        vip: Vip::new([198, 51, 100, 1].into(), 1883, Protocol::Tcp),
        reals: reals.iter().map(|n| (name(&format!("r{n}")), Real::new([10, 0, 0, *n].into()))).collect(),
    };
    let mut desired = Desired::default();
    desired.vips.insert(name("mqtt"), state(&[1, 2]));
    desired.vips.insert(
        name("old"),
        VipState { vip: Vip::new([198, 51, 100, 2].into(), 1, Protocol::Udp), ..state(&[3]) },
    );
    write_desired(&session, &desired).await.unwrap();
    let before = store.dump();
    write_desired(&session, &desired).await.unwrap();
    assert_eq!(store.dump(), before, "nothing is touched that is right");

    desired.vips.remove("old");
    desired.vips.insert(name("mqtt"), state(&[2, 4]));
    write_desired(&session, &desired).await.unwrap();
    let after = store.dump();
    let reals: Vec<&String> = after.keys().filter(|path| path.starts_with("/drover/vips/")).collect();
    assert_eq!(
        reals,
        [
            "/drover/vips/mqtt",
            "/drover/vips/mqtt/reals",
            "/drover/vips/mqtt/reals/r2",
            "/drover/vips/mqtt/reals/r4"
        ]
    );
    assert_eq!(after["/drover/vips/mqtt/reals/r2"], before["/drover/vips/mqtt/reals/r2"]);

    desired.vips.get_mut("mqtt").unwrap().vip.panic_threshold = 200;
    let error = write_desired(&session, &desired).await.unwrap_err();
    assert!(error.to_string().starts_with("/drover/vips/mqtt: "), "{error}");
}
