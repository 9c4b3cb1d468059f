//! `lbctl`: the operator's command line of a Drover cluster. All of it is in the library.

use clap::Parser as _;
use lbctl::{Cli, output};
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().execute().await {
        Ok(code) => code,
        Err(error) => {
            output::say(&format!("lbctl: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}
