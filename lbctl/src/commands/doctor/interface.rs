//! The front interface, and what the kernel does with what arrives there.

use super::kernel::pins;
use super::report::Finding;
use host::netlink::{Address, Link, Netlink, NetlinkError};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use zk_schema::{VipName, XdpMode};

/// The interface that is looked at.
pub(super) struct Wanted<'a> {
    pub(super) interface: &'a str,
    /// The folder of pins, if that is on a BPF file system.
    pub(super) bpffs: Option<&'a Path>,
    pub(super) xdp_mode: XdpMode,
    /// Outer sources that the node file names.
    pub(super) sources: Vec<IpAddr>,
}

/// The interface itself.
pub(super) fn interface(wanted: &Wanted<'_>, links: &[Link], addresses: &[Address]) -> Vec<Finding> {
    const LINK: &str = "interface.link";
    let name = wanted.interface;
    let Some(link) = links.iter().find(|link| link.name == name) else {
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        return vec![Finding::fault(
            LINK,
            format!("{name} does not exist; this machine has {}", names.join(", ")),
            "set `interface` in the table [node] to the one that clients' packets arrive on",
        )];
    };
    let mut findings = vec![match (link.up, link.carrier, link.loopback) {
        (_, _, true) => Finding::fault(
            LINK,
            format!("{name} is the loopback"),
            "set `interface` in the table [node] to the one that clients' packets arrive on",
        ),
        (false, ..) => Finding::fault(LINK, format!("{name} is down"), format!("ip link set {name} up")),
        (_, false, _) => Finding::fault(
            LINK,
            format!("{name} has no carrier"),
            "look at the cable, the switch's port, or the other end of the virtual link",
        ),
        _ => Finding::ok(LINK, format!("{name} is up, MTU {}{}", link.mtu, queues(name))),
    }];
    findings.push(xdp(wanted, link));
    findings.extend(sources(wanted, link, addresses));
    findings.push(rp_filter(name));
    findings
}

fn queues(name: &str) -> String {
    let entries = std::fs::read_dir(format!("/sys/class/net/{name}/queues"));
    let count = entries.map_or(0, |entries| {
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("rx-")).count()
    });
    if count == 0 { String::new() } else { format!(", {count} receive queues") }
}

fn xdp(wanted: &Wanted<'_>, link: &Link) -> Finding {
    const CHECK: &str = "interface.xdp";
    let Some(bpffs) = wanted.bpffs else {
        return Finding::skipped(CHECK, "whose program is attached cannot be told without pins");
    };
    let pins = pins(bpffs, wanted.interface);
    let ours = pins.join("xdp-native").exists() || pins.join("xdp-generic").exists();
    match link.xdp {
        None if ours => Finding::fault(
            CHECK,
            "there are pins of a data plane, but no XDP program is attached: nothing is forwarded",
            "restart lb-node, which attaches it again",
        ),
        None => Finding::ok(CHECK, "no XDP program is attached: lb-node attaches its own"),
        Some(xdp) if !ours => Finding::fault(
            CHECK,
            format!("an XDP program (id {}) is attached, and it is not Drover's", xdp.program),
            format!(
                "see whose it is: bpftool prog show id {}; then remove it: ip link set {} xdp off",
                xdp.program, wanted.interface
            ),
        ),
        Some(xdp) if !xdp.native && wanted.xdp_mode != XdpMode::Generic => Finding::warning(
            CHECK,
            "Drover's program runs in the network stack (generic), which is slow",
            "use a driver with native XDP; LRO off (ethtool -K … lro off) and an MTU that fits a page may be \
             what it asks for; then restart lb-node",
        ),
        Some(xdp) => {
            let mode = if xdp.native { "native" } else { "generic" };
            Finding::ok(CHECK, format!("Drover's program (id {}) is attached, {mode}", xdp.program))
        }
    }
}

