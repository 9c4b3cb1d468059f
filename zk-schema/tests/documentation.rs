//! `docs/cluster-file.md`, `docs/node-file.md` and `docs/lbctl.md` say what the code does.

use std::collections::BTreeSet;
use zk_schema::{ClusterFile, Node, NodeFile, OperatorFile, VipState};

const CLUSTER_FILE: &str = include_str!("../../docs/cluster-file.md");
const NODE_FILE: &str = include_str!("../../docs/node-file.md");

const LBCTL: &str = include_str!("../../docs/lbctl.md");

/// The document's complete example.
fn example(document: &str) -> &str {
    let (_, rest) = document.split_once("```toml\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("an end of the example");
    example
}

fn cluster_file() -> ClusterFile {
    ClusterFile::parse(example(CLUSTER_FILE), "example").unwrap_or_else(|error| panic!("{error}"))
}

fn node_file() -> NodeFile {
    NodeFile::parse(example(NODE_FILE), "example").unwrap_or_else(|error| panic!("{error}"))
}

fn operator_file() -> OperatorFile {
    OperatorFile::parse(example(LBCTL), "example").unwrap_or_else(|error| panic!("{error}"))
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

/// Asserts that `shown`, of the document's example, has the fields of `all`, of which nothing was left out, and that
/// each has a row in a table of the reference.
fn assert_complete(document: &str, shown: &str, all: &str) {
    let all = fields_of(all);
    assert_eq!(fields_of(shown), all);
    for field in all {
        assert!(document.contains(&format!("\n| `{field}` | ")), "{field} has no row in the reference");
    }
}

/// Asserts that the field's row in the reference gives this default.
fn assert_default(document: &str, field: &str, default: &str) {
    let row = document.lines().find(|line| line.starts_with(&format!("| `{field}` |"))).expect("a row");
    assert_eq!(row.split('|').nth(3).map(str::trim), Some(default), "{field}");
}

#[test]
fn the_example_of_a_cluster_file_is_valid() {
    let vips = cluster_file().desired.vips;
    assert_eq!(vips.values().map(|state: &VipState| state.reals.len()).sum::<usize>(), 5);
}

#[test]
fn the_example_of_a_node_file_is_valid() {
    assert_eq!(node_file().front.driver, zk_schema::FrontDriver::Bird);
}

#[test]
fn the_examples_show_every_field_and_the_references_explain_it() {
    let all = cluster_file().to_toml().expect("serialises");
    assert_complete(CLUSTER_FILE, example(CLUSTER_FILE), &all);
    // What `[node]` has is explained in the reference of the cluster file.
    let all = node_file().to_toml().expect("serialises");
    let after_node =
        |text: &str| text[text.find("[zookeeper]").expect("the table after the node's")..].to_owned();
    assert_complete(NODE_FILE, &after_node(example(NODE_FILE)), &after_node(&all));
}

#[test]
fn the_example_of_an_operators_file_shows_every_field_and_the_reference_explains_it() {
    let all = toml::to_string(&operator_file()).expect("serialises");
    assert_complete(LBCTL, example(LBCTL), &all);
}

#[test]
fn the_documented_defaults_of_an_operators_file_are_the_codes() {
    let OperatorFile { zookeeper, .. } = OperatorFile::new("zk-1");
    let rows = [
        ("session_timeout_ms", zookeeper.session_timeout_ms.to_string()),
        ("auth", format!("`{}`", zookeeper.auth)),
        ("acl", format!("`{}`", zookeeper.acl)),
    ];
    for (field, default) in rows {
        assert_default(LBCTL, field, &default);
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
        assert_default(CLUSTER_FILE, field, &default);
    }
}

#[test]
fn the_documented_defaults_of_a_node_file_are_the_codes() {
    let NodeFile { zookeeper, front, cluster, .. } =
        NodeFile::new(Node::new("lb-1".parse().expect("a name"), "eth0"), "zk-1");
    let rows = [
        ("session_timeout_ms", zookeeper.session_timeout_ms.to_string()),
        ("auth", format!("`{}`", zookeeper.auth)),
        ("acl", format!("`{}`", zookeeper.acl)),
        ("driver", format!("`{}`", front.driver)),
        ("bird_file", format!("`{}`", front.bird_file.display())),
        ("bird_socket", format!("`{}`", front.bird_socket.display())),
        ("announce_hold_ms", front.announce_hold_ms.to_string()),
        ("withdraw_after_ms", front.withdraw_after_ms.to_string()),
        ("state_dir", format!("`{}`", cluster.state_dir.display())),
        ("autonomy_after_ms", cluster.autonomy_after_ms.to_string()),
        ("drain_wait_ms", cluster.drain_wait_ms.to_string()),
        ("ack_timeout_ms", cluster.ack_timeout_ms.to_string()),
    ];
    for (field, default) in rows {
        assert_default(NODE_FILE, field, &default);
    }
}

/// Reads what stands after each `get` in `docs/znodes.md` as the record of its path, and writes it again.
#[test]
fn the_records_in_the_documentation_of_the_tree_are_such_records() {
    use zk_schema::tree::{Applied, Assignment, Event, Head, Load, Member, StateRecord, Term, Vote};
    use zk_schema::{Cluster, Real, Vip, from_json, to_json};

    fn written<T: StateRecord>(json: &str) -> String {
        let record = T::parse(json.as_bytes()).unwrap_or_else(|error| panic!("{error}: {json}"));
        String::from_utf8(record.bytes().unwrap()).unwrap()
    }
    fn wished<T: zk_schema::Record>(json: &str) -> String {
        let record: T = from_json(json.as_bytes()).unwrap_or_else(|error| panic!("{error}: {json}"));
        String::from_utf8(to_json(&record).unwrap()).unwrap()
    }

    let text = include_str!("../../docs/znodes.md");
    let lines: Vec<&str> = text.lines().collect();
    let mut read = 0;
    for pair in lines.windows(2) {
        let Some(path) = pair[0].strip_prefix("get ").map(|rest| rest.trim_start_matches("-s ")) else {
            continue;
        };
        let json = pair[1];
        let parts: Vec<&str> = path.split('/').skip(2).collect();
        let again = match parts[..] {
            [] => wished::<Cluster>(json),
            ["vips", _] => wished::<Vip>(json),
            ["vips", _, "reals", _] => wished::<Real>(json),
            ["leader"] => written::<Term>(json),
            ["assignments"] => written::<Head>(json),
            ["assignments", vip] => {
                // The digest that the head of the same moment lists.
                if json.contains("\"epoch\":5,\"reals\"") {
                    let digest =
                        format!("\"{vip}\":{{\"digest\":\"{}\"", Assignment::digest(json.as_bytes()));
                    assert!(text.contains(&digest), "{digest}");
                }
                written::<Assignment>(json)
            }
            ["nodes", _] => written::<Member>(json),
            ["health", _] => written::<Vote>(json),
            ["applied", _] => written::<Applied>(json),
            ["load", _, _] => written::<Load>(json),
            ["events", _] => written::<Event>(json),
            _ => panic!("{path}: what is there?"),
        };
        assert_eq!(again, json, "{path}");
        read += 1;
    }
    assert!(read >= 15, "{read}");
}
