//! How each record is read, field by field.

use crate::allowed;
use crate::fields::fields;
use crate::reader::{Decode, Fields, one_of};
use crate::records::{
    Capacity, CheckKind, Cluster, Extra, HealthCheck, HttpCheck, Limits, MqttCheck, Node, Protocol, Real,
    TABLE_SIZES, Vip, VipState,
};
use std::iter;
use std::net::{IpAddr, Ipv4Addr};

const ADDRESS: &str = "an IPv4 or IPv6 address";

/// Takes the place of an address that is missing or refused.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl Decode for Cluster {
    fn decode(fields: &mut Fields<'_>) -> Self {
        let default = Self::default();
        let table_size = fields.value("table_size").map_or(default.table_size, |value| {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.unwrap_or_else(|| {
                fields.refuse("table_size", value, &allowed::table_size());
                TABLE_SIZES[0]
            })
        });
        let seed = fields.named("seed");
        Self { seed: seed.unwrap_or(default.seed), table_size, extra: Extra::new() }
    }
}

impl Decode for Vip {
    fn decode(fields: &mut Fields<'_>) -> Self {
        fields.require("address", ADDRESS);
        fields.require("port", "the port that clients use, or 0 for all ports");
        fields.require("protocol", "tcp or udp");
        let address = fields.parsed("address", ADDRESS).unwrap_or(NO_ADDRESS);
        let port = fields.number("port", allowed::PORT_OR_ALL).unwrap_or_default();
        let mut vip = Self::new(address, port, fields.word("protocol").unwrap_or(Protocol::Tcp));
        vip.read_fields(fields);
        vip.health = fields.table("health", HealthCheck::decode);
        vip.limits = fields.table("limits", Limits::decode).unwrap_or_default();
        vip
    }
}

fields!(Vip { word encapsulation, word affinity, number panic_threshold in PERCENT });

impl Decode for Real {
    fn decode(fields: &mut Fields<'_>) -> Self {
        fields.require("address", ADDRESS);
        let mut real = Self::new(fields.parsed("address", ADDRESS).unwrap_or(NO_ADDRESS));
        real.read_fields(fields);
        real
    }
}

fields!(Real { number weight in WEIGHT });

impl Decode for Limits {
    fn decode(fields: &mut Fields<'_>) -> Self {
        let mut limits = Self::default();
        limits.read_fields(fields);
        limits
    }
}

fields!(Limits {
    number connections_per_second in RATE,
    number burst in RATE,
    number connections_per_second_per_prefix in PREFIX_RATE,
    number prefix_burst in RATE,
    number prefix_length_v4 in PREFIX_V4,
    number prefix_length_v6 in PREFIX_V6,
    number packets_per_second in RATE,
    number packet_burst in RATE,
    number packets_per_second_per_prefix in PREFIX_PACKET_RATE,
    number prefix_packet_burst in RATE,
});

impl Decode for HealthCheck {
    fn decode(fields: &mut Fields<'_>) -> Self {
        let mut check = Self::new(check_kind(fields));
        check.read_fields(fields);
        if !fields.has("timeout_ms") {
            // A check that is to run more often than the default timeout need not say that it also gives up earlier.
            check.timeout_ms = check.timeout_ms.min(check.interval_ms);
        }
        check
    }
}

fields!(HealthCheck {
    optional_number port in PORT,
    word path,
    number interval_ms in INTERVAL_MS,
    number timeout_ms in TIMEOUT_MS,
    number healthy_threshold in IN_A_ROW,
    number unhealthy_threshold in IN_A_ROW,
});

impl HealthCheck {
    /// The fields that checks of every type have.
    pub fn common_fields() -> impl Iterator<Item = &'static str> {
        iter::once("type").chain(Self::FIELDS.iter().map(|(name, _)| *name))
    }
}

