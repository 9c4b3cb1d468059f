//! What every store must do: one suite for all backends.

use anyhow::{Context, Result, bail};
use coordination::{Change, Error, Mirror, Pattern, Session, State, Store, Watch};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use zk_schema::tree::{Contents, Stat, Znode};

/// How long a case may take, and how long something that must happen may.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long is waited for something that must not happen.
const SILENCE: Duration = Duration::from_millis(200);

/// How many rounds those cases do that provoke a race.
const ROUNDS: u32 = 100;

/// What a case works with: two clients of one tree, a session of each, and a znode for itself.
struct Bench<S: Store> {
    store: S,
    one: S::Session,
    two: S::Session,
    /// A znode without children that the case works below.
    root: String,
    forbid: Forbid,
}

/// Takes the right to read the znode at a path from everybody (true), or gives it back (false). May take seconds.
type Forbid = Arc<dyn Fn(&str, bool) -> Result<()> + Send + Sync>;

type Outcome = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// A case: its name, and what it does.
type Case<S> = (&'static str, fn(Bench<S>) -> Outcome);

/// All cases.
fn cases<S: Store>() -> Vec<Case<S>> {
    macro_rules! named {
        ($($case:ident),* $(,)?) => { vec![$((stringify!($case), |bench| Box::pin($case(bench)))),*] };
    }
    named![
        a_session_is_connected_and_has_an_id,
        a_session_reads_its_own_writes,
        versions_rise_and_a_wrong_one_is_refused,
        a_commit_is_all_or_nothing_and_names_the_change_to_blame,
        later_changes_of_a_commit_see_earlier_ones,
        a_check_is_for_a_version_or_for_any,
        what_is_there_missing_or_not_empty_is_refused_by_path,
        an_ephemeral_znode_names_its_owner_and_vanishes_with_it,
        an_ephemeral_znode_has_no_children,
        an_ephemeral_znode_may_be_deleted_by_anybody,
        sequential_numbers_rise_and_never_return,
        sequential_znodes_are_ephemeral,
        a_watch_fires_on_creation_writing_and_deletion,
        a_watch_fires_for_changes_after_it_only_and_not_for_children,
        a_watch_on_children_fires_when_one_comes_or_goes_and_not_when_one_is_written,
        a_watch_on_children_fires_when_the_parent_comes_or_goes,
        a_watch_on_children_sees_an_ephemeral_one_vanish,
        a_dropped_watch_harms_nothing,
        two_watches_on_one_znode_both_fire,
        watches_fire_when_their_session_is_closed,
        many_are_read_in_order_and_missing_ones_are_none,
        many_are_read_as_of_one_moment,
        one_of_many_that_may_not_be_read_hides_no_other,
        a_mirror_of_many_is_complete_without_those_that_may_not_be_read,
        a_znode_tells_its_owner_and_version_without_being_read,
        a_recreated_znode_has_another_creation,
        modification_rises_over_the_whole_tree,
        what_a_commit_changes_has_one_modification,
        after_a_sync_others_writes_are_seen,
        large_data_come_back_as_they_were,
        children_are_in_order,
        concurrent_increments_lose_none,
        a_closed_session_is_expired,
    ]
}

/// Runs all cases on the tree that two clients share, each below its own path in `/suite`, which must not be there.
/// `forbid` takes the right to read the znode at a path from everybody (true), or gives it back (false); it may block.
///
/// # Errors
/// Names the cases that failed, and why.
pub async fn run_all<S: Store>(
    clients: (S, S),
    forbid: impl Fn(&str, bool) -> Result<()> + Send + Sync + 'static,
) -> Result<()> {
    let forbid: Forbid = Arc::new(forbid);
    let session = clients.0.connect().await.context("connect")?;
    session.commit(vec![create("/suite", "")]).await.context("create /suite")?;
    let mut failures = Vec::new();
    for (name, case) in cases::<S>() {
        let root = format!("/suite/{name}");
        session.commit(vec![create(&root, "")]).await.context(root.clone())?;
        let (one, two) = (clients.0.connect().await?, clients.1.connect().await?);
        two.sync().await?;
        let (store, forbid) = (clients.0.clone(), Arc::clone(&forbid));
        let bench = Bench { store, one: one.clone(), two: two.clone(), root, forbid };
        // A task of its own, so that a case that panics has a name as well.
        match tokio::spawn(timeout(PATIENCE, case(bench))).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => failures.push(format!("{name}: {error:#}")),
            Ok(Err(_)) => failures.push(format!("{name}: did not end within {PATIENCE:?}")),
            Err(panic) => failures.push(format!("{name}: {panic}")),
        }
        one.close().await;
        two.close().await;
    }
    session.close().await;
    if !failures.is_empty() {
        bail!("{} cases failed:\n{}", failures.len(), failures.join("\n"));
    }
    Ok(())
}

