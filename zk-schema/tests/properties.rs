//! Tests that what is written is read back the same, and no input whatever makes reading panic.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde_json::{Map, Value};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use zk_schema::{
    Affinity, Capacity, CheckKind, Cluster, ClusterFile, Desired, Encapsulation, Extra, HealthCheck,
    HttpCheck, Limits, MacAddress, MqttCheck, MqttVersion, Node, ProbePath, Protocol, Real, RealName, Record,
    RecordError, Unserved, Vip, VipName, VipState, XdpMode, from_json, to_json,
};

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0x0a00_0000_u32..0x0b00_0000).prop_map(|bits| Ipv4Addr::from(bits).into()),
        any::<u64>().prop_map(|low| Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(low)).into()),
    ]
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(".{0,8}", inner, 0..4)
                .prop_map(|fields| fields.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}

/// Fields of a version to come, which no version has had.
fn extra() -> impl Strategy<Value = Extra> {
    btree_map("future_[a-z]{0,4}", json(), 0..3)
}

fn limits() -> impl Strategy<Value = Limits> {
    let rate = || 0..=100_000_000_u32;
    let v4 = prop_oneof![Just(0), 8..=32_u8];
    let v6 = prop_oneof![Just(0), 16..=64_u8];
    let prefix = (0..=100_000_u32).prop_flat_map(|rate| {
        let most = if rate == 0 { 100_000_000 } else { rate.saturating_mul(2_000).min(100_000_000) };
        (Just(rate), 0..=most)
    });
    let packets = (0..=1_000_000_u32).prop_flat_map(|rate| {
        let most = if rate == 0 { 100_000_000 } else { rate.saturating_mul(120).min(100_000_000) };
        (Just(rate), 0..=most)
    });
    let connections = (rate(), rate(), prefix, v4, v6);
    (connections, (rate(), rate()), packets).prop_map(|(connections, (packets, packet_burst), per_prefix)| {
        let (rate, burst, (prefix_rate, prefix_burst), v4, v6) = connections;
        Limits {
            connections_per_second: rate,
            burst,
            connections_per_second_per_prefix: prefix_rate,
            prefix_burst,
            prefix_length_v4: v4,
            prefix_length_v6: v6,
            packets_per_second: packets,
            packet_burst,
            packets_per_second_per_prefix: per_prefix.0,
            prefix_packet_burst: per_prefix.1,
        }
    })
}

fn http() -> impl Strategy<Value = HttpCheck> {
    let host = option::of("[a-z0-9]{1,20}(\\.[a-z]{1,9}){0,3}\\.[a-z]");
    let body = option::of("\\PC{1,64}");
    ("/[!-\"$-~]{0,40}", host, vec(100..=599_u16, 1..5), body, any::<bool>()).prop_map(
        |(target, host, status, body_contains, verify_tls)| HttpCheck {
            target,
            host,
            status,
            body_contains,
            verify_tls,
        },
    )
}

fn check_kind() -> impl Strategy<Value = CheckKind> {
    let version = prop_oneof![Just(MqttVersion::V311), Just(MqttVersion::V5)];
    prop_oneof![
        Just(CheckKind::Tcp),
        http().prop_map(CheckKind::Http),
        http().prop_map(CheckKind::Https),
        (version, "[A-Za-z0-9._-]{1,64}")
            .prop_map(|(version, client_id)| CheckKind::Mqtt(MqttCheck { version, client_id })),
    ]
}

fn health() -> impl Strategy<Value = HealthCheck> {
    let path = prop_oneof![Just(ProbePath::Tunnel), Just(ProbePath::Direct)];
    let times = (100..=3_600_000_u32).prop_flat_map(|interval| (Just(interval), 10..=interval.min(60_000)));
    // A port of its own makes the check fit every VIP.
    (check_kind(), 1..=65_535_u16, path, times, 1..=100_u32, 1..=100_u32).prop_map(
        |(kind, port, path, (interval_ms, timeout_ms), healthy_threshold, unhealthy_threshold)| HealthCheck {
            kind,
            port: Some(port),
            path,
            interval_ms,
            timeout_ms,
            healthy_threshold,
            unhealthy_threshold,
        },
    )
}

