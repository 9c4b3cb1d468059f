//! Results of a leader's earlier turns. Pure.
//!
//! The fate of a VIP follows from its inputs alone. They are kept beside what came of them: as long as they are the
//! same, nothing is worked out again. So a turn costs what changed.

use super::View;
use super::problem::{Hold, Problem};
use super::view::Published;
use crate::verdict::Verdict;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zk_schema::picture::VipFound;
use zk_schema::tree::Assignment;
use zk_schema::{RealName, VipName, VipState};

/// Returns whether two are the same object, or none.
pub(super) fn is_same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// Those of `these` that are not among `others`, where both are in order.
pub(super) fn without<'a, T: Ord + 'a>(
    these: impl Iterator<Item = &'a T>,
    others: impl Iterator<Item = &'a T>,
) -> impl Iterator<Item = &'a T> {
    let mut others = others.peekable();
    these.filter(move |this| {
        while others.next_if(|other| other < this).is_some() {}
        others.peek().is_none_or(|other| other != this)
    })
}

/// The published reals that have no record.
#[derive(Debug, Default)]
pub(super) struct Missing {
    of: BTreeMap<VipName, Compared>,
}

/// A VIP's records compared with what is published.
#[derive(Debug)]
struct Compared {
    wish: Arc<VipFound>,
    current: Arc<Assignment>,
    missing: BTreeSet<RealName>,
}

impl Missing {
    /// Looks what is missing now. Of a VIP whose own record is missing nothing is known.
    pub(super) fn look(&mut self, view: &View, published: &Published) {
        self.of.retain(|vip, _| view.vips.contains_key(vip) && published.assignments.contains_key(vip));
        for (vip, current) in &published.assignments {
            let Some(wish) = view.vips.get(vip) else { continue };
            let is_known = self.of.get(vip).is_some_and(|compared| {
                Arc::ptr_eq(&compared.wish, wish) && Arc::ptr_eq(&compared.current, current)
            });
            if !is_known {
                let missing = without(current.reals.keys(), wish.reals.keys()).cloned().collect();
                let (wish, current) = (Arc::clone(wish), Arc::clone(current));
                self.of.insert(vip.clone(), Compared { wish, current, missing });
            }
        }
    }

    /// The reals of a VIP that are missing.
    pub(super) fn of(&self, vip: &VipName) -> impl Iterator<Item = &RealName> + use<'_> {
        self.of.get(vip).into_iter().flat_map(|compared| &compared.missing)
    }
}

/// The other inputs of a VIP's weights, beside its definition, what is in force and the verdicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Circumstances {
    /// Reals that are to get no new connections.
    pub(super) out: BTreeSet<RealName>,
    /// True if others may be drained without that being seen.
    pub(super) hides_drains: bool,
    /// Reals that are held.
    pub(super) held: BTreeSet<RealName>,
    /// True if an operator confirmed what looks like an accident.
    pub(super) confirmed: bool,
    /// True if anything may be removed.
    pub(super) trust: bool,
    /// True if its reals have had the time to be judged.
    pub(super) overdue: bool,
    /// True if what was announced may take effect.
    pub(super) adopted: bool,
}

/// A VIP of which nothing was to be written.
#[derive(Debug)]
pub(super) struct Rest {
    /// The inputs that it follows from.
    pub(super) state: Arc<VipState>,
    pub(super) current: Option<Arc<Assignment>>,
    pub(super) verdicts: Option<Arc<BTreeMap<RealName, Verdict>>>,
    pub(super) circumstances: Circumstances,
    /// The reason why the new assignment is not written, if there is one.
    pub(super) refused: Option<Problem>,
    /// The reason why its weights are not as asked for, if there is one.
    pub(super) hold: Option<Hold>,
}

impl Rest {
    /// Returns whether it still follows.
    pub(super) fn holds(
        &self,
        state: &Arc<VipState>,
        current: Option<&Arc<Assignment>>,
        verdicts: Option<&Arc<BTreeMap<RealName, Verdict>>>,
        circumstances: &Circumstances,
    ) -> bool {
        Arc::ptr_eq(&self.state, state)
            && is_same(self.current.as_ref(), current)
            && is_same(self.verdicts.as_ref(), verdicts)
            && self.circumstances == *circumstances
    }
}