async fn a_session_is_connected_and_has_an_id<S: Store>(bench: Bench<S>) -> Result<()> {
    assert_eq!(*bench.one.state().borrow(), State::Connected);
    assert_ne!(bench.one.id(), 0);
    assert_ne!(bench.one.id(), bench.two.id());
    assert_eq!(bench.one.id(), bench.one.clone().id());
    Ok(())
}

async fn a_session_reads_its_own_writes<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("x");
    assert_eq!(get(&bench.one, &path).await?, None);
    bench.one.commit(vec![create(&path, "first")]).await?;
    let znode = there(&bench.one, &path).await?;
    assert_eq!((znode.data.as_slice(), znode.version, znode.owner), (b"first".as_slice(), 0, None));
    for round in 0..ROUNDS {
        bench.one.commit(vec![set(&path, &round.to_string(), None)]).await?;
        assert_eq!(there(&bench.one, &path).await?.data, round.to_string().as_bytes());
    }
    Ok(())
}

async fn versions_rise_and_a_wrong_one_is_refused<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("x");
    bench.one.commit(vec![create(&path, "0")]).await?;
    for version in 0..3 {
        assert_eq!(there(&bench.one, &path).await?.version, version);
        bench.one.commit(vec![set(&path, "next", Some(version))]).await?;
    }
    bench.one.commit(vec![set(&path, "any", None)]).await?;
    assert_eq!(there(&bench.one, &path).await?.version, 4);
    for change in [set(&path, "stale", Some(3)), delete(&path, Some(3)), check(&path, Some(5))] {
        assert_eq!(bench.one.commit(vec![change]).await, Err(Error::BadVersion(path.clone())));
    }
    assert_eq!(there(&bench.one, &path).await?.data, b"any");
    bench.one.commit(vec![delete(&path, Some(4))]).await?;
    assert_eq!(get(&bench.one, &path).await?, None);
    Ok(())
}

async fn a_commit_is_all_or_nothing_and_names_the_change_to_blame<S: Store>(bench: Bench<S>) -> Result<()> {
    let [kept, gone, new, none] = ["kept", "gone", "new", "none"].map(|name| bench.path(name));
    bench.one.commit(vec![create(&kept, "0"), create(&gone, "0")]).await?;
    let before = bench.one.read(&[kept.clone(), gone.clone()]).await?;
    let good = vec![set(&kept, "1", Some(0)), delete(&gone, None), create(&new, "1")];
    let culprits = [
        (check(&none, None), Error::NoNode(none.clone())),
        (set(&none, "1", None), Error::NoNode(none.clone())),
        (delete(&none, None), Error::NoNode(none.clone())),
        (create(&kept, "1"), Error::Exists(kept.clone())),
        (set(&kept, "2", Some(0)), Error::BadVersion(kept.clone())),
        (create(&format!("{none}/below"), "1"), Error::NoNode(format!("{none}/below"))),
    ];
    for (culprit, error) in culprits {
        let mut changes = good.clone();
        changes.push(culprit.clone());
        // The second one to blame is not named.
        changes.push(delete(&bench.path("none either"), None));
        assert_eq!(bench.one.commit(changes).await, Err(error), "{culprit:?}");
        assert_eq!(bench.one.read(&[kept.clone(), gone.clone()]).await?, before);
        assert_eq!(get(&bench.one, &new).await?, None);
    }
    bench.one.commit(good).await?;
    assert_eq!(bench.one.children(&bench.root).await?, Some(vec!["kept".to_owned(), "new".to_owned()]));
    Ok(())
}

