//! Records as flat lists of fields, named by dotted paths as in a cluster file: `health.interval_ms`.

use crate::visible;
use anyhow::{Result, anyhow, bail};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use zk_schema::{DesiredFile, HealthCheck, Real, RealName, Record, Vip, VipName, VipState, to_json};

/// The difference between two records in one field.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FieldChange {
    /// Dotted path.
    pub field: String,
    /// The old value; `None`: it was not there.
    pub old: Option<Value>,
    /// The new value; `None`: it is to go.
    pub new: Option<Value>,
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A newer version's field may have any name.
        let field = visible::line(&self.field);
        match (&self.old, &self.new) {
            (None, Some(new)) => write!(f, "{field} = {}", shown(new)),
            (Some(old), None) => write!(f, "{field}: {} -> none", shown(old)),
            (Some(old), Some(new)) => write!(f, "{field}: {} -> {}", shown(old), shown(new)),
            (None, None) => f.write_str(&field),
        }
    }
}

/// A value as people read it, on one line: texts without quotes, all else as JSON.
#[must_use]
pub fn shown(value: &Value) -> String {
    visible::line(value.as_str().unwrap_or(&value.to_string())).into_owned()
}

/// The record's fields, those of newer versions included, without the schema's version.
///
/// # Errors
/// If it is no valid record.
pub fn of_record<T: Record>(record: &T) -> Result<BTreeMap<String, Value>> {
    let mut value: Value = serde_json::from_slice(&to_json(record)?)?;
    if let Value::Object(object) = &mut value {
        object.remove("version");
    }
    let mut fields = BTreeMap::new();
    flatten("", value, &mut fields);
    Ok(fields)
}

fn flatten(path: &str, value: Value, fields: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(object) if path.is_empty() || !object.is_empty() => {
            for (key, value) in object {
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                flatten(&path, value, fields);
            }
        }
        value => {
            fields.insert(path.to_owned(), value);
        }
    }
}

/// Returns the differences.
#[must_use]
pub fn difference(old: &BTreeMap<String, Value>, new: &BTreeMap<String, Value>) -> Vec<FieldChange> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differs = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
    differs
        .map(|name| FieldChange {
            field: name.clone(),
            old: old.get(name).cloned(),
            new: new.get(name).cloned(),
        })
        .collect()
}

/// An order to give a field a value, or none: `health.interval_ms=500`, `health=`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldEdit {
    /// The keys, outermost first.
    pub path: Vec<String>,
    /// The value; `None`: the field is to go, which gives it its default.
    pub value: Option<Value>,
}

/// Fields that are lists.
const LISTS: [&str; 1] = ["status"];

impl FieldEdit {
    /// An order to take a field out.
    ///
    /// # Errors
    /// If that is no field.
    pub fn unset(field: &str) -> Result<Self, String> {
        if field.is_empty() || field.split('.').any(str::is_empty) || field.contains('=') {
            return Err(format!("{field:?} is no field: write e.g. health.interval_ms"));
        }
        Ok(Self { path: field.split('.').map(str::to_owned).collect(), value: None })
    }
}

impl FromStr for FieldEdit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (field, value) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not FIELD=VALUE, e.g. weight=50"))?;
        let mut order = Self::unset(field)?;
        let key = order.path.last().map_or("", String::as_str);
        order.value = match value {
            "" => None,
            _ if VipState::holds_text(key) => Some(value.into()),
            _ if LISTS.contains(&key) => {
                let value = value.trim_start_matches('[').trim_end_matches(']');
                Some(value.split(',').map(|element| scalar(element.trim())).collect())
            }
            _ => Some(scalar(value)),
        };
        Ok(order)
    }
}

