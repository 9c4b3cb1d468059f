//! The sign of life that the guard of this node watches.

use super::TOLD_EVERY;
use crate::guard::{self, PULSE_EVERY, Pulse};
use host::log_limit::LogLimit;
use host::supervisor::Supervisor;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

/// Gives a sign of life with each turn of the control loop.
pub(super) async fn keep_pulse(
    pulse: Pulse,
    mut turned: watch::Receiver<Option<Instant>>,
    supervisor: Supervisor,
) {
    let mut log_limit = LogLimit::new(1, TOLD_EVERY);
    while turned.changed().await.is_ok() {
        beat(&pulse, &supervisor, &mut log_limit);
        tokio::time::sleep(PULSE_EVERY / 2).await;
    }
}

/// Gives a sign of life, unless something essential hangs.
pub(super) fn beat(pulse: &Pulse, supervisor: &Supervisor, log_limit: &mut LogLimit) {
    if !supervisor.hung().is_empty() {
        return;
    }
    if let Err(error) = pulse.beat(guard::monotonic())
        && let Some(skipped) = log_limit.allows(Instant::now())
    {
        let file = pulse.path().display();
        warn!(%file, %error, skipped, "cannot write the sign of life that the guard reads");
    }
}