async fn later_changes_of_a_commit_see_earlier_ones<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("x");
    let below = format!("{path}/y");
    let changes =
        vec![create(&path, "0"), create(&below, "0"), set(&path, "1", Some(0)), check(&path, Some(1))];
    bench.one.commit(changes).await?;
    assert_eq!(there(&bench.one, &path).await?.version, 1);
    bench.one.commit(vec![delete(&below, None), delete(&path, Some(1))]).await?;
    assert_eq!(bench.one.children(&bench.root).await?, Some(Vec::new()));
    Ok(())
}

async fn a_check_is_for_a_version_or_for_any<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("x");
    bench.one.commit(vec![create(&path, "")]).await?;
    bench.one.commit(vec![check(&path, None)]).await?;
    bench.one.commit(vec![check(&path, Some(0))]).await?;
    assert_eq!(bench.one.commit(vec![check(&path, Some(1))]).await, Err(Error::BadVersion(path.clone())));
    bench.one.commit(vec![set(&path, "", None), check(&path, Some(1)), check(&path, None)]).await?;
    assert_eq!(bench.one.commit(vec![check(&path, Some(0))]).await, Err(Error::BadVersion(path.clone())));
    assert_eq!(there(&bench.one, &path).await?.version, 1);
    Ok(())
}

async fn what_is_there_missing_or_not_empty_is_refused_by_path<S: Store>(bench: Bench<S>) -> Result<()> {
    let (path, none) = (bench.path("x"), bench.path("none"));
    bench.one.commit(vec![create(&path, ""), create(&format!("{path}/y"), "")]).await?;
    assert_eq!(bench.one.commit(vec![create(&path, "")]).await, Err(Error::Exists(path.clone())));
    assert_eq!(bench.one.commit(vec![delete(&path, None)]).await, Err(Error::NotEmpty(path.clone())));
    for change in [set(&none, "", None), delete(&none, None), check(&none, None), check(&none, Some(0))] {
        assert_eq!(bench.one.commit(vec![change]).await, Err(Error::NoNode(none.clone())));
    }
    let orphan = format!("{none}/y");
    assert_eq!(bench.one.commit(vec![create(&orphan, "")]).await, Err(Error::NoNode(orphan.clone())));
    assert_eq!(bench.one.children(&none).await?, None);
    Ok(())
}

async fn an_ephemeral_znode_names_its_owner_and_vanishes_with_it<S: Store>(bench: Bench<S>) -> Result<()> {
    let (ephemeral, lasting) = (bench.path("e"), bench.path("x"));
    let owner = bench.store.connect().await?;
    owner.commit(vec![create_ephemeral(&ephemeral), create(&lasting, "")]).await?;
    bench.two.sync().await?;
    assert_eq!(there(&bench.two, &ephemeral).await?.owner, Some(owner.id()));
    assert_eq!(there(&bench.two, &lasting).await?.owner, None);
    owner.close().await;
    bench.two.sync().await?;
    assert_eq!(get(&bench.two, &ephemeral).await?, None);
    there(&bench.two, &lasting).await?;
    Ok(())
}

async fn an_ephemeral_znode_has_no_children<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("e");
    bench.one.commit(vec![create_ephemeral(&path)]).await?;
    let result = bench.one.commit(vec![create(&format!("{path}/y"), "")]).await;
    assert!(matches!(result, Err(Error::Other(_))), "{result:?}");
    assert_eq!(bench.one.children(&path).await?, Some(Vec::new()));
    Ok(())
}

async fn an_ephemeral_znode_may_be_deleted_by_anybody<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("e");
    bench.one.commit(vec![create_ephemeral(&path)]).await?;
    bench.two.commit(vec![delete(&path, None)]).await?;
    bench.one.sync().await?;
    assert_eq!(get(&bench.one, &path).await?, None);
    Ok(())
}

