//! `docs/cluster-file.md` says what the code does.

use std::collections::BTreeSet;
use zk_schema::{ClusterFile, Node, VipState};

const DOCUMENT: &str = include_str!("../../docs/cluster-file.md");

fn example() -> &'static str {
    let (_, rest) = DOCUMENT.split_once("```toml\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("an end of the example");
    example
}

/// The keys in `table` and below that are no names of VIPs or reals.
fn fields(table: &toml::Table, found: &mut BTreeSet<String>) {
    for (key, value) in table {
        match value.as_table() {
            Some(inner) if key == "vips" || key == "reals" => {
                inner.values().filter_map(toml::Value::as_table).for_each(|named| fields(named, found));
            }
            Some(inner) => fields(inner, found),
            None => {
                found.insert(key.clone());
            }
        }
    }
}

fn fields_of(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    fields(&text.parse().expect("TOML"), &mut found);
    found
}

#[test]
fn the_example_is_valid() {
    let file = ClusterFile::parse(example(), "example").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(file.desired.vips.values().map(|state: &VipState| state.reals.len()).sum::<usize>(), 5);
}

#[test]
fn the_example_shows_every_field_and_the_reference_explains_it() {
    let file = ClusterFile::parse(example(), "example").unwrap_or_else(|error| panic!("{error}"));
    let all = fields_of(&file.to_toml().expect("serialises"));
    assert_eq!(fields_of(example()), all);
    for field in all {
        assert!(DOCUMENT.contains(&format!("\n| `{field}` | ")), "{field} has no row in the reference");
    }
}

#[test]
fn the_documented_defaults_of_a_node_are_the_codes() {
    let node = Node::new("lb-1".parse().expect("a name"), "eth0");
    let rows = [
        ("xdp_mode", format!("`{}`", node.xdp_mode)),
        ("gue_port", node.gue_port.to_string()),
        ("admin", format!("`{}`", node.admin)),
        ("probes_in_flight", node.probes_in_flight.to_string()),
        ("vips", node.capacity.vips.to_string()),
        ("reals", node.capacity.reals.to_string()),
        ("tables", node.capacity.slot_tables().to_string()),
    ];
    for (field, default) in rows {
        let row = DOCUMENT.lines().find(|line| line.starts_with(&format!("| `{field}` |"))).expect("a row");
        assert_eq!(row.split('|').nth(3).map(str::trim), Some(default.as_str()), "{field}");
    }
}
