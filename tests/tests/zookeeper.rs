//! The ZooKeeper backend of the store against real servers: what the client library and ZooKeeper itself are known to
//! get wrong, and what we promise all the same.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::fs;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use coordination::zookeeper::{Acl, Identity, Login, Options, Tls, ZooKeeper, ZooKeeperSession};
use coordination::{Change, Error, Session, State, Store};
use drover_tests::{Ensemble, Host, Lab, Port, ServerTls, link, store_suite};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::time::{sleep, timeout};

/// The session's timeout where expiry is waited for.
const SHORT: Duration = Duration::from_secs(4);
/// The session's timeout where expiry must not be what ended it: the longest that the servers grant.
const LONG: Duration = Duration::from_secs(10);
/// For what takes milliseconds, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Three servers that no test disturbs, and the host that they run on. Tests work in subtrees of their own.
struct Quiet {
    ensemble: Ensemble,
    host: Host,
    _lab: Lab,
}

/// The quiet servers, shared by the tests that run at the same time.
fn quiet() -> Arc<Quiet> {
    static SHARED: Mutex<Weak<Quiet>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(quiet) = shared.upgrade() {
        return quiet;
    }
    let lab = Lab::new().unwrap();
    let host = lab.host("quiet").unwrap();
    let quiet = Arc::new(Quiet { ensemble: Ensemble::on_one_host(&host, 3).unwrap(), host, _lab: lab });
    *shared = Arc::downgrade(&quiet);
    quiet
}

impl Quiet {
    fn options(&self) -> Options {
        Options::new(self.ensemble.connect_string())
    }

    fn block_on<T: Send>(&self, test: impl AsyncFnOnce() -> T + Send) -> T {
        self.host.block_on(test).unwrap()
    }
}

async fn connect(options: Options) -> ZooKeeperSession {
    ZooKeeper::new(options).unwrap().connect().await.unwrap()
}

fn create(path: &str, data: impl Into<Vec<u8>>) -> Change {
    Change::Create { path: path.to_owned(), data: data.into(), ephemeral: false }
}

fn ephemeral(path: &str) -> Change {
    Change::Create { path: path.to_owned(), data: Vec::new(), ephemeral: true }
}

fn set(path: &str, data: impl Into<Vec<u8>>) -> Change {
    Change::Set { path: path.to_owned(), data: data.into(), version: None }
}

fn check(path: &str, version: Option<i32>) -> Change {
    Change::Check { path: path.to_owned(), version }
}

fn delete(path: &str) -> Change {
    Change::Delete { path: path.to_owned(), version: None }
}

async fn reaches(session: &ZooKeeperSession, wanted: State, limit: Duration) {
    let mut state = session.state();
    let reached = timeout(limit, state.wait_for(|state| *state == wanted)).await;
    assert!(reached.is_ok(), "not {wanted:?} in {limit:?}");
}

/// Tries again while the connection is lost, as a user of the store does.
async fn insist<T>(mut operation: impl AsyncFnMut() -> Result<T, Error>) -> T {
    let deadline = Instant::now() + SOON * 2;
    loop {
        match operation().await {
            Err(error) if error.is_lost() && Instant::now() < deadline => {
                sleep(Duration::from_millis(50)).await
            }
            result => return result.unwrap(),
        }
    }
}

#[test]
fn a_watch_on_a_missing_znode_fires_when_it_is_created() {
    let quiet = quiet();
    quiet.block_on(async || {
        let session = connect(quiet.options()).await;
        let (znode, watch) = session.watch("/missing").await.unwrap();
        assert_eq!(znode, None);
        let (children, of_children) = session.watch_children("/missing").await.unwrap();
        assert_eq!(children, None);
        session.commit(vec![create("/missing", "now")]).await.unwrap();
        timeout(SOON, async { tokio::join!(watch, of_children) }).await.unwrap();
        let (znode, watch) = session.watch("/missing").await.unwrap();
        assert_eq!(znode.unwrap().data, b"now");
        let (children, of_children) = session.watch_children("/missing").await.unwrap();
        assert_eq!(children.unwrap(), Vec::<String>::new());
        session.commit(vec![create("/missing/b", ""), create("/missing/a", "")]).await.unwrap();
        timeout(SOON, of_children).await.unwrap();
        assert_eq!(session.children("/missing").await.unwrap().unwrap(), ["a", "b"]);
        session.commit(vec![set("/missing", "then")]).await.unwrap();
        timeout(SOON, watch).await.unwrap();
    });
}

