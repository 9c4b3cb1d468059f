//! What `lbctl` shows of a cluster of real parts, and whether it is so.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use drover_tests::{
    Cluster, Family, Host, Lbctl, Protocol, Service, Settings, Site, Topology, Vip, wait_until,
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10));
const PACE: &str = "type = \"tcp\"\nport = 7001\ninterval_ms = 500\ntimeout_ms = 400\n\
                    healthy_threshold = 2\nunhealthy_threshold = 2";
const LIMIT: Duration = Duration::from_secs(30);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
const FLOWS: u16 = 60;
const CLIENTS: u8 = 30;

fn lbctl(site: &Site) -> Lbctl {
    Lbctl::new(&site.net.router, &site.ensemble.connect_string())
}

/// VIPs of both families, protocols and affinities over three reals.
fn all_kinds(net: &Topology) -> Cluster {
    let vip = |name: &str, address, port, protocol, affinity: &str| {
        let vip = Vip::new(name, SocketAddr::new(address, port)).protocol(protocol).health(PACE);
        let vip = vip.settings(&format!("affinity = \"{affinity}\""));
        vip.reals(&net.reals, Family::of(address))
    };
    Cluster::new([
        vip("udp4", VIP4, 7000, Protocol::Udp, "flow"),
        vip("tcp4", VIP4, 7001, Protocol::Tcp, "flow"),
        vip("udp4-source", VIP4, 7002, Protocol::Udp, "source"),
        vip("tcp4-source", VIP4, 7003, Protocol::Tcp, "source"),
        vip("udp6", VIP6, 7000, Protocol::Udp, "flow"),
        vip("tcp6", VIP6, 7001, Protocol::Tcp, "flow"),
        vip("udp6-source", VIP6, 7002, Protocol::Udp, "source"),
    ])
}

/// The server that answers a new flow between these.
fn answering(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> anyhow::Result<String> {
    let mut line = String::new();
    match protocol {
        Protocol::Udp => {
            let socket = UdpSocket::bind(from)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"hello")?;
            let mut answer = [0; 1500];
            let length = socket.recv(&mut answer)?;
            BufReader::new(&answer[..length]).read_line(&mut line)?;
        }
        Protocol::Tcp => {
            let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            BufReader::new(std::net::TcpStream::from(socket)).read_line(&mut line)?;
        }
    }
    Ok(line.trim_end().to_owned())
}

/// Which server answers each of these flows from `client`.
fn answers(
    client: &Host,
    protocol: Protocol,
    sources: &[SocketAddr],
    to: SocketAddr,
) -> BTreeMap<String, String> {
    let ask = || {
        let answer = |from: &SocketAddr| Ok((from.to_string(), answering(protocol, *from, to)?));
        sources.iter().map(answer).collect::<anyhow::Result<_>>()
    };
    client.enter(ask).unwrap().unwrap()
}

/// What `lbctl lookup` says of the same flows, told by a file.
fn looked_up(lbctl: &Lbctl, client: &Host, vip: &str, sources: &[SocketAddr]) -> BTreeMap<String, String> {
    let file = client.dir().join("flows.txt");
    let lines: Vec<String> = sources.iter().map(SocketAddr::to_string).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let answer = lbctl.json(&["lookup", vip, "--file", file.to_str().unwrap()]).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let flows = answer["flows"].as_array().unwrap();
    assert_eq!(answer["nodes"]["may_differ"], serde_json::json!({}), "{answer:#}");
    flows.iter().map(|flow| (text(&flow["source"]), text(&flow["real"]))).collect()
}

