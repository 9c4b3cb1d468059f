//! `docs/metrics.md` says what live nodes and agents serve, no less and no more.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use drover_tests::documented::{self, Metrics};
use drover_tests::{Cluster, Family, Protocol, RealDaemon, Site, Topology, Vip, visit, wait_until};
use zk_schema::tree::{Event, Load, StateRecord as _, paths};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const AT: SocketAddr = SocketAddr::new(VIP4, 7000);
const PACE: &str =
    "type = \"tcp\"\ninterval_ms = 500\ntimeout_ms = 400\nhealthy_threshold = 2\nunhealthy_threshold = 2";
const LIMIT: Duration = Duration::from_secs(20);

fn assert_documented(page: &str, documented: &Metrics) {
    let served = documented::served(page);
    let names: Vec<&String> = served.keys().collect();
    assert_eq!(names, documented.keys().collect::<Vec<_>>(), "left: served; right: in docs/metrics.md");
    for (name, (kind, labels)) in &served {
        assert_eq!(*kind, documented[name].kind, "{name}");
        if let Some(labels) = labels {
            assert_eq!(*labels, documented[name].labels, "{name}");
        }
    }
}

#[test]
fn the_metrics_of_a_live_node_and_of_a_real_are_those_that_are_documented() {
    let service = |net: &Topology| {
        Cluster::new([Vip::new("service", AT).health(PACE).reals(&net.reals[..1], Family::V4)])
    };
    let mut site = Site::start(Topology::builder().nodes(2).reals(2), service).unwrap();
    let station = site.net.reals[1].clone();
    site.reals.remove(1).process().terminate(LIMIT).unwrap();
    let real = RealDaemon::register(&station, &["service"], &site.ensemble.connect_string()).unwrap();
    site.wait_agreed(&[("service", &["real-1", "real-2"])]).unwrap();
    let client = &site.net.clients[0].host;
    let visits = visit(client, Protocol::Tcp, AT, 20, b"hello", Duration::from_secs(5)).unwrap();
    assert_eq!(visits.failed, Vec::<String>::new());

    let nodes: Vec<_> = site.nodes.iter().flatten().map(|node| node.metrics().unwrap()).collect();
    assert_documented(nodes[0].text(), &documented::of_nodes());
    assert_documented(real.metrics().unwrap().text(), &documented::of_agents());
    let sum = |name: &str, labels: &[(&str, &str)]| -> f64 {
        nodes.iter().map(|node| node.sum(name, labels).unwrap()).sum()
    };
    assert!(sum("drover_real_new_connections_total", &[("vip", "service")]) >= 20.0);
    assert_eq!(sum("drover_leader", &[]), 1.0);
    assert_eq!(sum("drover_mode", &[("mode", "live")]), 2.0);
    assert_eq!(sum("drover_epochs_behind", &[]), 0.0);
    assert!(sum("drover_zookeeper_operation_duration_seconds_count", &[("operation", "read")]) > 0.0);
    let digest = |node: usize| nodes[node].sum("drover_vip_table_digest", &[("vip", "service")]).unwrap();
    assert_eq!(digest(0), digest(1));

    // What was decided is kept, each with its head, and what clients hold is told.
    let head = site.head().unwrap();
    let path = paths::event(head.epoch);
    let event = wait_until("the newest head's event", LIMIT, || site.operator.get(&path)).unwrap();
    let event = Event::parse(event.as_bytes()).unwrap();
    assert_eq!((event.term, event.epoch), (head.term, head.epoch));
    assert!(!event.decisions.is_empty());
    let first = Event::parse(site.operator.get(&paths::event(1)).unwrap().unwrap().as_bytes()).unwrap();
    assert_eq!(first.decisions[0].kind, "leader", "{first:?}");
    let load = "/drover/load/service/real-2";
    let load = wait_until("the real's load", LIMIT, || site.operator.get(load)).unwrap();
    Load::parse(load.as_bytes()).unwrap();
}
