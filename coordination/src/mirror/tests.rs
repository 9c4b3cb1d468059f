use super::*;
use crate::memory::{MemoryClient, MemorySession, MemoryStore};
use crate::{Change, Store};
use tokio::time::{sleep, timeout};

const PERIOD: Duration = Duration::from_secs(45);

async fn pair() -> (MemoryStore, MemoryClient, MemorySession, MemorySession) {
    let store = MemoryStore::new();
    let client = store.client("mirror");
    let of_mirror = client.connect().await.unwrap();
    let writer = store.client("writer").connect().await.unwrap();
    (store, client, of_mirror, writer)
}

fn patterns(patterns: &[&str]) -> Vec<Pattern> {
    patterns.iter().map(|pattern| Pattern::new(pattern)).collect()
}

async fn create(session: &MemorySession, paths: &[&str]) {
    let change = |path: &&str| Change::Create { path: (*path).to_owned(), data: vec![0], ephemeral: false };
    session.commit(paths.iter().map(change).collect()).await.unwrap();
}

async fn set(session: &MemorySession, path: &str, data: u8) {
    let change = Change::Set { path: path.to_owned(), data: vec![data], version: None };
    session.commit(vec![change]).await.unwrap();
}

async fn delete(session: &MemorySession, path: &str) {
    session.commit(vec![Change::Delete { path: path.to_owned(), version: None }]).await.unwrap();
}

/// The contents once they are of these paths and first bytes.
async fn becomes(contents: &mut watch::Receiver<Arc<Contents>>, expected: &[(&str, u8)]) {
    let expected: Vec<(String, u8)> =
        expected.iter().map(|(path, data)| ((*path).to_owned(), *data)).collect();
    let is_there = |contents: &Arc<Contents>| {
        let found = contents.iter().map(|(path, znode)| (path, znode.data[0]));
        contents.complete && found.eq(expected.iter().cloned())
    };
    let waited = timeout(Duration::from_secs(2), contents.wait_for(is_there)).await.map(|_| ());
    assert!(waited.is_ok(), "{:?} is not {expected:?}", contents.borrow());
}

#[test]
fn a_star_matches_one_name() {
    let pattern = Pattern::new("/a/*/b/*");
    assert!(pattern.matches("/a/x/b/y"));
    for path in ["/a/x/b", "/a/x/b/y/z", "/a/x/c/y", "/b/x/b/y", "/"] {
        assert!(!pattern.matches(path), "{path}");
    }
    assert!(Pattern::new("/a").matches("/a"));
}

