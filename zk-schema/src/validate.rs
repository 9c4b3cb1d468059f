//! The rules that records keep, for one record and across records.
//!
//! `validate` checks a record that code has built; records that are read pass the same rules, with the same ranges.

use crate::allowed;
use crate::fields::check;
use crate::named_files::{TlsIdentity, check_needs};
use crate::problem::{Problems, Report, Scope, quoted};
use crate::records::{
    Capacity, CheckKind, Cluster, Desired, Encapsulation, HealthCheck, HttpCheck, Limits, Node, Protocol,
    Real, TABLE_SIZES, Vip, VipState,
};
use crate::{RealName, VipName};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Reals of one VIP: the data plane numbers them with 16 bits.
const MAX_REALS: usize = 65_535;
/// Longest name of a Linux interface: IFNAMSIZ less the final NUL.
const MAX_INTERFACE: usize = 15;
const MAX_TARGET: usize = 2048;
const MAX_BODY_MATCH: usize = 1024;
const MAX_CLIENT_ID: usize = 64;

/// A record, or a collection of them, that has rules.
pub(crate) trait Rules {
    /// Puts every breach of a rule on the report.
    fn check(&self, scope: &mut Scope<'_>);

    fn validated(&self) -> Result<(), Problems> {
        let mut report = Report::default();
        self.check(&mut Scope::top(&mut report));
        report.into_result()
    }
}

macro_rules! validate {
    ($($name:ident),+) => {
        $(impl $name {
            /// Checks every rule.
            ///
            /// # Errors
            ///
            /// All problems, each with the field, its value and what is allowed.
            pub fn validate(&self) -> Result<(), Problems> {
                self.validated()
            }
        })+
    };
}

validate!(Cluster, Vip, Real, Node, Desired);

impl Rules for Cluster {
    fn check(&self, scope: &mut Scope<'_>) {
        if !TABLE_SIZES.contains(&self.table_size) {
            scope.problem("table_size", format!("{} is not {}", self.table_size, allowed::table_size()));
        }
    }
}

impl Rules for Vip {
    fn check(&self, scope: &mut Scope<'_>) {
        if let Some(kind) = special_kind(self.address).or_else(|| link_local(self.address)) {
            let message = format!("{} is {kind}; clients cannot reach a VIP there", self.address);
            scope.problem("address", message);
        }
        self.check_fields(scope);
        self.limits.check(&mut scope.at("limits"));
        let Some(health) = &self.health else { return };
        // A probe is a TCP connection, so the VIP's own port serves only where it is one TCP port.
        let (port_is_sound, protocol_is_sound) = (scope.sound("port"), scope.sound("protocol"));
        let mut scope = scope.at("health");
        health.check(&mut scope);
        if health.port.is_none() && scope.sound("port") {
            if port_is_sound && self.port == 0 {
                scope.problem(
                    "port",
                    "missing; the VIP takes all ports, so say which one to probe, in 1..=65535",
                );
            } else if protocol_is_sound && self.protocol == Protocol::Udp {
                scope
                    .problem("port", "missing; the VIP is UDP, so say which TCP port to probe, in 1..=65535");
            }
        }
    }
}

impl Rules for Real {
    fn check(&self, scope: &mut Scope<'_>) {
        if let Some(kind) = special_kind(self.address) {
            scope.problem(
                "address",
                format!("{} is {kind}; a real needs an address of its own", self.address),
            );
        }
        self.check_fields(scope);
    }
}

impl Rules for Limits {
    fn check(&self, scope: &mut Scope<'_>) {
        self.check_fields(scope);
        let mut worth = |(rate_field, rate): (&str, u32), (field, burst): (&str, u32), seconds: u32| {
            let most = rate.saturating_mul(seconds);
            if scope.sound(rate_field) && scope.sound(field) && rate > 0 && burst > most {
                let text = format!("{burst} is more than {seconds} seconds' worth, which is {most}");
                scope.problem(field, text);
            }
        };
        worth(
            ("connections_per_second_per_prefix", self.connections_per_second_per_prefix),
            ("prefix_burst", self.prefix_burst),
            Self::MOST_SECONDS_PER_BURST,
        );
        worth(
            ("packets_per_second_per_prefix", self.packets_per_second_per_prefix),
            ("prefix_packet_burst", self.prefix_packet_burst),
            Self::MOST_SECONDS_PER_PACKET_BURST,
        );
    }
}

impl Rules for HealthCheck {
    fn check(&self, scope: &mut Scope<'_>) {
        self.check_fields(scope);
        if scope.sound("interval_ms") && scope.sound("timeout_ms") && self.timeout_ms > self.interval_ms {
            let (timeout, interval) = (self.timeout_ms, self.interval_ms);
            scope.problem("timeout_ms", format!("{timeout} is more than interval_ms, which is {interval}"));
        }
        match &self.kind {
            CheckKind::Tcp => {}
            CheckKind::Http(http) => {
                http.check(scope);
                if let Some(host) = http.host.as_deref().filter(|host| !is_authority(host)) {
                    scope.problem(
                        "host",
                        format!("{} is not a host name or address, or one with a port", quoted(host)),
                    );
                }
            }
            CheckKind::Https(http) => {
                http.check(scope);
                if let Some(host) = http.host.as_deref().filter(|host| !is_host(host)) {
                    let message = "is not a host name or address (without port or brackets: it is also the TLS server name)";
                    scope.problem("host", format!("{} {message}", quoted(host)));
                }
            }
            CheckKind::Mqtt(mqtt) => {
                mqtt.check_fields(scope);
                let id = mqtt.client_id.as_str();
                let charset = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
                if !(1..=MAX_CLIENT_ID).contains(&id.len()) || !id.bytes().all(charset) {
                    let message = format!(
                        "{} is not 1 to {MAX_CLIENT_ID} letters, digits, `.`, `_` or `-`",
                        quoted(id)
                    );
                    scope.problem("client_id", message);
                }
            }
        }
    }
}

impl Rules for HttpCheck {
    /// Checks what both HTTP and HTTPS demand; they differ in `host`.
    fn check(&self, scope: &mut Scope<'_>) {
        self.check_fields(scope);
        let target = self.target.as_str();
        let visible = |b: u8| b.is_ascii_graphic() && b != b'#';
        if !target.starts_with('/') || target.len() > MAX_TARGET || !target.bytes().all(visible) {
            let rule = format!(
                "starts with `/` and has at most {MAX_TARGET} visible ASCII characters other than `#`"
            );
            scope.problem("target", format!("{} is not a target: one {rule}", quoted(target)));
        }
        if self.status.is_empty() {
            scope.problem(
                "status",
                format!("an empty list accepts no answer; name codes {}", allowed::STATUS),
            );
        }
        for &status in &self.status {
            check::number(scope, "status", &status, allowed::STATUS);
        }
        if let Some(text) = &self.body_contains
            && !(1..=MAX_BODY_MATCH).contains(&text.len())
        {
            let message = format!("{} bytes long; not in 1..={MAX_BODY_MATCH}", text.len());
            scope.problem("body_contains", message);
        }
    }
}

/// Returns whether the kernel would let a network interface have this name.
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    let unfit = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (1..=MAX_INTERFACE).contains(&name.len()) && !matches!(name, "." | "..") && !name.contains(unfit)
}

