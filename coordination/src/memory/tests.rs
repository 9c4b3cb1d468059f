use super::*;
use std::task::Poll;

const TIMEOUT: Duration = Duration::from_secs(6);

fn create(path: &str, ephemeral: bool) -> Vec<Change> {
    vec![Change::Create { path: path.to_owned(), data: Vec::new(), ephemeral }]
}

fn set(path: &str) -> Vec<Change> {
    vec![Change::Set { path: path.to_owned(), data: Vec::new(), version: None }]
}

/// Returns whether it is ready now.
async fn ready(watch: &mut Watch) -> bool {
    let mut pinned = std::pin::Pin::new(watch);
    std::future::poll_fn(|context| Poll::Ready(pinned.as_mut().poll(context).is_ready())).await
}

/// A store and two clients with a session each.
async fn pair() -> (MemoryStore, [(MemoryClient, MemorySession); 2]) {
    let store = MemoryStore::new();
    let (a, b) = (store.client("a"), store.client("b"));
    let sessions = (a.connect().await.unwrap(), b.connect().await.unwrap());
    (store, [(a, sessions.0), (b, sessions.1)])
}

async fn until(session: &MemorySession, state: State) -> Instant {
    session.state().wait_for(|now| *now == state).await.unwrap();
    Instant::now()
}

fn at(start: Instant, seconds: f64) -> std::ops::Range<Instant> {
    let from = start + Duration::from_secs_f64(seconds);
    from..from + Duration::from_millis(50)
}

