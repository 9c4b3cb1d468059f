//! The way to each real: route, neighbour, answers, and the largest packet that comes through.

use super::probe::{self, Through};
use super::report::Finding;
use host::netlink::{Link, Netlink, Reachability};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use zk_schema::Encapsulation;
use zk_schema::tree::Target;

const ROUTE: &str = "real.route";
const NEIGHBOUR: &str = "real.neighbour";
const REACH: &str = "real.reach";
const MTU: &str = "real.mtu";
const GUE: &str = "real.gue";

/// The largest packet that clients are expected to send, in bytes.
const CLIENTS: u16 = 1500;
/// Time that a real may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// A real's address, and what goes there.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// Whom it serves, and by which name.
    pub(super) targets: Vec<Target>,
    /// Ways to wrap packets for it.
    pub(super) encapsulations: Vec<Encapsulation>,
    /// A port of TCP that it should serve.
    pub(super) port: Option<u16>,
}

/// Bytes that a tunnel adds to a packet.
pub(super) fn overhead(encapsulation: Encapsulation, to: IpAddr) -> u16 {
    let ip = if to.is_ipv4() { 20 } else { 40 };
    match encapsulation {
        Encapsulation::L2 => 0,
        Encapsulation::Ipip => ip,
        // UDP takes 8 bytes, GUE's own header 4.
        Encapsulation::Gue => ip + 12,
    }
}

/// Looks at each real.
pub(super) async fn reals(
    servers: &BTreeMap<IpAddr, Server>,
    netlink: &Netlink,
    links: &[Link],
    gue_port: u16,
) -> Vec<Finding> {
    let looks = servers.iter().map(|(address, server)| real(*address, server, netlink, links, gue_port));
    futures_util::future::join_all(looks).await.into_iter().flatten().collect()
}

/// Returns whether an address on an interface's segment answers by ARP or neighbour discovery; `None`: nobody has
/// asked.
async fn neighbour(netlink: &Netlink, ifindex: u32, address: IpAddr) -> Option<bool> {
    let neighbours = netlink.neighbours().await.ok()?;
    match neighbours.get(&(ifindex, address))?.state {
        Reachability::Failed | Reachability::Incomplete => Some(false),
        Reachability::Idle => None,
        Reachability::Tracked | Reachability::Stale | Reachability::Fixed => Some(true),
    }
}

async fn real(
    address: IpAddr,
    server: &Server,
    netlink: &Netlink,
    links: &[Link],
    gue_port: u16,
) -> Vec<Finding> {
    let names: Vec<String> = server.targets.iter().map(Target::to_string).collect();
    let subject = format!("{} ({address})", names.join(", "));
    let rest = |checks: &[&'static str], why: &str| {
        checks.iter().map(|check| Finding::skipped(check, why).of(&subject)).collect::<Vec<_>>()
    };
    let route = match netlink.route(address).await {
        Ok(route) => route.map_err(|no_path| no_path.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let route = match route {
        Ok(route) => route,
        Err(why) => {
            let fix = format!("ip route get {address} shows it; add a route (ip route add {address} via …)");
            let fault = Finding::fault(ROUTE, format!("no way there: {why}"), fix).of(&subject);
            return [vec![fault], rest(&[NEIGHBOUR, REACH, MTU, GUE], "there is no route")].concat();
        }
    };
    let link = links.iter().find(|link| link.index == route.ifindex);
    let device = link.map_or("an unknown interface", |link| link.name.as_str());
    let via = route.gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
    let mut findings = vec![Finding::ok(ROUTE, format!("by {device}{via}")).of(&subject)];

    let answers = spawn_blocking(move || probe::answers(address)).await;
    let answers = match answers {
        Ok(Ok(answers)) => Some(answers),
        _ => None,
    };
    let hop = route.gateway.unwrap_or(address);
    findings.push(match neighbour(netlink, route.ifindex, hop).await {
        Some(false) => {
            let seen = format!("{hop} does not answer on {device} (ARP or neighbour discovery)");
            let fix = format!("is {hop} up, and on the segment of {device}? ip neigh show dev {device}");
            findings.push(Finding::fault(NEIGHBOUR, seen, fix).of(&subject));
            findings.extend(rest(&[REACH, MTU, GUE], "its next hop does not answer"));
            return findings;
        }
        Some(true) => Finding::ok(NEIGHBOUR, format!("{hop} answers on {device}")).of(&subject),
        None => Finding::skipped(NEIGHBOUR, format!("the kernel knows nothing of {hop} yet")).of(&subject),
    });
    let service = match server.port {
        Some(port) => service(SocketAddr::new(address, port)).await,
        None => None,
    };
    match (answers, service) {
        (Some(true), _) => findings.push(Finding::ok(REACH, "answers echoes").of(&subject)),
        (_, Some(what)) => {
            let seen = format!("{what}, but it answers no echoes");
            let fix = "let ICMP pass: without it path MTUs cannot be learnt";
            findings.push(Finding::warning(REACH, seen, fix).of(&subject));
            findings.extend(rest(&[MTU, GUE], "it answers no echoes"));
            return findings;
        }
        (None, None) => {
            findings.extend(rest(&[REACH, MTU, GUE], "echoes cannot be sent: run this as root"));
            return findings;
        }
        (Some(false), None) => {
            let fix = format!("is the host up? traceroute -n {address}; look for a firewall on the way");
            findings.push(Finding::fault(REACH, "nothing comes back from it", fix).of(&subject));
            findings.extend(rest(&[MTU, GUE], "it is not reachable"));
            return findings;
        }
    }

    let own = link.map_or(u32::from(CLIENTS), |link| route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)));
    let more = server.encapsulations.iter().map(|way| overhead(*way, address)).max().unwrap_or(0);
    let through = spawn_blocking(move || probe::largest(address, CLIENTS + more)).await;
    findings.push(match through {
        Ok(Ok(Through::UpTo(fits))) => mtu(fits, more, own, device, address).of(&subject),
        Ok(Ok(Through::Nothing)) => Finding::skipped(MTU, "it answers no echoes any more").of(&subject),
        Ok(Err(error)) => Finding::skipped(MTU, format!("{error:#}")).of(&subject),
        Err(error) => Finding::skipped(MTU, error.to_string()).of(&subject),
    });
    if server.encapsulations.contains(&Encapsulation::Gue) {
        findings.push(gue(SocketAddr::new(address, gue_port)).await.of(&subject));
    }
    findings
}

