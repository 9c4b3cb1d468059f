//! Who asks for sessions, and when: for tests of clients that must not all come back at one moment.

use super::{MemoryClient, MemorySession};
use crate::{Error, Store};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A client that notes when it asks for a session. Clones are the same process.
#[derive(Clone, Debug)]
pub struct Noted {
    /// The client.
    pub client: MemoryClient,
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl Noted {
    /// Wraps a client.
    #[must_use]
    pub fn new(client: MemoryClient) -> Self {
        Self { client, asked: Arc::default() }
    }

    /// Returns when it asked for the first time since `start`.
    #[must_use]
    pub fn first_since(&self, start: Instant) -> Option<Instant> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().copied().find(|at| *at >= start)
    }
}

impl Store for Noted {
    type Session = MemorySession;

    async fn connect(&self) -> Result<MemorySession, Error> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        self.client.connect().await
    }
}

/// Returns how many of these clients at most asked for a session within any 50 ms, each for the first time since then.
///
/// # Panics
///
/// If one of them has not asked since then.
#[must_use]
pub fn crowd(clients: &[Noted], since: Instant) -> usize {
    const WINDOW: Duration = Duration::from_millis(50);
    let asked: Vec<Instant> = clients.iter().filter_map(|client| client.first_since(since)).collect();
    assert_eq!(asked.len(), clients.len(), "not all asked");
    let within = |from: &Instant| asked.iter().filter(|at| (*from..*from + WINDOW).contains(at)).count();
    asked.iter().map(within).max().unwrap_or(0)
}