impl Rules for Node {
    fn check(&self, scope: &mut Scope<'_>) {
        let interface = self.interface.as_str();
        if !is_interface_name(interface) {
            let rule = format!("1 to {MAX_INTERFACE} bytes without `/`, `:` or blanks");
            scope.problem("interface", format!("{} is not an interface's name: {rule}", quoted(interface)));
        }
        if let Some(kind) = self.source_v4.and_then(|source| special_kind(source.into())) {
            scope.problem(
                "source_v4",
                format!("{} is {kind}; packets cannot come from there", shown(self.source_v4)),
            );
        }
        let v6 = self.source_v6.map(IpAddr::from);
        if let Some(kind) = v6.and_then(|source| special_kind(source).or_else(|| link_local(source))) {
            scope.problem(
                "source_v6",
                format!("{} is {kind}; packets cannot come from there", shown(self.source_v6)),
            );
        }
        self.check_fields(scope);
        if self.accept_macs.len() > Self::MOST_MACS {
            let text = format!("{} MAC addresses are more than {}", self.accept_macs.len(), Self::MOST_MACS);
            scope.problem("accept_macs", text);
        }
        for mac in self.accept_macs.iter().filter(|mac| !mac.is_unicast()) {
            scope.problem("accept_macs", format!("{mac} is not the address of one interface"));
        }
        self.check_admin(scope);
        self.capacity.check(&mut scope.at("capacity"));
    }
}

