//! `lbctl`: the operator's command line of a Drover cluster. All of it is in the library.

use clap::Parser as _;
use lbctl::Cli;
use std::process::ExitCode;

#[tokio::main]
#[allow(clippy::print_stderr, reason = "a command-line front talks to people on stderr")]
async fn main() -> ExitCode {
    match Cli::parse().execute().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lbctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
