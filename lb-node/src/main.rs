//! `lb-node`: a Drover load-balancer node, and the agent of a real. All of it is in the library.

use clap::Parser as _;
use lb_node::cli::Cli;
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Time for which the end may wait for work that blocks a thread, such as writing to a disk that hangs.
const LAST_WAIT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match Runtime::new() {
        Ok(runtime) => {
            let outcome = runtime.block_on(cli.execute());
            runtime.shutdown_timeout(LAST_WAIT);
            outcome
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
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