#[test]
fn dropped_watches_are_forgotten_here_and_by_the_servers() {
    let quiet = quiet();
    let watches = || -> usize {
        let count = |index| {
            let answer = quiet.ensemble.ask(index, "wchp").unwrap();
            answer.lines().filter(|line| line.starts_with("/dropped-")).count()
        };
        (0..quiet.ensemble.len()).map(count).sum()
    };
    quiet.block_on(async || {
        let session = connect(quiet.options()).await;
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        let mut kept = Vec::new();
        for number in 0..300 {
            kept.push(session.watch(&format!("/dropped-{number}")).await.unwrap().1);
        }
        // One znode, watched again and again by somebody who looks away: nothing may pile up.
        for _ in 0..300 {
            drop(session.watch("/dropped-0").await.unwrap());
        }
        assert_eq!(
            tokio::task::spawn_blocking({
                let w = watches();
                move || w
            })
            .await
            .unwrap(),
            300
        );
        drop(kept);
        let deadline = Instant::now() + SOON;
        while watches() > 0 || tasks() > before {
            assert!(Instant::now() < deadline, "{} watches, {} tasks, {before} before", watches(), tasks());
            sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_failed_commit_names_the_znode_that_is_to_blame_and_changes_nothing() {
    let quiet = quiet();
    quiet.block_on(async || {
        let session = connect(quiet.options()).await;
        session.commit(vec![create("/blame", ""), create("/blame/child", "")]).await.unwrap();
        let first = create("/blame/new", "");
        for (change, error) in [
            (create("/blame/child", ""), Error::Exists("/blame/child".into())),
            (create("/blame/none/child", ""), Error::NoNode("/blame/none/child".into())),
            (set("/blame/none", ""), Error::NoNode("/blame/none".into())),
            (check("/blame/none", None), Error::NoNode("/blame/none".into())),
            (check("/blame/child", Some(7)), Error::BadVersion("/blame/child".into())),
            (delete("/blame"), Error::NotEmpty("/blame".into())),
        ] {
            let commit =
                session.commit(vec![first.clone(), check("/blame", None), change, set("/blame/x", "")]);
            assert_eq!(commit.await, Err(error));
        }
        let paths = ["/blame/new", "/blame/child"].map(str::to_owned);
        let read = session.read(&paths).await.unwrap();
        assert!(read[0].is_none() && read[1].as_ref().is_some_and(|znode| znode.version == 0), "{read:?}");
        let wrong = session.commit(vec![create("blame", "")]).await.unwrap_err();
        assert!(matches!(&wrong, Error::Other(text) if text.starts_with("blame: ")), "{wrong}");
    });
}

#[test]
fn a_commit_that_servers_would_choke_on_is_refused_here_and_the_connection_stands() {
    let quiet = quiet();
    quiet.block_on(async || {
        let session = connect(quiet.options()).await;
        session.commit(vec![create("/large", "")]).await.unwrap();
        let mut state = session.state();
        state.mark_unchanged();
        let error =
            session.commit(vec![set("/large", "x"), create("/large/a", vec![7; 999_990])]).await.unwrap_err();
        assert!(matches!(&error, Error::Other(text) if text.starts_with("/large/a: ")), "{error}");
        let prefix = session.create_sequential("/large/n-", vec![7; 1_000_000]).await.unwrap_err();
        assert!(matches!(&prefix, Error::Other(text) if text.starts_with("/large/n-: ")), "{prefix}");
        let paths = vec!["/".to_owned() + &"x".repeat(1000); 1000];
        assert!(matches!(session.read(&paths).await.unwrap_err(), Error::Other(_)));
        // Just what is allowed goes through all servers, and more can be read than be written at once.
        for name in ["a", "b", "c"] {
            let data = vec![7; 999_800];
            session.commit(vec![create(&format!("/large/{name}"), data)]).await.unwrap();
        }
        let read = session.read(&["a", "b", "c"].map(|name| format!("/large/{name}"))).await.unwrap();
        assert!(read.iter().flatten().filter(|znode| znode.data.len() == 999_800).count() == 3);
        assert!(!state.has_changed().unwrap(), "the connection broke");
    });
}

#[test]
fn an_ephemeral_of_a_former_session_is_in_the_way_and_tells_its_owner() {
    let quiet = quiet();
    quiet.block_on(async || {
        let former = connect(quiet.options()).await;
        former.commit(vec![ephemeral("/own")]).await.unwrap();
        let present = connect(quiet.options()).await;
        assert_eq!(present.commit(vec![ephemeral("/own")]).await, Err(Error::Exists("/own".into())));
        let (found, watch) = present.watch("/own").await.unwrap();
        assert_eq!(found.unwrap().owner, Some(former.id()));
        assert_ne!(former.id(), present.id());
        // What is in the way can be replaced in one step, and the former owner's end does not take the new one away.
        present.commit(vec![delete("/own"), ephemeral("/own")]).await.unwrap();
        timeout(SOON, watch).await.unwrap();
        former.close().await;
        let (found, _) = present.watch("/own").await.unwrap();
        assert_eq!(found.unwrap().owner, Some(present.id()));
    });
}

#[test]
fn a_closed_session_takes_its_ephemerals_along_at_once_and_is_over() {
    let quiet = quiet();
    quiet.block_on(async || {
        let witness = connect(quiet.options()).await;
        let leaving = connect(Options { session_timeout: LONG, ..quiet.options() }).await;
        let clone = leaving.clone();
        let path = leaving.create_sequential("/leaving-", Vec::new()).await.unwrap();
        assert!(path.strip_prefix("/leaving-").is_some_and(|number| number.len() == 10), "{path}");
        let (found, gone) = witness.watch(&path).await.unwrap();
        assert_eq!(found.unwrap().owner, Some(leaving.id()));
        let (_, fired) = leaving.watch("/").await.unwrap();
        let began = Instant::now();
        leaving.close().await;
        timeout(SOON, gone).await.unwrap();
        timeout(SOON, fired).await.unwrap();
        // It was not left to expire.
        assert!(began.elapsed() < LONG - SHORT, "{:?}", began.elapsed());
        witness.sync().await.unwrap();
        assert_eq!(witness.read(&[path]).await.unwrap(), [None]);
        assert_eq!(*clone.state().borrow(), State::Expired);
        assert_eq!(clone.commit(vec![create("/after-the-end", "")]).await, Err(Error::Expired));
    });
}

#[test]
fn a_session_that_is_dropped_ends() {
    let quiet = quiet();
    quiet.block_on(async || {
        let witness = connect(quiet.options()).await;
        let dropped = connect(Options { session_timeout: LONG, ..quiet.options() }).await;
        dropped.commit(vec![ephemeral("/dropped")]).await.unwrap();
        let (_, gone) = witness.watch("/dropped").await.unwrap();
        let (_, fired) = dropped.watch("/").await.unwrap();
        drop(dropped);
        // Well before it would have expired.
        timeout(LONG - SHORT, gone).await.unwrap();
        timeout(SOON, fired).await.unwrap();
    });
}

#[test]
fn after_a_sync_a_session_reads_what_another_wrote_before_at_any_server() {
    let quiet = quiet();
    quiet.block_on(async || {
        let writer = connect(quiet.options()).await;
        writer.commit(vec![create("/fresh", "0")]).await.unwrap();
        let mut readers = Vec::new();
        for index in 0..quiet.ensemble.len() {
            readers.push(connect(Options::new(quiet.ensemble.address(index).to_string())).await);
        }
        for round in 1..100 {
            writer.commit(vec![set("/fresh", round.to_string())]).await.unwrap();
            for reader in &readers {
                reader.sync().await.unwrap();
                let read = reader.read(&["/fresh".to_owned()]).await.unwrap();
                assert_eq!(read[0].as_ref().unwrap().data, round.to_string().as_bytes());
            }
        }
    });
}

#[test]
fn a_subtree_is_worked_in_and_a_missing_one_refused_with_the_mend() {
    let quiet = quiet();
    quiet.block_on(async || {
        let within = Options::new(quiet.ensemble.connect_string() + "/sub/tree");
        let error = ZooKeeper::new(within.clone()).unwrap().connect().await.unwrap_err();
        assert!(!error.is_lost() && error.to_string().contains(" create /sub/tree`"), "{error}");

        let whole = connect(quiet.options()).await;
        whole.commit(vec![create("/sub", ""), create("/sub/tree", "")]).await.unwrap();
        let session = connect(within).await;
        session.commit(vec![create("/a", "inside"), check("/", None)]).await.unwrap();
        let path = session.create_sequential("/a/n-", Vec::new()).await.unwrap();
        assert!(path.starts_with("/a/n-"), "{path}");
        assert_eq!(session.children("/").await.unwrap().unwrap(), ["a"]);
        assert_eq!(session.commit(vec![create("/a", "")]).await, Err(Error::Exists("/a".into())));
        let (_, watch) = session.watch("/a").await.unwrap();
        whole.commit(vec![set("/sub/tree/a", "outside")]).await.unwrap();
        timeout(SOON, watch).await.unwrap();
        session.sync().await.unwrap();
        assert_eq!(session.read(&["/a".to_owned()]).await.unwrap()[0].as_ref().unwrap().data, b"outside");
    });
}

#[test]
fn znodes_for_their_creator_can_be_read_by_all_and_written_by_the_same_user_only() {
    let quiet = quiet();
    let digest = |user: &str, password: &str| Options {
        digest: Some(Login { user: user.into(), password: password.into() }),
        acl: Acl::Creator,
        ..quiet.options()
    };
    quiet.block_on(async || {
        let ann = connect(digest("ann", "right")).await;
        ann.commit(vec![create("/of-ann", ""), create("/of-ann/a", "secret to none")]).await.unwrap();
        let path = ann.create_sequential("/of-ann/n-", Vec::new()).await.unwrap();
        for stranger in [quiet.options(), digest("bob", "right"), digest("ann", "wrong")] {
            let stranger = connect(stranger).await;
            stranger.sync().await.unwrap();
            assert!(stranger.read(&["/of-ann/a".to_owned()]).await.unwrap()[0].is_some());
            for change in [set("/of-ann/a", ""), delete(&path), create("/of-ann/b", "")] {
                let blamed = change.path().to_owned();
                let refused = stranger.commit(vec![check("/", None), change]).await.unwrap_err();
                assert_eq!(refused, Error::NoAuth(blamed));
            }
        }
        let again = connect(digest("ann", "right")).await;
        again.commit(vec![set("/of-ann/a", "")]).await.unwrap();
    });
}

/// The library would let all of them through, and queue any number.
#[test]
fn operations_that_nobody_waits_for_any_more_are_bounded() {
    let lab = Lab::new().unwrap();
    let host = lab.host("zk").unwrap();
    let mut ensemble = Ensemble::on_one_host(&host, 1).unwrap();
    host.block_on(async || {
        let session = connect(Options::new(ensemble.connect_string())).await;
        ensemble.stop(0).unwrap();
        for number in 0..500 {
            let commit = vec![create(&format!("/forgotten-{number}"), "")];
            timeout(Duration::from_millis(1), session.commit(commit)).await.unwrap_err();
        }
        ensemble.cont(0).unwrap();
        let children = insist(async || session.children("/").await).await.unwrap();
        let done = children.iter().filter(|name| name.starts_with("forgotten-")).count();
        assert!((1..=128).contains(&done), "{done}");
        assert_eq!(*session.state().borrow(), State::Connected);
    })
    .unwrap();
}

#[test]
fn ten_thousand_operations_at_once_are_all_done() {
    let quiet = quiet();
    quiet.block_on(async || {
        let session = connect(quiet.options()).await;
        let reads = (0..10_000).map(|_| {
            let session = session.clone();
            tokio::spawn(async move { session.children("/").await })
        });
        let reads: Vec<_> = reads.collect();
        let mut late = 0;
        for read in reads {
            late += usize::from(read.await.unwrap().is_err());
        }
        assert_eq!(late, 0);
        assert_eq!(*session.state().borrow(), State::Connected);
    });
}

/// Whatever server a session is at is killed, one after the other; it loses nothing by that.
#[test]
fn a_session_moves_to_another_server_with_its_ephemerals_and_its_watchers_learn_of_the_gap() {
    let lab = Lab::new().unwrap();
    let host = lab.host("zk").unwrap();
    let mut ensemble = Ensemble::on_one_host(&host, 3).unwrap();
    let options = Options::new(ensemble.connect_string());
    host.block_on(async || {
        let session = connect(options.clone()).await;
        session.commit(vec![create("/watched", "before"), ephemeral("/here")]).await.unwrap();
        // Operations are in flight when the connection breaks: they fail as lost, in whatever way it breaks.
        let busy = session.clone();
        let busy = tokio::spawn(async move {
            let mut lost = 0;
            loop {
                match busy.commit(vec![check("/watched", None)]).await {
                    Ok(()) => {}
                    Err(error) if error.is_lost() => {
                        lost += 1;
                        sleep(Duration::from_millis(5)).await;
                    }
                    Err(Error::Expired) => return lost,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        for index in 0..3 {
            let mut state = session.state();
            state.mark_unchanged();
            let (_, mut watch) = insist(|| session.watch("/watched")).await;
            let at_this = ensemble.ask(index, "cons").unwrap().contains(&format!("{:#x}", session.id()));
            ensemble.kill(index).unwrap();
            let other = connect(options.clone()).await;
            if at_this {
                // The connection is back in milliseconds: the state tells of the gap, though it may not show it.
                timeout(SOON, state.changed()).await.unwrap().unwrap();
                timeout(SOON, &mut watch).await.unwrap();
            }
            reaches(&session, State::Connected, SOON).await;
            insist(|| other.commit(vec![set("/watched", format!("while {index} was gone"))])).await;
            // Whether the watch was broken by the move or fires for the write, who looks again sees the write; and
            // watches set after the move work.
            if !at_this {
                timeout(SOON, &mut watch).await.unwrap();
            }
            insist(|| session.sync()).await;
            let (znode, watch) = insist(|| session.watch("/watched")).await;
            assert_eq!(znode.unwrap().data, format!("while {index} was gone").as_bytes());
            insist(|| other.commit(vec![set("/watched", "again")])).await;
            timeout(SOON, watch).await.unwrap();
            let here = insist(async || other.read(&["/here".to_owned()]).await).await;
            assert_eq!(here[0].as_ref().unwrap().owner, Some(session.id()));
            ensemble.restart(index).unwrap();
            ensemble.wait_serving(index).unwrap();
        }
        assert_eq!(*session.state().borrow(), State::Connected);
        session.close().await;
        assert!(busy.await.unwrap() > 0);
    })
    .unwrap();
}

#[test]
fn when_all_servers_stand_still_operations_fail_at_once_and_the_session_expires_in_time() {
    let lab = Lab::new().unwrap();
    let host = lab.host("zk").unwrap();
    let mut ensemble = Ensemble::on_one_host(&host, 3).unwrap();
    let options = Options { session_timeout: SHORT, ..Options::new(ensemble.connect_string()) };
    host.block_on(async || {
        let session = connect(options.clone()).await;
        session.commit(vec![ephemeral("/held")]).await.unwrap();
        // The servers last hear of it after this, and before they are stopped.
        let heard = Instant::now();
        let (_, watch) = session.watch("/held").await.unwrap();
        for index in 0..3 {
            ensemble.stop(index).unwrap();
        }
        let stopped = Instant::now();
        // The connection is open, nobody answers: an operation ends all the same.
        assert!(session.sync().await.unwrap_err().is_lost());
        assert!(stopped.elapsed() < SOON, "{:?}", stopped.elapsed());
        reaches(&session, State::Disconnected, SOON).await;
        timeout(SOON, watch).await.unwrap();
        let disconnected = Instant::now();
        for number in 0..1000 {
            let commit = session.commit(vec![create(&format!("/too-late-{number}"), "")]).await;
            assert!(commit.unwrap_err().is_lost());
        }
        // If each waited for an answer, it would be half an hour.
        assert!(disconnected.elapsed() < SOON, "{:?}", disconnected.elapsed());
        reaches(&session, State::Expired, SOON).await;
        // The servers' ticks are 0.5 s.
        assert!(heard.elapsed() >= SHORT - Duration::from_millis(600), "{:?}", heard.elapsed());
        assert!(stopped.elapsed() < SOON, "{:?}", stopped.elapsed());
        assert_eq!(session.sync().await, Err(Error::Expired));
        let unreachable = ZooKeeper::new(options.clone()).unwrap().connect().await.unwrap_err();
        assert!(unreachable.is_lost() && unreachable.to_string().contains(&options.servers), "{unreachable}");

        for index in 0..3 {
            ensemble.cont(index).unwrap();
        }
        ensemble.wait_serving(0).unwrap();
        let store = ZooKeeper::new(options).unwrap();
        let next = insist(|| store.connect()).await;
        assert_ne!(next.id(), session.id());
        // The former session is gone for good, sooner or later with its znode.
        timeout(SOON, async {
            loop {
                let (held, watch) = insist(|| next.watch("/held")).await;
                if held.is_none() {
                    break;
                }
                watch.await;
            }
        })
        .await
        .unwrap();
        insist(|| next.sync()).await;
        let late = insist(|| next.children("/")).await.unwrap();
        assert_eq!(late, ["zookeeper"]);
        assert_eq!(*session.state().borrow(), State::Expired);
    })
    .unwrap();
}

/// Time on a CPU that threads of this name have had, with those of the library's own.
fn cpu_time(name: &str) -> Duration {
    let mut ticks = 0;
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let folder = task.unwrap().path();
        let Ok(stat) = fs::read_to_string(folder.join("stat")) else { continue };
        let (front, rest) = stat.rsplit_once(')').unwrap();
        if front.ends_with(&format!("({name}"))
            || front.ends_with("(async-io")
            || front.contains("(blocking-")
        {
            let mut fields = rest.split_whitespace().skip(11);
            ticks += (0..2).map(|_| fields.next().unwrap().parse::<u64>().unwrap()).sum::<u64>();
        }
    }
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

#[test]
fn without_a_route_a_session_expires_in_time_and_costs_next_to_no_cpu() {
    let lab = Lab::new().unwrap();
    let (servers, node) = (lab.host("zk").unwrap(), lab.host("far-node").unwrap());
    link(
        &Port::new(&servers, "eth0").address("10.77.0.1/24").address("2001:db8:77::1/64"),
        &Port::new(&node, "eth0").address("10.77.0.2/24").address("2001:db8:77::2/64"),
        1500,
    )
    .unwrap();
    for address in ["10.77.0.1", "2001:db8:77::1"] {
        let ensemble = Ensemble::start(&[(servers.clone(), address.parse().unwrap())]).unwrap();
        let options = Options { session_timeout: SHORT, ..Options::new(ensemble.connect_string()) };
        // The library's reconnect loop may never yield, and then takes the runtime's clock with it: somebody who does
        // not depend on that has to look at another one.
        let (end, ended) = mpsc::channel();
        let node = node.clone();
        let outage = thread::spawn(move || {
            node.block_on(async || outage(&node, options).await).unwrap();
            end.send(()).unwrap();
        });
        match ended.recv_timeout(SHORT * 10) {
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the runtime stands still"),
            _ => outage.join().unwrap(),
        }
    }
}

/// Cuts `node` off, so that `connect()` fails at once, for three times the length of a session.
async fn outage(node: &Host, options: Options) {
    let heard = Instant::now();
    let session = connect(options.clone()).await;
    let cut = Instant::now();
    for family in ["-4", "-6"] {
        node.ip(&format!("{family} rule add pref 1 unreachable")).unwrap();
    }
    let used = cpu_time("far-node");
    reaches(&session, State::Expired, SOON).await;
    assert!(cut.elapsed() < SOON, "{:?}", cut.elapsed());
    assert!(heard.elapsed() > SHORT - Duration::from_millis(600), "{:?}", heard.elapsed());
    let store = ZooKeeper::new(options).unwrap();
    let error = store.connect().await.unwrap_err();
    assert!(error.is_lost() && error.to_string().contains("unreachable"), "{error}");
    sleep((SHORT * 3).saturating_sub(cut.elapsed())).await;
    let used = cpu_time("far-node") - used;
    assert!(used < cut.elapsed() / 10, "{used:?} of CPU in {:?}", cut.elapsed());
    for family in ["-4", "-6"] {
        node.ip(&format!("{family} rule del pref 1")).unwrap();
    }
    insist(async || store.connect().await).await.close().await;
}

#[test]
fn a_server_that_is_cut_off_from_the_others_cannot_pass_stale_znodes_off_as_synced() {
    let lab = Lab::new().unwrap();
    let middle = lab.host("middle").unwrap();
    let hosts: Vec<(Host, IpAddr)> = (1..=3)
        .map(|number| {
            let host = lab.host(&format!("zk{number}")).unwrap();
            let port = |host, name: String, last| {
                Port::new(host, &name).address(format!("10.77.{number}.{last}/24"))
            };
            link(&port(&middle, format!("zk{number}"), 1), &port(&host, "eth0".into(), 2), 1500).unwrap();
            host.ip(&format!("route add default via 10.77.{number}.1")).unwrap();
            (host, format!("10.77.{number}.2").parse().unwrap())
        })
        .collect();
    middle.sysctl("net.ipv4.ip_forward", "1").unwrap();
    let ensemble = Ensemble::start(&hosts).unwrap();
    let leader = ensemble.leader().unwrap();
    let follower = (leader + 1) % 3;
    middle
        .block_on(async || {
            let writer = connect(Options::new(ensemble.address(leader).to_string())).await;
            writer.commit(vec![create("/fresh", "old")]).await.unwrap();
            let reader = connect(Options::new(ensemble.address(follower).to_string())).await;
            reader.sync().await.unwrap();
            // The middle still reaches it; it and its peers do not reach each other.
            for index in (0..3).filter(|index| *index != follower) {
                for (from, to) in [(index, follower), (follower, index)] {
                    hosts[from].0.ip(&format!("rule add pref 1 to {} blackhole", hosts[to].1)).unwrap();
                }
            }
            insist(|| writer.commit(vec![set("/fresh", "new")])).await;
            let stale = reader.read(&["/fresh".to_owned()]).await.unwrap();
            assert_eq!(stale[0].as_ref().unwrap().data, b"old", "the follower is not cut off");
            let error = reader.sync().await.unwrap_err();
            assert!(error.is_lost(), "{error}");
            reaches(&reader, State::Disconnected, SOON).await;
        })
        .unwrap();
}

#[test]
fn sasl_lets_in_who_knows_the_password_and_tells_others_that_it_is_wrong() {
    let lab = Lab::new().unwrap();
    let host = lab.host("zk").unwrap();
    let ensemble =
        Ensemble::builder().user("drover", "right").start(&[(host.clone(), [127, 0, 0, 1].into())]).unwrap();
    let login = |password: &str| Options {
        sasl: Some(Login { user: "drover".into(), password: password.into() }),
        acl: Acl::Creator,
        ..Options::new(ensemble.connect_string())
    };
    host.block_on(async || {
        let session = connect(login("right")).await;
        session.commit(vec![create("/of-drover", "")]).await.unwrap();
        let error = ZooKeeper::new(login("wrong")).unwrap().connect().await.unwrap_err();
        assert!(matches!(&error, Error::AuthFailed(text) if text.contains("\"drover\"")), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
        let stranger = connect(Options::new(ensemble.connect_string())).await;
        let refused = stranger.commit(vec![set("/of-drover", "")]).await;
        assert_eq!(refused, Err(Error::NoAuth("/of-drover".into())));
        connect(login("right")).await.commit(vec![set("/of-drover", "")]).await.unwrap();
    })
    .unwrap();
}

/// An authority, and certificates that it signed.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        Identity { certificates: certificate.pem(), key: key.serialize_pem() }
    }
}

#[test]
fn tls_needs_a_server_of_the_right_authority_and_name_and_shows_the_nodes_own_certificate() {
    let lab = Lab::new().unwrap();
    let host = lab.host("zk").unwrap();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = ours.identity("localhost");
    let tls = ServerTls { identity: server.key + &server.certificates, ca: ours.0.pem(), ask_clients: true };
    let ensemble = Ensemble::builder().tls(tls).start(&[(host.clone(), [127, 0, 0, 1].into())]).unwrap();
    let options = |name: &str, authority: &Authority, identity: Option<Identity>| Options {
        tls: Some(Tls { ca: authority.0.pem(), identity }),
        session_timeout: SHORT,
        ..Options::new(ensemble.secure_connect_string(name))
    };
    host.block_on(async || {
        let node = Some(ours.identity("node"));
        let session = connect(options("localhost", &ours, node.clone())).await;
        session.commit(vec![create("/over-tls", "")]).await.unwrap();
        session.close().await;
        for (what, wrong) in [
            ("another authority's servers", options("localhost", &theirs, node.clone())),
            ("no certificate of its own", options("localhost", &ours, None)),
            ("another authority's certificate", options("localhost", &ours, Some(theirs.identity("node")))),
            ("another name", options("ip6-localhost", &ours, node)),
            (
                "no TLS",
                Options {
                    session_timeout: SHORT,
                    ..Options::new(ensemble.secure_connect_string("localhost"))
                },
            ),
        ] {
            let error = ZooKeeper::new(wrong).unwrap().connect().await.expect_err(what);
            assert!(error.is_lost() && error.to_string().contains("localhost:2281"), "{what}: {error}");
        }
    })
    .unwrap();
}

#[test]
fn the_suite_that_all_stores_share_passes_on_three_servers() {
    let lab = Lab::new().unwrap();
    let host = lab.host("suite").unwrap();
    let ensemble = Ensemble::on_one_host(&host, 3).unwrap();
    // Two clients, each at a server of its own.
    let client = |server: usize| ZooKeeper::new(Options::new(ensemble.address(server).to_string())).unwrap();
    let clients = (client(0), client(1));
    let operator = host.clone();
    let forbid = move |path: &str, forbid| {
        let rights = if forbid { "world:anyone:cdwa" } else { "world:anyone:cdrwa" };
        ensemble.set_acl(&operator, path, rights)
    };
    host.block_on(async || store_suite::run_all(clients, forbid).await).unwrap().unwrap();
}
