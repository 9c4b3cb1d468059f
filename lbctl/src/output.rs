//! Results: for people, or as JSON for scripts.

use crate::visible;
use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;
use std::io::{ErrorKind, IsTerminal as _, Write as _};

/// The format of results.
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
