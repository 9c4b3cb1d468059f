//! Records as JSON, the content of znodes.

use crate::problem::{Problems, Report, Scope, Unknown, shown};
use crate::reader::{Decode, decode};
use crate::records::{Cluster, Extra, Real, Vip};
use crate::tree::SCHEMA_VERSION;
use crate::validate::Rules;
use serde::Serialize;
use serde_json::map::Entry;
use serde_json::{Map, Value};

/// Largest record, in bytes. ZooKeeper breaks connections over records near 1 MiB; the largest sensible record
/// stays below a tenth of this limit.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;

/// A record that has a znode of its own: [`Cluster`], [`Vip`] or [`Real`].
#[expect(private_bounds, reason = "sealed: the tree's records are this crate's to define")]
pub trait Record: Sealed {}

pub(crate) trait Sealed: Decode + Rules + Serialize {
    fn extra(&self) -> &Extra;
    fn extra_mut(&mut self) -> &mut Extra;

    /// Returns whether `key` is a table that this record could have but has not, so that what it once held goes with
    /// it.
    fn lacks_table(&self, _key: &str) -> bool {
        false
    }
}

macro_rules! record {
    ($name:ident $(, $lacks_table:item)?) => {
        impl Record for $name {}

        impl Sealed for $name {
            fn extra(&self) -> &Extra {
                &self.extra
            }

            fn extra_mut(&mut self) -> &mut Extra {
                &mut self.extra
            }

            $($lacks_table)?
        }
    };
}

record!(Cluster);
record!(Real);
record!(
    Vip,
    fn lacks_table(&self, key: &str) -> bool {
        key == "health" && self.health.is_none()
    }
);

/// The reason why a znode's content is no record, or a record cannot become one.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// More than records of this kind may have.
    #[error("{bytes} bytes; such a record has at most {limit}")]
    TooLarge {
        /// The content's size.
        bytes: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// Not JSON, nested too deeply, or a number beyond all bounds.
    #[error("not JSON: {}", printable(.0))]
    Syntax(#[from] serde_json::Error),
    /// JSON, but not an object.
    #[error("not a JSON object: a record looks like {{\"field\": value}}")]
    NotAnObject,
    /// Written by newer software.
    #[error(
        "schema version {}, and this software knows versions up to {SCHEMA_VERSION}: upgrade it before the record",
        shown(found)
    )]
    Newer {
        /// The record's version, as it stands there.
        found: Value,
    },
    /// Fields that are missing or refused: all of them.
    #[error(transparent)]
    Invalid(#[from] Problems),
}

/// Characters of a parser's error that are told.
const SHOWN: usize = 200;

/// The parser quotes what it read, from whoever wrote it: this goes to logs and terminals.
fn printable(error: &serde_json::Error) -> String {
    let text: String = error.to_string().chars().take(SHOWN).collect();
    text.replace(char::is_control, "\u{fffd}")
}

/// Reads and validates a record. Of two equal keys the later counts; unknown fields go to the record's `extra`.
///
/// # Errors
///
/// See [`RecordError`]. Whatever the bytes are, this neither panics nor takes memory out of proportion.
pub fn from_json<T: Record>(bytes: &[u8]) -> Result<T, RecordError> {
    check_size(bytes)?;
    from_value(serde_json::from_slice(bytes)?)
}

/// As [`from_json`], of JSON that has been parsed.
pub(crate) fn from_value<T: Record>(value: Value) -> Result<T, RecordError> {
    let Value::Object(mut object) = value else { return Err(RecordError::NotAnObject) };
    check_version(&mut object)?;
    let mut report = Report::default();
    let mut record: T = decode(&object, &mut report);
    record.check(&mut Scope::top(&mut report));
    let (problems, unknown) = report.into_parts();
    if problems.iter().len() > 0 {
        return Err(problems.into());
    }
    for field in unknown {
        keep(record.extra_mut(), field);
    }
    Ok(record)
}

/// Writes a record on one line, unknown fields included.
///
/// # Errors
///
/// A record that [`from_json`] would refuse is not written.
pub fn to_json<T: Record>(record: &T) -> Result<Vec<u8>, RecordError> {
    record.validated()?;
    let mut value = to_value(record)?;
    if let Value::Object(object) = &mut value {
        object.insert("version".to_owned(), SCHEMA_VERSION.into());
    }
    let bytes = serde_json::to_vec(&value)?;
    check_size(&bytes)?;
    Ok(bytes)
}

