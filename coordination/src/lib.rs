//! Where a node learns the desired state: a [`Store`] publishes consistent snapshots of the tree.
//!
//! Knows the records of `zk-schema`; knows nothing of packets.

use std::sync::Arc;
use tokio::sync::watch;
use zk_schema::Desired;

/// A consistent picture of the tree. A node never reacts to an event; it reconciles to a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Rises with every change.
    pub revision: u64,
    /// What operators asked for.
    pub desired: Desired,
}

/// A source of snapshots.
pub trait Store: Send + Sync {
    /// A receiver that always holds the newest snapshot; a missed wake-up loses nothing.
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>>;
}

/// The store of standalone mode and of tests: the desired state is handed in.
pub struct MemoryStore {
    sender: watch::Sender<Arc<Snapshot>>,
}

impl MemoryStore {
    /// A store that holds `desired` at revision 1.
    #[must_use]
    pub fn new(desired: Desired) -> Self {
        Self { sender: watch::Sender::new(Arc::new(Snapshot { revision: 1, desired })) }
    }

    /// Replaces the desired state if it differs; returns the revision in force.
    pub fn replace(&self, desired: Desired) -> u64 {
        self.sender.send_if_modified(|snapshot| {
            if snapshot.desired == desired {
                return false;
            }
            *snapshot = Arc::new(Snapshot { revision: snapshot.revision + 1, desired });
            true
        });
        self.sender.borrow().revision
    }
}

impl Store for MemoryStore {
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.sender.subscribe()
    }
}