fn sources(wanted: &Wanted<'_>, link: &Link, addresses: &[Address]) -> Vec<Finding> {
    const CHECK: &str = "interface.addresses";
    let own: Vec<IpAddr> = addresses
        .iter()
        .filter(|address| address.ifindex == link.index && address.global)
        .map(|address| address.address)
        .collect();
    let mut findings = Vec::new();
    for source in &wanted.sources {
        if !addresses.iter().any(|address| address.address == *source) {
            findings.push(Finding::fault(
                CHECK,
                format!("the node file's source {source} is no address of this machine"),
                format!("ip address add {source} dev {}; or correct source_v4, source_v6", wanted.interface),
            ));
        }
    }
    if findings.is_empty() {
        findings.push(match own.as_slice() {
            [] => Finding::fault(
                CHECK,
                format!("{} has no global address, so there is no source for tunnels", wanted.interface),
                format!("ip address add … dev {}", wanted.interface),
            ),
            own => Finding::ok(CHECK, own.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")),
        });
    }
    findings
}

/// Answers to probes through a tunnel come from the VIP's address, which may be routed elsewhere.
fn rp_filter(name: &str) -> Finding {
    const CHECK: &str = "interface.rp_filter";
    let read = |place: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{place}/rp_filter");
        std::fs::read_to_string(path).ok()?.trim().parse::<u8>().ok()
    };
    // The kernel takes the greater of the two.
    match read("all").into_iter().chain(read(name)).max() {
        Some(1) => Finding::fault(
            CHECK,
            format!(
                "strict reverse path filtering on {name}: answers to probes through tunnels may be dropped, and reals seem down"
            ),
            format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{name}.rp_filter=2"),
        ),
        Some(value) => Finding::ok(CHECK, format!("rp_filter = {value}")),
        None => Finding::skipped(CHECK, "rp_filter cannot be read"),
    }
}

/// The node must not own its VIPs: its kernel would answer for them.
pub(super) fn own_vips(
    vips: &BTreeMap<VipName, IpAddr>,
    links: &[Link],
    addresses: &[Address],
) -> Vec<Finding> {
    const CHECK: &str = "vip.local";
    let mut findings = Vec::new();
    for (name, vip) in vips {
        if let Some(own) = addresses.iter().find(|address| address.address == *vip) {
            let device = links.iter().find(|link| link.index == own.ifindex).map_or("…", |link| &link.name);
            findings.push(
                Finding::fault(
                    CHECK,
                    format!(
                        "{vip} is an address of this machine ({device}): probes through tunnels end here"
                    ),
                    format!("ip address del {vip} dev {device}; nodes do not own VIPs, reals do"),
                )
                .of(name),
            );
        }
    }
    if findings.is_empty() {
        findings
            .push(Finding::ok(CHECK, format!("none of {} VIPs is an address of this machine", vips.len())));
    }
    findings
}

/// The kernel's answers about its network.
pub(super) async fn picture(netlink: &Netlink) -> Result<(Vec<Link>, Vec<Address>), NetlinkError> {
    Ok((netlink.links().await?, netlink.addresses().await?))
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    fn wanted(interface: &str) -> Wanted<'_> {
        let bpffs = Some(Path::new("/nonexistent"));
        Wanted { interface, bpffs, xdp_mode: XdpMode::Auto, sources: Vec::new() }
    }

    fn link() -> Link {
        Link { index: 2, name: "test0".into(), up: true, carrier: true, mtu: 1500, ..Link::default() }
    }

    fn faults(findings: &[Finding]) -> Vec<&'static str> {
        findings.iter().filter(|found| found.level == Level::Fault).map(|found| found.check).collect()
    }

    #[test]
    fn an_interface_that_is_away_down_or_unplugged_is_a_fault() {
        let own = [Address {
            ifindex: 2,
            address: [10, 0, 0, 1].into(),
            global: true,
            primary: true,
            lasting: true,
        }];
        assert!(faults(&interface(&wanted("test0"), &[link()], &own)).is_empty());
        assert_eq!(faults(&interface(&wanted("test9"), &[link()], &own)), ["interface.link"]);
        let down = Link { up: false, ..link() };
        assert_eq!(faults(&interface(&wanted("test0"), &[down], &own)), ["interface.link"]);
        let unplugged = Link { carrier: false, ..link() };
        assert_eq!(faults(&interface(&wanted("test0"), &[unplugged], &own)), ["interface.link"]);
        assert_eq!(faults(&interface(&wanted("test0"), &[link()], &[])), ["interface.addresses"]);
    }

    #[test]
    fn somebody_elses_program_is_a_fault() {
        let xdp = Some(host::netlink::Xdp { native: true, program: 7 });
        let finding = super::xdp(&wanted("test0"), &Link { xdp, ..link() });
        assert!(
            finding.level == Level::Fault && finding.fix.contains("bpftool prog show id 7"),
            "{finding:?}"
        );
    }
}
