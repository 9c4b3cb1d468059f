//! The cluster file: all that a standalone node needs to know, in TOML.
//!
//! `docs/cluster-file.md` describes every field.

use crate::VipName;
use crate::file::{FileErrors, parse};
use crate::problem::Scope;
use crate::reader::{Decode, Fields};
use crate::records::{Desired, Node, Vip, VipState};
use crate::validate::{Rules, check_room};
use std::collections::BTreeMap;

/// A cluster file.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterFile {
    /// The node's own settings.
    pub node: Node,
    /// The VIPs and reals that it serves.
    pub desired: Desired,
}

impl ClusterFile {
    /// Reads and validates a file's text. `name` is what messages call the file.
    ///
    /// # Errors
    ///
    /// All problems by line. An unknown field is one, so that no misspelt setting passes for its default.
    pub fn parse(text: &str, name: &str) -> Result<Self, FileErrors> {
        parse(text, name)
    }

    /// Checks every rule.
    ///
    /// # Errors
    ///
    /// All problems, each with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), crate::Problems> {
        self.validated()
    }

    /// Writes the file that [`parse`](Self::parse) reads as this. Fields of newer versions are left out.
    ///
    /// # Errors
    ///
    /// If serialisation fails, which no record of this version causes.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let vips = vips_to_toml(&self.desired.vips)?;
        let mut file = toml::Table::new();
        file.insert("node".into(), toml::Value::try_from(&self.node)?);
        file.insert("cluster".into(), toml::Value::try_from(&self.desired.cluster)?);
        file.insert("vips".into(), vips.into());
        toml::to_string(&file)
    }
}

/// The table `vips`.
pub(crate) fn vips_to_toml(vips: &BTreeMap<VipName, VipState>) -> Result<toml::Table, toml::ser::Error> {
    let mut table = toml::Table::new();
    for (name, state) in vips {
        let mut vip = toml::Table::try_from(&state.vip)?;
        vip.insert("reals".into(), toml::Value::try_from(&state.reals)?);
        table.insert(name.to_string(), vip.into());
    }
    Ok(table)
}

impl Decode for ClusterFile {
    fn decode(fields: &mut Fields<'_>) -> Self {
        let node = Node::required(fields);
        let cluster = fields.table("cluster", Decode::decode).unwrap_or_default();
        let vips = fields.tables("vips", VipState::decode);
        Self { node, desired: Desired { cluster, vips } }
    }
}

impl Decode for VipState {
    fn decode(fields: &mut Fields<'_>) -> Self {
        Self { vip: Vip::decode(fields), reals: fields.tables("reals", Decode::decode) }
    }
}

impl Rules for ClusterFile {
    fn check(&self, scope: &mut Scope<'_>) {
        self.node.check(&mut scope.at("node"));
        self.desired.check(scope);
        check_room(scope, &self.node.capacity, &self.desired.vips);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    const GOOD: &str = r#"[node]
name = "lb-1"
interface = "eth0"

[vips.publish]
address = "198.51.100.10"
port = 1883
protocol = "tcp"

[vips.publish.health]
type = "mqtt"
interval_ms = 500

[vips.publish.reals.broker-1]
address = "10.0.2.11"
weight = 100
"#;

    /// The messages about `GOOD` after one replacement.
    fn refusal(old: &str, new: &str) -> String {
        assert_eq!(GOOD.matches(old).count(), 1, "{old:?} is to be in the text once");
        let text = GOOD.replace(old, new);
        ClusterFile::parse(&text, "cluster.toml").expect_err(new).to_string()
    }

    #[test]
    fn a_file_is_read_with_its_defaults() {
        let file = ClusterFile::parse(GOOD, "cluster.toml").unwrap();
        assert_eq!(file.node, Node::new("lb-1".parse().unwrap(), "eth0"));
        let publish = &file.desired.vips["publish"];
        assert_eq!(publish.vip.health.as_ref().map(|health| health.timeout_ms), Some(500));
        assert_eq!(publish.reals["broker-1"].address.to_string(), "10.0.2.11");
        assert_eq!(file.desired.cluster, crate::Cluster::default());
    }

    #[test]
    fn each_mistake_is_named_with_its_line_column_and_field() {
        for (old, new, expected) in [
            (
                "weight = 100",
                "weight = 70000",
                "16:10: vips.publish.reals.broker-1.weight: 70000 is not in 0..=65535",
            ),
            (
                "weight = 100",
                "weight = \"x\"",
                r#"16:10: vips.publish.reals.broker-1.weight: "x" is not a whole number in 0..=65535"#,
            ),
            (
                "weight = 100",
                "wieght = 100",
                "16:1: vips.publish.reals.broker-1.wieght: unknown field; did you mean `weight`?",
            ),
            (
                "weight = 100",
                "colour = 100",
                "16:1: vips.publish.reals.broker-1.colour: unknown field; known here: address, weight",
            ),
            (
                "weight = 100",
                "weight = 99999999999999999999",
                "16:10: vips.publish.reals.broker-1.weight: 1e+20 is not a whole number in 0..=65535",
            ),
            (
                "port = 1883\n",
                "",
                "5:7: vips.publish.port: missing; it must be the port that clients use, or 0 for all ports",
            ),
            (
                "port = 1883",
                "port = 0",
                "10:15: vips.publish.health.port: missing; the VIP takes all ports, so say which one to probe, in 1..=65535",
            ),
            (
                "protocol = \"tcp\"",
                "protocol = \"udp\"",
                "10:15: vips.publish.health.port: missing; the VIP is UDP, so say which TCP port to probe, in 1..=65535",
            ),
            (
                "198.51.100.10",
                "::ffff:198.51.100.10",
                "6:11: vips.publish.address: ::ffff:198.51.100.10 is an IPv4-mapped address (write it as IPv4); clients cannot reach a VIP there",
            ),
            (
                "interval_ms = 500",
                "interval_ms = 500\ntimeout_ms = 501",
                "13:14: vips.publish.health.timeout_ms: 501 is more than interval_ms, which is 500",
            ),
            (
                "[vips.publish.health]",
                "[vips.publish.haelth]",
                "10:15: vips.publish.haelth: unknown field; did you mean `health`?",
            ),
            (
                "[vips.publish.reals.broker-1]",
                "[vips.publish.reals.\"broker.1\"]",
                "14:21: vips.publish.reals.\"broker.1\": \"broker.1\" is not a name: 1 to 63 lower-case letters, digits and hyphens, with a letter or digit at both ends",
            ),
            ("interface = \"eth0\"", "interface = eth0", "3:13: "),
            (
                "[node]",
                "[nod]",
                "1:1: node: missing; it must be a table with at least `name` and `interface`",
            ),
        ] {
            let found = refusal(old, new);
            assert!(
                found.lines().any(|line| line.starts_with(&format!("cluster.toml:{expected}"))),
                "{expected}\n{found}"
            );
        }
    }

    #[test]
    fn all_mistakes_are_listed_at_once_by_line() {
        let text = GOOD
            .replace("lb-1", "LB")
            .replace("1883", "-1")
            .replace("mqtt", "mqqt")
            .replace("500", "5")
            .replace("weight", "weigth");
        let error = ClusterFile::parse(&text, "cluster.toml").unwrap_err();
        let lines: Vec<usize> = error.problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [2, 7, 11, 12, 16], "{error}");
    }

