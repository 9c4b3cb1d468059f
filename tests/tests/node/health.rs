//! Reals that fail and recover, as clients see it: which servers new connections meet.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use drover_tests::{
    Broker, Cluster, Deployment, Encapsulation, Family, LbNode, Protocol, Service, Topology, Vip, visit,
    wait_until,
};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const HTTP_PORT: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(20);
/// So many new flows that none of three reals is missed by chance.
const MANY: usize = 40;
const PACE: &str = "interval_ms = 200\ntimeout_ms = 150\nhealthy_threshold = 2\nunhealthy_threshold = 2";

/// What distinguishes the VIPs: their health checks. All lead to the same echo services.
const CHECKS: [(&str, &str, Encapsulation); 7] = [
    ("tcp-tunnel", "type = \"tcp\"", Encapsulation::Gue),
    ("tcp-tunnel-ipip", "type = \"tcp\"", Encapsulation::Ipip),
    ("tcp-direct", "type = \"tcp\"\npath = \"direct\"", Encapsulation::Gue),
    ("http-tunnel", "type = \"http\"\nport = 8080\nbody_contains = \"ok\"", Encapsulation::Gue),
    ("http-direct", "type = \"http\"\nport = 8080\npath = \"direct\"", Encapsulation::Gue),
    ("mqtt-tunnel", "type = \"mqtt\"\nport = 1883", Encapsulation::Ipip),
    ("mqtt-direct", "type = \"mqtt\"\nversion = \"5\"\nport = 1883\npath = \"direct\"", Encapsulation::Gue),
];

fn http() -> [Service; 1] {
    [Service::Http(HTTP_PORT)]
}

struct Stage {
    brokers: Vec<Broker>,
    all: Deployment,
}

impl Stage {
    fn set() -> Stage {
        let net = Topology::builder().reals(3).build().unwrap();
        let brokers = net.reals.iter().map(|real| Broker::start(&real.host).unwrap()).collect();
        let vips = CHECKS.iter().zip(7000..).map(|((name, check, encapsulation), port)| {
            Vip::new(*name, SocketAddr::new(VIP4, port))
                .encapsulation(*encapsulation)
                .health(&format!("{check}\n{PACE}"))
                .reals(&net.reals, Family::V4)
        });
        let cluster = Cluster::new(vips.collect::<Vec<_>>());
        Stage { brokers, all: Deployment::with_services(net, cluster, &http()).unwrap() }
    }

    /// Waits until new connections to each VIP meet these servers and no others: all three except `absent` for the
    /// VIPs whose names `concerned` picks, all three for the others.
    fn expect(&self, absent: &[&str], concerned: impl Fn(&str) -> bool) {
        for vip in &self.all.cluster.vips {
            let gone = |real: &&&str| concerned(&vip.name) && absent.contains(*real);
            let expected: Vec<&str> =
                ["real-1", "real-2", "real-3"].iter().filter(|real| !gone(real)).copied().collect();
            let what = format!("{} to lead to {expected:?}", vip.name);
            let outcome = wait_until(what, LIMIT, || {
                // Long enough for a lost SYN to be sent again, but none should be lost.
                let limit = Duration::from_millis(900);
                let visits = visit(&self.all.client().host, Protocol::Tcp, vip.at, MANY, b"who?", limit)?;
                Ok((visits.failed.is_empty() && visits.servers() == expected).then_some(()))
            });
            outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", self.all.node.get("/status").unwrap().1));
        }
    }
}