async fn sequential_numbers_rise_and_never_return<S: Store>(bench: Bench<S>) -> Result<()> {
    let mut last = None;
    for round in 0..10 {
        let (session, name) = if round % 2 == 0 { (&bench.one, "a-") } else { (&bench.two, "b-") };
        let prefix = bench.path(name);
        let path = session.create_sequential(&prefix, vec![7]).await?;
        let digits = path.strip_prefix(&prefix).context("the path begins with the prefix")?;
        assert_eq!(digits.len(), 10, "{path}");
        let number: u64 = digits.parse()?;
        assert!(last.is_none_or(|last| last < number), "{last:?} before {number}");
        last = Some(number);
        assert_eq!(there(session, &path).await?.data, [7]);
        // The number is not had anew when its znode is gone, not even when all are.
        if round % 3 > 0 {
            session.commit(vec![delete(&path, None)]).await?;
        }
    }
    Ok(())
}

async fn sequential_znodes_are_ephemeral<S: Store>(bench: Bench<S>) -> Result<()> {
    let owner = bench.store.connect().await?;
    let path = owner.create_sequential(&bench.path("n-"), Vec::new()).await?;
    assert_eq!(there(&owner, &path).await?.owner, Some(owner.id()));
    owner.close().await;
    bench.one.sync().await?;
    assert_eq!(get(&bench.one, &path).await?, None);
    let none = bench.path("none/n-");
    let result = bench.one.create_sequential(&none, Vec::new()).await;
    assert!(matches!(&result, Err(Error::NoNode(path)) if path.starts_with(&none)), "{result:?}");
    Ok(())
}

async fn a_watch_fires_on_creation_writing_and_deletion<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("x");
    let changes = [create(&path, "0"), set(&path, "1", None), set(&path, "1", None), delete(&path, None)];
    for change in changes {
        let (before, watch) = bench.one.watch(&path).await?;
        bench.two.commit(vec![change.clone()]).await?;
        fires(watch).await.with_context(|| format!("{change:?}"))?;
        // What has been announced can be read: nothing waits for a sync.
        assert_ne!(get(&bench.one, &path).await?, before, "{change:?}");
    }
    Ok(())
}

async fn a_watch_fires_for_changes_after_it_only_and_not_for_children<S: Store>(
    bench: Bench<S>,
) -> Result<()> {
    let (path, sibling) = (bench.path("x"), bench.path("xx"));
    let below = format!("{path}/y");
    bench.one.commit(vec![create(&path, "0")]).await?;
    bench.one.commit(vec![set(&path, "1", None)]).await?;
    let (znode, mut watch) = bench.one.watch(&path).await?;
    assert_eq!(znode.context("it is there")?.data, b"1");
    let changes = [create(&below, "0"), set(&below, "1", None), delete(&below, None), create(&sibling, "0")];
    for change in changes {
        bench.one.commit(vec![change]).await?;
    }
    stays_silent(&mut watch).await?;
    bench.one.commit(vec![set(&path, "2", None)]).await?;
    fires(watch).await
}

async fn a_watch_on_children_fires_when_one_comes_or_goes_and_not_when_one_is_written<S: Store>(
    bench: Bench<S>,
) -> Result<()> {
    let path = bench.path("x");
    let below = format!("{path}/y");
    bench.one.commit(vec![create(&path, "0")]).await?;

    let (children, watch) = bench.one.watch_children(&path).await?;
    assert_eq!(children, Some(Vec::new()));
    bench.two.commit(vec![create(&below, "0")]).await?;
    fires(watch).await.context("a child comes")?;

    let (children, mut watch) = bench.one.watch_children(&path).await?;
    assert_eq!(children, Some(vec!["y".to_owned()]));
    bench.two.commit(vec![set(&below, "1", None)]).await?;
    bench.two.commit(vec![set(&path, "1", None)]).await?;
    bench.two.commit(vec![create(&format!("{below}/z"), "")]).await?;
    bench.two.commit(vec![delete(&format!("{below}/z"), None)]).await?;
    stays_silent(&mut watch).await?;
    bench.two.commit(vec![delete(&below, None)]).await?;
    fires(watch).await.context("a child goes")
}