impl Node {
    fn check_admin(&self, scope: &mut Scope<'_>) {
        let identity = TlsIdentity {
            cert: ("admin_tls_cert", &self.admin_tls_cert),
            key: ("admin_tls_key", &self.admin_tls_key),
            what: "a certificate",
        };
        identity.check(scope);
        let ca = self.admin_tls_client_ca.is_some();
        let lacks = ca && self.admin_tls_cert.is_none();
        check_needs(scope, "admin_tls_client_ca", lacks, "admin_tls_cert", "TLS");
        let guarded = ["admin_token_file", "admin_tls_client_ca"];
        let is_guarded = self.admin_token_file.is_some() || ca || !guarded.iter().all(|key| scope.sound(key));
        if !self.admin.ip().is_loopback() && !is_guarded && scope.sound("admin") {
            scope.problem(
                "admin",
                format!(
                    "{} can be reached from other machines, so it needs admin_token_file, or admin_tls_client_ca with \
                     admin_tls_cert and admin_tls_key; add them, or let it listen on 127.0.0.1:{}",
                    self.admin,
                    self.admin.port()
                ),
            );
        }
    }
}

impl Rules for Capacity {
    fn check(&self, scope: &mut Scope<'_>) {
        self.check_fields(scope);
    }
}

impl Rules for Desired {
    fn check(&self, scope: &mut Scope<'_>) {
        self.cluster.check(&mut scope.at("cluster"));
        let mut scope = scope.at("vips");
        let mut claims: BTreeMap<_, &VipName> = BTreeMap::new();
        for (name, state) in &self.vips {
            let mut scope = scope.at(name.as_str());
            state.check(&mut scope);
            if !["address", "port", "protocol"].iter().all(|key| scope.sound(key)) {
                continue;
            }
            let Vip { address, port, protocol, .. } = state.vip;
            if let Some(first) = claims.insert((address, port, protocol), name) {
                let ports = if port == 0 { "all ports".into() } else { format!("port {port}") };
                let what = format!("{address}, {protocol}, {ports}");
                scope.problem(
                    "address",
                    format!("{what} belongs to VIP {first} already; change one of the two"),
                );
            }
        }
    }
}

impl Rules for VipState {
    fn check(&self, scope: &mut Scope<'_>) {
        self.vip.check(scope);
        if self.reals.len() > MAX_REALS {
            scope.problem(
                "reals",
                format!("{} reals; their number is not in 0..={MAX_REALS}", self.reals.len()),
            );
        }
        let vip_address = scope.sound("address").then_some(self.vip.address);
        let mut seen: BTreeMap<IpAddr, &RealName> = BTreeMap::new();
        for (name, real) in &self.reals {
            let mut scope = scope.at("reals");
            let mut scope = scope.at(name.as_str());
            real.check(&mut scope);
            if !scope.sound("address") {
                continue;
            }
            self.check_real(&mut scope, real, vip_address);
            if let Some(first) = seen.insert(real.address, name) {
                scope.problem(
                    "address",
                    format!("{} is real {first}'s already; each needs its own", real.address),
                );
            }
        }
    }
}

impl VipState {
    /// The rules between the VIP and one of its reals. `vip_address` is absent if it was refused itself.
    fn check_real(&self, scope: &mut Scope<'_>, real: &Real, vip_address: Option<IpAddr>) {
        let Some(vip_address) = vip_address else { return };
        if real.address == vip_address {
            let message = format!("{} is the VIP's own; name the address of the real's host", real.address);
            scope.problem("address", message);
        } else if self.vip.encapsulation == Encapsulation::L2
            && real.address.is_ipv4() != vip_address.is_ipv4()
        {
            let (real, family) = (real.address, if vip_address.is_ipv4() { "IPv4" } else { "IPv6" });
            scope.problem(
                "address",
                format!(
                    "{real} is not {family} as the VIP is, which encapsulation l2 requires; use gue or ipip"
                ),
            );
        }
    }
}

