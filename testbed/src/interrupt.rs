//! Ctrl-C and SIGTERM as an error that every wait returns, so that the usual clean-up on drop takes place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Fails when the run has been interrupted.
///
/// # Errors
///
/// After SIGINT or SIGTERM, if [`listen`] was called.
pub fn check() -> Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}

/// Whether SIGINT or SIGTERM has come since [`listen`].
#[must_use]
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// From now on SIGINT and SIGTERM no longer end the process but make [`check`] fail, and with it every wait of
/// this crate.
///
/// # Errors
///
/// When the handlers cannot be installed.
pub fn listen() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot start the runtime that listens for signals")?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        REQUESTED.store(true, Ordering::Relaxed);
    })?;
    Ok(())
}