async fn a_watch_on_children_fires_when_the_parent_comes_or_goes<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("x");
    let (children, watch) = bench.one.watch_children(&path).await?;
    assert_eq!(children, None);
    bench.two.commit(vec![create(&path, "0")]).await?;
    fires(watch).await.context("the parent comes")?;
    let (children, watch) = bench.one.watch_children(&path).await?;
    assert_eq!(children, Some(Vec::new()));
    bench.two.commit(vec![delete(&path, None)]).await?;
    fires(watch).await.context("the parent goes")
}

async fn a_watch_on_children_sees_an_ephemeral_one_vanish<S: Store>(bench: Bench<S>) -> Result<()> {
    let owner = bench.store.connect().await?;
    owner.commit(vec![create_ephemeral(&bench.path("e"))]).await?;
    bench.two.sync().await?;
    let (children, watch) = bench.two.watch_children(&bench.root).await?;
    assert_eq!(children, Some(vec!["e".to_owned()]));
    owner.close().await;
    fires(watch).await?;
    assert_eq!(bench.two.children(&bench.root).await?, Some(Vec::new()));
    Ok(())
}

async fn a_dropped_watch_harms_nothing<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("x");
    bench.one.commit(vec![create(&path, "0")]).await?;
    drop(bench.one.watch(&path).await?);
    drop(bench.one.watch_children(&path).await?);
    let (_, kept) = bench.one.watch(&path).await?;
    drop(bench.one.watch(&path).await?);
    bench.one.commit(vec![set(&path, "1", None), create(&format!("{path}/y"), "")]).await?;
    fires(kept).await?;
    bench.one.commit(vec![set(&path, "2", None)]).await?;
    assert_eq!(there(&bench.one, &path).await?.data, b"2");
    Ok(())
}

async fn two_watches_on_one_znode_both_fire<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("x");
    let (_, missing) = bench.one.watch(&path).await?;
    let (_, also_missing) = bench.one.watch(&path).await?;
    let (_, elsewhere) = bench.two.watch(&path).await?;
    bench.one.commit(vec![create(&path, "0")]).await?;
    for watch in [missing, also_missing, elsewhere] {
        fires(watch).await?;
    }
    Ok(())
}

async fn watches_fire_when_their_session_is_closed<S: Store>(bench: Bench<S>) -> Result<()> {
    let session = bench.store.connect().await?;
    let (_, watch) = session.watch(&bench.path("x")).await?;
    let (_, of_children) = session.watch_children(&bench.root).await?;
    session.close().await;
    fires(watch).await?;
    fires(of_children).await
}

async fn many_are_read_in_order_and_missing_ones_are_none<S: Store>(bench: Bench<S>) -> Result<()> {
    let paths: Vec<String> = (0..300).rev().map(|number| bench.path(&number.to_string())).collect();
    let present = |number: usize| !number.is_multiple_of(3);
    let changes = paths.iter().enumerate().filter(|(number, _)| present(*number));
    bench.one.commit(changes.map(|(number, path)| create(path, &number.to_string())).collect()).await?;
    let znodes = bench.one.read(&paths).await?;
    assert_eq!(znodes.len(), paths.len());
    for (number, znode) in znodes.into_iter().enumerate() {
        let expected = present(number).then(|| number.to_string().into_bytes());
        assert_eq!(znode.map(|znode| znode.data), expected, "{}", paths[number]);
    }
    assert_eq!(bench.one.read(&[]).await?, []);
    let twice = [paths[1].clone(), paths[1].clone()];
    let znodes = bench.one.read(&twice).await?;
    assert!(znodes[0].is_some() && znodes[0] == znodes[1]);
    Ok(())
}

