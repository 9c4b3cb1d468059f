//! Closed trees, on real servers: who may do what, and a cluster that works with it.

use std::fs;
use std::time::Duration;

use crate::LIMIT;
use coordination::zookeeper::{Acl, Options, ZooKeeper, ZooKeeperSession};
use coordination::{Change, Error, Session as _, Store as _, setup};
use drover_tests::access::{Member, closed};
use drover_tests::{
    Answer, Ensemble, Lab, LbNode, Lbctl, PUBLISH, Protocol, RealDaemon, Settings, Site, visit, wait_until,
};
use zk_schema::tree::{Access, Term, paths};
use zk_schema::{Cluster, Desired, Protocol as Transport, Real, Vip, VipState};

fn create(path: &str, data: &str) -> Change {
    Change::Create { path: path.to_owned(), data: data.into(), ephemeral: false }
}

fn ephemeral(path: &str) -> Change {
    Change::Create { path: path.to_owned(), data: b"{}".to_vec(), ephemeral: true }
}

fn set(path: &str) -> Change {
    Change::Set { path: path.to_owned(), data: b"{}".to_vec(), version: None }
}

fn delete(path: &str) -> Change {
    Change::Delete { path: path.to_owned(), version: None }
}

/// A VIP `mqtt` with the real `a`.
fn desired() -> Desired {
    let real = Real::new([10, 0, 0, 1].into());
    let state = VipState {
        vip: Vip::new([198, 51, 100, 1].into(), 1883, Transport::Tcp),
        reals: [("a".parse().unwrap(), real)].into(),
    };
    Desired { cluster: Cluster::default(), vips: [("mqtt".parse().unwrap(), state)].into() }
}

/// An ensemble of one server, in which `test` may do what it likes.
fn with_servers(test: impl AsyncFnOnce(Options) + Send) {
    let lab = Lab::new().unwrap();
    let host = lab.host("zk").unwrap();
    let ensemble = Ensemble::on_one_host(&host, 1).unwrap();
    let options = Options::new(ensemble.connect_string());
    host.block_on(async || test(options).await).unwrap();
}

fn of(member: Member, options: &Options) -> Options {
    Options { digest: Some(member.login()), ..options.clone() }
}

async fn connect(options: Options) -> ZooKeeperSession {
    ZooKeeper::new(options).unwrap().connect().await.unwrap()
}

/// Each change is refused, for want of the right to it or to its parent.
async fn refused(session: &ZooKeeperSession, changes: impl IntoIterator<Item = Change>) {
    for change in changes {
        let path = change.path().to_owned();
        assert_eq!(session.commit(vec![change]).await, Err(Error::NoAuth(path)));
    }
}

async fn done(session: &ZooKeeperSession, changes: impl IntoIterator<Item = Change>) {
    for change in changes {
        let shown = format!("{change:?}");
        assert_eq!(session.commit(vec![change]).await, Ok(()), "{shown}");
    }
}

const REAL: &str = "/drover/vips/mqtt/reals/a";
const OWN: &str = "/drover/vips/mqtt/reals/own";
const ASSIGNMENT: &str = "/drover/assignments/mqtt";

