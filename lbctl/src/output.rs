//! Results: for people, or as JSON for scripts.

use crate::visible;
use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal as _, Write as _};

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
        Format::Text => write_text(&result.text()),
        Format::Json => print_json(result),
    }
}

/// Prints a result as JSON.
///
/// # Errors
/// If standard output cannot be written.
pub fn print_json<T: Serialize>(result: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(result).context("the result cannot be put into JSON")?;
    write(format!("{}\n", visible::json(&text)).as_bytes())
}

/// Prints a result as JSON on one line, for those that come one after the other.
///
/// # Errors
/// If standard output cannot be written.
pub fn print_json_line<T: Serialize>(result: &T) -> Result<()> {
    let text = serde_json::to_string(result).context("the result cannot be put into JSON")?;
    write(format!("{}\n", visible::json(&text)).as_bytes())
}

/// Writes text for people to standard output; characters that command a terminal are shown instead.
///
/// # Errors
/// If standard output cannot be written.
pub fn write_text(text: &str) -> Result<()> {
    write(visible::text(text).as_bytes())
}

/// Says something on standard error, beside the result. Characters that command a terminal are shown instead.
pub fn say(text: &str) {
    let mut err = std::io::stderr().lock();
    // Whoever has closed it does not want to hear.
    let _ = err.write_all(visible::text(text).as_bytes()).and_then(|()| err.flush());
}

/// Writes a file's text to standard output: exactly, unless that is a terminal.
///
/// # Errors
/// If standard output cannot be written.
pub fn write_file(text: &str) -> Result<()> {
    if std::io::stdout().is_terminal() { write_text(text) } else { write(text.as_bytes()) }
}

/// Writes to standard output what is fit for it already: painted lines. That nobody reads on, as behind `head`, is no error.
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

    /// Adds a line. Each cell stays on it, whatever it holds.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| visible::line(&cell).into_owned()).to_vec());
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

    #[test]
    fn a_cell_cannot_make_lines_of_its_own() {
        let mut table = Table::new(["node", "remark"]);
        table.row(["lb-1".to_owned(), "a\nlb-2  well\x1b[A".to_owned()]);
        assert_eq!(table.text(0), "NODE  REMARK\nlb-1  a\\nlb-2  well\\u{1b}[A\n");
    }
}
