//! Results: for people, or as JSON for scripts.

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};

/// How results look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON document.
    Json,
}

/// A result that people can read, too.
pub trait Shown: Serialize {
    /// The result as text, each line ended.
    fn text(&self) -> String;
}

/// Prints a result.
///
/// # Errors
/// If standard output cannot be written.
pub fn print<T: Shown>(format: Format, result: &T) -> Result<()> {
    match format {
        Format::Text => write(result.text().as_bytes()),
        Format::Json => print_json(result),
    }
}

/// Prints a result as JSON.
///
/// # Errors
/// If standard output cannot be written.
pub fn print_json<T: Serialize>(result: &T) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(result).context("the result cannot be put into JSON")?;
    text.push(b'\n');
    write(&text)
}

/// Writes to standard output. That nobody reads on, as behind `head`, is no error.
///
/// # Errors
/// If standard output cannot be written.
pub fn write(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write to standard output"),
    }
}

/// Lines whose columns stand below each other.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    #[must_use]
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_uppercase).to_vec()] }
    }

    /// Adds a line.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Whether it has no lines but its headings.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The lines, each ended, with `indent` blanks before.
    #[must_use]
    pub fn text(&self, indent: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other_without_blanks_at_the_end() {
        let mut table = Table::new(["real", "weight"]);
        table.row(["broker-1".to_owned(), "100".to_owned()]);
        table.row(["ü".to_owned(), String::new()]);
        assert_eq!(table.text(2), "  REAL      WEIGHT\n  broker-1  100\n  ü\n");
    }
}