    #[test]
    fn a_field_of_another_check_is_a_mistake() {
        let found = refusal("interval_ms = 500", "target = \"/\"");
        assert!(found.starts_with("cluster.toml:12:1: vips.publish.health.target: unknown field"), "{found}");
    }

    #[test]
    fn a_refused_value_raises_no_complaints_that_merely_follow_from_it() {
        let found = refusal("interval_ms = 500", "interval_ms = 50\ntimeout_ms = 5000");
        assert_eq!(found, "cluster.toml:12:15: vips.publish.health.interval_ms: 50 is not in 100..=3600000");
        let found = refusal("port = 1883", "port = \"mqtt\"");
        assert_eq!(found, "cluster.toml:7:8: vips.publish.port: \"mqtt\" is not a whole number in 0..=65535");
    }

    #[test]
    fn every_syntax_error_has_a_line() {
        let found = refusal("name = \"lb-1\"", "name = \"lb-1");
        assert!(found.starts_with("cluster.toml:2:"), "{found}");
        let found = refusal("port = 1883", "port = 1883\nport = 1884");
        assert!(found.starts_with("cluster.toml:8:1: "), "{found}");
    }

    #[test]
    fn the_maps_must_have_room_for_what_is_configured() {
        let mut text = GOOD.replace("interface", "capacity = { vips = 1, reals = 2 }\ninterface");
        for i in 1..=127 {
            let address = format!("192.0.2.{i}");
            write!(text, "[vips.v{i}]\naddress = \"{address}\"\nport = 1\nprotocol = \"tcp\"\n").unwrap();
            write!(text, "[vips.v{i}.reals.r]\naddress = \"10.0.0.1\"\n").unwrap();
        }
        assert_eq!(
            ClusterFile::parse(&text, "f").unwrap_err().to_string(),
            "f:3:1: node.capacity.tables: 128 is too little for one for each of the 128 VIPs and one to change them; set it to at least 129\n\
             f:3:21: node.capacity.vips: 1 is too little for the 128 VIPs below; set it to at least 128\n\
             f:3:32: node.capacity.reals: 2 is too little for the 128 reals of all VIPs together; set it to at least 128"
        );
        let text = text.replace("vips = 1, reals = 2", "vips = 128, reals = 128, tables = 129");
        assert!(ClusterFile::parse(&text, "f").is_ok());
    }

    #[test]
    fn nesting_without_end_is_refused() {
        for text in [
            "[".repeat(1 << 20),
            format!("a = {}", "[".repeat(1 << 20)),
            vec!["a"; 1 << 20].join(".") + " = 1",
        ] {
            assert!(ClusterFile::parse(&text, "f").is_err());
        }
    }
}