async fn many_are_read_as_of_one_moment<S: Store>(bench: Bench<S>) -> Result<()> {
    let paths = [bench.path("x"), bench.path("y")];
    bench.one.commit(paths.iter().map(|path| create(path, "")).collect()).await?;
    bench.two.sync().await?;
    let writer = tokio::spawn({
        let (session, paths) = (bench.one.clone(), paths.clone());
        async move {
            for round in 0..ROUNDS {
                session
                    .commit(paths.iter().map(|path| set(path, &round.to_string(), None)).collect())
                    .await?;
                tokio::task::yield_now().await;
            }
            Ok::<_, Error>(())
        }
    });
    let mut seen = Vec::new();
    while !writer.is_finished() {
        let znodes = bench.two.read(&paths).await?;
        let [Some(x), Some(y)] = znodes.as_slice() else { bail!("{znodes:?}") };
        assert_eq!((&x.data, x.modified), (&y.data, y.modified));
        seen.push(x.version);
        tokio::task::yield_now().await;
    }
    writer.await??;
    assert!(seen.is_sorted(), "a session's view never goes back: {seen:?}");
    Ok(())
}

async fn one_of_many_that_may_not_be_read_hides_no_other<S: Store>(bench: Bench<S>) -> Result<()> {
    let paths = ["a", "b", "c", "none"].map(|name| bench.path(name));
    let [a, b, c, none] = &paths;
    bench.one.commit([a, b, c].map(|path| create(path, "x")).into()).await?;
    bench.forbid(b, true).await?;
    let refused = Error::NoAuth(b.clone());
    let outcomes = bench.two.read_each(&paths).await?;
    let found: Vec<_> = outcomes.into_iter().map(|outcome| outcome.map(|znode| znode.is_some())).collect();
    assert_eq!(found, [Ok(true), Err(refused.clone()), Ok(true), Ok(false)], "{none}");
    assert_eq!(bench.two.read(&paths).await, Err(refused.clone()), "all or none");
    assert_eq!(bench.two.watch(b).await.map(drop), Err(refused.clone()));
    assert_eq!(bench.two.watch_children(b).await.map(drop), Err(refused));
    assert_eq!(bench.two.stat(b).await?.map(|stat| stat.version), Some(0));
    bench.forbid(b, false).await?;
    let back = bench.two.read(&paths).await?;
    assert_eq!(back.iter().flatten().count(), 3);
    Ok(())
}

/// More than are asked for in one request, and all read again every now and then: what no watch tells is found by that
/// alone.
async fn a_mirror_of_many_is_complete_without_those_that_may_not_be_read<S: Store>(
    bench: Bench<S>,
) -> Result<()> {
    const MANY: usize = 250;
    const REREAD: Duration = Duration::from_secs(1);
    let paths: Vec<String> = (0..MANY).map(|number| bench.path(&format!("vip-{number:03}"))).collect();
    bench.one.commit(paths.iter().map(|path| create(path, "before")).collect()).await?;
    let (hidden, later, last) = (&paths[7], &paths[8], &paths[MANY - 1]);
    bench.forbid(hidden, true).await?;
    let mirror = Mirror::new(bench.two.clone(), vec![Pattern::new(&bench.path("*"))], REREAD);
    let mut contents = mirror.contents();
    let mut shows = async |what: &str, unreadable: &[&String], written: usize| {
        let is_so = |contents: &Arc<Contents>| {
            let data = |path: &String| contents.get(path).map(|znode| znode.data.clone());
            contents.complete
                && contents.len() == MANY - usize::from(data(hidden).is_none())
                && contents.unreadable.keys().eq(unreadable.iter().copied())
                && paths.iter().filter(|path| data(path).is_some_and(|data| data == b"after")).count()
                    == written
        };
        let waited = timeout(PATIENCE, contents.wait_for(is_so)).await.map(drop);
        waited.with_context(|| {
            let contents = contents.borrow();
            format!(
                "{what}: {} of {MANY}, complete: {}, {:?}",
                contents.len(),
                contents.complete,
                contents.unreadable
            )
        })
    };
    shows("all but one", &[hidden], 0).await?;
    bench.one.commit(vec![set(last, "after", None)]).await?;
    shows("the others are followed", &[hidden], 1).await?;
    bench.forbid(later, true).await?;
    shows("no watch tells that a right was taken", &[hidden, later], 1).await?;
    bench.forbid(hidden, false).await?;
    shows("nor that one was given", &[later], 1).await?;
    bench.one.commit(vec![set(hidden, "after", None)]).await?;
    shows("from then on it is followed", &[later], 2).await
}

