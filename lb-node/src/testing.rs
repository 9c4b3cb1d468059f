//! States that unit tests start from.

use coordination::memory::{MemoryClient, MemorySession};
use coordination::{Error, Store};
use dataplane::nexthop::{NextHop, NextHops};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use zk_schema::Desired;
pub(crate) use zk_schema::testing::{checked_vip, decided, desired, name, unchecked_vip};

/// A next hop for every real.
pub(crate) fn next_hops(desired: &Desired) -> NextHops {
    let hop = NextHop {
        ifindex: 2,
        source_mac: [2; 6],
        destination_mac: [4; 6],
        vlan: None,
        mtu: 1500,
        on_link: true,
        takes_redirects: true,
    };
    let reals = desired.vips.values().flat_map(|state| state.reals.values());
    reals.map(|real| (real.address, hop)).collect()
}

/// Clients of a store that note when they ask for a session.
#[derive(Clone, Debug)]
pub(crate) struct Noted {
    pub(crate) client: MemoryClient,
    pub(crate) asked: Arc<Mutex<Vec<Instant>>>,
}

impl Noted {
    pub(crate) fn new(client: MemoryClient) -> Self {
        Self { client, asked: Arc::default() }
    }

    /// When it asked for the first time since `start`.
    pub(crate) fn first_since(&self, start: Instant) -> Option<Instant> {
        self.asked.lock().expect("nobody panicked").iter().copied().find(|at| *at >= start)
    }
}

impl Store for Noted {
    type Session = MemorySession;

    async fn connect(&self) -> Result<MemorySession, Error> {
        self.asked.lock().expect("nobody panicked").push(Instant::now());
        self.client.connect().await
    }
}

/// How many of these clients, all of which asked for a session since then, did so for the first time within any 50 ms, at
/// most.
pub(crate) fn crowd(clients: &[Noted], since: Instant) -> usize {
    const WINDOW: Duration = Duration::from_millis(50);
    let asked: Vec<Instant> = clients.iter().filter_map(|client| client.first_since(since)).collect();
    assert_eq!(asked.len(), clients.len(), "not all asked");
    let within = |from: &Instant| asked.iter().filter(|at| (*from..*from + WINDOW).contains(at)).count();
    asked.iter().map(within).max().unwrap_or(0)
}
