//! Records of znodes: whatever the bytes, reading ends, in proportionate memory; what was read is written, and read
//! again as the same.

use crate::memory::within;
use std::fmt::Debug;
use zk_schema::tree::{Applied, Assignment, Flag, Head, Member, Registrant, StateRecord, Target, Term, Vote};
use zk_schema::{Cluster, NodeName, Real, Record, RecordError, Vip, from_json, to_json};

/// Memory that a record of this many bytes may take while it is read.
fn proportionate(bytes: usize) -> usize {
    (64 << 10) + bytes * 512
}

/// An operator's record.
fn operators<T: Record + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let record: T = within(proportionate(bytes.len()), || from_json(bytes)).map_err(told).ok()?;
    let written = match to_json(&record) {
        Ok(written) => written,
        Err(RecordError::TooLarge { .. }) => return Some(record),
        Err(error) => panic!("{record:?} was read and cannot be written: {error}"),
    };
    assert_eq!(from_json::<T>(&written).unwrap(), record, "read again from {}", text(&written));
    Some(record)
}

/// A node's or the leader's record.
fn state<T: StateRecord + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(record) = within(proportionate(bytes.len()), || T::parse(bytes)).map_err(told) else { return };
    let written = match record.bytes() {
        Ok(written) => written,
        Err(RecordError::TooLarge { .. }) => return,
        Err(error) => panic!("{record:?} was read and cannot be written: {error}"),
    };
    assert_eq!(T::parse(&written).unwrap(), record, "read again from {}", text(&written));
    assert_eq!(T::parse(&written).unwrap().bytes().unwrap(), written, "written again");
}

/// Checks the words of a refusal, which go to logs and into the head.
fn told(error: RecordError) {
    let words = within(16 << 20, || error.to_string());
    assert!(!words.is_empty());
    assert!(!words.contains(|c: char| c.is_control() && c != '\n'), "it would garble a terminal: {words:?}");
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// The kinds of records, by an input's first byte.
pub const KINDS: [&str; 12] = [
    "cluster",
    "vip",
    "real",
    "term",
    "head",
    "assignment",
    "member",
    "vote",
    "applied",
    "flag",
    "target",
    "name",
];

/// Reads the bytes as the record that the first one says.
pub fn run(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    match KINDS[usize::from(*kind) % KINDS.len()] {
        "cluster" => drop(operators::<Cluster>(bytes)),
        "vip" => drop(operators::<Vip>(bytes)),
        "real" => {
            if let Some(mut real) = operators::<Real>(bytes) {
                let registrant = Registrant::of(&real);
                Registrant::strip(&mut real);
                assert_eq!(Registrant::of(&real), None);
                if let Some(registrant) = registrant {
                    registrant.sign(&mut real);
                    assert_eq!(Registrant::of(&real), Some(registrant));
                }
            }
        }
        "term" => state::<Term>(bytes),
        "head" => state::<Head>(bytes),
        "assignment" => state::<Assignment>(bytes),
        "member" => state::<Member>(bytes),
        "vote" => state::<Vote>(bytes),
        "applied" => state::<Applied>(bytes),
        "flag" => {
            let flag = within(proportionate(bytes.len()), || Flag::read(bytes));
            assert!(flag.counts(0) || flag.until.is_some());
        }
        "target" => {
            if let Ok(text) = std::str::from_utf8(bytes)
                && let Ok(target) = text.parse::<Target>()
            {
                assert_eq!(target.to_string(), text);
            }
        }
        _ => {
            if let Ok(text) = std::str::from_utf8(bytes)
                && let Ok(name) = text.parse::<NodeName>()
            {
                assert_eq!(name.as_str(), text);
                assert!(!text.contains(['/', '.', '\0']), "it is to be a part of a path");
            }
        }
    }
}

/// One record of each kind, as they stand in a tree.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let records: [(&str, &str); 18] = [
        ("cluster", r#"{"seed":"64726f7665722d7374616e64616c6f6e","table_size":65537,"version":1}"#),
        ("vip", r#"{"address":"198.51.100.10","port":1883,"protocol":"tcp"}"#),
        (
            "vip",
            r#"{"address":"2001:db8::1","affinity":"source","encapsulation":"ipip","health":{"type":"http","target":"/up","host":"a.example","status":[200,204],"body_contains":"ok","verify_tls":false,"port":80,"path":"direct","interval_ms":500,"timeout_ms":400,"healthy_threshold":2,"unhealthy_threshold":2},"limits":{"burst":5,"connections_per_second":7,"connections_per_second_per_prefix":3,"prefix_burst":4,"prefix_length_v4":24,"prefix_length_v6":56},"panic_threshold":50,"port":0,"protocol":"udp","version":1}"#,
        ),
        (
            "vip",
            r#"{"address":"198.51.100.10","port":1883,"protocol":"tcp","health":{"type":"mqtt","version":"5","client_id":"p"},"later":{"x":[1.5,null,"é"]}}"#,
        ),
        ("real", r#"{"address":"10.3.1.2","weight":50,"registered_by":"68751cfb/4026533094/eth0"}"#),
        ("real", r#"{"version":2,"address":"::1","weight":65536}"#),
        ("term", r#"{"node":"node-2","since":1795233979,"term":1,"version":1}"#),
        (
            "head",
            r#"{"cluster":{"seed":"64726f7665722d7374616e64616c6f6e","table_size":65537},"epoch":7,"lagging":["n-1"],"nodes":["node-1"],"problems":["x"],"settling":true,"targets":4,"term":1,"version":1,"vips":{"publish":{"digest":"72a06028765f4b01","epoch":5}}}"#,
        ),
        (
            "assignment",
            r#"{"epoch":11,"history":[{"epoch":5,"weights":{"real-1":100}}],"next":{"epoch":8,"weights":{"real-1":50}},"held":"why","reals":{"real-1":{"address":"10.3.1.2","weight":50}},"since":11,"term":1,"version":1,"vip":{"address":"198.51.100.10","port":7000,"protocol":"tcp"},"weights":{"real-1":50},"why":"so"}"#,
        ),
        (
            "member",
            r#"{"admin":"127.0.0.1:9940","boot":"b","instance":"9e81","software":"0.1.0","source_v4":"10.2.1.2","source_v6":"2001:db8::2","started":1795233979,"version":1}"#,
        ),
        (
            "vote",
            r#"{"down":{"mqtt/b-1":{"since":1,"reason":"refused"}},"suspect":false,"targets":4,"unknown":["mqtt/b-2"],"version":1}"#,
        ),
        ("applied", r#"{"digest":"3d37","epoch":7,"mode":"autonomous","term":1,"problem":"p","version":1}"#),
        ("flag", r#"{"by":"anna","why":"disk","until":1800000000}"#),
        ("flag", "x"),
        ("target", "publish/real-1"),
        ("name", "node-1"),
        (
            "vip",
            r#"{"address":"198.51.100.10","port":1883,"protocol":"tcp","port":"1","x":{"a":{"b":[[[]]]}}}"#,
        ),
        ("head", "[]"),
    ];
    records.iter().map(|(kind, text)| crate::seeds::of_kind(&KINDS, kind, text.as_bytes())).collect()
}
