//! `lb-node`: a Drover load-balancer node, and the agent of a real. All of it is in the library.

use clap::Parser as _;
use lb_node::cli::Cli;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().execute().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(
                clippy::print_stderr,
                reason = "whoever started it is told why it ends, whatever RUST_LOG is"
            )]
            {
                eprintln!("lb-node: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
