use super::*;
use crate::cluster::simulated::SimulatedNode;
use crate::status::ClusterStatus;
use crate::testing::{checked_vip, desired, name};
use coordination::memory::{MemoryStore, Noted, crowd};
use coordination::setup::{init, write_desired};
use health::Target;
use health::scheduler::Probe;
use health::state::Outcome;
use serde_json::Value;

const SESSION: Duration = Duration::from_secs(6);
/// Longer than it takes until one node has the lead and all have its first decision in force.
const SETTLED: Duration = Duration::from_secs(60);

struct Up;

impl Probe for Up {
    async fn probe(&self, _: Arc<Target>) -> Outcome {
        Outcome::Success
    }
}

/// A tree with a VIP.
async fn tree() -> MemoryStore {
    let store = MemoryStore::new().with_session_timeout(SESSION);
    let operator = store.client("operator").connect().await.unwrap();
    let wanted = desired([("mqtt", checked_vip(&[("a", 100)]))]);
    init(&operator, &wanted.cluster).await.unwrap();
    write_desired(&operator, &wanted).await.unwrap();
    operator.close().await;
    store
}

/// A machine that goes by this name.
fn settings(node: &str, boot: &str, source: &str) -> MemberSettings {
    let member = Member {
        instance: format!("{node} at {source} of {boot}"),
        boot: boot.to_owned(),
        source_v4: Some(source.parse().unwrap()),
        source_v6: None,
        admin: "127.0.0.1:9940".parse().unwrap(),
        software: String::new(),
        started: 0,
        extra: Default::default(),
    };
    MemberSettings {
        node: name(node),
        member,
        leader: leader::Timeouts { session_timeout: SESSION, ack_timeout: SESSION, withdraw_after: SESSION },
        autonomy_after: Duration::from_secs(60),
        reread: Duration::from_secs(45),
    }
}

/// Starts lb-1 on this machine.
fn start(store: &MemoryStore, machine: &str, boot: &str, source: &str) -> SimulatedNode {
    SimulatedNode::start(store.client(machine), settings("lb-1", boot, source), Up, 1, None)
}

/// What lb-1 has told last of what it has in force.
fn applied(store: &MemoryStore) -> Value {
    serde_json::from_slice(&store.dump()["/drover/applied/lb-1"].data).unwrap()
}

fn remarks(node: &SimulatedNode) -> String {
    ClusterStatus::of(&node.learnt).remarks().join("\n")
}

#[tokio::test(start_paused = true)]
async fn nodes_that_lost_zookeeper_together_come_back_one_by_one() {
    let store = tree().await;
    let clients: Vec<Noted> = (0..16).map(|i| Noted::new(store.client(&format!("lb-{i}")))).collect();
    let start = |(i, client): (usize, &Noted)| {
        let settings = settings(&format!("lb-{i}"), &format!("boot-{i}"), &format!("10.0.0.{i}"));
        SimulatedNode::start(client.clone(), settings, Up, 1, None)
    };
    let _nodes: Vec<SimulatedNode> = clients.iter().enumerate().map(start).collect();
    tokio::time::sleep(SETTLED).await;

    let ended = Instant::now();
    for client in &clients {
        client.client.expire_now();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(crowd(&clients, ended) <= 8, "{} at once when their sessions had ended", crowd(&clients, ended));

    for client in &clients {
        client.client.partition(true);
    }
    tokio::time::sleep(SETTLED).await;
    let late = Instant::now();
    tokio::time::sleep(LONGEST_RETRY + SESSION).await;
    assert!(crowd(&clients, late) <= 8, "{} at once during an outage", crowd(&clients, late));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_takes_over_anothers_name_tells_so_and_the_other_too_when_it_is_back() {
    let store = tree().await;
    let first = start(&store, "first", "boot-1", "10.0.0.1");
    tokio::time::sleep(SETTLED).await;
    assert_eq!((&applied(&store)["boot"], &applied(&store)["replaced"]), (&"boot-1".into(), &Value::Null));
    assert_eq!(remarks(&first), "");

    store.client("first").partition(true);
    tokio::time::sleep(SESSION * 2).await;
    let second = start(&store, "second", "boot-2", "10.0.0.2");
    tokio::time::sleep(SETTLED).await;
    let record = applied(&store);
    assert_eq!(record["boot"], "boot-2");
    assert_eq!(record["replaced"]["boot"], "boot-1");
    assert_eq!(record["replaced"]["sources"], serde_json::json!(["10.0.0.1"]));
    let all = ["boot-1", "10.0.0.1", "boot-2", "10.0.0.2"];
    let told = remarks(&second);
    assert!(all.iter().all(|word| told.contains(word)), "{told}");

    store.client("first").partition(false);
    tokio::time::sleep(SETTLED).await;
    let told = remarks(&first);
    assert!(told.contains("another node of this name is there"), "{told}");
    assert!(all.iter().all(|word| told.contains(word)), "{told}");
    assert_eq!(applied(&store)["boot"], "boot-2");

    // It is told on over a restart, and by the first one when it has the name again.
    drop(second);
    let second = start(&store, "second", "boot-2", "10.0.0.2");
    tokio::time::sleep(SETTLED).await;
    assert_eq!(applied(&store)["replaced"], record["replaced"]);
    second.stop().await;
    tokio::time::sleep(SETTLED).await;
    assert_eq!(applied(&store)["boot"], "boot-1");
    assert_eq!(applied(&store)["replaced"]["boot"], "boot-2");
    assert!(!remarks(&first).contains("another node of this name is there"), "{}", remarks(&first));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_booted_or_got_another_address_is_the_same() {
    let store = tree().await;
    for (boot, source) in [("boot-1", "10.0.0.1"), ("boot-2", "10.0.0.1"), ("boot-2", "10.0.0.2")] {
        let node = start(&store, "first", boot, source);
        tokio::time::sleep(SETTLED).await;
        assert_eq!((applied(&store)["boot"].as_str(), remarks(&node).as_str()), (Some(boot), ""));
        node.stop().await;
    }
}
