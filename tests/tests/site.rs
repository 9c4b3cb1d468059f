//! A cluster on real parts: nodes, ZooKeeper, BIRD, reals.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use drover_tests::{Cluster, Family, Site, Topology, Vip};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const PACE: &str =
    "type = \"tcp\"\ninterval_ms = 500\ntimeout_ms = 400\nhealthy_threshold = 2\nunhealthy_threshold = 2";

fn two_vips(net: &Topology) -> Cluster {
    let publish =
        Vip::new("publish", SocketAddr::new(VIP4, 7000)).health(PACE).reals(&net.reals[..2], Family::V4);
    let subscribe =
        Vip::new("subscribe", SocketAddr::new(VIP4, 7001)).health(PACE).reals(&net.reals[1..], Family::V4);
    Cluster::new([publish, subscribe])
}

#[test]
fn three_nodes_share_what_they_know() {
    let site = Site::start(Topology::builder().nodes(3).reals(3), two_vips).unwrap();
    site.wait_agreed(&[("publish", &["real-1", "real-2"]), ("subscribe", &["real-2", "real-3"])]).unwrap();
    let (leader, term) = site.leader().unwrap();
    println!("leader {leader}, term {term}; head {:?}", site.head().unwrap());
}
