//! The problems of a record: every one, each with the field it is about.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;

/// The place of a field within a record or file: its keys, outermost first.
///
/// Displays as a dotted TOML key, e.g. `vips.publish.reals.broker-1.weight`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FieldPath(Vec<String>);

impl FieldPath {
    /// The keys, outermost first.
    #[must_use]
    pub fn keys(&self) -> &[String] {
        &self.0
    }

    pub(crate) fn join(&self, key: &str) -> Self {
        let mut keys = Vec::with_capacity(self.0.len() + 1);
        keys.extend_from_slice(&self.0);
        keys.push(key.to_owned());
        Self(keys)
    }

    /// The path one level out; `None` at the top.
    pub(crate) fn parent(&self) -> Option<Self> {
        let (_, outer) = self.0.split_last()?;
        Some(Self(outer.to_vec()))
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, key) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            let bare = !key.is_empty()
                && key.len() <= SHOWN
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            if bare { f.write_str(key)? } else { f.write_str(&quoted(key))? }
        }
        Ok(())
    }
}

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Problem {
    /// The field.
    pub field: FieldPath,
    /// Its value, what is wrong with it and what would be right.
    pub message: String,
}

/// All that is wrong with a record; never empty when it is returned as an error.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The problems, in the order in which they were found.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

impl From<Vec<Problem>> for Problems {
    fn from(problems: Vec<Problem>) -> Self {
        Self(problems)
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A field that this version does not know. A znode keeps it; in a cluster file it is a mistake.
#[derive(Clone, Debug)]
pub(crate) struct Unknown {
    pub(crate) field: FieldPath,
    pub(crate) value: Value,
    /// The fields that are known in its place.
    pub(crate) known: Vec<&'static str>,
}

impl Unknown {
    /// Returns the message for a field that is a mistake.
    pub(crate) fn message(&self) -> String {
        let key = self.field.keys().last().map_or("", String::as_str);
        match nearest(key, &self.known) {
            Some(known) => format!("unknown field; did you mean `{known}`?"),
            None => format!("unknown field; known here: {}", self.known.join(", ")),
        }
    }
}

/// The findings of reading and checking a record. Takes the first problem of each field: later ones are its echo.
#[derive(Debug, Default)]
pub(crate) struct Report {
    problems: Vec<Problem>,
    unsound: BTreeSet<FieldPath>,
    unknown: Vec<Unknown>,
}

impl Report {
    /// Returns the findings, problems and unknown fields.
    pub(crate) fn into_parts(self) -> (Problems, Vec<Unknown>) {
        (Problems(self.problems), self.unknown)
    }

    /// `Err` if there are problems; unknown fields do not count.
    pub(crate) fn into_result(self) -> Result<(), Problems> {
        if self.problems.is_empty() { Ok(()) } else { Err(Problems(self.problems)) }
    }
}

/// A table within the record under examination: its place, and the report that problems go to.
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    place: Place<'a>,
    report: &'a mut Report,
}

/// The place of a table. Its path is put together where something is wrong.
#[derive(Clone, Copy, Debug)]
enum Place<'a> {
    Top,
    In(&'a Place<'a>, &'a str),
}

impl Place<'_> {
    fn path(&self) -> FieldPath {
        match self {
            Self::Top => FieldPath::default(),
            Self::In(outer, key) => outer.path().join(key),
        }
    }
}

impl<'a> Scope<'a> {
    /// The outermost table.
    pub(crate) fn top(report: &'a mut Report) -> Self {
        Self { place: Place::Top, report }
    }

    /// The table `key` within this one.
    pub(crate) fn at<'b>(&'b mut self, key: &'b str) -> Scope<'b> {
        Scope { place: Place::In(&self.place, key), report: self.report }
    }

    fn path(&self, key: &str) -> FieldPath {
        self.place.path().join(key)
    }

    /// Returns whether nothing was found wrong with `key` so far. Rules that span several fields ask this first,
    /// lest they complain of the stand-in for a value that was refused.
    pub(crate) fn sound(&self, key: &str) -> bool {
        self.report.unsound.is_empty() || !self.report.unsound.contains(&self.path(key))
    }

    /// Records a problem with `key`, unless it has one already.
    pub(crate) fn problem(&mut self, key: &str, message: impl Into<String>) {
        let field = self.path(key);
        if self.report.unsound.insert(field.clone()) {
            self.report.problems.push(Problem { field, message: message.into() });
        }
    }

    /// Records a field that this version does not know.
    pub(crate) fn unknown(&mut self, key: &str, value: &Value, known: &[&'static str]) {
        let field = self.path(key);
        self.report.unknown.push(Unknown { field, value: value.clone(), known: known.to_vec() });
    }
}

/// The part of a refused value that a message shows, in characters.
const SHOWN: usize = 64;

/// `text` in quotes, escaped, and cut if it is long: fit for a log's line whoever wrote it.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((cut, _)) => format!("{:?}...", &text[..cut]),
    }
}

/// A refused value as a message shows it.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a table".into(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// The candidate that `text` is most likely a misspelling of, if any is near.
#[must_use]
pub fn nearest<'a>(text: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let allowed = match text.chars().take(SHOWN + 1).count() {
        0..=2 => return None,
        3..=5 => 1,
        6..=SHOWN => 2,
        _ => return None, // longer than any field's name
    };
    let near = candidates.iter().map(|candidate| (strsim::osa_distance(text, candidate), *candidate));
    near.filter(|&(distance, _)| distance <= allowed).min().map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_field_finds_its_neighbour() {
        let known = ["address", "weight", "port", "protocol"];
        assert_eq!(nearest("adress", &known), Some("address"));
        assert_eq!(nearest("wieght", &known), Some("weight"));
        assert_eq!(nearest("prot", &known), Some("port"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(nearest("x", &known), None);
        assert_eq!(nearest(&"weight".repeat(10_000), &known), None);
    }

    #[test]
    fn a_path_quotes_the_keys_that_toml_would_quote() {
        let path = FieldPath::default().join("vips").join("a.b").join("").join("lb-1_x");
        assert_eq!(path.to_string(), r#"vips."a.b"."".lb-1_x"#);
    }

    #[test]
    fn a_long_or_hostile_value_is_cut_and_escaped() {
        assert_eq!(quoted("a\n\u{1b}[31m"), r#""a\n\u{1b}[31m""#);
        let long = quoted(&"é".repeat(100_000));
        assert!(long.len() < 200 && long.ends_with("\"..."), "{long}");
    }

    #[test]
    fn a_field_is_complained_of_once() {
        let mut report = Report::default();
        let mut scope = Scope::top(&mut report);
        assert!(scope.sound("port"));
        scope.problem("port", "first");
        scope.problem("port", "second");
        assert!(!scope.sound("port"));
        assert_eq!(report.into_result().unwrap_err().to_string(), "port: first");
    }
}
