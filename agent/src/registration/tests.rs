use super::*;
use coordination::memory::{MemoryClient, MemorySession, MemoryStore, Noted, crowd};
use coordination::setup::{init, write_desired};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use zk_schema::testing::name;
use zk_schema::tree::{Applied, Member, Mode, StateRecord as _};
use zk_schema::{Cluster, Desired, NodeName, Protocol, Vip, VipState};

const VIP: &str = "198.51.100.1";
const PATH: &str = "/drover/vips/mqtt/reals/broker-1";
/// Longer than anything here takes, but for what takes a session's timeout.
const SOON: Duration = Duration::from_secs(1);
const SESSION: Duration = Duration::from_secs(6);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn settings(host: &str) -> Identity {
    Identity {
        vips: [name("mqtt")].into(),
        name: name("broker-1"),
        real: Real::new(ip("10.0.0.1")),
        registrant: Registrant::new(host),
        served: None,
    }
}

fn vip(address: &str) -> Vip {
    Vip::new(ip(address), 1883, Protocol::Tcp)
}

/// A tree, and somebody who looks at it and changes it.
struct Tree {
    store: MemoryStore,
    operator: MemorySession,
}

impl Tree {
    /// A tree without VIPs.
    async fn new() -> Self {
        let store = MemoryStore::new().with_session_timeout(SESSION);
        let operator = store.client("operator").connect().await.unwrap();
        init(&operator, &Cluster::default()).await.unwrap();
        Self { store, operator }
    }

    /// A tree with the VIP.
    async fn with_vip() -> Self {
        let tree = Self::new().await;
        let mqtt = VipState { vip: vip(VIP), reals: BTreeMap::new() };
        let desired = Desired { vips: [(name("mqtt"), mqtt)].into(), ..Desired::default() };
        write_desired(&tree.operator, &desired).await.unwrap();
        tree
    }

    async fn change(&self, change: Change) {
        self.operator.commit(vec![change]).await.unwrap();
    }

    async fn create(&self, path: &str, data: Vec<u8>, ephemeral: bool) {
        self.change(Change::Create { path: path.to_owned(), data, ephemeral }).await;
    }

    async fn add_node(&self, node: &str, source: &str) {
        let member = Member {
            instance: node.to_owned(),
            boot: node.to_owned(),
            source_v4: Some(source.parse().unwrap()),
            source_v6: None,
            admin: "127.0.0.1:9940".parse().unwrap(),
            software: String::new(),
            started: 0,
            extra: Default::default(),
        };
        let path = paths::node(&node.parse::<NodeName>().unwrap());
        self.create(&path, member.bytes().unwrap(), true).await;
    }

    fn znode(&self, path: &str) -> Option<Znode> {
        self.store.dump().remove(path)
    }

    /// The real as it is in the tree.
    fn real(&self) -> Option<Real> {
        self.znode(PATH).map(|znode| from_json(&znode.data).unwrap())
    }

    fn agent(&self, client: &str, settings: Identity) -> Agent {
        let client = self.store.client(client);
        let (in_place, receiver) = watch::channel(BTreeSet::new());
        let registrar = Registrar::new(client.clone(), settings, receiver);
        let (learnt, standing) = (registrar.learnt(), registrar.standing());
        let (stop, stopped) = oneshot::channel::<()>();
        let before = TreeView { vips: BTreeSet::new(), sources: BTreeSet::new() };
        let task = tokio::spawn(registrar.run(before, async { drop(stopped.await) }));
        Agent { client, in_place, learnt, standing, stop, task }
    }

    /// An agent on a host that is ready to take packets for the VIP.
    fn ready_agent(&self, client: &str, host: &str) -> Agent {
        let agent = self.agent(client, settings(host));
        agent.in_place.send_replace([ip(VIP)].into());
        agent
    }
}

