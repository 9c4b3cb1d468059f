//! Snapshots: what a node reconciles to.

use std::sync::Arc;
use tokio::sync::watch;
use zk_schema::Desired;
use zk_schema::tree::Decided;

/// A consistent picture of the desired state. A node never reacts to an event; it reconciles to a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Rises with every change; says nothing beyond the life of its publisher.
    pub revision: u64,
    /// The operators' records, as far as they have been accepted.
    pub desired: Desired,
    /// The leader's decision on them; `None` on a node that stands alone and decides itself.
    pub decided: Option<Arc<Decided>>,
}

/// Publishes snapshots. It has one from the moment it exists.
#[derive(Debug)]
pub struct Snapshots {
    sender: watch::Sender<Arc<Snapshot>>,
}

impl Snapshots {
    /// A publisher that holds `desired` at revision 1.
    #[must_use]
    pub fn new(desired: Desired) -> Self {
        Self { sender: watch::Sender::new(Arc::new(Snapshot { revision: 1, desired, decided: None })) }
    }

    /// A publisher that holds what a leader decided, at revision 1.
    #[must_use]
    pub fn of_cluster(decided: Arc<Decided>) -> Self {
        let snapshot = Snapshot { revision: 1, desired: decided.desired(), decided: Some(decided) };
        Self { sender: watch::Sender::new(Arc::new(snapshot)) }
    }

    /// Replaces what the leader decided if it differs; returns the revision that holds it.
    pub fn follow(&self, decided: Arc<Decided>) -> u64 {
        let desired = decided.desired();
        self.put(desired, Some(decided))
    }

    /// Replaces the desired state if it differs; returns the revision that holds `desired`.
    pub fn replace(&self, desired: Desired) -> u64 {
        self.put(desired, None)
    }

    fn put(&self, desired: Desired, decided: Option<Arc<Decided>>) -> u64 {
        let mut revision = 0;
        self.sender.send_if_modified(|snapshot| {
            let differs = snapshot.desired != desired || snapshot.decided != decided;
            if differs {
                *snapshot = Arc::new(Snapshot { revision: snapshot.revision + 1, desired, decided });
            }
            revision = snapshot.revision;
            differs
        });
        revision
    }

    /// A receiver that always holds the newest snapshot. Snapshots in between may be skipped; a missed wake-up loses
    /// nothing. It ends when the publisher is dropped, and then still holds the last snapshot.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.sender.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state that differs from those of other seeds.
    fn state(seed: u128) -> Desired {
        let mut desired = Desired::default();
        desired.cluster.seed = seed.into();
        desired
    }

    #[test]
    fn a_receiver_holds_the_state_from_the_start() {
        let snapshots = Snapshots::new(state(1));
        let snapshot = Arc::clone(&snapshots.subscribe().borrow());
        assert_eq!(*snapshot, Snapshot { revision: 1, desired: state(1), decided: None });
    }

    #[test]
    fn an_equal_state_keeps_the_revision_and_wakes_nobody() {
        let snapshots = Snapshots::new(state(1));
        let receiver = snapshots.subscribe();
        assert_eq!(snapshots.replace(state(1)), 1);
        assert!(!receiver.has_changed().expect("the publisher is there"));
        assert_eq!(snapshots.replace(state(2)), 2);
        assert!(receiver.has_changed().expect("the publisher is there"));
    }

    #[test]
    fn a_receiver_that_lags_sees_the_newest_state() {
        let snapshots = Snapshots::new(state(0));
        let mut receiver = snapshots.subscribe();
        for seed in 1..=100 {
            snapshots.replace(state(seed));
        }
        assert_eq!(
            **receiver.borrow_and_update(),
            Snapshot { revision: 101, desired: state(100), decided: None }
        );
        assert!(!receiver.has_changed().expect("the publisher is there"));
    }

    #[test]
    fn a_state_is_kept_while_nobody_listens() {
        let snapshots = Snapshots::new(state(1));
        assert_eq!(snapshots.replace(state(2)), 2);
        assert_eq!(snapshots.subscribe().borrow().desired, state(2));
    }

    #[tokio::test]
    async fn a_waiting_receiver_is_woken_and_outlives_the_publisher() {
        let snapshots = Snapshots::new(state(1));
        let mut receiver = snapshots.subscribe();
        let waiting = tokio::spawn(async move {
            receiver.changed().await.expect("the publisher is there");
            let seen = Arc::clone(&receiver.borrow_and_update());
            (seen, receiver)
        });
        snapshots.replace(state(2));
        let (seen, mut receiver) = waiting.await.expect("no panic");
        assert_eq!(seen.desired, state(2));
        drop(snapshots);
        assert!(receiver.changed().await.is_err());
        assert_eq!(receiver.borrow().desired, state(2));
    }

    #[test]
    fn concurrent_replacements_each_learn_the_revision_of_their_own_state() {
        let snapshots = Snapshots::new(state(0));
        let mut revisions: Vec<u64> = std::thread::scope(|scope| {
            let replace = |seed| {
                scope.spawn({
                    let snapshots = &snapshots;
                    move || snapshots.replace(state(seed))
                })
            };
            let threads: Vec<_> = (1..=8).map(replace).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        revisions.sort_unstable();
        assert_eq!(revisions, [2, 3, 4, 5, 6, 7, 8, 9]);
    }
}
