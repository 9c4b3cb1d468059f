//! Reals that register themselves, in a cluster of real parts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use drover_tests::{Cluster, Family, LbNode, Protocol, RealDaemon, Site, Topology, Vip, visit, wait_until};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const AT: SocketAddr = SocketAddr::new(VIP4, 7000);
const PACE: &str =
    "type = \"tcp\"\ninterval_ms = 500\ntimeout_ms = 400\nhealthy_threshold = 2\nunhealthy_threshold = 2";
const RECORD: &str = "/drover/vips/service/reals/real-3";
/// The agent's session timeout, and some.
const EXPIRY: Duration = Duration::from_secs(9);
const LIMIT: Duration = Duration::from_secs(20);

/// A VIP of which an operator has defined two reals. The third host is left for its agent.
fn service(net: &Topology) -> Cluster {
    Cluster::new([Vip::new("service", AT).health(PACE).reals(&net.reals[..2], Family::V4)])
}

fn is_used(site: &Site, real_3: bool) {
    let reals: &[&str] = if real_3 { &["real-1", "real-2", "real-3"] } else { &["real-1", "real-2"] };
    site.wait_agreed(&[("service", reals)]).unwrap();
}

#[test]
fn a_real_comes_and_goes_with_its_agent() {
    let mut site = Site::start(Topology::builder().nodes(2).reals(3), service).unwrap();
    let station = site.net.reals[2].clone();
    // A host that has nothing of Drover's yet, so that VIP and nodes can only be learnt.
    site.reals.remove(2).process().terminate(LIMIT).unwrap();
    LbNode::detach(&station).unwrap();
    is_used(&site, false);

    let zookeeper = site.ensemble.connect_string();
    let register = || RealDaemon::register(&station, &["service"], &zookeeper).unwrap();
    let mut real = register();
    is_used(&site, true);
    let visits =
        visit(&site.net.clients[0].host, Protocol::Tcp, AT, 60, b"hello", Duration::from_secs(5)).unwrap();
    assert_eq!(visits.failed, Vec::<String>::new());
    assert!(visits.servers().contains(&"real-3"), "{:?}", visits.servers());
    let metrics = real.metrics().unwrap();
    assert_eq!(metrics.sum("drover_real_registered", &[("vip", "service")]), Some(1.0));
    assert_eq!(metrics.sum("drover_real_zookeeper_connected", &[]), Some(1.0));

    // Killed and started again while its session lasts, it was never away.
    let before = site.assignment("service").unwrap();
    real.process().kill().unwrap();
    let mut real = register();
    thread::sleep(EXPIRY);
    assert!(site.operator.get(RECORD).unwrap().is_some());
    assert_eq!(site.assignment("service").unwrap(), before);

    // Stopped, it leaves at once.
    real.process().terminate(LIMIT).unwrap();
    assert_eq!(site.operator.get(RECORD).unwrap(), None);
    is_used(&site, false);

    // Killed for good, it leaves when its session has expired.
    let mut real = register();
    is_used(&site, true);
    real.process().kill().unwrap();
    assert!(site.operator.get(RECORD).unwrap().is_some());
    is_used(&site, false);
    assert_eq!(site.operator.get(RECORD).unwrap(), None);
}

#[test]
fn an_operators_definition_of_a_real_wins_over_its_agents() {
    let mut site = Site::start(Topology::builder().nodes(1).reals(3), service).unwrap();
    let station = site.net.reals[2].clone();
    site.reals.remove(2).process().terminate(LIMIT).unwrap();
    let zookeeper = site.ensemble.connect_string();
    let mut real = RealDaemon::register(&station, &["service"], &zookeeper).unwrap();
    is_used(&site, true);
    real.process().terminate(LIMIT).unwrap();

    let theirs = format!("{{\"address\":\"{}\",\"weight\":50}}", station.v4);
    site.operator.put(RECORD, &theirs).unwrap();
    let refused = RealDaemon::register(&station, &["service"], &zookeeper).unwrap_err();
    let refused = format!("{refused:#}");
    assert!(refused.contains("an operator's record is there"), "{refused}");
    assert_eq!(site.operator.get(RECORD).unwrap(), Some(theirs));
    wait_until("the operator's weight to be in force", LIMIT, || {
        let weights = site.assignment("service")?.weights;
        Ok((weights.get("real-3").copied() == Some(50)).then_some(()))
    })
    .unwrap();
}
