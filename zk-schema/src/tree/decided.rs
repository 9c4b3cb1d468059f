//! The leader's decision: a head and the assignments that it lists, put together.

use super::{Assignment, Head, StateRecord as _, paths};
use crate::{Desired, RecordError, VipName, VipState};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The leader's decision: a head, and the assignment of each VIP in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// The head.
    pub head: Head,
    /// Assignments, each as the head lists it.
    pub assignments: BTreeMap<VipName, Arc<Assignment>>,
    /// The same as it stands in the tree.
    pub raw: Raw,
}

/// Records as they stand in the tree, byte by byte: those of a newer version may hold more than this one reads, and
/// digests are of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raw {
    /// The head.
    pub head: Arc<[u8]>,
    /// Assignments.
    pub assignments: BTreeMap<VipName, Arc<[u8]>>,
}

impl Decided {
    /// Puts together a decision that this version of the software would write.
    ///
    /// # Errors
    /// If a record would be too large.
    pub fn written(head: Head, assignments: BTreeMap<VipName, Arc<Assignment>>) -> Result<Self, RecordError> {
        let bytes = |(name, assignment): (&VipName, &Arc<Assignment>)| {
            Ok((name.clone(), Arc::from(assignment.bytes()?)))
        };
        let raw = Raw {
            head: head.bytes()?.into(),
            assignments: assignments.iter().map(bytes).collect::<Result<_, RecordError>>()?,
        };
        Ok(Self { head, assignments, raw })
    }

    /// The definitions of VIPs and reals in it.
    #[must_use]
    pub fn desired(&self) -> Desired {
        let state = |assignment: &Assignment| VipState {
            vip: assignment.vip.clone(),
            reals: assignment.reals.clone(),
        };
        let vips = self.assignments.iter().map(|(name, assignment)| (name.clone(), state(assignment)));
        Desired { cluster: self.head.cluster.clone(), vips: vips.collect() }
    }

    /// Puts a head, which was read from `raw_head`, and the bytes of assignments together, each of which must be as
    /// the head lists it.
    ///
    /// # Errors
    /// In words, if one is not, or the whole does not make sense.
    pub fn assemble(
        head: Head,
        raw_head: &[u8],
        mut bytes: impl FnMut(&VipName) -> Option<Vec<u8>>,
        known: Option<&Decided>,
    ) -> Result<Self, String> {
        let mut assignments = BTreeMap::new();
        let mut raw = Raw { head: raw_head.into(), assignments: BTreeMap::new() };
        for (name, entry) in &head.vips {
            let same = known.filter(|known| known.head.vips.get(name) == Some(entry));
            let same =
                same.and_then(|known| known.assignments.get(name).zip(known.raw.assignments.get(name)));
            let assignment = match same {
                Some((same, bytes)) => {
                    raw.assignments.insert(name.clone(), Arc::clone(bytes));
                    Arc::clone(same)
                }
                None => {
                    let path = paths::assignment(name);
                    let data = bytes(name).ok_or_else(|| format!("{path}: no such znode"))?;
                    if Assignment::digest(&data) != entry.digest {
                        return Err(format!("{path}: not what {} lists", paths::ASSIGNMENTS));
                    }
                    let assignment = Assignment::parse(&data).map_err(|error| format!("{path}: {error}"))?;
                    raw.assignments.insert(name.clone(), data.into());
                    Arc::new(assignment)
                }
            };
            if assignment.epoch != entry.epoch {
                return Err(format!(
                    "{}: of epoch {}, not {} as {} lists",
                    paths::assignment(name),
                    assignment.epoch,
                    entry.epoch,
                    paths::ASSIGNMENTS
                ));
            }
            assignments.insert(name.clone(), assignment);
        }
        let decided = Self { head, assignments, raw };
        decided.desired().validate().map_err(|problems| format!("{}: {problems}", paths::ASSIGNMENTS))?;
        Ok(decided)
    }
}