/// The rules between a node and what it is to serve: whether its maps have the room.
pub(crate) fn check_room(scope: &mut Scope<'_>, capacity: &Capacity, vips: &BTreeMap<VipName, VipState>) {
    let reals = vips.values().map(|state| state.reals.len()).sum::<usize>();
    let mut scope = scope.at("node");
    let mut scope = scope.at("capacity");
    let mut check = |key, room: u32, needed: usize, what: String| {
        if usize::try_from(room).is_ok_and(|room| room < needed) {
            scope.problem(key, format!("{room} is too little for {what}; set it to at least {needed}"));
        }
    };
    check("vips", capacity.vips, vips.len(), format!("the {} VIPs below", vips.len()));
    check("reals", capacity.reals, reals, format!("the {reals} reals of all VIPs together"));
    let tables = format!("one for each of the {} VIPs and one to change them", vips.len());
    check("tables", capacity.slot_tables(), vips.len() + 1, tables);
}

/// Returns the reason why no host can have the address; `None` if one can.
fn special_kind(address: IpAddr) -> Option<&'static str> {
    let mapped = |v6: Ipv6Addr| v6.to_ipv4_mapped().is_some();
    match address {
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_multicast() => Some("a multicast address"),
        _ if address.is_loopback() => Some("a loopback address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an address of 0.0.0.0/8, \"this network\""),
        IpAddr::V6(v6) if mapped(v6) => Some("an IPv4-mapped address (write it as IPv4)"),
        _ => None,
    }
}

fn link_local(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    link_local.then_some("a link-local address")
}

/// An address or a host name as TLS sends it (RFC 1123 section 2.1, RFC 6066 section 3).
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        let hyphen_at_end = label.starts_with('-') || label.ends_with('-');
        (1..=63).contains(&label.len())
            && !hyphen_at_end
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if text.parse::<IpAddr>().is_ok() {
        return true;
    }
    // All digits in the last label would make it a misspelt IPv4 address.
    let numeric = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    text.len() <= 253 && !numeric && text.split('.').all(label)
}

/// A Host header's value (RFC 9110 section 7.2): a host, IPv6 in brackets, and perhaps a port.
pub(crate) fn is_authority(text: &str) -> bool {
    let is_port = |port: &str| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
    };
    if let Some((v6, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return v6.parse::<Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    is_host(text)
        || text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.contains(':') && is_host(host) && is_port(port))
}