fn vip() -> impl Strategy<Value = Vip> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    // Without l2, whose reals must be of the VIP's family.
    let encapsulation = prop_oneof![Just(Encapsulation::Gue), Just(Encapsulation::Ipip)];
    let affinity = prop_oneof![Just(Affinity::Flow), Just(Affinity::Source)];
    let service = (address(), any::<u16>(), protocol);
    (service, encapsulation, affinity, option::of(health()), limits(), 0..=100_u8, extra()).prop_map(
        |((address, port, protocol), encapsulation, affinity, health, limits, panic_threshold, extra)| Vip {
            address,
            port,
            protocol,
            encapsulation,
            affinity,
            health,
            limits,
            panic_threshold,
            extra,
        },
    )
}

fn real() -> impl Strategy<Value = Real> {
    (address(), any::<u16>(), extra()).prop_map(|(address, weight, extra)| Real { address, weight, extra })
}

fn cluster() -> impl Strategy<Value = Cluster> {
    (any::<u128>(), prop_oneof![Just(65_537), Just(655_373)], extra())
        .prop_map(|(seed, table_size, extra)| Cluster { seed: seed.into(), table_size, extra })
}

fn node() -> impl Strategy<Value = Node> {
    let mode = prop_oneof![Just(XdpMode::Auto), Just(XdpMode::Native), Just(XdpMode::Generic)];
    let sources = (option::of(0x0a00_0000_u32..0x0b00_0000), option::of(any::<u64>()));
    let capacity = (8..=4096_u32, 32..=1_000_000_u32, prop_oneof![Just(0), 9..=8192_u32])
        .prop_map(|(vips, reals, tables)| Capacity { vips, reals, tables });
    // Beyond the loopback, it needs a token.
    let admin = (address(), any::<u16>()).prop_map(SocketAddr::from);
    let tls = option::of("/[a-z]{1,9}".prop_map(PathBuf::from));
    let admin = (admin, tls);
    (
        ("[a-z0-9]{1,63}", "[a-z0-9.@-]{0,14}[a-z]"),
        mode,
        sources,
        1..=65_535_u16,
        admin,
        1..=10_000_u32,
        capacity,
    )
        .prop_map(
            |((name, interface), xdp_mode, (v4, v6), gue_port, (admin, tls), probes_in_flight, capacity)| {
                Node {
                    name: name.parse().expect("made of what names are made of"),
                    interface,
                    xdp_mode,
                    source_v4: v4.map(Ipv4Addr::from),
                    source_v6: v6.map(|low| Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(low))),
                    gue_port,
                    unserved: if gue_port % 2 == 0 { Unserved::Drop } else { Unserved::Pass },
                    accept_macs: (0..gue_port % 9)
                        .map(|n| MacAddress([2, 0, 0, 0, n.to_be_bytes()[1], 7]))
                        .collect(),
                    admin,
                    admin_token_file: Some("/etc/drover/token".into()),
                    admin_tls_cert: tls.clone(),
                    admin_tls_key: tls.clone(),
                    admin_tls_client_ca: tls,
                    probes_in_flight,
                    capacity,
                }
            },
        )
}

fn cluster_file() -> impl Strategy<Value = ClusterFile> {
    let reals = btree_map("[a-z]([a-z0-9-]{0,9}[a-z0-9])?", real(), 0..4).prop_map(|reals| {
        reals.into_iter().map(|(name, real)| (name.parse::<RealName>().expect("a name"), real)).collect()
    });
    let state = (vip(), reals).prop_map(|(vip, reals)| VipState { vip, reals });
    let vips = btree_map("[a-z]([a-z0-9-]{0,9}[a-z0-9])?", state, 0..4).prop_map(|vips| {
        vips.into_iter().map(|(name, vip)| (name.parse::<VipName>().expect("a name"), vip)).collect()
    });
    let file = (node(), cluster(), vips).prop_map(|(node, cluster, vips)| {
        let mut file = ClusterFile { node, desired: Desired { cluster, vips } };
        // TOML has no place for fields of a version to come.
        file.desired.cluster.extra.clear();
        for state in file.desired.vips.values_mut() {
            state.vip.extra.clear();
            state.reals.values_mut().for_each(|real| real.extra.clear());
        }
        file
    });
    file.prop_filter("two hosts drew one address", |file| file.validate().is_ok())
}

