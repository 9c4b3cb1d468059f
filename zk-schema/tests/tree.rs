//! The records of the tree: what version they are of, and that whatever stands in a znode does no harm.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use zk_schema::tree::{
    Applied, Assignment, Candidacy, Event, Flag, Head, Load, Member, SCHEMA_VERSION, StateRecord, Target,
    Term, Vote,
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

/// Reads a record, writes it, and returns what was written, which must be what was read with its fields in order.
fn rewritten<T: StateRecord>(record: &Value) -> Value {
    let written = T::parse(&bytes(record)).unwrap().bytes().unwrap();
    let value: Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(String::from_utf8(written).unwrap(), value.to_string(), "fields are not in order");
    value
}

/// Digests are of bytes, and nodes of several versions write the same records.
#[test]
fn records_are_written_with_their_fields_in_alphabetical_order_however_deep() {
    let later = json!({"z": {"b": 1, "a": [null, 1.5, {"d": "\"\u{e9}", "c": u64::MAX}]}, "Z": true, "": 0});
    let extended = |mut record: Value| {
        for (key, value) in [("aaa", &later), ("version", &json!(1)), ("ver", &later), ("zzz", &json!("é\n"))]
        {
            record[key] = value.clone();
        }
        record
    };
    let written = rewritten::<Head>(&extended(head()));
    assert_eq!((&written["version"], &written["aaa"]), (&json!(SCHEMA_VERSION), &later));

    let mut full = assignment();
    full["vip"]["health"] = json!({"type": "http", "zzz": later, "target": "/?a=\"b"});
    full["vip"]["limits"] = json!({"burst": 7, "aaa": later, "packet_burst": 3});
    full["reals"] = json!({"b-1": {"weight": 7, "address": "2001:db8::1", "zzz": later, "aaa": 1}, "b": {"address": "10.0.0.2"}});
    full["next"] = json!({"weights": {"b": 1, "a": 2}, "epoch": 41});
    full["history"] = json!([{"weights": {"b": 1, "a": 2}, "epoch": 37}]);
    (full["held"], full["held_reals"]) = (json!("é \"why\""), json!(["b", "a"]));
    let written = rewritten::<Assignment>(&extended(full));
    assert_eq!(written["reals"]["b-1"]["zzz"], later);

    let finding = json!({"since": 1, "reason": "\u{1}"});
    // As text, `a-b/c` comes before `a/z`; as names, `a` before `a-b`.
    let down = json!({"a/z": finding, "a-b/c": finding});
    rewritten::<Vote>(&json!({"targets": 1, "down": down, "unknown": ["a/z", "a-b/c"], "omitted": 3}));
    let decision = json!({"vip": "v", "text": "t", "real": "r", "kind": "k", "zzz": later, "aaa": later});
    let event = json!({"term": 1, "epoch": 2, "node": "lb-1", "at_ms": 3, "decisions": [decision]});
    rewritten::<Event>(&extended(event));
    rewritten::<Term>(&term());
    rewritten::<Candidacy>(&extended(json!({"node": "lb-1"})));
    rewritten::<Load>(&extended(json!({"connections": 1, "at": 2})));
    rewritten::<Member>(&extended(json!({
        "instance": "i", "boot": "b", "source_v6": "::1", "source_v4": "10.0.0.1", "admin": "[::1]:1", "software": "s",
        "started": 1,
    })));
    rewritten::<Applied>(&extended(json!({
        "term": 1, "epoch": 2, "digest": "d", "mode": "static", "problem": "p", "announced": ["198.51.100.1"],
        "sources": ["10.0.0.1"],
    })));
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

#[test]
fn a_machine_is_another_one_by_another_boot_without_a_common_address_and_is_told_for_a_day() {
    const NOW: u64 = 1_795_234_051;
    let sources =
        |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
    let record = |rest: &str| {
        let text = format!(r#"{{"term":1,"epoch":1,"digest":"","mode":"live"{rest}}}"#);
        Applied::parse(text.as_bytes()).unwrap()
    };
    let before = |rest: &str, boot: &str, own: &[&str]| record(rest).predecessor(boot, &sources(own), NOW);
    let first = r#","boot":"one","sources":["10.0.0.1","2001:db8::1"]"#;
    let found = before(first, "two", &["10.0.0.2"]).unwrap();
    assert_eq!((found.boot.as_str(), found.at), ("one", NOW));
    assert_eq!(found.sources, sources(&["10.0.0.1", "2001:db8::1"]));
    assert!(found.counts(NOW + 86_399) && !found.counts(NOW + 86_400));

    assert_eq!(before(first, "one", &["10.0.0.2"]), None, "it got another address");
    assert_eq!(before(first, "two", &["10.0.0.9", "2001:db8::1"]), None, "it was booted");
    assert_eq!(before(r#","sources":["10.0.0.1"]"#, "two", &["10.0.0.2"]), None, "an older version's");
    assert_eq!(before(r#","boot":"one""#, "two", &["10.0.0.2"]), None, "it does not tell its addresses");

    // What was found before is kept as long as it counts, and no longer than from now on.
    let kept = |at: u64| {
        let replaced = format!(r#","replaced":{{"boot":"one","sources":["10.0.0.1"],"at":{at}}}"#);
        before(&format!(r#","boot":"two","sources":["10.0.0.2"]{replaced}"#), "two", &["10.0.0.2"])
    };
    assert_eq!(kept(NOW - 60).map(|found| found.at), Some(NOW - 60));
    assert_eq!(kept(NOW - 86_400), None);
    assert_eq!(kept(u64::MAX).map(|found| found.at), Some(NOW));
    let endless = format!(r#","boot":"{}","sources":["10.0.0.1"]"#, "x".repeat(100_000));
    assert!(before(&endless, "two", &["10.0.0.2"]).unwrap().boot.len() < 100);
}
