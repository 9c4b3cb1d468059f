//! What has to work before chance is let in.

use crate::world::{AUTONOMY, Apply, SESSION, World, lock, members, name, real_name, vip_name, vip_state};
use coordination::Change;
use dataplane::compile::TableCache;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use zk_schema::tree::{Mode, paths};
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
async fn an_outage_of_all_of_the_store_costs_one_change_of_term_at_most() {
    // Shorter than a session, about as long as one, and longer.
    for outage in [500, 2_000, 3_500, 3_999, 4_000, 4_500, 8_000, 20_000, 60_000].map(Duration::from_millis) {
        let world = cluster().await;
        let (_, term) = leader(&world);
        world.store.outage(true);
        sleep(outage).await;
        world.store.outage(false);
        sleep(SESSION * 4).await;
        world.rest_within(Duration::from_secs(30)).await.unwrap();
        let (_, after) = leader(&world);
        assert!(after <= term + 1, "{outage:?}: from term {term} to {after}");
    }
}

/// Whether all running nodes have this real out of the VIP's table, or in it.
fn all_use(world: &World, vip: u8, real: u8) -> Vec<bool> {
    let uses = |node: &lb_node::cluster::simulated::SimulatedNode| {
        let recorder = node.dataplane.lock().expect("no test panics with the lock");
        members(&recorder.program().expect("a program is applied").vips[&vip_name(vip)])
            .contains_key(&real_name(real))
    };
    world.running().map(|(_, node)| uses(node)).collect()
}

/// Has another node lead, which knows nothing but what it reads.
async fn another_leads(world: &mut World) {
    let (node, term) = leader(world);
    world.stop(&node).await;
    world.start(&node);
    sleep(SESSION * 2).await;
    assert!(leader(world).1 > term);
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_that_may_not_read_some_records_keeps_what_they_hold_and_decides_on_all_else() {
    let mut world = cluster().await;
    for path in
        ["/drover/vips/vip-1", "/drover/vips/vip-2/reals/real-3", "/drover/nodes/lb-2", "/drover/ops/drain"]
    {
        world.store.forbid(path, true);
    }
    another_leads(&mut world).await;
    sleep(Duration::from_secs(20)).await;
    lock(&world.truth).down.insert(real_name(2));
    sleep(Duration::from_secs(10)).await;
    let head = world.head().unwrap();
    assert_eq!(head.nodes.len(), 3, "who may not be read is there");
    for path in ["/drover/vips/vip-1:", "/drover/vips/vip-2/reals/real-3:", "/drover/nodes/lb-2:"] {
        assert!(head.problems.iter().any(|problem| problem.starts_with(path)), "{path}: {:?}", head.problems);
    }
    // The dead real has left both VIPs, and what cannot be read is still served.
    assert_eq!([all_use(&world, 1, 2), all_use(&world, 2, 2)].concat(), [false; 6]);
    assert_eq!([all_use(&world, 1, 1), all_use(&world, 2, 3)].concat(), [true; 6]);
    // It was never gone.
    for path in
        ["/drover/vips/vip-1", "/drover/vips/vip-2/reals/real-3", "/drover/nodes/lb-2", "/drover/ops/drain"]
    {
        world.store.forbid(path, false);
    }
    lock(&world.truth).down.clear();
    world.rest_within(Duration::from_secs(30)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn where_a_new_leader_may_not_list_vips_or_reals_none_of_them_counts_as_gone() {
    let mut world = cluster().await;
    let mut last = Default::default();
    moves(&world, &mut last);
    world.store.forbid("/drover/vips", true);
    another_leads(&mut world).await;
    sleep(Duration::from_secs(40)).await;
    assert_eq!(moves(&world, &mut last), [""; 0]);
    assert_eq!(world.head().unwrap().vips.len(), 2);
    world.store.forbid("/drover/vips", false);
    world.store.forbid("/drover/vips/vip-1/reals", true);
    another_leads(&mut world).await;
    sleep(Duration::from_secs(40)).await;
    assert_eq!(moves(&world, &mut last), [""; 0]);
    let problems = world.head().unwrap().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems.iter().all(|problem| problem.starts_with("/drover/vips/vip-1/reals:")), "{problems:?}");
}

#[tokio::test(start_paused = true)]
async fn an_assignment_that_nobody_may_read_is_made_anew_by_a_leader_that_knows_it() {
    let mut world = cluster().await;
    let mut last = Default::default();
    moves(&world, &mut last);
    world.store.forbid("/drover/assignments/vip-1", true);
    another_leads(&mut world).await;
    world.rest_within(Duration::from_secs(30)).await.unwrap();
    assert_eq!(moves(&world, &mut last), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_decide_makes_way_says_why_and_no_longer_when_it_can() {
    let world = cluster().await;
    let (_, term) = leader(&world);
    world.store.forbid("/drover/health", true);
    sleep(Duration::from_secs(120)).await;
    let problem =
        |node: &lb_node::cluster::simulated::SimulatedNode| node.learnt.leading.borrow().problem.clone();
    for (name, node) in world.running() {
        let problem = problem(node).unwrap_or_default();
        assert!(problem.starts_with("/drover/health:"), "{name}: {problem:?}");
        assert_eq!(node.learnt.leading.borrow().term, None, "{name}");
    }
    let attempts = world.store.dump()["/drover/leader"].version;
    assert!((3..30).contains(&attempts), "they take turns, and take their time: {attempts}");
    world.store.forbid("/drover/health", false);
    world.rest_within(Duration::from_secs(120)).await.unwrap();
    assert!(leader(&world).1 > term);
    sleep(Duration::from_secs(60)).await;
    for (name, node) in world.running() {
        assert_eq!(problem(node), None, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stray_in_the_line_of_candidates_is_told_and_keeps_nobody_from_leading() {
    let mut world = cluster().await;
    let path = "/drover/election/x-0000000000";
    let create = Change::Create { path: path.to_owned(), data: Vec::new(), ephemeral: false };
    world.operate(vec![create]).await.unwrap();
    another_leads(&mut world).await;
    let problems = world.head().unwrap().problems;
    assert!(problems.iter().any(|problem| problem.starts_with(path)), "{problems:?}");
    world.operate(vec![Change::Delete { path: path.to_owned(), version: None }]).await.unwrap();
    world.rest_within(Duration::from_secs(30)).await.unwrap();
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

/// The nodes that announce anything.
fn announcing(world: &World) -> Vec<&str> {
    let announces = world.running().filter(|(_, node)| !node.wanted.borrow().is_empty());
    announces.map(|(name, _)| name.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_node_out_of_service_announces_nothing_and_an_outage_of_the_store_withdraws_nobody() {
    let world = cluster().await;
    assert_eq!(announcing(&world), ["lb-1", "lb-2", "lb-3"]);
    let path = paths::maintenance(&name("lb-2"));
    let flag = Change::Create { path: path.clone(), data: Vec::new(), ephemeral: false };
    world.operate(vec![flag]).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(announcing(&world), ["lb-1", "lb-3"]);
    world.operate(vec![Change::Delete { path, version: None }]).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(announcing(&world), ["lb-1", "lb-2", "lb-3"]);
    world.store.outage(true);
    sleep(AUTONOMY + Duration::from_secs(60)).await;
    assert_eq!(announcing(&world), ["lb-1", "lb-2", "lb-3"]);
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