fn reads_back<T: Record + PartialEq + std::fmt::Debug>(record: &T) -> Result<(), TestCaseError> {
    let json = to_json(record).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert!(!json.contains(&b'\n'), "a znode's record is one line");
    let read = from_json::<T>(&json).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(&read, record);
    Ok(())
}

/// Bytes that look enough like a record to get past the parser.
fn near_record() -> impl Strategy<Value = Vec<u8>> {
    let key = prop_oneof![
        proptest::sample::select(vec![
            "address",
            "port",
            "protocol",
            "encapsulation",
            "affinity",
            "health",
            "limits",
            "panic_threshold",
            "weight",
            "seed",
            "table_size",
            "type",
            "interval_ms",
            "timeout_ms",
            "status",
            "target",
            "host",
            "client_id",
            "burst",
            "prefix_length_v4",
        ])
        .prop_map(str::to_owned),
        ".{0,4}",
    ];
    let leaf = prop_oneof![
        json(),
        any::<f64>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        address().prop_map(|address| address.to_string().into()),
        proptest::sample::select(vec!["tcp", "udp", "l2", "http", "https", "mqtt", "5", "/", "::"])
            .prop_map(Value::from),
    ];
    let table = move |inner| btree_map(key.clone(), inner, 0..8).prop_map(|t| Value::from(Map::from_iter(t)));
    let value = leaf.prop_recursive(3, 64, 8, table.clone());
    table(value.boxed()).prop_map(|value| value.to_string().into_bytes())
}

fn read_all(bytes: &[u8]) -> [Result<(), RecordError>; 3] {
    [
        from_json::<Vip>(bytes).map(drop),
        from_json::<Real>(bytes).map(drop),
        from_json::<Cluster>(bytes).map(drop),
    ]
}

proptest! {
    #[test]
    fn vips_are_read_back_as_written(vip in vip()) {
        reads_back(&vip)?;
    }

    #[test]
    fn reals_are_read_back_as_written(real in real()) {
        reads_back(&real)?;
    }

    #[test]
    fn clusters_are_read_back_as_written(cluster in cluster()) {
        reads_back(&cluster)?;
    }

    #[test]
    fn cluster_files_are_read_back_as_written(file in cluster_file()) {
        let text = file.to_toml().map_err(|error| TestCaseError::fail(error.to_string()))?;
        let read = ClusterFile::parse(&text, "file").map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(read, file);
    }

    #[test]
    fn no_bytes_make_reading_panic(bytes in vec(any::<u8>(), 0..512)) {
        // Chance does not make a VIP or a real, whose addresses must be there.
        let [vip, real, _] = read_all(&bytes);
        prop_assert!(vip.is_err() && real.is_err());
        let _ = ClusterFile::parse(&String::from_utf8_lossy(&bytes), "file");
    }

    #[test]
    fn nothing_that_resembles_a_record_makes_reading_panic(bytes in near_record()) {
        for error in read_all(&bytes).into_iter().filter_map(Result::err) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn a_cluster_file_cut_or_garbled_anywhere_is_refused_with_a_line_or_read(
        file in cluster_file(), at in any::<proptest::sample::Index>(), instead in "\\PC{0,3}", length in 0..20_usize,
    ) {
        let text: Vec<char> = file.to_toml().map_err(|error| TestCaseError::fail(error.to_string()))?.chars().collect();
        let start = at.index(text.len());
        let end = (start + length).min(text.len());
        let garbled: String = text[..start].iter().copied().chain(instead.chars()).chain(text[end..].iter().copied()).collect();
        if let Err(error) = ClusterFile::parse(&garbled, "file") {
            let lines = garbled.lines().count() + 1;
            prop_assert!(!error.problems.is_empty());
            prop_assert!(error.problems.iter().all(|p| (1..=lines).contains(&p.line) && p.column >= 1), "{}", error);
        }
    }
}