#[test]
fn in_a_closed_tree_each_group_writes_its_own_part_and_strangers_cannot_even_read() {
    with_servers(async |options| {
        let operator = connect(of(Member::Operator, &options)).await;
        assert_eq!(operator.init_secured(&Cluster::default(), &closed()).await.unwrap(), None);
        setup::write_desired(&operator, &desired()).await.unwrap();
        done(&operator, [create(paths::FREEZE, "{}"), set(REAL)]).await;

        let groups = Options { acl: Acl::Groups, ..options.clone() };
        let node = connect(of(Member::Node, &groups)).await;
        done(&node, [create(paths::LEADER, ""), create(ASSIGNMENT, ""), set(paths::ASSIGNMENTS)]).await;
        done(&node, [ephemeral("/drover/nodes/lb-1"), create("/drover/applied/lb-1", "")]).await;
        let candidate = node.create_sequential("/drover/election/lb-1-", Vec::new()).await.unwrap();
        refused(&node, [set("/drover/vips/mqtt"), set(REAL), delete(REAL), create(OWN, "")]).await;
        refused(&node, [create("/drover/vips/x", ""), delete(paths::FREEZE), set(paths::CLUSTER)]).await;
        refused(&node, [set(paths::ACCESS), delete(paths::ACCESS), delete(paths::OPS)]).await;

        refused(&operator, [set(paths::LEADER), set(ASSIGNMENT), set(paths::ASSIGNMENTS)]).await;
        refused(&operator, [delete(&candidate), create("/drover/nodes/lb-2", ""), set("/drover/nodes/lb-1")])
            .await;

        let agent = connect(of(Member::Agent, &groups)).await;
        done(&agent, [ephemeral(OWN), set(OWN)]).await;
        refused(&agent, [set(REAL), set("/drover/vips/mqtt"), delete(paths::FREEZE), set(paths::FREEZE)])
            .await;
        refused(&agent, [create("/drover/ops/drain/mqtt.a", ""), set(ASSIGNMENT), set(paths::LEADER)]).await;
        refused(&agent, [ephemeral("/drover/nodes/lb-3"), set(paths::ACCESS), create("/drover/x", "")]).await;
        // Another agent of the same group can take its place, and an operator can remove it.
        let other = connect(of(Member::Agent, &groups)).await;
        done(&other, [set(OWN), delete(OWN), ephemeral(OWN)]).await;
        done(&operator, [delete(OWN)]).await;
        // A second node can write what the first one wrote: leaders follow one another.
        let second = connect(of(Member::Node, &groups)).await;
        done(&second, [set(paths::LEADER), set(ASSIGNMENT), delete(&candidate)]).await;

        assert_eq!(operator.audit(&closed()).await.unwrap(), Vec::<String>::new());
        for stranger in [options.clone(), of(Member::Stranger, &options)] {
            let error = ZooKeeper::new(stranger).unwrap().connect().await.unwrap_err();
            assert_eq!(error, Error::NoAuth(paths::ACCESS.to_owned()));
            assert!(error.to_string().contains("credentials_file"), "{error}");
        }
    });
}

#[test]
fn an_open_tree_is_closed_whole_and_what_is_left_open_later_is_found() {
    with_servers(async |options| {
        let anybody = connect(options.clone()).await;
        setup::init(&anybody, &Cluster::default()).await.unwrap();
        setup::write_desired(&anybody, &desired()).await.unwrap();
        done(&anybody, [ephemeral("/drover/nodes/lb-1"), create(paths::LEADER, "")]).await;

        let operator = connect(of(Member::Operator, &options)).await;
        let closed_now = operator.secure(&closed()).await.unwrap();
        for path in [paths::CLUSTER, paths::LEADER, REAL, "/drover/nodes/lb-1", paths::CONFIRM] {
            assert!(closed_now.iter().any(|closed| closed == path), "{path} in {closed_now:?}");
        }
        refused(&anybody, [set(REAL), set(paths::LEADER), delete(REAL), create("/drover/vips/x", "")]).await;
        let unread = anybody.read(&[paths::CLUSTER.to_owned()]).await;
        assert_eq!(unread, Err(Error::NoAuth(paths::CLUSTER.to_owned())));
        assert_eq!(operator.secure(&closed()).await.unwrap(), Vec::<String>::new());

        // As zkCli.sh creates it: open to all.
        let node = connect(of(Member::Node, &options)).await;
        let mut bare = of(Member::Operator, &options);
        bare.servers += "/drover";
        let bare = connect(bare).await;
        done(&bare, [create("/vips/open", "{}")]).await;
        done(&node, [set("/drover/vips/open")]).await;
        assert_eq!(operator.audit(&closed()).await.unwrap(), ["/drover/vips/open"]);
        assert_eq!(operator.secure(&closed()).await.unwrap(), ["/drover/vips/open"]);
        refused(&node, [set("/drover/vips/open")]).await;

        // Who reads may be everybody, if an operator says so.
        let readable = Access { world_reads: true, ..closed() };
        operator.secure(&readable).await.unwrap();
        assert!(anybody.read(&[REAL.to_owned()]).await.unwrap()[0].is_some());
        refused(&anybody, [set(REAL)]).await;
    });
}