fn scalar(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// Follows orders on a table.
fn follow(table: &mut Map<String, Value>, orders: &[FieldEdit]) -> Result<()> {
    for order in orders {
        let [outer @ .., key] = order.path.as_slice() else { continue };
        let mut place = &mut *table;
        for (depth, outer) in outer.iter().enumerate() {
            let there = place.entry(outer.clone()).or_insert_with(|| Value::Object(Map::new()));
            let is = order.path[..=depth].join(".");
            place = there.as_object_mut().ok_or_else(|| anyhow!("{is} has no fields of its own"))?;
        }
        match &order.value {
            Some(value) => {
                let is_other_check = order.path == ["health", "type"] && place.get(key) != Some(value);
                if is_other_check {
                    let common: Vec<_> = HealthCheck::common_fields().collect();
                    place.retain(|key, _| common.contains(&key.as_str()));
                }
                place.insert(key.clone(), value.clone());
            }
            None => {
                place.remove(key);
            }
        }
    }
    Ok(())
}

/// A VIP that is made of `orders` alone, or of `old` with them. What is in `old` of newer versions stays.
///
/// # Errors
/// All that is wrong with it, by field.
pub fn vip(name: &VipName, old: Option<&Vip>, orders: &[FieldEdit]) -> Result<Vip> {
    let mut table = object(old)?;
    follow(&mut table, orders)?;
    let mut new = read(name, table)?.vip;
    new.extra = old.map(|old| old.extra.clone()).unwrap_or_default();
    Ok(new)
}

/// A real of `vip` that is made of `orders` alone, or of `old` with them. What is in `old` of newer versions stays.
///
/// # Errors
/// All that is wrong with it, by field.
pub fn real(
    (vip_name, vip): (&VipName, &Vip),
    name: &RealName,
    old: Option<&Real>,
    orders: &[FieldEdit],
) -> Result<Real> {
    let mut table = object(old)?;
    follow(&mut table, orders)?;
    let mut whole = object(Some(vip))?;
    whole.insert("reals".to_owned(), Map::from_iter([(name.to_string(), table.into())]).into());
    let mut read = read(vip_name, whole)?;
    let Some(mut new) = read.reals.remove(name) else { bail!("{name}: it is not among what was read") };
    new.extra = old.map(|old| old.extra.clone()).unwrap_or_default();
    Ok(new)
}

fn object<T: Serialize>(record: Option<&T>) -> Result<Map<String, Value>> {
    Ok(match record.map(serde_json::to_value).transpose()? {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    })
}

/// Reads a VIP as strictly as in a file.
fn read(name: &VipName, table: Map<String, Value>) -> Result<VipState> {
    let vips = Map::from_iter([(name.to_string(), table.into())]);
    let file = Map::from_iter([("vips".to_owned(), vips.into())]);
    let mut file = DesiredFile::from_json(&file).map_err(|problems| {
        let prefix = format!("vips.{name}.");
        let told = problems.iter().map(|problem| {
            let text = problem.to_string();
            text.strip_prefix(&prefix).map_or_else(|| text.clone(), str::to_owned)
        });
        anyhow!("{}", told.collect::<Vec<_>>().join("\n  "))
    })?;
    file.vips.remove(name).ok_or_else(|| anyhow!("{name}: it is not among what was read"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use zk_schema::CheckKind;

    fn orders(texts: &[&str]) -> Vec<FieldEdit> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn mqtt() -> Vip {
        let orders = orders(&[
            "address=198.51.100.10",
            "port=1883",
            "protocol=tcp",
            "health.type=mqtt",
            "health.version=5",
            "health.interval_ms=500",
        ]);
        vip(&"mqtt".parse().unwrap(), None, &orders).unwrap()
    }

    fn set(old: &Vip, texts: &[&str]) -> Result<Vip> {
        vip(&"mqtt".parse().unwrap(), Some(old), &orders(texts))
    }

    #[test]
    fn fields_are_set_by_their_dotted_names_and_taken_out_by_setting_nothing() {
        let vip = set(&mqtt(), &["limits.burst=7", "encapsulation=ipip", "health.client_id=12"]).unwrap();
        assert_eq!((vip.limits.burst, vip.encapsulation.as_str()), (7, "ipip"));
        let Some(CheckKind::Mqtt(check)) = vip.health.as_ref().map(|health| &health.kind) else {
            panic!("{vip:?}")
        };
        assert_eq!((check.client_id.as_str(), check.version.as_str()), ("12", "5"));
        let vip = set(&vip, &["health=", "limits="]).unwrap();
        assert_eq!((vip.health, vip.limits.burst), (None, 0));
    }

    #[test]
    fn another_kind_of_check_leaves_nothing_of_the_first_behind() {
        let vip = set(&mqtt(), &["health.type=http", "health.status=200,204"]).unwrap();
        let health = vip.health.unwrap();
        assert_eq!(health.interval_ms, 500);
        let CheckKind::Http(http) = health.kind else { panic!("{:?}", health.kind) };
        assert_eq!(http.status, [200, 204]);
    }

    #[test]
    fn what_no_version_knows_is_refused_with_a_suggestion_and_what_a_newer_one_wrote_stays() {
        let error = set(&mqtt(), &["health.intervall_ms=5", "port=70000"]).unwrap_err().to_string();
        assert!(error.contains("health.intervall_ms: unknown field; did you mean `interval_ms`?"), "{error}");
        assert!(error.contains("port: 70000 is not in 0..=65535"), "{error}");
        let mut old = mqtt();
        old.extra.insert("colour".to_owned(), "blue".into());
        assert_eq!(set(&old, &["port=1884"]).unwrap().extra, old.extra);
    }

    #[test]
    fn a_difference_names_each_field_with_what_it_was_and_is_to_be() {
        let old = mqtt();
        let new = set(&old, &["health.interval_ms=600", "health.port=1884"]).unwrap();
        let told: Vec<String> = difference(&of_record(&old).unwrap(), &of_record(&new).unwrap())
            .iter()
            .map(FieldChange::to_string)
            .collect();
        assert_eq!(told, ["health.interval_ms: 500 -> 600", "health.port = 1884"]);
        assert!(difference(&of_record(&old).unwrap(), &of_record(&old).unwrap()).is_empty());
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for text in ["weight", "=5", "health.=5", ".x=1"] {
            assert!(text.parse::<FieldEdit>().is_err(), "{text:?} passed for an order");
        }
    }
}
