//! Reading records out of parsed JSON or TOML.
//!
//! Every record is read to its end whatever is wrong with it: a field that is missing or refused is put on the
//! report and a stand-in takes its place, so that all problems are listed at once. The caller looks at the report
//! before it looks at the record.

use crate::allowed::Allowed;
use crate::problem::{Report, Scope, nearest, shown};
use crate::records::Words;
use serde_json::{Map, Value};
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
    pub(crate) rest_is_known: bool,
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
    pub(crate) fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Returns whether the field is there.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(|value| !value.is_null())
    }

    pub(crate) fn refuse(&mut self, key: &str, value: &Value, expected: &str) {
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

    pub(crate) fn numbers<T: TryFrom<u32>>(&mut self, key: &'static str, allowed: Allowed) -> Option<Vec<T>> {
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
    pub(crate) fn list<T: FromStr>(&mut self, key: &'static str, expected: &str) -> Option<Vec<T>> {
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

pub(crate) fn one_of(text: &str, words: &[&str]) -> String {
    let hint = nearest(text, words).map(|word| format!("; did you mean `{word}`?")).unwrap_or_default();
    format!("one of {}{hint}", words.join(", "))
}