#[test]
fn lbctl_tells_what_it_closed_and_closes_what_came_later_when_it_is_run_again() {
    let lab = Lab::new().unwrap();
    let host = lab.host("zk").unwrap();
    let ensemble = Ensemble::on_one_host(&host, 1).unwrap();
    let servers = ensemble.connect_string();
    let file = |member: Member| member.credentials(host.dir()).unwrap().display().to_string();
    let config = host.dir().join("lbctl.toml");
    let text =
        format!("[zookeeper]\nservers = \"{servers}\"\ncredentials_file = {:?}\n", file(Member::Operator));
    fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    let (nodes, agents) = (file(Member::Node), file(Member::Agent));
    let lbctl = Lbctl::new(&host, &servers);
    let close = ["--config", &config, "init", "--secure", "--nodes", &nodes, "--agents", &agents];
    let done = |words: &[&str]| {
        let Answer { code, stdout, stderr } = lbctl.run(words).unwrap();
        assert_eq!(code, 0, "{words:?}: {stdout}{stderr}");
        stdout
    };

    done(&["init"]);
    done(&["vip", "add", "mqtt", "--address", "198.51.100.1", "--port", "1883", "--protocol", "tcp"]);
    let told = done(&close);
    for part in ["Closed the cluster", "  /drover\n", "  /drover/vips/mqtt\n", "run this once more"] {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
    let told = done(&close);
    assert!(told.contains("is closed: every znode has the rights"), "{told}");
    // As zkCli.sh creates it: open to all.
    let bare = of(Member::Operator, &Options::new(format!("{servers}/drover")));
    host.block_on(async || connect(bare).await.commit(vec![create("/vips/open", "{}")]).await)
        .unwrap()
        .unwrap();
    let told = done(&close);
    assert!(told.contains("other rights:\n  /drover/vips/open\n"), "{told}");
}

#[test]
fn who_is_no_operator_cannot_close_a_tree_and_locks_nobody_out() {
    with_servers(async |options| {
        let anybody = connect(options.clone()).await;
        setup::init(&anybody, &Cluster::default()).await.unwrap();
        let mut wrong = of(Member::Operator, &options);
        wrong.digest.as_mut().unwrap().password = "wrong".into();
        for (options, expected) in [
            (options.clone(), "lock itself out"),
            (of(Member::Node, &options), "lock itself out"),
            (wrong, "/drover/access: this session has no right"),
        ] {
            let error = connect(options).await.secure(&closed()).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            done(&anybody, [set(paths::CLUSTER)]).await;
            assert_eq!(anybody.read(&[paths::ACCESS.to_owned()]).await.unwrap(), [None]);
        }
        let none = Access { nodes: Default::default(), ..closed() };
        let error =
            connect(of(Member::Operator, &options)).await.secure(&none).await.unwrap_err().to_string();
        assert!(error.contains("at least one id of each"), "{error}");

        // A member that insists on a closed tree does not work in an open one.
        let insisting = Options { acl: Acl::Groups, ..of(Member::Node, &options) };
        let error = ZooKeeper::new(insisting).unwrap().connect().await.unwrap_err().to_string();
        assert!(error.contains("the tree is open"), "{error}");
    });
}

#[test]
fn a_cluster_with_a_closed_tree_serves_elects_takes_edits_and_has_reals_that_register() {
    let settings = Settings { closed: true, ..Settings::default() };
    let mut site = Site::of_two_services(3, settings).unwrap();
    site.wait_agreed(&[("publish", &["real-1", "real-2", "real-3"])]).unwrap();
    site.wait_settled().unwrap();
    let client = site.net.clients[0].host.clone();
    let served = |what: &str| {
        let visits = visit(&client, Protocol::Udp, PUBLISH, 60, b"hello", Duration::from_secs(5)).unwrap();
        assert_eq!(visits.failed, Vec::<String>::new(), "{what}");
    };
    served("at first");

    site.set_weight("publish", "real-1", 50).unwrap();
    site.wait_for_weights("publish", &[("real-1", 50), ("real-2", 100), ("real-3", 100)]).unwrap();

    let (leader, term) = site.leader().unwrap();
    site.kill(leader).unwrap();
    wait_until("another leader", LIMIT, || {
        let record = site.operator.record::<Term>(paths::LEADER)?;
        Ok(record.filter(|record| record.term > term).map(drop))
    })
    .unwrap();
    site.leader().unwrap();
    served("with another leader");
    // Its data plane forwards on meanwhile; an agent that starts now would not know it for a node.
    site.launch(leader).unwrap();
    site.wait_for_carriers(&[0, 1, 2]).unwrap();
    site.wait_agreed(&[("publish", &["real-1", "real-2", "real-3"])]).unwrap();

    // real-1 leaves the records of the operator, and comes back by itself.
    let station = site.net.reals[0].clone();
    site.reals.remove(0).process().terminate(LIMIT).unwrap();
    LbNode::detach(&station).unwrap();
    site.operator.delete("/drover/vips/publish/reals/real-1").unwrap();
    site.wait_for_weights("publish", &[("real-2", 100), ("real-3", 100)]).unwrap();
    let zookeeper = site.ensemble.connect_string();
    let mut agent = RealDaemon::register_in_closed_tree(&station, &["publish"], &zookeeper).unwrap();
    site.wait_for_weights("publish", &[("real-1", 100), ("real-2", 100), ("real-3", 100)]).unwrap();
    served("with a real that registered itself");
    agent.process().terminate(LIMIT).unwrap();
    site.wait_for_weights("publish", &[("real-2", 100), ("real-3", 100)]).unwrap();
}
