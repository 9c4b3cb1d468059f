//! Metrics of the way to the tree: ZooKeeper's answers, and how far behind the newest head this node is.

use crate::status::Status;
use coordination::follow::Followed;
use coordination::zookeeper::{Observer, Operation};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Upper bounds of the duration buckets, in seconds: a server nearby, a quorum's disks, an election among them.
const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 5.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    operation: &'static str,
}

impl Labels {
    const fn of(operation: Operation) -> Self {
        Self { operation: operation.as_str() }
    }
}

#[derive(Clone, Debug)]
struct Durations;

impl MetricConstructor<Histogram> for Durations {
    fn new_metric(&self) -> Histogram {
        Histogram::new(BUCKETS)
    }
}

/// The counters. Clones share them.
#[derive(Clone, Debug)]
pub struct TreeMetrics {
    durations: Family<Labels, Histogram, Durations>,
    failures: Family<Labels, Counter>,
    behind: Arc<Mutex<Behind>>,
}

/// The distance of a node from the newest head.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Behind {
    /// The epochs by which.
    pub(crate) epochs: u64,
    since: Option<Instant>,
    /// The first term that was seen, and the newest.
    terms: Option<(u64, u64)>,
}

impl Behind {
    /// For how long there has been a newer head than is in force.
    pub(crate) fn duration(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Leaderships that began since the first that was seen.
    pub(crate) fn leader_changes(&self) -> u64 {
        self.terms.map_or(0, |(first, newest)| newest - first)
    }

    /// Takes note of the newest head, and of what is in force, each by (term, epoch).
    fn see(&mut self, head: Option<(u64, u64)>, in_force: (u64, u64), now: Instant) {
        let Some(head) = head else { return };
        let (first, newest) = self.terms.unwrap_or((head.0, head.0));
        self.terms = Some((first, newest.max(head.0)));
        self.epochs = head.1.saturating_sub(in_force.1);
        match head > in_force {
            true => self.since = self.since.or(Some(now)),
            false => self.since = None,
        }
    }
}

impl Default for TreeMetrics {
    fn default() -> Self {
        let metrics = Self {
            durations: Family::new_with_constructor(Durations),
            failures: Family::default(),
            behind: Arc::default(),
        };
        // What has not happened yet shows as 0, so that rates have something to begin with.
        for operation in [Operation::Read, Operation::Write, Operation::Sync] {
            drop(metrics.durations.get_or_create(&Labels::of(operation)));
            drop(metrics.failures.get_or_create(&Labels::of(operation)));
        }
        metrics
    }
}

impl TreeMetrics {
    /// Registers, under the registry's prefix, what is counted here of ZooKeeper.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "zookeeper_operation_duration",
            "Time until ZooKeeper answered, or was given up on",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register(
            "zookeeper_operation_failures",
            "Operations that ZooKeeper did not answer, or not in time",
            self.failures.clone(),
        );
    }

    /// Returns how far behind the newest head this node is.
    pub(crate) fn behind(&self) -> Behind {
        *self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, head: Option<(u64, u64)>, in_force: (u64, u64)) {
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.see(head, in_force, Instant::now());
    }

    /// Follows what is decided and what is in force, until nobody tells any more.
    pub(crate) async fn follow(
        self,
        mut followed: watch::Receiver<Followed>,
        mut status: watch::Receiver<Arc<Status>>,
    ) {
        loop {
            let head = followed.borrow_and_update().decided.as_ref().map(|decided| decided.head.order());
            let in_force = {
                let status = status.borrow_and_update();
                (status.term.unwrap_or(0), status.epoch)
            };
            self.see(head, in_force);
            tokio::select! {
                changed = followed.changed() => if changed.is_err() { return },
                changed = status.changed() => if changed.is_err() { return },
            }
        }
    }
}

impl Observer for TreeMetrics {
    fn ended(&self, operation: Operation, took: Duration, answered: bool) {
        self.durations.get_or_create(&Labels::of(operation)).observe(took.as_secs_f64());
        if !answered {
            self.failures.get_or_create(&Labels::of(operation)).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_is_behind_from_the_first_head_that_it_has_not_in_force() {
        let mut behind = Behind::default();
        let second = Duration::from_secs(1);
        behind.see(None, (0, 0), Instant::now());
        assert_eq!((behind.epochs, behind.duration(), behind.leader_changes()), (0, Duration::ZERO, 0));
        behind.see(Some((3, 10)), (3, 10), Instant::now());
        behind.see(Some((3, 11)), (3, 10), Instant::now());
        tokio::time::sleep(second).await;
        behind.see(Some((5, 13)), (3, 11), Instant::now());
        tokio::time::sleep(second).await;
        assert_eq!((behind.epochs, behind.duration(), behind.leader_changes()), (2, 2 * second, 2));
        behind.see(Some((5, 13)), (5, 13), Instant::now());
        assert_eq!((behind.epochs, behind.duration(), behind.leader_changes()), (0, Duration::ZERO, 2));
    }
}