/// The record as JSON, unknown fields included, without the version of the record that it will be a part of.
pub(crate) fn to_value<T: Record>(record: &T) -> Result<Value, RecordError> {
    let mut value = serde_json::to_value(record)?;
    if let Value::Object(object) = &mut value {
        let extra = record.extra().iter().filter(|(key, _)| !record.lacks_table(key));
        merge(object, extra);
    }
    Ok(value)
}

/// Takes the version out of a record. Without one it is of version 1.
pub(crate) fn check_version(object: &mut Map<String, Value>) -> Result<(), RecordError> {
    match object.remove("version") {
        None => Ok(()),
        Some(found)
            if found.as_u64().is_some_and(|version| (1..=u64::from(SCHEMA_VERSION)).contains(&version)) =>
        {
            Ok(())
        }
        Some(found) => Err(RecordError::Newer { found }),
    }
}

const fn check_size(bytes: &[u8]) -> Result<(), RecordError> {
    if bytes.len() > MAX_RECORD_BYTES {
        Err(RecordError::TooLarge { bytes: bytes.len(), limit: MAX_RECORD_BYTES })
    } else {
        Ok(())
    }
}

/// Puts an unknown field into `extra`, within the tables that it was found in.
fn keep(extra: &mut Extra, unknown: Unknown) {
    let (outermost, inner) = match unknown.field.keys() {
        [] => return,
        [outermost, inner @ ..] => (outermost, inner),
    };
    let mut place = extra.entry(outermost.clone()).or_insert_with(|| Value::Object(Map::new()));
    for key in inner {
        let Value::Object(table) = place else { return };
        place = table.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
    }
    *place = unknown.value;
}