impl VipState {
    /// Whether a field of a VIP, a real, a health check or limits holds text, by the last part of its name: `"5"` is then
    /// written with quotes.
    #[must_use]
    pub fn holds_text(field: &str) -> bool {
        const RECORDS: [&[(&str, bool)]; 6] = [
            Vip::FIELDS,
            Real::FIELDS,
            Limits::FIELDS,
            HealthCheck::FIELDS,
            HttpCheck::FIELDS,
            MqttCheck::FIELDS,
        ];
        ["address", "protocol", "type"].contains(&field)
            || RECORDS.iter().any(|fields| fields.contains(&(field, true)))
    }
}

/// The check's type and, since they share its table, the fields that only this type has.
fn check_kind(fields: &mut Fields<'_>) -> CheckKind {
    const TYPES: [&str; 4] = ["tcp", "http", "https", "mqtt"];
    fields.require("type", &format!("one of {}", TYPES.join(", ")));
    let Some(value) = fields.value("type") else {
        fields.rest_is_known = true; // which fields belong is known only with the type
        return CheckKind::Tcp;
    };
    match value.as_str().unwrap_or_default() {
        "tcp" => CheckKind::Tcp,
        "http" => CheckKind::Http(HttpCheck::decode(fields)),
        "https" => CheckKind::Https(HttpCheck::decode(fields)),
        "mqtt" => CheckKind::Mqtt(MqttCheck::decode(fields)),
        other => {
            fields.refuse("type", value, &one_of(other, &TYPES));
            fields.rest_is_known = true;
            CheckKind::Tcp
        }
    }
}

impl Decode for HttpCheck {
    fn decode(fields: &mut Fields<'_>) -> Self {
        let mut check = Self::default();
        check.read_fields(fields);
        check.status = fields.numbers("status", allowed::STATUS).unwrap_or(check.status);
        check
    }
}

fields!(HttpCheck { text target, optional_text host, optional_text body_contains, flag verify_tls });

impl Decode for MqttCheck {
    fn decode(fields: &mut Fields<'_>) -> Self {
        let mut check = Self::default();
        check.read_fields(fields);
        check
    }
}

fields!(MqttCheck { word version, text client_id });

impl Decode for Node {
    fn decode(fields: &mut Fields<'_>) -> Self {
        fields.require("name", "a name for this node, unique in the cluster");
        fields.require("interface", "the interface that clients' packets arrive on");
        let stand_in = || "missing".parse().expect("is a name");
        let name = fields.named("name").unwrap_or_else(stand_in);
        let mut node = Self::new(name, fields.text("interface").unwrap_or_default());
        node.source_v4 = fields.parsed("source_v4", "an IPv4 address");
        node.source_v6 = fields.parsed("source_v6", "an IPv6 address");
        node.read_fields(fields);
        node.accept_macs =
            fields.list("accept_macs", "a MAC address, such as 02:00:5e:10:00:01").unwrap_or_default();
        node.admin = fields
            .parsed("admin", "an address with a port, such as 127.0.0.1:9940 or [::1]:9940")
            .unwrap_or(node.admin);
        node.capacity = fields.table("capacity", Capacity::decode).unwrap_or_default();
        node
    }
}

fields!(Node {
    word xdp_mode,
    number gue_port in PORT,
    word unserved,
    optional_path admin_token_file,
    optional_path admin_tls_cert,
    optional_path admin_tls_key,
    optional_path admin_tls_client_ca,
    number probes_in_flight in PROBES_IN_FLIGHT,
});

impl Node {
    /// The table `node`, which a configuration file must have.
    pub(crate) fn required(fields: &mut Fields<'_>) -> Self {
        let node = fields.required_table("node", "a table with at least `name` and `interface`");
        node.unwrap_or_else(|| Self::new("missing".parse().expect("is a name"), "missing"))
    }
}

impl Decode for Capacity {
    fn decode(fields: &mut Fields<'_>) -> Self {
        let mut capacity = Self::default();
        capacity.read_fields(fields);
        capacity
    }
}

fields!(Capacity {
    number vips in CAPACITY_VIPS,
    number reals in CAPACITY_REALS,
    number tables in CAPACITY_TABLES,
});
