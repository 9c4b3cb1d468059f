//! One round of work on the data plane, off the loop.

use super::forwarding::{Forwarding, Shared, locked};
use crate::status::{self, Shares};
use coordination::Snapshot;
use dataplane::compile::{CompileError, compile_with};
use dataplane::nexthop::{NextHops, Obstacle};
use dataplane::program::Program;
use dataplane::{Applied, SelfTest};
use health::Key;
use policy::local::Assignment;
use std::collections::BTreeMap;
use std::sync::Arc;
use zk_schema::VipName;
use zk_schema::tree::Decided;

/// Works for a data plane, where its work belongs.
pub(super) async fn work<D: Forwarding, T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    if D::BLOCKS { tokio::task::spawn_blocking(work).await } else { Ok(work()) }
}

/// Compiling and applying, off the threads that must not block.
pub(super) struct Job<D> {
    pub(super) dataplane: Shared<D>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) assignment: Assignment,
    pub(super) next_hops: Arc<NextHops>,
    pub(super) before: Option<Arc<InForce>>,
    /// The last attempt failed, perhaps half-way: what is in force may not be what `before` says.
    pub(super) again: bool,
}

pub(super) struct Done {
    pub(super) in_force: Arc<InForce>,
    /// Unless nothing but next hops changed.
    pub(super) applied: Option<(Applied, SelfTest)>,
    pub(super) marks: BTreeMap<Key, u32>,
    pub(super) obstacles: BTreeMap<Key, Obstacle>,
    pub(super) xdp_native: bool,
}

impl<D: Forwarding> Job<D> {
    pub(super) fn run(self) -> Result<Done, String> {
        let before = self.before.as_deref();
        let shared = locked(&self.dataplane).tables();
        let program = compile_with(
            &self.snapshot.desired,
            self.assignment.epoch,
            |vip| self.assignment.vips.get(vip).map(|assigned| &assigned.weights),
            before.and_then(|before| before.program.as_ref()),
            shared.as_ref(),
        )
        .map_err(|error: CompileError| error.to_string())?;

        let mut dataplane = locked(&self.dataplane);
        // First, so that nothing older is ever applied, wherever this process ends.
        dataplane.set_order(self.snapshot.decided.as_ref().map(|decided| decided.head.order()));
        let same = before.filter(|before| !self.again && before.program.as_ref() == Some(&program));
        let mut applied = None;
        let shares = match same {
            Some(before) => {
                if before.next_hops != self.next_hops {
                    dataplane.apply_next_hops(&self.next_hops).map_err(|error| chain(&error))?;
                }
                before.shares.clone()
            }
            None => {
                let done = dataplane.apply(&program, &self.next_hops).map_err(|error| chain(&error))?;
                applied = Some((done, dataplane.self_test()));
                status::shares(&program)
            }
        };
        let known = before.filter(|_| !self.again);
        let is_known = |name: &VipName| {
            let table = |program: &Program| program.vips.get(name).map(|vip| Arc::as_ptr(&vip.table));
            known.is_some_and(|known| {
                known.digests.contains_key(name) && known.program.as_ref().and_then(table) == table(&program)
            })
        };
        let mut digests = dataplane.table_digests(&|name| !is_known(name));
        let rest = known.into_iter().flat_map(|known| &known.digests);
        let rest = rest.filter(|(name, _)| program.vips.contains_key(*name) && is_known(name));
        digests.extend(rest.map(|(name, digest)| (name.clone(), *digest)));
        let in_force = InForce {
            digests,
            decided: self.snapshot.decided.clone(),
            program: Some(program),
            assignment: self.assignment,
            next_hops: self.next_hops,
            shares,
        };
        Ok(Done {
            in_force: Arc::new(in_force),
            applied,
            marks: dataplane.probe_marks(),
            obstacles: dataplane.obstacles(),
            xdp_native: dataplane.is_native(),
        })
    }
}

/// The state that was applied last.
#[derive(Debug, Default)]
pub(super) struct InForce {
    pub(super) program: Option<Program>,
    pub(super) assignment: Assignment,
    pub(super) next_hops: Arc<NextHops>,
    pub(super) shares: Shares,
    /// Digests of the tables in the maps.
    pub(super) digests: BTreeMap<VipName, u64>,
    /// The leader's decision, where there is a leader.
    pub(super) decided: Option<Arc<Decided>>,
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        // Some errors repeat their cause already.
        if text.ends_with(&cause) { text } else { format!("{text}: {cause}") }
    })
}