#[test]
fn each_kind_of_check_takes_a_failed_real_out_and_lets_it_return() {
    let mut stage = Stage::set();
    let everybody = |stage: &Stage| stage.expect(&[], |_| true);
    everybody(&stage);

    // The broker alone dies.
    stage.brokers[1].process().kill().unwrap();
    stage.expect(&["real-2"], |vip| vip.starts_with("mqtt"));
    stage.brokers[1] = Broker::start(&stage.all.net.reals[1].host).unwrap();
    everybody(&stage);

    // The web server answers, but not well.
    stage.all.servers[0].set_http_status(503);
    stage.expect(&["real-1"], |vip| vip.starts_with("http"));
    stage.all.servers[0].set_http_status(200);
    everybody(&stage);

    // Decapsulation is gone, while the servers answer at the host's own address.
    let third = &stage.all.net.reals[2];
    stage.all.reals[2].process().kill().unwrap();
    LbNode::detach(third).unwrap();
    let tunnelled = |vip: &str| vip.contains("tunnel");
    for vip in &stage.all.cluster.vips {
        let metric = |stage: &Stage| {
            let labels = [("vip", vip.name.as_str()), ("real", "real-3")];
            stage.all.node.metrics().unwrap().sum("drover_real_healthy", &labels)
        };
        let expected = if tunnelled(&vip.name) { Some(0.0) } else { Some(1.0) };
        wait_until(format!("the verdict of {} on real-3", vip.name), LIMIT, || {
            Ok((metric(&stage) == expected).then_some(()))
        })
        .unwrap();
    }
    // Clients of the VIPs with tunnel checks notice nothing any more; those of the others do.
    for vip in &stage.all.cluster.vips {
        // Those that lead nowhere take as long as this allows; all others milliseconds.
        let limit = if tunnelled(&vip.name) { LIMIT } else { Duration::from_secs(3) };
        let visits = visit(&stage.all.client().host, Protocol::Tcp, vip.at, MANY, b"who?", limit).unwrap();
        assert_eq!(visits.servers(), ["real-1", "real-2"], "{}", vip.name);
        assert_eq!(visits.failed.is_empty(), tunnelled(&vip.name), "{}: {:?}", vip.name, visits.failed);
    }
    stage.all.restart_real(2).unwrap();
    everybody(&stage);
}

#[test]
fn more_removals_than_the_panic_threshold_are_held_and_told() {
    const VIPS: [&str; 3] = ["half", "never", "always"];
    let net = Topology::builder().reals(3).build().unwrap();
    let vips = VIPS.iter().zip([50, 0, 100]).zip(7000..).map(|((name, threshold), port)| {
        Vip::new(*name, SocketAddr::new(VIP4, port))
            .settings(&format!("panic_threshold = {threshold}"))
            .health(&format!("type = \"http\"\nport = {HTTP_PORT}\n{PACE}"))
            .reals(&net.reals, Family::V4)
    });
    let cluster = Cluster::new(vips.collect::<Vec<_>>());
    let mut all = Deployment::with_services(net, cluster, &http()).unwrap();
    // What is held, and the servers that new connections meet, for each VIP.
    let expect = |all: &Deployment, expected: [(f64, &[&str]); 3]| {
        for (vip, (held, servers)) in all.cluster.vips.iter().zip(expected) {
            let name = vip.name.as_str();
            let outcome = wait_until(format!("{name}: {held} held, {servers:?} in use"), LIMIT, || {
                let told = all.node.metrics()?.sum("drover_vip_held_removals", &[("vip", name)]);
                let visits = visit(&all.client().host, Protocol::Tcp, vip.at, MANY, b"who?", LIMIT)?;
                // A connection whose slot moves between its packets breaks: that is the change under way, not the end of it.
                let settled = visits.failed.is_empty() && visits.servers() == servers;
                Ok((told == Some(held) && settled).then_some(()))
            });
            outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", all.node.get("/status").unwrap().1));
        }
    };
    let everybody: &[&str] = &["real-1", "real-2", "real-3"];
    expect(&all, [(0.0, everybody); 3]);

    all.servers[0].set_http_status(500);
    let others: &[&str] = &["real-2", "real-3"];
    expect(&all, [(0.0, others), (1.0, everybody), (0.0, others)]);

    // Two of three: more than half.
    all.servers[1].set_http_status(500);
    expect(&all, [(1.0, others), (2.0, everybody), (0.0, &["real-3"])]);
    all.node.process().wait_for_line("2 of 3 reals are down and the panic threshold is 50 %", LIMIT).unwrap();

    for server in &all.servers {
        server.set_http_status(200);
    }
    expect(&all, [(0.0, everybody); 3]);
}