struct Agent {
    client: MemoryClient,
    in_place: watch::Sender<BTreeSet<IpAddr>>,
    learnt: watch::Receiver<Option<TreeView>>,
    standing: watch::Receiver<Standing>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Agent {
    fn is_registered(&self) -> bool {
        self.standing.borrow().vips[&name::<VipName>("mqtt")].registered
    }

    fn problems(&self) -> String {
        self.standing.borrow().problems().join("; ")
    }

    /// As after `kill -9`: its session lives on for a while.
    async fn crash(self) {
        self.client.partition(true);
        self.task.abort();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A leader's record of the VIP, in which the real has slots or not.
fn assignment(has_slots: bool) -> Vec<u8> {
    let reals = BTreeMap::from([(name::<RealName>("broker-1"), Real::new(ip("10.0.0.1")))]);
    let desired = VipState { vip: vip(VIP), reals };
    let desired = Desired { vips: [(name("mqtt"), desired)].into(), ..Desired::default() };
    let decided = zk_schema::testing::decided(1, 1, &desired);
    let mut assignment = Assignment::clone(&decided.assignments[&name::<VipName>("mqtt")]);
    if !has_slots {
        assignment.weights.clear();
    }
    assignment.bytes().unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_says_so_and_stays_until_its_real_has_no_slots() {
    let path = paths::assignment(&name("mqtt"));
    for is_led in [true, false] {
        let tree = Tree::with_vip().await;
        tree.create(&path, assignment(true), false).await;
        let agent = tree.ready_agent("agent", "host");
        soon().await;
        assert!(!tree.real().unwrap().extra.contains_key("leaving"));
        drop(agent.stop);
        soon().await;
        let mut real = tree.real().unwrap();
        Registrant::settle(&mut real, true).unwrap();
        assert!(Registrant::is_leaving(&real));
        let now = Instant::now();
        if is_led {
            tree.change(Change::Set { path: path.clone(), data: assignment(false), version: None }).await;
        }
        agent.task.await.unwrap();
        assert_eq!(tree.real(), None);
        assert!(now.elapsed() <= if is_led { SOON } else { LEAVE }, "{:?}", now.elapsed());
    }
}

async fn soon() {
    tokio::time::sleep(SOON).await;
}

#[tokio::test(start_paused = true)]
async fn a_real_is_registered_once_its_host_is_ready_and_leaves_when_it_stops() {
    let tree = Tree::with_vip().await;
    let agent = tree.agent("agent", settings("host"));
    soon().await;
    let learnt = agent.learnt.borrow().clone().unwrap();
    assert_eq!(learnt.vips, [ip(VIP)].into());
    assert_eq!(tree.real(), None, "the host is not ready");
    assert!(agent.problems().contains("not ready yet"), "{}", agent.problems());

    agent.in_place.send_replace(learnt.vips);
    soon().await;
    let mut real = tree.real().unwrap();
    assert!(tree.znode(PATH).unwrap().owner.is_some(), "ephemeral");
    assert_eq!(Registrant::of(&real), Some(Registrant::new("host")));
    Registrant::strip(&mut real);
    assert_eq!(real, Real::new(ip("10.0.0.1")));
    assert!(agent.is_registered());
    assert_eq!(agent.problems(), "");

    drop(agent.stop);
    agent.task.await.unwrap();
    assert_eq!(tree.real(), None, "gone before the agent has ended");
    let standing = agent.standing.borrow().clone();
    assert!(!standing.connected && !standing.vips.values().any(|place| place.registered));
}

#[tokio::test(start_paused = true)]
async fn a_vip_that_comes_later_gets_its_real_then_even_if_only_its_own_znode_was_made() {
    let tree = Tree::new().await;
    let agent = tree.ready_agent("agent", "host");
    soon().await;
    assert!(agent.problems().contains("/drover/vips/mqtt: no such znode"), "{}", agent.problems());
    tree.create("/drover/vips/mqtt", to_json(&vip(VIP)).unwrap(), false).await;
    soon().await;
    assert!(tree.real().is_some());
    assert_eq!(tree.znode("/drover/vips/mqtt/reals").unwrap().owner, None);
    assert_eq!(agent.problems(), "");
}

#[tokio::test(start_paused = true)]
async fn a_vip_that_is_made_anew_gets_its_real_again() {
    let tree = Tree::with_vip().await;
    let agent = tree.ready_agent("agent", "host");
    soon().await;
    let gone = [PATH, "/drover/vips/mqtt/reals", "/drover/vips/mqtt"];
    let gone = gone.map(|path| Change::Delete { path: path.to_owned(), version: None });
    tree.operator.commit(gone.to_vec()).await.unwrap();
    soon().await;
    assert!(!agent.is_registered() && !agent.problems().is_empty());
    tree.create("/drover/vips/mqtt", to_json(&vip(VIP)).unwrap(), false).await;
    soon().await;
    assert!(tree.real().is_some() && agent.is_registered());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_was_killed_replaces_its_own_record_without_a_gap() {
    let tree = Tree::with_vip().await;
    let first = tree.ready_agent("first", "host");
    soon().await;
    let before = tree.znode(PATH).unwrap();
    first.crash().await;
    assert_eq!(tree.znode(PATH), Some(before.clone()), "its session is still there");

    let writes = tree.store.writes();
    let second = tree.ready_agent("second", "host");
    tokio::time::sleep(SESSION / 10).await;
    let after = tree.znode(PATH).unwrap();
    assert_ne!(after.owner, before.owner);
    assert_eq!(tree.store.writes(), writes + 1, "one transaction, so that nobody saw it missing");
    assert!(second.is_registered());
    tokio::time::sleep(SESSION * 2).await;
    assert_eq!(tree.znode(PATH), Some(after), "it outlives the first session");
}

#[tokio::test(start_paused = true)]
async fn an_operators_record_wins_until_it_is_deleted() {
    let tree = Tree::with_vip().await;
    let mut theirs = Real::new(ip("10.0.0.9"));
    // Even one that was copied from what the agent wrote.
    Registrant::new("host").sign(&mut theirs);
    let theirs = to_json(&theirs).unwrap();
    tree.create(PATH, theirs.clone(), false).await;
    let agent = tree.ready_agent("agent", "host");
    soon().await;
    assert_eq!(tree.znode(PATH).unwrap().data, theirs);
    assert!(!agent.is_registered());
    assert!(agent.problems().contains("an operator's record is there"), "{}", agent.problems());
    tree.change(Change::Delete { path: PATH.to_owned(), version: None }).await;
    soon().await;
    assert!(agent.is_registered());
    assert_eq!(agent.problems(), "");
}

#[tokio::test(start_paused = true)]
async fn another_hosts_record_is_waited_for() {
    let tree = Tree::with_vip().await;
    let other = tree.ready_agent("other", "other-host");
    soon().await;
    let agent = tree.ready_agent("agent", "host");
    soon().await;
    assert!(other.is_registered() && !agent.is_registered());
    assert!(agent.problems().contains("registered by other-host"), "{}", agent.problems());
    drop(other.stop);
    soon().await;
    assert!(agent.is_registered());
    assert_eq!(tree.real().as_ref().and_then(Registrant::of), Some(Registrant::new("host")));
}

#[tokio::test(start_paused = true)]
async fn after_its_session_has_expired_a_real_is_registered_again() {
    let tree = Tree::with_vip().await;
    let agent = tree.ready_agent("agent", "host");
    soon().await;
    let first = tree.znode(PATH).unwrap().owner;
    agent.client.partition(true);
    tokio::time::sleep(SESSION * 2).await;
    assert_eq!(tree.real(), None);
    assert!(!agent.is_registered() && agent.problems().contains("no ZooKeeper"), "{}", agent.problems());
    agent.client.partition(false);
    tokio::time::sleep(LONGEST_RETRY + SOON).await;
    let second = tree.znode(PATH).unwrap().owner;
    assert!(second.is_some() && second != first);
    assert!(agent.is_registered());
}

#[tokio::test(start_paused = true)]
async fn without_zookeeper_at_the_start_a_real_registers_when_it_is_there() {
    let tree = Tree::with_vip().await;
    tree.store.client("agent").partition(true);
    let agent = tree.ready_agent("agent", "host");
    tokio::time::sleep(SESSION * 3).await;
    assert_eq!(*agent.learnt.borrow(), None);
    assert!(agent.problems().contains("no ZooKeeper"));
    agent.client.partition(false);
    tokio::time::sleep(LONGEST_RETRY + SOON).await;
    assert!(agent.is_registered());
}

#[tokio::test(start_paused = true)]
async fn a_vip_that_moves_keeps_its_real_while_the_host_follows() {
    let tree = Tree::with_vip().await;
    let agent = tree.ready_agent("agent", "host");
    soon().await;
    let before = tree.znode(PATH);
    let data = to_json(&vip("198.51.100.2")).unwrap();
    tree.change(Change::Set { path: "/drover/vips/mqtt".to_owned(), data, version: None }).await;
    soon().await;
    assert_eq!(agent.learnt.borrow().as_ref().unwrap().vips, [ip(VIP), ip("198.51.100.2")].into());
    assert_eq!(tree.znode(PATH), before);
    agent.in_place.send_replace([ip(VIP), ip("198.51.100.2")].into());
    soon().await;
    assert_eq!(tree.znode(PATH), before);
    assert_eq!(agent.problems(), "");
}

#[tokio::test(start_paused = true)]
async fn a_vip_whose_record_breaks_keeps_its_real() {
    let tree = Tree::with_vip().await;
    let agent = tree.ready_agent("agent", "host");
    soon().await;
    let before = tree.znode(PATH);
    let broken = Change::Set { path: "/drover/vips/mqtt".to_owned(), data: b"{".to_vec(), version: None };
    tree.change(broken).await;
    soon().await;
    assert_eq!(tree.znode(PATH), before);
    assert!(agent.problems().contains("fix the VIP's record"), "{}", agent.problems());
    assert_eq!(agent.learnt.borrow().as_ref().unwrap().vips, [ip(VIP)].into());
}

#[tokio::test(start_paused = true)]
async fn nodes_are_learnt_as_they_join_and_stay_allowed_for_minutes_when_they_leave() {
    let tree = Tree::with_vip().await;
    tree.add_node("lb-1", "10.0.1.1").await;
    let agent = tree.ready_agent("agent", "host");
    soon().await;
    let sources = || agent.learnt.borrow().as_ref().unwrap().sources.clone();
    assert_eq!(sources(), [ip("10.0.1.1")].into());
    tree.add_node("lb-2", "10.0.1.2").await;
    soon().await;
    assert_eq!(sources(), [ip("10.0.1.1"), ip("10.0.1.2")].into());
    tree.change(Change::Delete { path: "/drover/nodes/lb-1".to_owned(), version: None }).await;
    tokio::time::sleep(learn::SOURCE_GRACE / 2).await;
    assert_eq!(sources(), [ip("10.0.1.1"), ip("10.0.1.2")].into());
    tokio::time::sleep(learn::SOURCE_GRACE).await;
    assert_eq!(sources(), [ip("10.0.1.2")].into());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_while_a_killed_node_still_forwards_takes_its_packets_until_it_is_forgotten() {
    let tree = Tree::with_vip().await;
    tree.add_node("lb-1", "10.0.1.1").await;
    let path = paths::applied(&"lb-2".parse().unwrap());
    let mut record = Applied {
        term: 1,
        epoch: 1,
        digest: String::new(),
        mode: Mode::Live,
        problem: None,
        announced: Some([ip(VIP)].into()),
        sources: [ip("10.0.1.2")].into(),
        boot: None,
        replaced: None,
        extra: Default::default(),
    };
    tree.create(&path, record.bytes().unwrap(), false).await;
    let agent = tree.ready_agent("agent", "host");
    soon().await;
    let sources = || agent.learnt.borrow().as_ref().unwrap().sources.clone();
    assert_eq!(sources(), [ip("10.0.1.1"), ip("10.0.1.2")].into());
    tokio::time::sleep(learn::SOURCE_GRACE * 6).await;
    assert_eq!(
        sources(),
        [ip("10.0.1.1"), ip("10.0.1.2")].into(),
        "it may forward for as long as it announces"
    );

    record.announced = Some(BTreeSet::new());
    tree.change(Change::Set { path, data: record.bytes().unwrap(), version: None }).await;
    tokio::time::sleep(learn::SOURCE_GRACE * 2).await;
    assert_eq!(sources(), [ip("10.0.1.1")].into(), "who has withdrawn sends nothing");
}

#[tokio::test(start_paused = true)]
async fn agents_that_lost_zookeeper_together_come_back_one_by_one() {
    let tree = Tree::with_vip().await;
    let clients: Vec<Noted> = (0..16).map(|i| Noted::new(tree.store.client(&format!("agent-{i}")))).collect();
    let mut kept = Vec::new();
    for (i, client) in clients.iter().enumerate() {
        let settings = Identity { name: name(&format!("broker-{i}")), ..settings(&format!("host-{i}")) };
        let (in_place, receiver) = watch::channel([ip(VIP)].into());
        let registrar = Registrar::new(client.clone(), settings, receiver);
        let before = TreeView { vips: BTreeSet::new(), sources: BTreeSet::new() };
        kept.push((in_place, tokio::spawn(registrar.run(before, std::future::pending()))));
    }
    soon().await;
    let ended = Instant::now();
    for client in &clients {
        client.client.expire_now();
    }
    tokio::time::sleep(SOON * 2).await;
    assert!(crowd(&clients, ended) <= 8, "{} at once when their sessions had ended", crowd(&clients, ended));

    for client in &clients {
        client.client.partition(true);
    }
    tokio::time::sleep(SESSION * 10).await;
    let late = Instant::now();
    tokio::time::sleep(LONGEST_RETRY + SESSION).await;
    assert!(crowd(&clients, late) <= 8, "{} at once during an outage", crowd(&clients, late));
}

#[tokio::test(start_paused = true)]
async fn a_record_returns_with_its_parent_though_nothing_told_that_they_were_deleted() {
    let tree = Tree::with_vip().await;
    let agent = tree.ready_agent("agent", "host");
    soon().await;
    agent.client.lose_notifications(true);
    tokio::time::sleep(REREAD * 2).await;
    let gone = [PATH, "/drover/vips/mqtt/reals"];
    let gone = gone.map(|path| Change::Delete { path: path.to_owned(), version: None });
    tree.operator.commit(gone.to_vec()).await.unwrap();
    tokio::time::sleep(REREAD * 2).await;
    assert!(tree.real().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_vip_that_may_not_be_read_keeps_its_real() {
    let tree = Tree::with_vip().await;
    let agent = tree.ready_agent("agent", "host");
    soon().await;
    tree.store.forbid("/drover/vips/mqtt", true);
    agent.client.expire_now();
    tokio::time::sleep(SESSION).await;
    assert!(tree.real().is_some() && agent.is_registered(), "{}", agent.problems());
    assert!(agent.problems().contains("for lack of the right"), "{}", agent.problems());
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_vip_was_edited_away_from_it_says_no_goodbye() {
    let tree = Tree::with_vip().await;
    let settings = Identity { served: Some([ip(VIP)].into()), ..settings("host") };
    let agent = tree.agent("agent", settings);
    agent.in_place.send_replace([ip(VIP)].into());
    soon().await;
    let (_, mut gone) = tree.operator.watch(PATH).await.map(|(there, gone)| (there, Box::pin(gone))).unwrap();
    let data = to_json(&vip("198.51.100.11")).unwrap();
    tree.change(Change::Set { path: "/drover/vips/mqtt".to_owned(), data, version: None }).await;
    gone.as_mut().await;
    // It is deleted as it was: what holds records that vanish together holds these too.
    assert_eq!(tree.real(), None);
    assert!(agent.problems().contains("--vip"), "{}", agent.problems());
}
