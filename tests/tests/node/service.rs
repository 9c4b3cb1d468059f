//! The daemon as a service: what it tells its manager, and with how few rights it works.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use drover_tests::{Cluster, Deployment, Family, LbNode, Protocol, Topology, Vip, visit, wait_until};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const PORT: u16 = 7000;
/// So many new flows that neither real is missed by chance.
const FLOWS: usize = 30;
const LIMIT: Duration = Duration::from_secs(10);
/// The control loop turns once in ten seconds at least.
const LIFE_LIMIT: Duration = Duration::from_secs(25);

/// What the manifests and units grant, and `lb-node` asks for.
const CAPABILITIES: [&str; 4] = ["bpf", "perfmon", "net_admin", "net_raw"];
/// A user without rights of its own.
const NOBODY: u32 = 65534;

/// Two reals behind a VIP whose probes take the tunnel, so that what probes need is needed.
fn deploy() -> Deployment {
    let net = Topology::builder().reals(2).build().unwrap();
    let health = "type = \"tcp\"\ninterval_ms = 200\npath = \"tunnel\"";
    let vip = Vip::new("tcp", SocketAddr::new(VIP, PORT)).health(health).reals(&net.reals, Family::V4);
    Deployment::start(net, Cluster::new([vip])).unwrap()
}

fn assert_served(all: &Deployment) {
    let at = SocketAddr::new(VIP, PORT);
    let visits = visit(&all.client().host, Protocol::Tcp, at, FLOWS, b"hello", LIMIT).unwrap();
    assert_eq!((visits.servers(), &visits.failed), (vec!["real-1", "real-2"], &Vec::new()));
}

/// The same node from nothing, started by way of `under`.
fn start_anew(all: &mut Deployment, under: &[&str]) {
    all.node.process().terminate(LIMIT).unwrap();
    LbNode::detach(all.station()).unwrap();
    let file = all.cluster.write(all.station()).unwrap();
    all.node = LbNode::launch_under(under, all.station(), &file).unwrap();
}

/// `setpriv` with these capabilities and no others, and without ways to get more.
fn with_capabilities(capabilities: &[&str]) -> [String; 5] {
    let granted: String = capabilities.iter().map(|capability| format!(",+{capability}")).collect();
    [
        "setpriv".to_owned(),
        "--no-new-privs".to_owned(),
        format!("--bounding-set=-all{granted}"),
        format!("--inh-caps=-all{granted}"),
        format!("--ambient-caps=-all{granted}"),
    ]
}

#[test]
fn a_service_manager_hears_of_readiness_of_life_and_of_the_end() {
    let mut all = deploy();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let told = |what: &str, limit| {
        let mut buffer = [0; 2048];
        wait_until(format!("the manager to be told {what}"), limit, || {
            let Ok(length) = manager.recv(&mut buffer) else { return Ok(None) };
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            Ok(message.contains(what).then_some(message))
        })
        .unwrap()
    };
    let socket = format!("NOTIFY_SOCKET={}", path.display());
    start_anew(&mut all, &["env", &socket]);

    told("READY=1", LIMIT);
    assert_eq!(all.node.get("/readyz").unwrap().0, 200, "it was told so when it was so");
    told("STATUS=epoch ", LIMIT);
    told("WATCHDOG=1", LIFE_LIMIT);
    assert_eq!(all.node.get("/announced").unwrap(), (200, "ok\n".to_owned()));
    assert!(all.node.process().terminate(LIMIT).unwrap().success());
    assert!(told("STOPPING=1", LIMIT).contains("EXTEND_TIMEOUT_USEC="));
    assert_served(&all);
}

#[test]
fn as_root_without_other_rights_a_node_needs_four_capabilities() {
    let mut all = deploy();
    let under = with_capabilities(&CAPABILITIES);
    start_anew(&mut all, &under.each_ref().map(String::as_str));
    all.node.wait_ready().unwrap();
    assert_served(&all);
    for missing in CAPABILITIES {
        let rest: Vec<&str> = CAPABILITIES.into_iter().filter(|capability| *capability != missing).collect();
        let under = with_capabilities(&rest);
        start_anew(&mut all, &under.each_ref().map(String::as_str));
        let refusal = format!("this process lacks CAP_{}:", missing.to_uppercase());
        all.node.process().wait(LIMIT).unwrap();
        let log = all.node.process().log().unwrap();
        assert!(log.contains(&refusal), "{missing}: {log}");
        // For the next round to end.
        all.restart_node().unwrap();
    }
}

#[test]
fn a_user_of_its_own_with_ambient_capabilities_runs_a_node() {
    let mut all = deploy();
    let pins = all.station().host.bpffs().to_owned();
    let [id, group] = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
    let [setpriv, rest @ ..] = with_capabilities(&CAPABILITIES);
    let mut under = vec![setpriv.as_str(), &id, &group, "--clear-groups"];
    under.extend(rest.iter().map(String::as_str));

    all.node.process().terminate(LIMIT).unwrap();
    LbNode::detach(all.station()).unwrap();
    fs::create_dir_all(&pins).unwrap();
    chown(&pins, Some(NOBODY), Some(NOBODY)).unwrap();
    let file = all.cluster.write(all.station()).unwrap();
    all.node = LbNode::launch_under(&under, all.station(), &file).unwrap();
    all.node.wait_ready().unwrap();
    assert_served(&all);

    // It finds its pins again.
    all.node.process().kill().unwrap();
    all.node = LbNode::launch_under(&under, all.station(), &file).unwrap();
    all.node.wait_ready().unwrap();
    assert_served(&all);
}
