//! What has to work before chance is let in.

use crate::world::{AUTONOMY, Apply, SESSION, World, lock, members, name, real_name, vip_name, vip_state};
use lb_node::compile::TableCache;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use zk_schema::tree::Mode;
use zk_schema::{NodeName, RealName};

/// Three nodes, two VIPs that share two of four reals; at rest.
async fn cluster() -> World {
    let vips = [(vip_name(1), vip_state(1, 1..=3)), (vip_name(2), vip_state(2, 2..=4))];
    let world = World::new(3, vips.into(), 7, TableCache::default()).await;
    world.rest_within(Duration::from_secs(30)).await.expect("a new cluster comes to rest");
    world
}

fn leader(world: &World) -> (NodeName, u64) {
    let leaders =
        world.running().filter_map(|(name, node)| Some((name.clone(), node.learnt.leading.borrow().term?)));
    let leaders: Vec<_> = leaders.collect();
    assert_eq!(leaders.len(), 1, "{leaders:?}");
    leaders[0].clone()
}

/// How often each real leaves a table that it was in and comes back, over what was applied since this was asked last.
fn moves(world: &World, before: &mut std::collections::BTreeMap<NodeName, Apply>) -> Vec<String> {
    let mut moves = Vec::new();
    for apply in std::mem::take(&mut *lock(&world.applies)) {
        let last = before.insert(apply.node.clone(), apply.clone());
        let Some(last) = last.filter(|last| last.start == apply.start) else { continue };
        for (vip, now) in &apply.program.vips {
            let Some(then) = last.program.vips.get(vip) else { continue };
            let (then, now) = (members(then), members(now));
            let gone = then.keys().filter(|real| !now.contains_key(*real)).map(|real| format!("-{real}"));
            let come = now.keys().filter(|real| !then.contains_key(*real)).map(|real| format!("+{real}"));
            moves.extend(gone.chain(come).map(|what| format!("{} {vip} {what}", apply.node)));
        }
    }
    moves.sort();
    moves
}

#[tokio::test(start_paused = true)]
async fn a_cluster_comes_to_rest_and_stays_there() {
    let world = cluster().await;
    let before = world.head().unwrap().order();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.head().unwrap().order(), before, "a cluster at rest decides nothing");
    world.unrest().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_real_that_dies_leaves_all_tables_and_returns_in_two_phases() {
    let world = cluster().await;
    let real: RealName = real_name(2);
    lock(&world.truth).down.insert(real.clone());
    let took = world.rest_within(Duration::from_secs(10)).await.unwrap();
    assert!(took < Duration::from_millis(5500), "{took:?}");
    world.store.journal();
    lock(&world.truth).down.remove(&real);
    world.rest_within(Duration::from_secs(15)).await.unwrap();
    // The announcement is a head of its own.
    let announced = world.store.journal().into_iter().filter(|entry| {
        entry.path.starts_with("/drover/assignments/")
            && entry.data.as_ref().is_some_and(|data| String::from_utf8_lossy(data).contains("\"next\""))
    });
    assert!(announced.count() >= 1);
}

#[tokio::test(start_paused = true)]
async fn when_the_leader_crashes_another_leads_and_nothing_moves() {
    let mut world = cluster().await;
    let mut last = Default::default();
    moves(&world, &mut last);
    let (node, term) = leader(&world);
    world.crash(&node);
    sleep(SESSION + Duration::from_secs(20)).await;
    let (successor, next) = leader(&world);
    assert!(successor != node && next > term);
    assert_eq!(moves(&world, &mut last), [""; 0]);
    world.rest_within(Duration::from_secs(10)).await.unwrap();
    world.start(&node);
    world.rest_within(Duration::from_secs(30)).await.unwrap();
    assert_eq!(moves(&world, &mut last), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_node_leaves_and_joins_and_nothing_moves() {
    let mut world = cluster().await;
    let mut last = Default::default();
    moves(&world, &mut last);
    let node = name("lb-3");
    world.stop(&node).await;
    world.rest_within(Duration::from_secs(15)).await.unwrap();
    world.machines.get_mut(&node).unwrap().cached = None;
    world.start(&node);
    world.rest_within(Duration::from_secs(15)).await.unwrap();
    assert_eq!(moves(&world, &mut last), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_real_that_dies_while_the_store_is_away_is_left_out_by_each_node_and_does_not_flap() {
    let world = cluster().await;
    let mut last = Default::default();
    moves(&world, &mut last);
    world.store.outage(true);
    sleep(Duration::from_secs(5)).await;
    let real = real_name(2);
    lock(&world.truth).down.insert(real.clone());
    let dead = Instant::now();
    sleep(AUTONOMY + Duration::from_secs(8)).await;
    let left: Vec<String> = moves(&world, &mut last);
    let expected: Vec<String> =
        (1..=3).flat_map(|node| (1..=2).map(move |vip| format!("lb-{node} vip-{vip} -real-2"))).collect();
    assert_eq!(left, expected, "{:?} after its death", dead.elapsed());
    for (_, node) in world.running() {
        assert_eq!(node.report.borrow().mode, Mode::Autonomous);
    }
    sleep(Duration::from_secs(37)).await;
    world.store.outage(false);
    world.rest_within(Duration::from_secs(40)).await.unwrap();
    assert_eq!(moves(&world, &mut last), [""; 0], "while the store is back");
    lock(&world.truth).down.remove(&real);
    world.rest_within(Duration::from_secs(15)).await.unwrap();
    let returned: Vec<String> = moves(&world, &mut last);
    assert_eq!(returned.len(), 6, "{returned:?}");
}