#[tokio::test(start_paused = true)]
async fn a_cut_client_notices_then_gives_up_and_its_ephemerals_vanish() {
    let (store, [(a, of_a), (_b, of_b)]) = pair().await;
    of_a.commit(create("/e", true)).await.unwrap();
    let (_, at_b) = of_b.watch("/e").await.unwrap();
    let (_, at_a) = of_a.watch("/e").await.unwrap();
    let start = Instant::now();
    a.partition(true);
    assert_eq!(*of_a.state().borrow(), State::Connected);
    assert!(at(start, 2.4).contains(&until(&of_a, State::Disconnected).await));
    at_a.await;
    assert!(of_a.read(&["/e".to_owned()]).await.unwrap_err().is_lost());
    assert!(at(start, 2.4).contains(&Instant::now()), "it failed at once");
    assert!(store.dump().contains_key("/e"));
    at_b.await;
    assert!(at(start, 6.0).contains(&Instant::now()));
    assert_eq!(*of_a.state().borrow(), State::Expired);
    assert!(store.dump().is_empty());
    assert_eq!(of_a.sync().await, Err(Error::Expired));
    a.partition(false);
    a.connect().await.unwrap().commit(create("/e", true)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_mended_in_time_keeps_the_session() {
    let (store, [(a, of_a), _b]) = pair().await;
    of_a.commit(create("/e", true)).await.unwrap();
    a.partition(true);
    sleep(TIMEOUT - Duration::from_millis(10)).await;
    assert_eq!(*of_a.state().borrow(), State::Disconnected);
    a.partition(false);
    assert_eq!(*of_a.state().borrow(), State::Connected);
    sleep(TIMEOUT * 2).await;
    of_a.commit(set("/e")).await.unwrap();
    assert!(store.dump().contains_key("/e"));
}

#[tokio::test(start_paused = true)]
async fn a_cut_shorter_than_the_notice_loses_nothing() {
    let (_store, [(a, of_a), (_b, of_b)]) = pair().await;
    of_a.commit(create("/x", false)).await.unwrap();
    let (_, mut watch) = of_a.watch("/x").await.unwrap();
    a.partition(true);
    of_b.commit(set("/x")).await.unwrap();
    let operation = tokio::spawn({
        let session = of_a.clone();
        async move { session.commit(set("/x")).await }
    });
    sleep(Duration::from_secs(2)).await;
    assert!(!ready(&mut watch).await);
    assert!(!operation.is_finished());
    a.partition(false);
    assert!(ready(&mut watch).await);
    operation.await.unwrap().unwrap();
    assert_eq!(*of_a.state().borrow(), State::Connected);
}

#[tokio::test(start_paused = true)]
async fn a_write_into_a_cut_link_is_lost_and_takes_effect_only_if_just_answers_are_lost() {
    for lose_replies in [false, true] {
        let (store, [(a, of_a), _b]) = pair().await;
        a.lose_replies(lose_replies);
        a.partition(true);
        let start = Instant::now();
        assert!(of_a.commit(create("/x", false)).await.unwrap_err().is_lost());
        assert!(at(start, 2.4).contains(&Instant::now()), "it hung until the cut was noticed");
        assert_eq!(store.dump().contains_key("/x"), lose_replies);
        a.partition(false);
        of_a.sync().await.unwrap();
        assert_eq!(store.dump().contains_key("/x"), lose_replies, "and not later");
        assert_eq!(store.writes(), u64::from(lose_replies));
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_client_loses_its_session_and_learns_so_when_it_runs_again() {
    let (store, [(a, of_a), (_b, of_b)]) = pair().await;
    of_a.commit(create("/e", true)).await.unwrap();
    let (_, mut at_a) = of_a.watch("/e").await.unwrap();
    let (_, at_b) = of_b.watch("/e").await.unwrap();
    let start = Instant::now();
    a.pause(true);
    let operation = tokio::spawn({
        let session = of_a.clone();
        async move { session.commit(create("/x", false)).await }
    });
    at_b.await;
    assert!(at(start, 6.0).contains(&Instant::now()));
    sleep(TIMEOUT).await;
    assert!(!ready(&mut at_a).await);
    assert!(!operation.is_finished());
    a.pause(false);
    assert_eq!(*of_a.state().borrow(), State::Connected, "it has not looked yet");
    assert!(operation.await.unwrap().is_err());
    assert!(at(start, 12.0).contains(&until(&of_a, State::Expired).await));
    at_a.await;
    assert!(store.dump().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_short_pause_delays_and_does_no_harm() {
    let (store, [(a, of_a), (_b, of_b)]) = pair().await;
    of_a.commit(create("/x", false)).await.unwrap();
    let (_, mut watch) = of_a.watch("/x").await.unwrap();
    a.pause(true);
    of_b.commit(set("/x")).await.unwrap();
    let operation = tokio::spawn({
        let session = of_a.clone();
        async move { session.commit(set("/x")).await }
    });
    sleep(Duration::from_secs(5)).await;
    assert!(!ready(&mut watch).await);
    assert_eq!(store.dump()["/x"].version, 1);
    a.pause(false);
    operation.await.unwrap().unwrap();
    assert!(ready(&mut watch).await, "news that were there first come first");
    sleep(TIMEOUT * 2).await;
    of_a.commit(set("/x")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_expired_session_is_told_at_once_and_others_see_it_go() {
    let (store, [(a, of_a), (_b, of_b)]) = pair().await;
    of_a.commit(create("/e", true)).await.unwrap();
    let (_, mut at_a) = of_a.watch("/other").await.unwrap();
    let (_, mut at_b) = of_b.watch_children("/").await.unwrap();
    a.expire_now();
    assert_eq!(*of_a.state().borrow(), State::Expired);
    assert!(ready(&mut at_a).await && ready(&mut at_b).await);
    assert!(store.dump().is_empty());
    assert_eq!(*of_b.state().borrow(), State::Connected);
    let again = a.connect().await.unwrap();
    assert_ne!(again.id(), of_a.id());
}

#[tokio::test(start_paused = true)]
async fn an_outage_stops_the_servers_clocks_and_not_the_clients() {
    let (store, [(_a, of_a), (_b, of_b)]) = pair().await;
    of_a.commit(create("/a", true)).await.unwrap();
    of_b.commit(create("/b", true)).await.unwrap();
    let start = Instant::now();
    store.outage(true);
    assert!(at(start, 2.4).contains(&until(&of_a, State::Disconnected).await));
    sleep(Duration::from_secs(2)).await;
    store.outage(false);
    assert_eq!(*of_a.state().borrow(), State::Connected);
    sleep(TIMEOUT * 2).await;
    assert_eq!(store.dump().len(), 2, "nobody expired");

    let start = Instant::now();
    store.outage(true);
    assert!(at(start, 6.0).contains(&until(&of_a, State::Expired).await));
    sleep(TIMEOUT * 10).await;
    assert_eq!(store.dump().len(), 2, "the servers' clocks stand still");
    store.outage(false);
    sleep(TIMEOUT - Duration::from_millis(10)).await;
    assert_eq!(store.dump().len(), 2, "and grant a full timeout then");
    sleep(Duration::from_millis(20)).await;
    assert!(store.dump().is_empty());
}

#[tokio::test(start_paused = true)]
async fn connecting_waits_for_the_link_no_longer_than_a_session_lasts() {
    let store = MemoryStore::new();
    let client = store.client("a");
    client.partition(true);
    let start = Instant::now();
    assert!(client.connect().await.unwrap_err().is_lost());
    assert!(at(start, 6.0).contains(&Instant::now()));
    let connecting = tokio::spawn(async move { store.client("a").connect().await.is_ok() });
    sleep(Duration::from_secs(1)).await;
    client.partition(false);
    assert!(connecting.await.unwrap());
    assert!(at(start, 7.0).contains(&Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn latency_delays_answers_and_news_and_keeps_their_order() {
    let (store, [(_a, of_a), (_b, of_b)]) = pair().await;
    of_a.commit(create("/x", false)).await.unwrap();
    let (_, mut watch) = of_a.watch("/x").await.unwrap();
    store.latency(Duration::from_millis(100));
    let start = Instant::now();
    let writing = tokio::spawn(async move { of_b.commit(set("/x")).await });
    while of_a.read(&["/x".to_owned()]).await.unwrap()[0].as_ref().unwrap().version == 0 {
        assert!(start.elapsed() < Duration::from_secs(1));
    }
    assert!(ready(&mut watch).await, "the news come before what they announce");
    writing.await.unwrap().unwrap();
    let start = Instant::now();
    of_a.sync().await.unwrap();
    assert!(at(start, 0.2).contains(&Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_holds_expires() {
    let (store, [(_a, of_a), _b]) = pair().await;
    of_a.commit(create("/e", true)).await.unwrap();
    let (_, watch) = of_a.watch("/e").await.unwrap();
    let clone = of_a.clone();
    drop(of_a);
    sleep(TIMEOUT * 2).await;
    assert_eq!(store.watches(), 1);
    drop(clone);
    watch.await;
    sleep(TIMEOUT - Duration::from_millis(10)).await;
    assert!(store.dump().contains_key("/e"));
    sleep(Duration::from_millis(20)).await;
    assert!(store.dump().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_session_closed_while_cut_off_waits_for_the_link() {
    let (store, [(a, of_a), _b]) = pair().await;
    of_a.commit(create("/e", true)).await.unwrap();
    a.partition(true);
    let mut state = of_a.state();
    state.wait_for(|state| *state == State::Disconnected).await.unwrap();
    let closing = tokio::spawn(of_a.close());
    sleep(Duration::from_secs(1)).await;
    assert!(!closing.is_finished());
    a.partition(false);
    closing.await.unwrap();
    assert!(store.dump().is_empty());
    assert_eq!(*state.borrow(), State::Expired);
}

#[tokio::test(start_paused = true)]
async fn watches_are_counted_while_somebody_holds_them() {
    let (store, [(_a, of_a), _b]) = pair().await;
    let (_, one) = of_a.watch("/x").await.unwrap();
    let (_, two) = of_a.watch_children("/").await.unwrap();
    assert_eq!(store.watches(), 2);
    drop(one);
    assert_eq!(store.watches(), 1);
    of_a.commit(create("/x", false)).await.unwrap();
    two.await;
    assert_eq!(store.watches(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_leaves_the_numbers_of_children_as_they_were() {
    let (_store, [(_a, of_a), _b]) = pair().await;
    let mut changes = create("/x", false);
    changes.extend(create("/x/y", false));
    changes.extend(set("/none"));
    assert_eq!(of_a.commit(changes).await, Err(Error::NoNode("/none".to_owned())));
    assert_eq!(of_a.create_sequential("/n-", Vec::new()).await.unwrap(), "/n-0000000000");
    of_a.commit(create("/x", false)).await.unwrap();
    assert_eq!(of_a.create_sequential("/n-", Vec::new()).await.unwrap(), "/n-0000000002");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_works_on_several_threads() {
    let store = MemoryStore::new();
    store.latency(Duration::from_millis(1));
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            let client = store.client(&format!("client {number}"));
            tokio::spawn(async move {
                let session = client.connect().await.unwrap();
                for _ in 0..10 {
                    session.create_sequential("/n-", Vec::new()).await.unwrap();
                }
                session.close().await;
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.writes(), 80);
    assert!(store.dump().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_journal_tells_who_changed_what_in_order_and_once() {
    let (store, [(_a, of_a), (b, of_b)]) = pair().await;
    of_a.commit(create("/before", false)).await.unwrap();
    assert!(store.journal().is_empty(), "it begins when it is first asked for");
    of_a.commit(create("/x", false)).await.unwrap();
    of_b.commit(create("/e", true)).await.unwrap();
    of_a.commit(create("/x", false)).await.unwrap_err();
    b.expire_now();
    let told = store.journal().into_iter().map(|entry| (entry.client, entry.path, entry.data.is_some()));
    let told: Vec<_> = told.collect();
    let expected = [("a", "/x", true), ("b", "/e", true), ("b", "/e", false)];
    assert_eq!(told, expected.map(|(client, path, there)| (client.to_owned(), path.to_owned(), there)));
    assert!(store.journal().is_empty());
}
