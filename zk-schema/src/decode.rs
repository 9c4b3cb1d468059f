//! Reading records out of parsed JSON or TOML.
//!
//! Every record is read to its end whatever is wrong with it: a field that is missing or refused is put on the
//! report and a stand-in takes its place, so that all problems are listed at once. The caller looks at the report
//! before it looks at the record.

use crate::fields::fields;
use crate::problem::{Report, Scope, nearest, shown};
use crate::records::{
    Capacity, CheckKind, Cluster, Extra, HealthCheck, HttpCheck, Limits, MqttCheck, Node, Protocol, Real,
    TABLE_SIZES, Vip, VipState, Words,
};
use crate::validate::{Allowed, allowed};
use serde_json::{Map, Value};
use std::iter;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// A record that can be read.
pub(crate) trait Decode: Sized {
    /// Reads the record's fields; see the module's introduction.
    fn decode(fields: &mut Fields<'_>) -> Self;
}

/// The fields of one table while they are read.
pub(crate) struct Fields<'a> {
    scope: Scope<'a>,
    object: &'a Map<String, Value>,
    known: Vec<&'static str>,
    rest_is_known: bool,
}

/// Reads all of `object` as one record.
pub(crate) fn decode<T: Decode>(object: &Map<String, Value>, report: &mut Report) -> T {
    Fields::read(Scope::top(report), object, T::decode)
}

impl<'a> Fields<'a> {
    fn read<T>(
        scope: Scope<'a>,
        object: &'a Map<String, Value>,
        read: impl FnOnce(&mut Fields<'_>) -> T,
    ) -> T {
        let mut fields = Fields { scope, object, known: Vec::new(), rest_is_known: false };
        let record = read(&mut fields);
        if !fields.rest_is_known {
            for (key, value) in fields.object.iter().filter(|(key, _)| !fields.known.contains(&key.as_str()))
            {
                fields.scope.unknown(key, value, &fields.known);
            }
        }
        record
    }

    /// The field's value; JSON's null counts as absent.
    fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Returns whether the field is there.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(|value| !value.is_null())
    }

    fn refuse(&mut self, key: &str, value: &Value, expected: &str) {
        self.scope.problem(key, format!("{} is not {expected}", shown(value)));
    }

    /// Puts the field on the report if it is absent.
    pub(crate) fn require(&mut self, key: &'static str, expected: &str) {
        if !self.has(key) {
            self.scope.problem(key, format!("missing; it must be {expected}"));
        }
    }

    pub(crate) fn number<T: TryFrom<u32>>(&mut self, key: &'static str, allowed: Allowed) -> Option<T> {
        let value = self.value(key)?;
        let number = whole_number(value, allowed);
        if number.is_none() {
            let whole = if value.is_i64() || value.is_u64() { "" } else { "a whole number " };
            self.refuse(key, value, &format!("{whole}{allowed}"));
        }
        number
    }

    pub(crate) fn word<T: Words>(&mut self, key: &'static str) -> Option<T> {
        let value = self.value(key)?;
        let word = value.as_str().unwrap_or_default();
        let found = T::WORDS.iter().find(|(candidate, _)| *candidate == word);
        if found.is_none() {
            let words: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
            self.refuse(key, value, &one_of(word, &words));
        }
        found.map(|(_, value)| *value)
    }

    pub(crate) fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.value(key)?;
        if !value.is_string() {
            self.refuse(key, value, "text in quotes");
        }
        value.as_str().map(str::to_owned)
    }

    pub(crate) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        if !value.is_boolean() {
            self.refuse(key, value, "true or false");
        }
        value.as_bool()
    }

    /// A text that stands for something else, e.g. an address.
    pub(crate) fn parsed<T: FromStr>(&mut self, key: &'static str, expected: &str) -> Option<T> {
        let value = self.value(key)?;
        let parsed = value.as_str().and_then(|text| text.parse().ok());
        if parsed.is_none() {
            self.refuse(key, value, expected);
        }
        parsed
    }

    /// A text whose type's own error says what it should be.
    pub(crate) fn named<T: FromStr<Err: std::fmt::Display>>(&mut self, key: &'static str) -> Option<T> {
        match self.text(key)?.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                self.scope.problem(key, error.to_string());
                None
            }
        }
    }

    fn numbers<T: TryFrom<u32>>(&mut self, key: &'static str, allowed: Allowed) -> Option<Vec<T>> {
        let value = self.value(key)?;
        let Some(list) = value.as_array() else {
            self.refuse(key, value, &format!("a list of numbers {allowed}"));
            return None;
        };
        let mut numbers = Vec::with_capacity(list.len());
        for element in list {
            match whole_number(element, allowed) {
                Some(number) => numbers.push(number),
                None => self.refuse(key, element, &format!("a whole number {allowed}")),
            }
        }
        Some(numbers)
    }

    /// A list of texts that stand for something else.
    fn list<T: FromStr>(&mut self, key: &'static str, expected: &str) -> Option<Vec<T>> {
        let value = self.value(key)?;
        let Some(list) = value.as_array() else {
            self.refuse(key, value, &format!("a list, each of it {expected}"));
            return None;
        };
        let mut parsed = Vec::with_capacity(list.len());
        for element in list {
            match element.as_str().and_then(|text| text.parse().ok()) {
                Some(one) => parsed.push(one),
                None => self.refuse(key, element, expected),
            }
        }
        Some(parsed)
    }

    /// A table within this one.
    pub(crate) fn table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Fields<'_>) -> T,
    ) -> Option<T> {
        let value = self.value(key)?;
        let Some(object) = value.as_object() else {
            self.refuse(key, value, "a table");
            return None;
        };
        Some(Fields::read(self.scope.at(key), object, read))
    }

    /// A table that must be there.
    pub(crate) fn required_table<T: Decode>(&mut self, key: &'static str, what: &str) -> Option<T> {
        self.require(key, what);
        self.table(key, T::decode)
    }

    /// A table of tables by name; those with an invalid name, or that are no tables, go to the report only.
    pub(crate) fn tables<N, T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Fields<'_>) -> T,
    ) -> std::collections::BTreeMap<N, T>
    where
        N: FromStr<Err: std::fmt::Display> + Ord,
    {
        let all = self.table(key, |fields| {
            fields.rest_is_known = true;
            let mut named = std::collections::BTreeMap::new();
            for (key, value) in fields.object {
                let name = key.parse::<N>();
                if let Err(error) = &name {
                    fields.scope.problem(key, error.to_string());
                }
                let Some(object) = value.as_object() else {
                    fields.refuse(key, value, "a table");
                    continue;
                };
                let record = Fields::read(fields.scope.at(key), object, &mut read);
                if let Ok(name) = name {
                    named.insert(name, record);
                }
            }
            named
        });
        all.unwrap_or_default()
    }
}

fn whole_number<T: TryFrom<u32>>(value: &Value, allowed: Allowed) -> Option<T> {
    let number = u32::try_from(value.as_u64()?).ok()?;
    if allowed.contains(number) { T::try_from(number).ok() } else { None }
}

fn one_of(text: &str, words: &[&str]) -> String {
    let hint = nearest(text, words).map(|word| format!("; did you mean `{word}`?")).unwrap_or_default();
    format!("one of {}{hint}", words.join(", "))
}

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