#[test]
fn lookup_names_the_real_that_answers_for_each_family_protocol_and_affinity() {
    let site = Site::start(Topology::builder().nodes(3).reals(3), all_kinds).unwrap();
    let reals: &[&str] = &["real-1", "real-2", "real-3"];
    let vips: Vec<String> = site.cluster.vips.iter().map(|vip| vip.name.clone()).collect();
    let expected: Vec<(&str, &[&str])> = vips.iter().map(|vip| (vip.as_str(), reals)).collect();
    site.wait_settled().unwrap();
    // Shares that are not alike, so that mixing up reals shows.
    for vip in &vips {
        site.set_weight(vip, "real-1", 300).unwrap();
    }
    for vip in &vips {
        site.wait_for_weights(vip, &[("real-1", 300), ("real-2", 100), ("real-3", 100)]).unwrap();
    }
    site.wait_agreed(&expected).unwrap();

    let client = &site.net.clients[0];
    for number in 0..CLIENTS {
        client.host.ip(&format!("address add 10.1.1.{}/24 dev eth0", 100 + number)).unwrap();
        client
            .host
            .ip(&format!("address add 2001:db8:1:1::{:x}/64 dev eth0", 0x100 + u16::from(number)))
            .unwrap();
    }
    let lbctl = lbctl(&site);
    for vip in &site.cluster.vips {
        let by_source = vip.name.ends_with("source");
        let sources: Vec<SocketAddr> = if by_source {
            let v4 = |n| Ipv4Addr::new(10, 1, 1, 100 + n);
            let v6 = |n| Ipv6Addr::new(0x2001, 0xdb8, 1, 1, 0, 0, 0, 0x100 + u16::from(n));
            let address = |n| if vip.at.is_ipv4() { IpAddr::V4(v4(n)) } else { IpAddr::V6(v6(n)) };
            (0..CLIENTS).map(|n| SocketAddr::new(address(n), 20_000 + u16::from(n))).collect()
        } else {
            let address = client.address_like(vip.at.ip());
            (0..FLOWS).map(|n| SocketAddr::new(address, 20_000 + n)).collect()
        };
        let told = looked_up(&lbctl, &client.host, &vip.name, &sources);
        let met = answers(&client.host, vip.protocol, &sources, vip.at);
        assert_eq!(told, met, "{}", vip.name);
        let servers: BTreeSet<&String> = met.values().collect();
        assert_eq!(servers.len(), 3, "{}: too few servers for the test to tell: {met:?}", vip.name);
    }

    // The same by address, with text, and what is wrong in words.
    let told = lbctl.run(&["lookup", "198.51.100.10:7000/udp", "10.1.1.2:20000"]).unwrap();
    assert!(told.stdout.starts_with("udp4 (198.51.100.10:7000/udp), by its assignment of epoch"), "{told:?}");
    assert!(told.stdout.contains("In force on node-1, node-2 and node-3."), "{told:?}");
    let told = lbctl.run(&["lookup", "[2001:db8:100::10]:7001/tcp", "10.1.1.2:20000"]).unwrap();
    assert!(told.code == 1 && told.stderr.contains("give addresses of its family"), "{told:?}");
    let told = lbctl.run(&["lookup", "nobody", "10.1.1.2:20000"]).unwrap();
    assert!(told.code == 1 && told.stderr.contains("there are: tcp4, tcp4-source"), "{told:?}");
}

