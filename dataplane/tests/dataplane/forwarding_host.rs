//! A node whose kernel forwards packets, as on hosts of Kubernetes: what the program leaves to it comes out again.

use crate::bench::{Bench, CLIENT_4, Family, INTERFACE, VIP_4, alone, ip_link, settings, socket, vip};
use crate::packet::{ROUTER_MAC, udp};
use dataplane::Settings;
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};
use zk_schema::{Encapsulation, Protocol, Unserved};

/// An address that no VIP has: a packet to it comes out last.
const ELSEWHERE: &str = "198.51.100.200";

/// A socket for whole frames at the far end of the link.
fn wire() -> Socket {
    let all = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
    let wire = Socket::new(Domain::PACKET, Type::RAW, Some(SocketProtocol::from(i32::from(all)))).unwrap();
    // SAFETY: a C string; all zeros are a valid address.
    let (index, mut address) =
        unsafe { (libc::if_nametoindex(c"back".as_ptr()), std::mem::zeroed::<libc::sockaddr_ll>()) };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = all;
    address.sll_ifindex = i32::try_from(index).unwrap();
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
    // SAFETY: the address lives and has this length.
    let bound = unsafe { libc::bind(wire.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
    wire.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    wire
}

/// Destinations, in order, of what comes back when a packet to a port of the VIP's address that no VIP serves, and
/// then one to [`ELSEWHERE`], are sent to the node.
fn come_back(unserved: Unserved) -> Vec<[u8; 4]> {
    for (name, value) in [("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/all/send_redirects", "0")]
    {
        std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
    }
    std::fs::write(format!("/proc/sys/net/ipv4/conf/{INTERFACE}/rp_filter"), "0").unwrap();
    ip_link(&format!("address add 10.9.0.7/24 dev {INTERFACE}"));
    ip_link(&format!("neighbour add 10.9.0.254 lladdr 02:00:00:00:00:02 dev {INTERFACE}"));
    ip_link("route add default via 10.9.0.254");
    let mut bench = Bench::with(Settings { unserved, ..settings() });
    bench.add("v", vip((VIP_4, 80, Protocol::Udp), Encapsulation::Gue, Family::V4, 1, 1));
    bench.apply();

    let mut wire = wire();
    for (address, port) in [(VIP_4, 81), (ELSEWHERE, 81)] {
        wire.write_all(&udp(socket(CLIENT_4, 5000), socket(address, port), b"once").frame()).unwrap();
    }
    let mut seen = Vec::new();
    let started = Instant::now();
    while seen.last() != Some(&[198, 51, 100, 200]) {
        assert!(started.elapsed() < Duration::from_secs(20), "what is for nobody's VIP does not come back");
        let mut buffer = [0; 2048];
        let Ok(length) = wire.read(&mut buffer) else { continue };
        let is_udp = length >= 34 && buffer[12..14] == [8, 0] && buffer[23] == 17;
        if is_udp && buffer[..6] == ROUTER_MAC {
            seen.push(buffer[30..34].try_into().unwrap());
        }
    }
    seen
}

#[test]
fn a_packet_to_a_vip_s_address_that_no_vip_serves_is_not_forwarded_back_to_the_router() {
    assert_eq!(alone(|| come_back(Unserved::Drop)), [[198, 51, 100, 200]]);
    // The router has the VIP's address from this node, and would send it here again.
    assert_eq!(alone(|| come_back(Unserved::Pass)), [[198, 51, 100, 1], [198, 51, 100, 200]]);
}