async fn a_znode_tells_its_owner_and_version_without_being_read<S: Store>(bench: Bench<S>) -> Result<()> {
    let (ephemeral, lasting, none) = (bench.path("e"), bench.path("x"), bench.path("none"));
    bench.one.commit(vec![create_ephemeral(&ephemeral), create(&lasting, "")]).await?;
    bench.one.commit(vec![Change::Set { path: lasting.clone(), data: vec![1], version: None }]).await?;
    bench.two.sync().await?;
    let owner = Some(bench.one.id());
    assert_eq!(bench.two.stat(&ephemeral).await?, Some(Stat { version: 0, owner }));
    assert_eq!(bench.two.stat(&lasting).await?, Some(Stat { version: 1, owner: None }));
    assert_eq!(bench.two.stat(&none).await?, None);
    let each = bench.two.read_each(&[lasting.clone(), none]).await?;
    assert!(matches!(&each[..], [Ok(Some(znode)), Ok(None)] if znode.data == [1]), "{each:?}");
    Ok(())
}

async fn a_recreated_znode_has_another_creation<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("x");
    bench.one.commit(vec![create(&path, "same")]).await?;
    let first = there(&bench.one, &path).await?;
    assert_eq!(first.created, first.modified);
    bench.one.commit(vec![set(&path, "same", None)]).await?;
    assert_eq!(there(&bench.one, &path).await?.created, first.created);
    bench.one.commit(vec![delete(&path, None)]).await?;
    bench.one.commit(vec![create(&path, "same")]).await?;
    let second = there(&bench.one, &path).await?;
    assert_eq!((&second.data, second.version), (&first.data, 0));
    assert!(second.created > first.created, "{first:?} then {second:?}");
    Ok(())
}

async fn modification_rises_over_the_whole_tree<S: Store>(bench: Bench<S>) -> Result<()> {
    let paths = [bench.path("x"), bench.path("y"), bench.path("z")];
    bench.one.commit(paths.iter().map(|path| create(path, "")).collect()).await?;
    let mut last = there(&bench.one, &paths[0]).await?.modified;
    for round in 0..12 {
        let path = &paths[round % paths.len()];
        let session = if round % 2 == 0 { &bench.one } else { &bench.two };
        session.commit(vec![set(path, "same", None)]).await?;
        let modified = there(session, path).await?.modified;
        assert!(modified > last, "{last} then {modified}");
        last = modified;
    }
    Ok(())
}

async fn what_a_commit_changes_has_one_modification<S: Store>(bench: Bench<S>) -> Result<()> {
    let paths = [bench.path("x"), bench.path("y")];
    bench.one.commit(vec![create(&paths[0], "")]).await?;
    bench.one.commit(vec![set(&paths[0], "", None), create(&paths[1], "")]).await?;
    let (x, y) = (there(&bench.one, &paths[0]).await?, there(&bench.one, &paths[1]).await?);
    assert_eq!((x.modified, y.modified), (y.created, y.created));
    Ok(())
}

async fn after_a_sync_others_writes_are_seen<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("x");
    bench.one.commit(vec![create(&path, "")]).await?;
    for round in 0..ROUNDS {
        bench.one.commit(vec![set(&path, &round.to_string(), None)]).await?;
        bench.two.sync().await?;
        assert_eq!(there(&bench.two, &path).await?.data, round.to_string().as_bytes());
    }
    Ok(())
}

async fn large_data_come_back_as_they_were<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("x");
    let data: Vec<u8> =
        (0..200_000_u32).map(|place| place.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let create = Change::Create { path: path.clone(), data: data.clone(), ephemeral: false };
    bench.one.commit(vec![create]).await?;
    bench.two.sync().await?;
    assert!(there(&bench.two, &path).await?.data == data, "200,000 bytes differ");
    let empty = Change::Set { path: path.clone(), data: Vec::new(), version: None };
    bench.one.commit(vec![empty]).await?;
    assert_eq!(there(&bench.one, &path).await?.data, b"");
    Ok(())
}

