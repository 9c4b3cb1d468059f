//! The commands. A command's module has its options and its `run`.

pub mod apply;
pub mod capture;
pub mod completions;
pub mod doctor;
pub mod export;
pub mod history;
pub mod init;
pub mod lookup;
pub mod node;
pub mod ops;
pub mod real;
pub mod reals;
pub mod status;
pub mod top;
pub mod vip;

use anyhow::{Context as _, Result};
use std::io::Read as _;
use std::path::Path;

/// The text of a file, or of standard input for `-`, after what messages call it.
fn file_or_stdin(path: &Path) -> Result<(String, String)> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input cannot be read")?;
        return Ok(("standard input".to_owned(), text));
    }
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("{name}: cannot be read"))?;
    Ok((name, text))
}
