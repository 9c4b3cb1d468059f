//! The records of the tree: what version they are of, and that whatever stands in a znode does no harm.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use proptest::prelude::*;
use serde_json::{Value, json};
use zk_schema::tree::{
    Applied, Assignment, Flag, Head, Member, SCHEMA_VERSION, StateRecord, Target, Term, Vote,
};
use zk_schema::{Cluster, Real, RecordError, Vip, from_json, to_json};

fn term() -> Value {
    json!({"node": "lb-1", "term": 7, "since": 1})
}

fn head() -> Value {
    json!({
        "term": 7, "epoch": 40, "targets": 39, "nodes": ["lb-1"],
        "cluster": {"seed": "0123456789abcdef0123456789abcdef"},
        "vips": {"mqtt": {"epoch": 40, "digest": "0011223344556677"}},
    })
}

fn assignment() -> Value {
    json!({
        "term": 7, "epoch": 40, "since": 38, "why": "a test",
        "vip": {"address": "198.51.100.1", "port": 1883, "protocol": "tcp", "new": {"of": "later"}},
        "reals": {"a": {"address": "10.0.0.1"}},
        "weights": {"a": 100},
    })
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn with(mut value: Value, key: &str, field: Value) -> Vec<u8> {
    value[key] = field;
    bytes(&value)
}

#[test]
fn a_record_without_a_version_is_of_the_first_and_what_it_lacks_has_defaults() {
    let read = Head::parse(&bytes(&head())).unwrap();
    assert_eq!((read.settling, read.lagging.len(), read.cluster.table_size), (false, 0, 65_537));
    let read = Assignment::parse(&bytes(&assignment())).unwrap();
    assert_eq!((read.next, read.history.len(), read.reals["a"].weight), (None, 0, 100));
    let real: Real = from_json(&with(json!({"address": "10.0.0.1"}), "version", json!(1))).unwrap();
    assert_eq!(real.extra.len(), 0, "the version is no unknown field");
}

#[test]
fn every_record_is_written_with_its_version() {
    let version = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap()["version"].clone();
    assert_eq!(version(Term::parse(&bytes(&term())).unwrap().bytes().unwrap()), SCHEMA_VERSION);
    assert_eq!(version(Vote::default().bytes().unwrap()), SCHEMA_VERSION);
    assert_eq!(version(to_json(&Cluster::default()).unwrap()), SCHEMA_VERSION);
}

#[test]
fn a_newer_version_is_refused_with_the_mend() {
    let newer = [json!(2), json!(99), json!(0), json!(-1), json!("1"), json!(1.5), json!(null)];
    for version in newer {
        let refusals = [
            Term::parse(&with(term(), "version", version.clone())).unwrap_err(),
            Head::parse(&with(head(), "version", version.clone())).unwrap_err(),
            from_json::<Real>(&with(json!({"address": "10.0.0.1"}), "version", version.clone())).unwrap_err(),
        ];
        for refusal in refusals {
            assert!(matches!(&refusal, RecordError::Newer { found } if *found == version), "{refusal}");
            let text = refusal.to_string();
            assert!(
                text.contains(&format!("schema version {version}")) && text.contains("upgrade"),
                "{text}"
            );
        }
    }
}

#[test]
fn fields_of_later_versions_survive_being_read_and_written() {
    let head = Head::parse(&with(head(), "later", json!([1, 2]))).unwrap();
    let again: Value = serde_json::from_slice(&head.bytes().unwrap()).unwrap();
    assert_eq!(again["later"], json!([1, 2]));
    let assignment = Assignment::parse(&bytes(&assignment())).unwrap();
    let again: Value = serde_json::from_slice(&assignment.bytes().unwrap()).unwrap();
    assert_eq!(again["vip"]["new"], json!({"of": "later"}), "also those of the operators' records within");
    assert_eq!(again["vip"].get("version"), None, "the whole has one version");
}

#[test]
fn what_operators_could_not_write_is_refused_within_assignments_too() {
    let mut bad = assignment();
    bad["vip"]["port"] = json!(70_000);
    let error = Assignment::parse(&bytes(&bad)).unwrap_err().to_string();
    assert!(error.contains("port: 70000"), "{error}");
    let mut bad = assignment();
    bad["reals"] = json!({"Not A Name": {"address": "10.0.0.1"}});
    let error = Assignment::parse(&bytes(&bad)).unwrap_err().to_string();
    assert!(error.contains("Not A Name"), "{error}");
}

#[test]
fn a_record_that_is_too_large_is_neither_read_nor_written() {
    let large = with(term(), "node", json!("x".repeat(600 * 1024)));
    assert!(matches!(Term::parse(&large), Err(RecordError::TooLarge { .. })));
    let mut vote = Vote::default();
    for number in 0..20_000 {
        vote.unknown.insert(Target {
            vip: "mqtt".parse().unwrap(),
            real: format!("broker-number-{number}").parse().unwrap(),
        });
    }
    let error = vote.bytes().unwrap_err().to_string();
    assert!(error.contains("bytes; such a record has at most"), "{error}");
}

#[test]
fn the_digest_is_that_of_the_bytes() {
    // FNV-1a's published values for 64 bits.
    assert_eq!(Assignment::digest(b""), "cbf29ce484222325");
    assert_eq!(Assignment::digest(b"a"), "af63dc4c8601ec8c");
    assert_eq!(Assignment::digest(b"foobar"), "85944171f73967e8");
}

#[test]
fn a_flag_counts_from_being_there_until_its_end_whatever_stands_in_it() {
    for content in [&b""[..], b"yes", b"{}", b"[]", b"{\"until\":\"soon\"}"] {
        assert!(Flag::read(content).counts(u64::MAX), "{content:?}");
    }
    let flag = Flag::read(br#"{"by":"anna","why":"disk","until":1000}"#);
    assert_eq!((flag.by.as_str(), flag.counts(999), flag.counts(1000)), ("anna", true, false));
}

fn parse_all(bytes: &[u8]) {
    let _ = Term::parse(bytes);
    let _ = Head::parse(bytes);
    let _ = Assignment::parse(bytes);
    let _ = Member::parse(bytes);
    let _ = Vote::parse(bytes);
    let _ = Applied::parse(bytes);
    let _ = Flag::read(bytes);
    let _ = from_json::<Cluster>(bytes);
    let _ = from_json::<Vip>(bytes);
    let _ = from_json::<Real>(bytes);
}

/// Any JSON, not too deep.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z/.0-9é-]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,10}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_stands_in_a_znode_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        parse_all(&bytes);
    }

    #[test]
    fn a_record_with_any_field_replaced_does_no_harm(which in 0..3_usize, field in 0..10_usize, new in value()) {
        let mut record = [term(), head(), assignment()][which].clone();
        let keys: Vec<String> = record.as_object().unwrap().keys().cloned().collect();
        record[&keys[field % keys.len()]] = new;
        parse_all(&bytes(&record));
    }

    #[test]
    fn votes_and_heads_are_read_as_they_were_written(
        targets in any::<u64>(), suspect in any::<bool>(),
        down in prop::collection::btree_map("[a-z]{1,8}", "\\PC{0,40}", 0..6),
    ) {
        let mut vote = Vote { targets, suspect, ..Vote::default() };
        for (real, reason) in down {
            let target = Target { vip: "mqtt".parse().unwrap(), real: real.parse().unwrap() };
            vote.down.insert(target, zk_schema::tree::Finding { since: 1, reason });
        }
        prop_assert_eq!(Vote::parse(&vote.bytes().unwrap()).unwrap(), vote);
    }
}

#[test]
fn a_refusal_repeats_no_control_characters_of_the_record_to_logs_and_terminals() {
    let hostile = br#"{"term":1,"epoch":1,"digest":"","mode":"\u001b[2J\u0007\u007f"}"#;
    let told = Applied::parse(hostile).unwrap_err().to_string();
    assert!(told.contains("[2J") && !told.contains(char::is_control), "{told:?}");
}

#[test]
fn a_number_in_an_unknown_field_is_kept_to_its_last_digit() {
    let flag = Flag::read(br#"{"later":3.3333333333333334e42}"#);
    assert_eq!(flag.extra["later"].to_string(), "3.3333333333333334e+42");
}
