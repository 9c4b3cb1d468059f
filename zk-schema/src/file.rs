//! Configuration files in TOML: read as records are, with every mistake by line.

use crate::problem::{FieldPath, Report, Scope};
use crate::reader::{Decode, decode};
use crate::validate::Rules;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use toml::de::{DeTable, DeValue};

/// Reads and validates a file's text. `name` is what messages call the file.
///
/// # Errors
///
/// All problems by line. An unknown field is one, so that no misspelt setting passes for its default.
pub(crate) fn parse<T: Decode + Rules>(text: &str, name: &str) -> Result<T, FileErrors> {
    parse_amended(text, name, |_| {})
}

/// As [`parse`], of the file as `amend` leaves it.
///
/// # Errors
///
/// As [`parse`]; what `amend` has put in is shown where the file has the field or the table.
pub(crate) fn parse_amended<T: Decode + Rules>(
    text: &str,
    name: &str,
    amend: impl FnOnce(&mut Map<String, Value>),
) -> Result<T, FileErrors> {
    let refused = |mut problems: Vec<FileProblem>| {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        FileErrors { file: name.to_owned(), problems }
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
    let mut object = places.table(document.get_ref(), &FieldPath::default());
    amend(&mut object);

    let mut report = Report::default();
    let file: T = decode(&object, &mut report);
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

/// Returns whether a file's text has a table of this name at its top, whatever else it has.
pub(crate) fn has_table(text: &str, name: &str) -> bool {
    let (document, _) = DeTable::parse_recoverable(text);
    document.get_ref().get(name).is_some_and(|value| value.get_ref().is_table())
}

/// One thing that is wrong with a file.
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

/// All that is wrong with a file, by line. Displays as one line for each problem:
/// `cluster.toml:14:10: vips.publish.reals.broker-1.weight: 70000 is not in 0..=65535`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FileErrors {
    /// The name of the file.
    pub file: String,
    /// The problems, by line; never empty.
    pub problems: Vec<FileProblem>,
}

impl fmt::Display for FileErrors {
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

/// The places of keys and values in the text, in bytes.
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

/// The beginnings of the lines of a text.
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
