//! The data plane as the control loop sees it.

use dataplane::attachment::Attachment;
use dataplane::compile::TableCache;
use dataplane::nexthop::{NextHops, Obstacle};
use dataplane::program::Program;
use dataplane::{Applied, Dataplane, SelfTest, Statistics};
use health::Key;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zk_schema::{Desired, VipName};

/// The loop's effects on the kernel. Behind a trait so that its decisions can be tested without one.
pub trait Forwarding: Send + 'static {
    /// The error.
    type Error: std::error::Error + Send + Sync + 'static;

    /// True if its work takes long enough to be kept off the threads that run tasks.
    const BLOCKS: bool = true;

    /// See [`Dataplane::apply`].
    ///
    /// # Errors
    /// As there.
    fn apply(&mut self, program: &Program, hops: &NextHops) -> Result<Applied, Self::Error>;

    /// See [`Dataplane::apply_next_hops`].
    ///
    /// # Errors
    /// As there.
    fn apply_next_hops(&mut self, hops: &NextHops) -> Result<(), Self::Error>;

    /// See [`Dataplane::unresolved`].
    fn unresolved(&self) -> BTreeSet<Key>;

    /// See [`Dataplane::obstacles`].
    fn obstacles(&self) -> BTreeMap<Key, Obstacle> {
        BTreeMap::new()
    }

    /// See [`Dataplane::probe_marks`].
    fn probe_marks(&self) -> BTreeMap<Key, u32>;

    /// See [`Dataplane::in_force`].
    fn in_force(&self, desired: &Desired) -> BTreeSet<Key>;

    /// See [`Dataplane::statistics`].
    ///
    /// # Errors
    /// As there.
    fn statistics(&self) -> Result<Statistics, Self::Error>;

    /// See [`Dataplane::self_test`].
    fn self_test(&mut self) -> SelfTest;

    /// See [`Dataplane::look_after_attachment`].
    fn look_after_attachment(&mut self) -> Attachment {
        Attachment::default()
    }

    /// See [`Dataplane::table_digests`].
    fn table_digests(&self, wanted: &dyn Fn(&VipName) -> bool) -> BTreeMap<VipName, u64>;

    /// See [`Dataplane::is_native`].
    fn is_native(&self) -> bool;

    /// See [`Dataplane::set_order`].
    fn set_order(&mut self, _order: Option<(u64, u64)>) {}

    /// Tables that several data planes share, if they do.
    fn tables(&self) -> Option<TableCache> {
        None
    }
}

impl Forwarding for Dataplane {
    type Error = dataplane::Error;

    fn apply(&mut self, program: &Program, hops: &NextHops) -> Result<Applied, Self::Error> {
        Self::apply(self, program, hops)
    }

    fn apply_next_hops(&mut self, hops: &NextHops) -> Result<(), Self::Error> {
        Self::apply_next_hops(self, hops)
    }

    fn unresolved(&self) -> BTreeSet<Key> {
        Self::unresolved(self)
    }

    fn obstacles(&self) -> BTreeMap<Key, Obstacle> {
        Self::obstacles(self)
    }

    fn probe_marks(&self) -> BTreeMap<Key, u32> {
        Self::probe_marks(self)
    }

    fn in_force(&self, desired: &Desired) -> BTreeSet<Key> {
        Self::in_force(self, desired)
    }

    fn statistics(&self) -> Result<Statistics, Self::Error> {
        Self::statistics(self)
    }

    fn self_test(&mut self) -> SelfTest {
        Self::self_test(self)
    }

    fn look_after_attachment(&mut self) -> Attachment {
        Self::look_after_attachment(self)
    }

    fn table_digests(&self, wanted: &dyn Fn(&VipName) -> bool) -> BTreeMap<VipName, u64> {
        Self::table_digests(self, wanted)
    }

    fn is_native(&self) -> bool {
        Self::is_native(self)
    }

    fn set_order(&mut self, order: Option<(u64, u64)>) {
        Self::set_order(self, order);
    }
}

/// A data plane that the loop and the scrapes of its counters share.
pub type Shared<D> = Arc<Mutex<D>>;

/// The data plane, also after a thread that held it has panicked: applying is idempotent, so the next one fixes
/// what was left half-way.
pub(crate) fn locked<D>(dataplane: &Mutex<D>) -> MutexGuard<'_, D> {
    dataplane.lock().unwrap_or_else(PoisonError::into_inner)
}
