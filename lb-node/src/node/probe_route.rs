//! Looks after the probes' route.

use super::TOLD_EVERY;
use coordination::Snapshot;
use dataplane::nexthop::sources::Sources;
use dataplane::probe_route::ProbeRoute;
use host::log_limit::LogLimit;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, error, warn};

/// Time between looks after the probes' route.
pub(super) const PROBE_ROUTE_EVERY: Duration = Duration::from_secs(15);

/// Looks after the way of probes through the tunnel, and tells once of what is in it.
pub(super) async fn keep_probe_route(
    interface: String,
    outer: Sources,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
) {
    let mut ticks = tokio::time::interval(PROBE_ROUTE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut log_limit = LogLimit::new(1, TOLD_EVERY);
    let route = loop {
        ticks.tick().await;
        match ProbeRoute::new(&interface, outer) {
            Ok(route) => break route,
            Err(error) => {
                if let Some(skipped) = log_limit.allows(Instant::now()) {
                    error!(%error, skipped, "probes through the tunnel have no route of their own; trying again");
                }
            }
        }
    };
    ticks.reset_immediately();
    let mut told = BTreeSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = snapshots.changed() => {}
        }
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let obstacles: BTreeSet<String> = match route.ensure(&snapshot.desired).await {
            Ok(obstacles) => obstacles.iter().map(ToString::to_string).collect(),
            Err(error) => [error.to_string()].into(),
        };
        for obstacle in obstacles.difference(&told) {
            warn!("{obstacle}");
        }
        for obstacle in told.difference(&obstacles) {
            debug!(obstacle, "no longer in the way of probes");
        }
        told = obstacles;
    }
}