/// Adds what `object` has not. What the record itself says is never overwritten.
fn merge<'a>(object: &mut Map<String, Value>, extra: impl Iterator<Item = (&'a String, &'a Value)>) {
    for (key, value) in extra {
        match object.entry(key.clone()) {
            Entry::Vacant(place) => {
                place.insert(value.clone());
            }
            Entry::Occupied(mut place) => {
                if let (Value::Object(table), Value::Object(more)) = (place.get_mut(), value) {
                    merge(table, more.iter());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{HealthCheck, Limits};
    use serde_json::json;

    fn bytes(value: &Value) -> Vec<u8> {
        value.to_string().into_bytes()
    }

    fn problems<T: Record + std::fmt::Debug>(value: &Value) -> String {
        match from_json::<T>(&bytes(value)) {
            Err(RecordError::Invalid(problems)) => problems.to_string(),
            other => panic!("not a list of problems: {other:?}"),
        }
    }

    #[test]
    fn every_problem_of_a_record_is_named_with_value_and_range() {
        let vip = json!({
            "address": "224.0.0.1", "port": 70000, "protocol": "tpc", "panic_threshold": -1,
            "limits": {"burst": 1.5, "prefix_length_v4": 7},
            "health": {"type": "http", "interval_ms": 99, "status": [200, 600], "target": "x\r\ny"},
        });
        let expected = [
            r#"port: 70000 is not in 0..=65535"#,
            r#"protocol: "tpc" is not one of tcp, udp; did you mean `tcp`?"#,
            r#"health.target: "x\r\ny" is not a target: one starts with `/` and has at most 2048 visible ASCII characters other than `#`"#,
            r#"health.status: 600 is not a whole number in 100..=599"#,
            r#"health.interval_ms: 99 is not in 100..=3600000"#,
            r#"limits.burst: 1.5 is not a whole number in 0..=100000000"#,
            r#"limits.prefix_length_v4: 7 is not 0 or in 8..=32"#,
            r#"panic_threshold: -1 is not in 0..=100"#,
            r#"address: 224.0.0.1 is a multicast address; clients cannot reach a VIP there"#,
        ];
        let found = problems::<Vip>(&vip);
        for problem in expected {
            assert!(found.contains(problem), "{problem}\nis not among\n{found}");
        }
        assert_eq!(found.split("; ").filter(|part| part.contains(": ")).count(), expected.len(), "{found}");
    }

    #[test]
    fn what_must_be_there_is_missed() {
        assert_eq!(
            problems::<Vip>(&json!({"address": null})),
            "address: missing; it must be an IPv4 or IPv6 address; \
             port: missing; it must be the port that clients use, or 0 for all ports; \
             protocol: missing; it must be tcp or udp"
        );
    }

    #[test]
    fn unknown_fields_are_ignored_on_read_and_kept_on_write_at_any_depth() {
        let written = json!({
            "address": "192.0.2.1", "port": 1883, "protocol": "tcp", "future": {"a": [1, null]},
            "limits": {"burst": 7, "future": true}, "health": {"type": "mqtt", "future": "x"},
        });
        let mut vip: Vip = from_json(&bytes(&written)).unwrap();
        assert_eq!(vip.limits, Limits { burst: 7, ..Limits::default() });
        vip.limits.burst = 8;
        let rewritten: Value = serde_json::from_slice(&to_json(&vip).unwrap()).unwrap();
        assert_eq!(rewritten["future"], written["future"]);
        assert_eq!(rewritten["limits"]["future"], json!(true));
        assert_eq!(rewritten["limits"]["burst"], json!(8));
        assert_eq!(rewritten["health"]["future"], json!("x"));

        // Without the check there is nothing left for its unknown field to belong to.
        vip.health = None;
        assert_eq!(from_json::<Vip>(&to_json(&vip).unwrap()).unwrap().health, None);
    }

    #[test]
    fn a_short_interval_shortens_the_default_timeout() {
        let vip = json!({
            "address": "192.0.2.1", "port": 1883, "protocol": "tcp", "health": {"type": "tcp", "interval_ms": 500},
        });
        let health = from_json::<Vip>(&bytes(&vip)).unwrap().health;
        assert_eq!(health.map(|HealthCheck { timeout_ms, .. }| timeout_ms), Some(500));
    }

    #[test]
    fn hostile_content_is_refused() {
        let deep = "[".repeat(60_000);
        assert!(matches!(from_json::<Real>(deep.as_bytes()), Err(RecordError::Syntax(_))));
        let deep = format!(r#"{{"address": "10.0.0.1", "x": {}"#, r#"{"x":"#.repeat(10_000));
        assert!(matches!(from_json::<Real>(deep.as_bytes()), Err(RecordError::Syntax(_))));
        let large = vec![b' '; MAX_RECORD_BYTES + 1];
        assert!(matches!(from_json::<Real>(&large), Err(RecordError::TooLarge { .. })));
        assert!(matches!(from_json::<Real>(b"null"), Err(RecordError::NotAnObject)));
        assert!(matches!(from_json::<Real>(b"{\"address\": \"\xff\"}"), Err(RecordError::Syntax(_))));
        for number in ["1e999", "99999999999999999999999999", "1e5", "-0.0", "65536"] {
            let record = format!(r#"{{"address": "10.0.0.1", "weight": {number}}}"#);
            assert!(from_json::<Real>(record.as_bytes()).is_err(), "a weight of {number}");
        }
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let mut real = Real::new("10.0.0.1".parse().unwrap());
        real.extra.insert("note".into(), "x".repeat(MAX_RECORD_BYTES).into());
        assert!(matches!(to_json(&real), Err(RecordError::TooLarge { .. })));
        let broken = Real::new("0.0.0.0".parse().unwrap());
        assert!(matches!(to_json(&broken), Err(RecordError::Invalid(_))));
    }

    #[test]
    fn the_seed_is_split_in_the_middle() {
        let cluster: Cluster = from_json(br#"{"seed": "0123456789abcdefFEDCBA9876543210"}"#).unwrap();
        assert_eq!(cluster.seed(), (0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210));
        for bad in ["", "0123", "+123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdeg"] {
            let found = problems::<Cluster>(&json!({"seed": bad}));
            assert!(
                found.starts_with(&format!("seed: {bad:?} is not a seed: 32 hexadecimal digits")),
                "{found}"
            );
        }
        assert_eq!(
            problems::<Cluster>(&json!({"table_size": 65536})),
            "table_size: 65536 is not 65537 or 655373"
        );
    }
}