/// Judges the largest packet that came through, of `CLIENTS + overhead` bytes at most; `own` is the MTU of the node's own
/// interface.
fn mtu(fits: u16, overhead: u16, own: u32, device: &str, address: IpAddr) -> Finding {
    let wanted = CLIENTS + overhead;
    let inner = fits.saturating_sub(overhead);
    // IP and TCP headers without options.
    let mss = inner.saturating_sub(if address.is_ipv4() { 40 } else { 60 });
    let advice = format!(
        "raise the MTU to {wanted} or more on {device} and all the way to {address}; until then let reals announce a \
         smaller MSS: ip route change default … advmss {mss} on the real"
    );
    if fits >= wanted {
        Finding::ok(
            MTU,
            format!("packets of {fits} bytes come through: {CLIENTS} and {overhead} for the tunnel"),
        )
    } else if u32::from(fits) < own.min(u32::from(wanted)) {
        Finding::fault(
            MTU,
            format!(
                "only packets of up to {fits} bytes come through, and {device} sends {own}: clients' packets above {inner} \
                 bytes get lost or cost a detour by ICMP"
            ),
            advice,
        )
    } else {
        Finding::warning(
            MTU,
            format!(
                "packets of up to {fits} bytes come through, {inner} of a client's and {overhead} for the tunnel; larger ones \
                 are answered by ICMP \"too big\", and clients that do not hear it hang"
            ),
            advice,
        )
    }
}

/// Judges a TCP port: refused is an answer, too.
async fn service(to: SocketAddr) -> Option<&'static str> {
    match timeout(PATIENCE, TcpStream::connect(to)).await {
        Ok(Ok(_)) => Some("takes connections"),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Some("refuses connections")
        }
        _ => None,
    }
}

/// An empty datagram to GUE's port. A real's host says "port unreachable" to it, since the agent takes what is in a tunnel
/// before; a firewall that says no says something else.
async fn gue(to: SocketAddr) -> Finding {
    let from: SocketAddr = match to {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let exchange = async {
        let socket = UdpSocket::bind(from).await?;
        socket.connect(to).await?;
        socket.send(&[]).await?;
        socket.recv(&mut [0; 64]).await
    };
    match timeout(PATIENCE, exchange).await {
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Finding::ok(GUE, format!("UDP port {} is not filtered", to.port()))
        }
        Ok(Err(error)) => Finding::fault(
            GUE,
            format!("UDP port {} is refused on the way: {error}", to.port()),
            "let UDP from the nodes to that port pass in the firewalls between them, and on the real",
        ),
        Ok(Ok(_)) => Finding::ok(GUE, format!("UDP port {} answers", to.port())),
        Err(_) => Finding::ok(GUE, format!("UDP port {} is silent, which is no bad sign", to.port())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[test]
    fn a_tunnel_takes_its_headers_from_the_mtu() {
        let (v4, v6): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), "2001:db8::1".parse().unwrap());
        let overheads =
            |to| [Encapsulation::L2, Encapsulation::Ipip, Encapsulation::Gue].map(|way| overhead(way, to));
        assert_eq!(overheads(v4), [0, 20, 32]);
        assert_eq!(overheads(v6), [0, 40, 52]);
    }

    #[test]
    fn a_path_narrower_than_the_interface_is_a_fault_and_an_interface_too_small_for_tunnels_a_warning() {
        let to = [10, 0, 0, 1].into();
        assert_eq!(mtu(1532, 32, 9000, "eth0", to).level, Level::Ok);
        let warning = mtu(1500, 32, 1500, "eth0", to);
        assert_eq!(warning.level, Level::Warning);
        assert!(warning.fix.contains("1532") && warning.fix.contains("advmss 1428"), "{}", warning.fix);
        assert_eq!(mtu(1400, 32, 1500, "eth0", to).level, Level::Fault);
        assert_eq!(mtu(1500, 32, 9000, "eth0", to).level, Level::Fault);
    }
}