fn shown(address: Option<impl fmt::Display>) -> String {
    address.map(|address| address.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{CheckKind, HttpCheck, MqttCheck};

    fn vip(address: &str) -> Vip {
        Vip::new(address.parse().unwrap(), 1883, Protocol::Tcp)
    }

    fn state(vip: Vip, reals: &[(&str, &str)]) -> VipState {
        let real =
            |&(name, address): &(&str, &str)| (name.parse().unwrap(), Real::new(address.parse().unwrap()));
        VipState { vip, reals: reals.iter().map(real).collect() }
    }

    fn desired<const N: usize>(vips: [(&str, VipState); N]) -> Desired {
        let vips = vips.into_iter().map(|(name, state)| (name.parse().unwrap(), state)).collect();
        Desired { vips, ..Desired::default() }
    }

    fn complaint(result: Result<(), Problems>) -> String {
        result.expect_err("a rule is broken").to_string()
    }

    #[test]
    fn a_vip_has_an_address_that_clients_can_reach() {
        for good in ["198.51.100.10", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert_eq!(vip(good).validate(), Ok(()), "{good}");
        }
        let bad = [
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "127.0.0.1",
            "169.254.0.1", //
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "::ffff:192.0.2.1",
        ];
        for bad in bad {
            let found = complaint(vip(bad).validate());
            assert!(found.starts_with(&format!("address: {bad} is ")), "{found}");
        }
    }

    #[test]
    fn two_vips_claim_different_sockets() {
        let mut others = [vip("192.0.2.1"), vip("192.0.2.1"), vip("192.0.2.2"), vip("192.0.2.1")];
        others[0].port = 1884;
        others[1].protocol = Protocol::Udp;
        others[3].port = 0; // the one port takes precedence over all ports
        for other in others {
            assert_eq!(
                desired([("a", state(vip("192.0.2.1"), &[])), ("b", state(other, &[]))]).validate(),
                Ok(())
            );
        }
        let same = desired([("a", state(vip("192.0.2.1"), &[])), ("b", state(vip("192.0.2.1"), &[]))]);
        assert_eq!(
            complaint(same.validate()),
            "vips.b.address: 192.0.2.1, tcp, port 1883 belongs to VIP a already; change one of the two"
        );
    }

    #[test]
    fn reals_have_addresses_of_their_own() {
        let reals = [
            ("a", "10.0.0.1"),
            ("b", "10.0.0.1"),
            ("c", "192.0.2.1"),
            ("d", "127.0.0.1"),
            ("e", "::ffff:1.2.3.4"),
        ];
        assert_eq!(
            complaint(desired([("v", state(vip("192.0.2.1"), &reals))]).validate()),
            "vips.v.reals.b.address: 10.0.0.1 is real a's already; each needs its own; \
             vips.v.reals.c.address: 192.0.2.1 is the VIP's own; name the address of the real's host; \
             vips.v.reals.d.address: 127.0.0.1 is a loopback address; a real needs an address of its own; \
             vips.v.reals.e.address: ::ffff:1.2.3.4 is an IPv4-mapped address (write it as IPv4); a real needs an address of its own"
        );
    }

    #[test]
    fn only_l2_requires_reals_of_the_vips_family() {
        let mut vip = vip("192.0.2.1");
        for (encapsulation, allowed) in
            [(Encapsulation::Gue, true), (Encapsulation::Ipip, true), (Encapsulation::L2, false)]
        {
            vip.encapsulation = encapsulation;
            let mixed = desired([("v", state(vip.clone(), &[("a", "10.0.0.1"), ("b", "2001:db8::1")]))]);
            assert_eq!(mixed.validate().is_ok(), allowed, "{encapsulation}");
        }
        let mixed = desired([("v", state(vip, &[("b", "2001:db8::1")]))]);
        assert_eq!(
            complaint(mixed.validate()),
            "vips.v.reals.b.address: 2001:db8::1 is not IPv4 as the VIP is, which encapsulation l2 requires; use gue or ipip"
        );
    }

    #[test]
    fn a_vip_has_at_most_65535_reals() {
        let address = |i: u32| IpAddr::from((0x0a00_0000 + i).to_be_bytes());
        let reals = (1..=65_536).map(|i| (format!("r{i}").parse().unwrap(), Real::new(address(i)))).collect();
        let mut state = VipState { vip: vip("192.0.2.1"), reals };
        assert_eq!(complaint(state.validated()), "reals: 65536 reals; their number is not in 0..=65535");
        state.reals.pop_first();
        assert_eq!(state.validated(), Ok(()));
    }

    #[test]
    fn ranges_hold_for_records_built_in_code() {
        let mut vip = vip("192.0.2.1");
        vip.panic_threshold = 101;
        vip.limits =
            Limits { burst: 100_000_001, prefix_length_v4: 33, prefix_length_v6: 15, ..Limits::default() };
        vip.health = Some(HealthCheck {
            port: Some(0),
            interval_ms: 99,
            timeout_ms: 60_001,
            healthy_threshold: 0,
            unhealthy_threshold: 101,
            ..HealthCheck::new(CheckKind::Tcp)
        });
        assert_eq!(
            complaint(vip.validate()),
            "panic_threshold: 101 is not in 0..=100; limits.burst: 100000001 is not in 0..=100000000; \
             limits.prefix_length_v4: 33 is not 0 or in 8..=32; limits.prefix_length_v6: 15 is not 0 or in 16..=64; \
             health.port: 0 is not in 1..=65535; health.interval_ms: 99 is not in 100..=3600000; \
             health.timeout_ms: 60001 is not in 10..=60000; health.healthy_threshold: 0 is not in 1..=100; \
             health.unhealthy_threshold: 101 is not in 1..=100"
        );
    }

    fn http(https: bool, http: HttpCheck) -> Result<(), Problems> {
        let mut vip = vip("192.0.2.1");
        vip.health =
            Some(HealthCheck::new(if https { CheckKind::Https(http) } else { CheckKind::Http(http) }));
        vip.validate()
    }

    #[test]
    fn a_request_cannot_be_smuggled_through_target_or_host() {
        for target in ["/", "/a?b=%20&c", "*"] {
            let check = HttpCheck { target: target.into(), ..HttpCheck::default() };
            assert_eq!(http(false, check).is_ok(), target != "*", "{target}");
        }
        for text in ["", " ", "a b", "a\r\nx: y", "a\0", "ä"] {
            let target = HttpCheck { target: format!("/{text}x"), ..HttpCheck::default() };
            assert_eq!(http(false, target).is_ok(), text.is_empty(), "target {text:?}");
            for https in [false, true] {
                let host = HttpCheck { host: Some(text.into()), ..HttpCheck::default() };
                assert!(http(https, host).is_err(), "host {text:?}");
            }
        }
    }

    #[test]
    fn a_tls_servers_name_is_a_host_and_a_host_header_may_have_a_port() {
        for (host, in_http, in_https) in [
            ("broker.example", true, true),
            ("a_b.example", true, true),
            ("10.0.0.1", true, true),
            ("broker.example:8080", true, false),
            ("10.0.0.1:80", true, false),
            ("[2001:db8::1]", true, false),
            ("[2001:db8::1]:443", true, false),
            ("2001:db8::1", true, true),
            ("broker.example:0", false, false),
            ("broker.example:99999", false, false),
            ("broker.example:+1", false, false),
            ("[2001:db8::1]x", false, false),
            ("10.0.0.256", false, false),
            ("-a.example", false, false),
            ("a..example", false, false),
            ("*.example", false, false),
            ("a/b", false, false),
            ("user@a", false, false),
        ] {
            let check = HttpCheck { host: Some(host.into()), ..HttpCheck::default() };
            assert_eq!(http(false, check.clone()).is_ok(), in_http, "http, {host}");
            assert_eq!(http(true, check).is_ok(), in_https, "https, {host}");
        }
    }

    #[test]
    fn an_http_check_accepts_some_status_and_looks_for_some_text() {
        let none = HttpCheck { status: vec![], ..HttpCheck::default() };
        assert_eq!(
            complaint(http(false, none)),
            "health.status: an empty list accepts no answer; name codes in 100..=599"
        );
        let low = HttpCheck { status: vec![200, 99], ..HttpCheck::default() };
        assert_eq!(complaint(http(false, low)), "health.status: 99 is not in 100..=599");
        let text = |text: String| HttpCheck { body_contains: Some(text), ..HttpCheck::default() };
        assert_eq!(http(false, text("x".repeat(1024))), Ok(()));
        assert!(http(false, text("x".repeat(1025))).is_err());
        assert!(http(false, text(String::new())).is_err());
    }

    #[test]
    fn an_mqtt_client_id_is_plain_and_short() {
        let longest = "x".repeat(64);
        for (client_id, good) in [
            ("drover-probe", true),
            ("A.b_9", true),
            (longest.as_str(), true),
            ("", false),
            ("a/b", false),
            ("a#", false),
        ] {
            let mut vip = vip("192.0.2.1");
            let mqtt = MqttCheck { client_id: client_id.into(), ..MqttCheck::default() };
            vip.health = Some(HealthCheck::new(CheckKind::Mqtt(mqtt)));
            assert_eq!(vip.validate().is_ok(), good, "{client_id:?}");
        }
    }

    #[test]
    fn a_node_names_a_possible_interface_and_possible_sources() {
        let node = |interface: &str| Node::new("lb-1".parse().unwrap(), interface);
        for (interface, good) in [
            ("eth0", true),
            ("eth0.100", true),
            ("enp0s31f6", true),
            ("fifteen-bytes-x", true), //
            ("", false),
            ("sixteen-bytes-xx", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("a:1", false),
        ] {
            assert_eq!(node(interface).validate().is_ok(), good, "{interface:?}");
        }
        let mut sources = node("eth0");
        sources.source_v4 = Some([224, 0, 0, 1].into());
        sources.source_v6 = "fe80::1".parse().ok();
        assert_eq!(
            complaint(sources.validate()),
            "source_v4: 224.0.0.1 is a multicast address; packets cannot come from there; \
             source_v6: fe80::1 is a link-local address; packets cannot come from there"
        );
    }
}