async fn children_are_in_order<S: Store>(bench: Bench<S>) -> Result<()> {
    let names = ["b", "a", "c.d", "a-1", "10", "9", "é"];
    let mut changes: Vec<Change> = names.iter().map(|name| create(&bench.path(name), "")).collect();
    changes.push(create(&bench.path("a/below"), ""));
    bench.one.commit(changes).await?;
    let mut sorted = names.map(str::to_owned).to_vec();
    sorted.sort();
    assert_eq!(bench.one.children(&bench.root).await?, Some(sorted.clone()));
    let (children, _watch) = bench.one.watch_children(&bench.root).await?;
    assert_eq!(children, Some(sorted));
    Ok(())
}

async fn concurrent_increments_lose_none<S: Store>(bench: Bench<S>) -> Result<()> {
    let path = bench.path("x");
    bench.one.commit(vec![create(&path, "0")]).await?;
    bench.two.sync().await?;
    let incrementing = [bench.one.clone(), bench.two.clone()].map(|session| {
        let path = path.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while done < ROUNDS {
                let znode = there(&session, &path).await?;
                let number: u32 = String::from_utf8(znode.data)?.parse()?;
                match session.commit(vec![set(&path, &(number + 1).to_string(), Some(znode.version))]).await {
                    Ok(()) => done += 1,
                    Err(Error::BadVersion(_)) => session.sync().await?,
                    Err(error) => return Err(error.into()),
                }
            }
            anyhow::Ok(())
        })
    });
    for task in incrementing {
        task.await??;
    }
    bench.one.sync().await?;
    assert_eq!(there(&bench.one, &path).await?.data, (2 * ROUNDS).to_string().as_bytes());
    Ok(())
}

async fn a_closed_session_is_expired<S: Store>(bench: Bench<S>) -> Result<()> {
    let session = bench.store.connect().await?;
    let (clone, mut state) = (session.clone(), session.state());
    session.close().await;
    timeout(PATIENCE, state.wait_for(|state| *state == State::Expired)).await.context("it expires")??;
    let result = clone.sync().await;
    assert!(matches!(result, Err(Error::Expired | Error::Lost(_))), "{result:?}");
    Ok(())
}

impl<S: Store> Bench<S> {
    /// A path below the case's own.
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    /// Takes the right to read the znode at `path` from everybody, or gives it back; both sessions see that then.
    async fn forbid(&self, path: &str, forbid: bool) -> Result<()> {
        let (set, owned) = (Arc::clone(&self.forbid), path.to_owned());
        tokio::task::spawn_blocking(move || set(&owned, forbid)).await??;
        self.one.sync().await?;
        Ok(self.two.sync().await?)
    }
}

fn create(path: &str, data: &str) -> Change {
    Change::Create { path: path.to_owned(), data: data.into(), ephemeral: false }
}

fn create_ephemeral(path: &str) -> Change {
    Change::Create { path: path.to_owned(), data: Vec::new(), ephemeral: true }
}

fn set(path: &str, data: &str, version: Option<i32>) -> Change {
    Change::Set { path: path.to_owned(), data: data.into(), version }
}

fn delete(path: &str, version: Option<i32>) -> Change {
    Change::Delete { path: path.to_owned(), version }
}

fn check(path: &str, version: Option<i32>) -> Change {
    Change::Check { path: path.to_owned(), version }
}

/// A znode, if it is there.
async fn get(session: &impl Session, path: &str) -> Result<Option<Znode>> {
    session.read(&[path.to_owned()]).await?.pop().context("one answer for one path")
}

/// A znode that must be there.
async fn there(session: &impl Session, path: &str) -> Result<Znode> {
    get(session, path).await?.with_context(|| format!("{path} is not there"))
}

/// Waits for a watch that must fire.
async fn fires(watch: Watch) -> Result<()> {
    timeout(PATIENCE, watch).await.context("a watch did not fire")
}

/// Waits a while for a watch that must not fire.
async fn stays_silent(watch: &mut Watch) -> Result<()> {
    match timeout(SILENCE, pin!(watch)).await {
        Ok(()) => bail!("a watch fired without a reason"),
        Err(_) => Ok(()),
    }
}
