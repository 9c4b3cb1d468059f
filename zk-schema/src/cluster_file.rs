//! The cluster file: all that a standalone node needs to know, in TOML.
//!
//! `docs/cluster-file.md` describes every field.

use crate::NodeName;
use crate::decode::{Decode, Fields, decode};
use crate::problem::{FieldPath, Report, Scope};
use crate::records::{Desired, Node, Vip, VipState};
use crate::validate::{Rules, check_room};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use toml::de::{DeTable, DeValue};

/// What a cluster file says.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterFile {
    /// The node's own settings.
    pub node: Node,
    /// What it is to serve.
    pub desired: Desired,
}

impl ClusterFile {
    /// Reads and validates a file's text. `name` is what messages call the file.
    ///
    /// # Errors
    ///
    /// All problems by line. An unknown field is one, so that no misspelt setting passes for its default.
    pub fn parse(text: &str, name: &str) -> Result<Self, ClusterFileError> {
        let refused = |mut problems: Vec<FileProblem>| {
            problems.sort_by_key(|problem| (problem.line, problem.column));
            ClusterFileError { file: name.to_owned(), problems }
        };
        let lines = Lines::of(text);
        let (document, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let problem = |error: &toml::de::Error| {
                let (line, column) = lines.position(error.span().map_or(0, |span| span.start));
                FileProblem { line, column, field: None, message: error.message().to_owned() }
            };
            return Err(refused(errors.iter().map(problem).collect()));
        }
        let mut places = Places::default();
        let object = places.table(document.get_ref(), &FieldPath::default());

        let mut report = Report::default();
        let file: Self = decode(&object, &mut report);
        file.check(&mut Scope::top(&mut report));
        let (problems, unknown) = report.into_parts();

        let located = |offset, field: &FieldPath, message| {
            let (line, column) = lines.position(offset);
            FileProblem { line, column, field: Some(field.clone()), message }
        };
        let mut found: Vec<FileProblem> = problems
            .iter()
            .map(|problem| located(places.of_value(&problem.field), &problem.field, problem.message.clone()))
            .collect();
        found.extend(
            unknown.iter().map(|field| located(places.of_key(&field.field), &field.field, field.message())),
        );
        if found.is_empty() { Ok(file) } else { Err(refused(found)) }
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
        let mut vips = toml::Table::new();
        for (name, state) in &self.desired.vips {
            let mut vip = toml::Table::try_from(&state.vip)?;
            vip.insert("reals".into(), toml::Value::try_from(&state.reals)?);
            vips.insert(name.to_string(), vip.into());
        }
        let mut file = toml::Table::new();
        file.insert("node".into(), toml::Value::try_from(&self.node)?);
        file.insert("cluster".into(), toml::Value::try_from(&self.desired.cluster)?);
        file.insert("vips".into(), vips.into());
        toml::to_string(&file)
    }
}

impl Decode for ClusterFile {
    fn decode(fields: &mut Fields<'_>) -> Self {
        let node = fields.required_table("node", "a table with at least `name` and `interface`");
        let node = node.unwrap_or_else(|| {
            let name: NodeName = "missing".parse().expect("is a name");
            Node::new(name, "missing")
        });
        let cluster = fields.table("cluster", Decode::decode).unwrap_or_default();
        let vips = fields.tables("vips", |fields| VipState {
            vip: Vip::decode(fields),
            reals: fields.tables("reals", Decode::decode),
        });
        Self { node, desired: Desired { cluster, vips } }
    }
}

impl Rules for ClusterFile {
    fn check(&self, scope: &mut Scope<'_>) {
        self.node.check(&mut scope.at("node"));
        self.desired.check(scope);
        check_room(scope, &self.node.capacity, &self.desired.vips);
    }
}

/// One thing that is wrong with a cluster file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProblem {
    /// Line, from 1. Of a field that is missing, the line of the table that should have it.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The field; `None` where the text is not TOML.
    pub field: Option<FieldPath>,
    /// Its value, what is wrong with it and what would be right.
    pub message: String,
}

/// All that is wrong with a cluster file, by line. Displays as one line for each problem:
/// `cluster.toml:14:10: vips.publish.reals.broker-1.weight: 70000 is not in 0..=65535`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ClusterFileError {
    /// What the file was called.
    pub file: String,
    /// The problems, by line; never empty.
    pub problems: Vec<FileProblem>,
}

impl fmt::Display for ClusterFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{}:{}: ", self.file, problem.line, problem.column)?;
            if let Some(field) = &problem.field {
                write!(f, "{field}: ")?;
            }
            f.write_str(&problem.message)?;
        }
        Ok(())
    }
}

/// Where in the text the keys and values stand, in bytes.
#[derive(Default)]
struct Places(BTreeMap<FieldPath, Place>);

struct Place {
    key: usize,
    value: usize,
}

impl Places {
    /// The table as JSON, each of its fields noted.
    fn table(&mut self, table: &DeTable<'_>, path: &FieldPath) -> Map<String, Value> {
        let mut object = Map::new();
        for (key, value) in table {
            let path = path.join(key.get_ref());
            let json = self.value(value.get_ref(), &path);
            // A problem of a whole table is best shown where its header names it.
            let start = if json.is_object() { key.span().start } else { value.span().start };
            self.0.insert(path, Place { key: key.span().start, value: start });
            object.insert(key.get_ref().to_string(), json);
        }
        object
    }

    fn value(&mut self, value: &DeValue<'_>, path: &FieldPath) -> Value {
        match value {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Boolean(flag) => Value::Bool(*flag),
            // A number that no field takes need only remain one, to be refused.
            DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) => number.into(),
                Err(_) => integer.as_str().parse::<f64>().unwrap_or(f64::MAX).into(),
            },
            DeValue::Float(float) => {
                let number = float.as_str().parse::<f64>().ok().filter(|number| number.is_finite());
                number.map_or_else(|| Value::String(float.as_str().to_owned()), Value::from)
            }
            DeValue::Datetime(datetime) => Value::String(datetime.to_string()),
            DeValue::Array(array) => {
                array.iter().map(|element| self.value(element.get_ref(), path)).collect()
            }
            DeValue::Table(table) => Value::Object(self.table(table, path)),
        }
    }

    fn of_value(&self, field: &FieldPath) -> usize {
        self.nearest(field).map_or(0, |place| place.value)
    }

    fn of_key(&self, field: &FieldPath) -> usize {
        self.nearest(field).map_or(0, |place| place.key)
    }

    /// The place of the field or, if it is not in the text, of the innermost table around it that is.
    fn nearest(&self, field: &FieldPath) -> Option<&Place> {
        let outwards = std::iter::successors(Some(field.clone()), FieldPath::parent);
        outwards.into_iter().find_map(|field| self.0.get(&field))
    }
}

/// Where the lines of a text begin.
struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(newline, _)| newline + 1);
        Self { text, starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// Line and column, both from 1, of a byte of the text.
    fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|&start| start <= offset).max(1);
        let before = self.text.get(self.starts[line - 1]..offset).unwrap_or_default();
        (line, before.chars().count() + 1)
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
