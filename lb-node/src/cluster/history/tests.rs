use super::*;
use crate::testing::name;
use coordination::Store as _;
use coordination::memory::{MemorySession, MemoryStore};
use zk_schema::Cluster;
use zk_schema::tree::Head;

fn publication(epoch: u64) -> Publication {
    let head = Head {
        term: 1,
        epoch,
        cluster: Cluster::default(),
        nodes: BTreeSet::new(),
        peers: Default::default(),
        targets: 1,
        settling: false,
        lagging: BTreeSet::new(),
        cut_off: Default::default(),
        held_vips: Default::default(),
        held_nodes: Default::default(),
        problems: BTreeSet::new(),
        vips: Default::default(),
        extra: Default::default(),
    };
    Publication { head, changed: Default::default(), records: Default::default(), decisions: Vec::new() }
}

/// A tree with these below `/drover/events`, all their parents included.
async fn tree(names: &[String]) -> (MemoryStore, MemorySession) {
    let store = MemoryStore::new();
    let session = store.client("lb-1").connect().await.unwrap();
    let mut paths = vec!["/drover".to_owned(), paths::EVENTS.to_owned()];
    paths.extend(names.iter().map(|name| format!("{}/{name}", paths::EVENTS)));
    let create = |path| Change::Create { path, data: Vec::new(), ephemeral: false };
    session.commit(paths.into_iter().map(create).collect()).await.unwrap();
    (store, session)
}

async fn open(session: &MemorySession, newest: u64) -> History {
    let mut history = History::new(name("lb-1"));
    history.look(session, newest, &mut ListLost::default()).await;
    history
}

/// Deletes what is superfluous, to the last; returns how many commits that took.
async fn trim(session: &MemorySession, history: &mut History) -> usize {
    for commits in 0.. {
        let old = history.superfluous();
        if old.is_empty() {
            return commits;
        }
        assert!(old.len() <= AT_ONCE);
        match session.commit(old.clone()).await {
            Ok(()) => history.deleted(&old),
            Err(error) => history.not_deleted(&error),
        }
    }
    unreachable!("it ends")
}

fn number(epoch: u64) -> String {
    format!("{epoch:020}")
}

async fn names(session: &MemorySession) -> Vec<String> {
    session.children(paths::EVENTS).await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_oldest_events_go_when_there_are_too_many() {
    let (_store, session) = tree(&(1..=315).map(number).collect::<Vec<_>>()).await;
    let mut history = open(&session, 315).await;
    for epoch in 316..=400 {
        session.commit(vec![history.change(&publication(epoch)).unwrap()]).await.unwrap();
        history.written(epoch);
        trim(&session, &mut history).await;
        assert!(names(&session).await.len() <= MOST);
    }
    let left = names(&session).await;
    assert!(left.len() >= KEPT && left.last() == Some(&number(400)), "{}", left.len());
}

#[tokio::test(start_paused = true)]
async fn forged_events_are_cleared_away_and_what_is_none_stays() {
    let mut forged: Vec<String> = (1..=900).map(number).collect();
    forged.extend((5000..5900).map(number));
    forged.extend(["notes".to_owned(), "12".to_owned(), "9".repeat(20), number(3) + "/child"]);
    let (_store, session) = tree(&forged).await;
    let mut history = open(&session, 950).await;
    trim(&session, &mut history).await;
    let left = names(&session).await;
    let expected: Vec<String> = [number(3)].into_iter().chain((601..=900).map(number)).collect();
    let events: Vec<String> = left.iter().filter(|name| expected.contains(name)).cloned().collect();
    assert_eq!(events, expected);
    assert_eq!(left.len(), expected.len() + 3, "{left:?}");
    history.look(&session, 950, &mut ListLost::default()).await;
    assert_eq!(trim(&session, &mut history).await, 0, "what could not be deleted is not tried again");
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_in_the_way_is_overwritten_and_a_missing_parent_is_made() {
    let (_store, session) = tree(&[]).await;
    let mut history = open(&session, 1).await;
    let forged = Change::Create { path: paths::event(2), data: Vec::new(), ephemeral: false };
    session.commit(vec![forged]).await.unwrap();
    let error = session.commit(vec![history.change(&publication(2)).unwrap()]).await.unwrap_err();
    assert!(History::is_to_blame(&error));
    history.repair(&session, 2, &error).await;
    session.commit(vec![history.change(&publication(2)).unwrap()]).await.unwrap();
    history.written(2);

    let delete = |path: String| Change::Delete { path, version: None };
    session.commit(vec![delete(paths::event(2)), delete(paths::EVENTS.to_owned())]).await.unwrap();
    let error = session.commit(vec![history.change(&publication(3)).unwrap()]).await.unwrap_err();
    assert!(History::is_to_blame(&error));
    history.repair(&session, 3, &error).await;
    session.commit(vec![history.change(&publication(3)).unwrap()]).await.unwrap();
    assert_eq!(names(&session).await, [number(3)]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_mended_is_left_out_for_a_while() {
    let (_store, session) = tree(&[]).await;
    let mut history = open(&session, 1).await;
    let denied = Error::NoAuth(paths::event(2));
    assert!(
        History::is_to_blame(&denied) && !History::is_to_blame(&Error::NoAuth(paths::ASSIGNMENTS.into()))
    );
    history.pause(&denied);
    assert_eq!(history.change(&publication(2)), None);
    tokio::time::sleep(PAUSE).await;
    assert!(history.change(&publication(3)).is_some());
}