#[test]
fn status_tells_leader_lost_nodes_dead_reals_and_who_drained_what_and_why() {
    // Probes of one VIP do not depend on the other's service.
    let services = |net: &Topology| {
        let vip = |name, port| {
            let vip = Vip::new(name, SocketAddr::new(VIP4, port));
            vip.health(&PACE.replace("7001", &port.to_string())).reals(&net.reals, Family::V4)
        };
        Cluster::new([vip("publish", 7001), vip("subscribe", 7002)])
    };
    let more = [Service::Http(8080)];
    let mut site =
        Site::with(Topology::builder().nodes(3).reals(3), services, &more, Settings::default()).unwrap();
    site.wait_settled().unwrap();
    let (leader, term) = site.leader().unwrap();
    let lbctl = lbctl(&site);
    let status = |filter: &dyn Fn(&Value) -> bool, what: &str| -> Value {
        wait_until(what, LIMIT, || {
            let status = lbctl.json(&["status"])?;
            Ok(filter(&status).then_some(status))
        })
        .unwrap()
    };

    let calm = status(&|status| status["problems"] == serde_json::json!([]), "status to find all well");
    assert_eq!(calm["leader"]["node"], format!("node-{}", leader + 1));
    assert_eq!(calm["leader"]["term"], term);
    assert_eq!(calm["head"]["epoch"], site.head().unwrap().epoch);
    for node in ["node-1", "node-2", "node-3"] {
        assert_eq!(
            (&calm["nodes"][node]["mode"], &calm["nodes"][node]["behind"]),
            (&"live".into(), &0.into())
        );
    }
    assert_eq!(lbctl.run(&["status"]).unwrap().code, 0);
    let quiet = lbctl.run(&["status", "--quiet"]).unwrap();
    assert_eq!((quiet.code, quiet.stdout.as_str()), (0, ""));
    // What it says of shares is what the nodes say.
    let of_node = site.node(0).unwrap().status().unwrap();
    for real in ["real-1", "real-2", "real-3"] {
        let share = |status: &Value| status["vips"]["publish"]["reals"][real]["share"].as_f64().unwrap();
        assert!((share(&calm) - share(&of_node)).abs() < 1e-9, "{real}");
    }

    // A drain is shown with its reason, and is no problem.
    let flag = r#"{"by":"anna","why":"new disk"}"#;
    site.operator.put("/drover/ops/drain/publish.real-1", flag).unwrap();
    let drained = status(
        &|status| status["vips"]["publish"]["reals"]["real-1"]["weight"] == 0,
        "the drained real to have no weight",
    );
    let real = &drained["vips"]["publish"]["reals"]["real-1"];
    assert_eq!(real["why"], "drained by anna: new disk");
    assert_eq!((&real["operator_weight"], &real["share"]), (&100.into(), &0.0.into()));
    let calm = status(&|status| status["problems"] == serde_json::json!([]), "a drain to be no problem");
    assert_eq!(calm["vips"]["publish"]["reals"]["real-1"]["drain"]["by"], "anna");

    // History tells who led, and what was decided on the drain: announced first, then in force.
    let history = lbctl.json(&["history", "--vip", "publish"]).unwrap();
    let kinds: Vec<&str> = history
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|event| event["decisions"].as_array().unwrap())
        .map(|decision| decision["kind"].as_str().unwrap())
        .collect();
    let place = |kind: &str| kinds.iter().rposition(|found| *found == kind);
    assert!(place("announced").is_some() && place("announced") < place("weights"), "{kinds:?}");
    let text = lbctl.run(&["history"]).unwrap();
    let first = text.stdout.lines().next().unwrap_or_default();
    assert!(first.contains(&format!(" node-{} ", leader + 1)) && first.contains(" leader "), "{text:?}");
    println!("{}", text.stdout);

    // A real that dies, by its reason and those who found it so.
    site.net.cut(&site.net.reals[2], true).unwrap();
    let down = status(
        &|status| {
            let real = &status["vips"]["subscribe"]["reals"]["real-3"];
            real["health"] == "down" && real["weight"] == 0
        },
        "the dead real to be down",
    );
    let real = &down["vips"]["subscribe"]["reals"]["real-3"];
    let why = real["why"].as_str().unwrap();
    assert!(why.starts_with("down for") && why.contains("node-"), "{why}");
    assert!(real["found_down_by"].as_object().unwrap().len() >= 2, "{real:#}");
    assert!(down["problems"].to_string().contains("subscribe/real-3 is down"), "{:#}", down["problems"]);
    let text = lbctl.run(&["status", "subscribe"]).unwrap();
    assert_eq!(text.code, 2, "{text:?}");
    assert!(text.stdout.contains("real-3") && !text.stdout.contains("publish"), "{}", text.stdout);
    println!("{}", lbctl.run(&["status"]).unwrap().stdout);
    site.net.cut(&site.net.reals[2], false).unwrap();

    // A node that is killed, and returns.
    let killed = (leader + 1) % 3;
    let name = format!("node-{}", killed + 1);
    site.kill(killed).unwrap();
    let gone = status(&|status| status["nodes"][&name]["present"] == false, "the killed node to be gone");
    assert!(gone["problems"].to_string().contains(&format!("{name} is gone")), "{:#}", gone["problems"]);
    let text = lbctl.run(&["status"]).unwrap();
    assert!(text.code == 2 && text.stdout.contains("gone"), "{text:?}");
    println!("{}", text.stdout);
    site.launch(killed).unwrap();
    status(&|status| status["problems"] == serde_json::json!([]), "all to be well again");

    // Where there is no such thing, it says so.
    let answer = lbctl.run(&["status", "nobody"]).unwrap();
    assert!(answer.code == 1 && answer.stderr.contains("there are: publish, subscribe"), "{answer:?}");
    let answer = lbctl.run(&["top"]).unwrap();
    assert!(answer.code == 1 && answer.stderr.contains("needs a terminal"), "{answer:?}");
}