#[tokio::test(start_paused = true)]
async fn what_matches_is_mirrored_and_kept_current() {
    let (_store, _client, session, writer) = pair().await;
    create(&writer, &["/v", "/v/a", "/v/a/r", "/v/a/r/1", "/v/a/other", "/one", "/unasked"]).await;
    let mirror = Mirror::new(session, patterns(&["/v/*/r/*", "/one", "/none"]), PERIOD);
    let mut contents = mirror.contents();
    assert!(!contents.borrow().complete);
    becomes(&mut contents, &[("/one", 0), ("/v/a/r/1", 0)]).await;
    set(&writer, "/v/a/r/1", 5).await;
    create(&writer, &["/v/b", "/v/b/r", "/v/b/r/2", "/none"]).await;
    becomes(&mut contents, &[("/none", 0), ("/one", 0), ("/v/a/r/1", 5), ("/v/b/r/2", 0)]).await;
    for path in ["/v/b/r/2", "/v/b/r", "/v/b", "/none"] {
        delete(&writer, path).await;
    }
    becomes(&mut contents, &[("/one", 0), ("/v/a/r/1", 5)]).await;
    create(&writer, &["/v/b", "/v/b/r", "/v/b/r/2"]).await;
    becomes(&mut contents, &[("/one", 0), ("/v/a/r/1", 5), ("/v/b/r/2", 0)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_parent_counts_as_empty_and_is_waited_for() {
    let (_store, _client, session, writer) = pair().await;
    let mirror = Mirror::new(session, patterns(&["/a/b/*"]), PERIOD);
    let mut contents = mirror.contents();
    becomes(&mut contents, &[]).await;
    create(&writer, &["/a"]).await;
    create(&writer, &["/a/b", "/a/b/x"]).await;
    becomes(&mut contents, &[("/a/b/x", 0)]).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_publication_is_whole_and_changes_come_in_batches() {
    let (store, _client, session, writer) = pair().await;
    create(&writer, &["/v"]).await;
    let paths: Vec<String> = (0..1000).map(|number| format!("/v/{number}")).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    create(&writer, &paths).await;
    store.latency(Duration::from_millis(1));
    let mirror = Mirror::new(session, patterns(&["/v/*"]), PERIOD);
    let mut contents = mirror.contents();
    let start = Instant::now();
    contents.changed().await.unwrap();
    assert_eq!(contents.borrow_and_update().len(), 1000);
    assert!(start.elapsed() < Duration::from_millis(200), "reads run side by side: {:?}", start.elapsed());
    let change = |path: &&str| Change::Set { path: (*path).to_owned(), data: vec![1], version: None };
    writer.commit(paths.iter().map(change).collect()).await.unwrap();
    let mut publications = 0;
    while contents.borrow_and_update().iter().any(|(_, znode)| znode.data != [1]) {
        contents.changed().await.unwrap();
        publications += 1;
    }
    assert!(publications < 20, "{publications}");
}

#[tokio::test(start_paused = true)]
async fn contents_outlast_a_lost_connection_and_are_read_anew_after_it() {
    let (_store, client, session, writer) = pair().await;
    create(&writer, &["/v", "/v/a", "/v/b"]).await;
    let mirror = Mirror::new(session.clone(), patterns(&["/v/*"]), PERIOD);
    let mut contents = mirror.contents();
    becomes(&mut contents, &[("/v/a", 0), ("/v/b", 0)]).await;
    contents.mark_unchanged();
    client.partition(true);
    session.state().wait_for(|state| *state == State::Disconnected).await.unwrap();
    set(&writer, "/v/a", 1).await;
    delete(&writer, "/v/b").await;
    create(&writer, &["/v/c"]).await;
    sleep(Duration::from_secs(1)).await;
    assert!(!contents.has_changed().unwrap());
    client.partition(false);
    becomes(&mut contents, &[("/v/a", 1), ("/v/c", 0)]).await;
    set(&writer, "/v/c", 2).await;
    becomes(&mut contents, &[("/v/a", 1), ("/v/c", 2)]).await;
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_session_and_keeps_the_last_contents() {
    let (_store, client, session, writer) = pair().await;
    create(&writer, &["/a"]).await;
    let mirror = Mirror::new(session, patterns(&["/a"]), PERIOD);
    let mut contents = mirror.contents();
    becomes(&mut contents, &[("/a", 0)]).await;
    client.expire_now();
    assert!(contents.changed().await.is_err());
    assert_eq!(contents.borrow().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_mirror_leaves_nothing_behind() {
    let (store, _client, session, writer) = pair().await;
    create(&writer, &["/v", "/v/a"]).await;
    let mirror = Mirror::new(session, patterns(&["/v/*"]), PERIOD);
    becomes(&mut mirror.contents(), &[("/v/a", 0)]).await;
    assert_eq!(store.watches(), 2);
    set(&writer, "/v/a", 1).await;
    becomes(&mut mirror.contents(), &[("/v/a", 1)]).await;
    assert_eq!(store.watches(), 2, "one for each thing, however often it changed");
    sleep(PERIOD * 3).await;
    assert_eq!(store.watches(), 2, "and however often all was read");
    drop(mirror);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(store.watches(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_no_watch_told_is_found_by_the_next_reading_of_everything() {
    let (_store, client, session, writer) = pair().await;
    create(&writer, &["/v", "/v/a", "/v/b"]).await;
    client.lose_notifications(true);
    let mirror = Mirror::new(session, patterns(&["/v/*"]), PERIOD);
    let mut contents = mirror.contents();
    becomes(&mut contents, &[("/v/a", 0), ("/v/b", 0)]).await;
    set(&writer, "/v/a", 1).await;
    delete(&writer, "/v/b").await;
    create(&writer, &["/v/c"]).await;
    sleep(PERIOD / 2).await;
    assert_eq!(contents.borrow().get("/v/a").unwrap().data, [0], "nothing told it");
    timeout(PERIOD, contents.changed()).await.unwrap().unwrap();
    becomes(&mut contents, &[("/v/a", 1), ("/v/c", 0)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_znode_that_may_not_be_read_is_told_and_hides_no_other() {
    let (store, _client, session, writer) = pair().await;
    create(&writer, &["/v", "/v/a", "/v/b", "/v/c"]).await;
    store.forbid("/v/b", true);
    let mirror = Mirror::new(session, patterns(&["/v/*"]), PERIOD);
    let mut contents = mirror.contents();
    becomes(&mut contents, &[("/v/a", 0), ("/v/c", 0)]).await;
    let unreadable: Vec<String> = contents.borrow().unreadable.keys().cloned().collect();
    assert_eq!(unreadable, ["/v/b"]);
    assert!(contents.borrow().unreadable["/v/b"].contains("getAcl /v/b"));
    // Others are kept current all the same.
    set(&writer, "/v/c", 1).await;
    becomes(&mut contents, &[("/v/a", 0), ("/v/c", 1)]).await;
    // What was read before stays until it is gone.
    store.forbid("/v/c", true);
    set(&writer, "/v/c", 2).await;
    let told = |contents: &Arc<Contents>| contents.unreadable.contains_key("/v/c");
    timeout(Duration::from_secs(3), contents.wait_for(told)).await.unwrap().unwrap();
    assert_eq!(contents.borrow().get("/v/c").unwrap().data, [1]);
    delete(&writer, "/v/c").await;
    becomes(&mut contents, &[("/v/a", 0)]).await;
    // Nothing tells of a right that was given.
    store.forbid("/v/b", false);
    sleep(RETRY_REFUSED).await;
    becomes(&mut contents, &[("/v/a", 0), ("/v/b", 0)]).await;
    assert!(contents.borrow().unreadable.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_list_that_may_not_be_read_is_told_and_what_it_named_stays() {
    let (store, _client, session, writer) = pair().await;
    create(&writer, &["/v", "/v/a", "/w", "/w/a"]).await;
    store.forbid("/w", true);
    let mirror = Mirror::new(session, patterns(&["/v/*", "/w/*"]), PERIOD);
    let mut contents = mirror.contents();
    becomes(&mut contents, &[("/v/a", 0)]).await;
    assert!(contents.borrow().unreadable.contains_key("/w"));
    // Nothing tells of that but reading again.
    store.forbid("/v", true);
    let told = |contents: &Arc<Contents>| contents.unreadable.contains_key("/v");
    timeout(PERIOD * 2, contents.wait_for(told)).await.unwrap().unwrap();
    set(&writer, "/v/a", 1).await;
    becomes(&mut contents, &[("/v/a", 1)]).await;
}

#[tokio::test(start_paused = true)]
async fn mirrors_that_are_connected_again_together_read_everything_again_at_different_times() {
    let (store, _client, _session, writer) = pair().await;
    create(&writer, &["/v", "/v/a"]).await;
    let mut mirrors = Vec::new();
    for number in 0..8 {
        let client = store.client(&format!("deaf-{number}"));
        client.lose_notifications(true);
        mirrors.push(Mirror::new(client.connect().await.unwrap(), patterns(&["/v/*"]), PERIOD));
    }
    sleep(Duration::from_secs(1)).await;
    store.outage(true);
    sleep(Duration::from_secs(3)).await;
    store.outage(false);
    sleep(Duration::from_secs(1)).await;
    set(&writer, "/v/a", 1).await;
    let start = Instant::now();
    let mut at = Vec::new();
    for mirror in &mirrors {
        let mut contents = mirror.contents();
        at.push(tokio::spawn(async move {
            contents.wait_for(|contents| contents.get("/v/a").unwrap().data == [1]).await.unwrap();
            Instant::now()
        }));
    }
    let mut seconds = BTreeSet::new();
    for at in at {
        seconds.insert(at.await.unwrap().duration_since(start).as_secs());
    }
    assert!(seconds.len() >= 5, "{seconds:?}");
}
