//! `lbctl completions`.

use crate::output;
use anyhow::Result;
use clap_complete::Shell;
use std::process::ExitCode;

/// Options of `lbctl completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lbctl completions bash > /etc/bash_completion.d/lbctl
  lbctl completions zsh > /usr/share/zsh/vendor-completions/_lbctl")]
pub struct Options {
    /// The shell.
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// If standard output cannot be written.
pub fn run(options: &Options, command: &mut clap::Command) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, command, "lbctl", &mut script);
    output::write(&script)?;
    Ok(ExitCode::SUCCESS)
}
