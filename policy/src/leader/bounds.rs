//! Bounds on what a leader writes: others' input must not keep it from writing at all. Pure.

use super::problem::Problem;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zk_schema::tree::{Assignment, Head, MAX_STATE_BYTES, StateRecord as _};
use zk_schema::{NodeName, Real, RecordError, VipName, VipState, to_json};

/// Problems that a head tells; how many more there are is told in one more.
const MOST_PROBLEMS: usize = 100;
/// Bytes of a problem's text, and of the reasons in an assignment.
const LENGTH: usize = 500;
/// Nodes that a head lists.
pub(super) const MOST_NODES: usize = 512;
/// Bytes of a head that its VIPs may take. The rest is for problems and nodes.
const HEAD_VIPS: usize = 256 * 1024;
/// Bytes of an assignment that the definitions and a set of weights, as announced, may take. The rest is for those in
/// force, for reasons, and for as much of the history as fits.
const DEFINITION: usize = 384 * 1024;
/// Bytes that a real takes at most, without its name and unknown fields.
const PLAIN_REAL: usize = 128;
/// Unknown fields of a head or an assignment that are copied from a predecessor's.
pub(super) const EXTRA: usize = 4 * 1024;

/// Problems, the most important first; and in words, as many as a head bears.
#[derive(Debug, Default)]
pub(super) struct Problems {
    all: Vec<Problem>,
    told: BTreeSet<String>,
    more: usize,
}

impl Problems {
    /// Adds one that is as important as the last, or less.
    pub(super) fn insert(&mut self, problem: Problem) {
        let words = shorten(&problem.to_string());
        self.all.push(problem);
        if self.told.len() < MOST_PROBLEMS {
            self.told.insert(words);
        } else if !self.told.contains(&words) {
            self.more += 1;
        }
    }

    /// Adds several.
    pub(super) fn extend(&mut self, problems: impl IntoIterator<Item = Problem>) {
        problems.into_iter().for_each(|problem| self.insert(problem));
    }

    /// All of them, and what a head tells of them.
    pub(super) fn told(mut self) -> (Vec<Problem>, BTreeSet<String>) {
        if self.more > 0 {
            self.told.insert(format!("and {} more problems, which have no room here", self.more));
        }
        (self.all, self.told)
    }
}

/// A text of a bounded length, without control characters: others' words may be in it.
pub(super) fn shorten(text: &str) -> String {
    let is_short = text.len() <= LENGTH;
    let end = text.char_indices().map(|(at, _)| at).take_while(|at| *at <= LENGTH).last().unwrap_or(0);
    let shown = if is_short { text } else { &text[..end] };
    let mut shown: String =
        shown.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect();
    if !is_short {
        shown.push('…');
    }
    shown
}

/// Checks whether a VIP's definition fits into an assignment.
///
/// # Errors
/// In words, with the fix.
pub(super) fn fits(state: &VipState) -> Result<(), String> {
    // An exact count takes time, and hardly ever matters.
    let most =
        |real: &Real| PLAIN_REAL + serde_json::to_vec(&real.extra).map_or(DEFINITION, |json| json.len());
    let reals = state.reals.iter().map(|(name, real)| 2 * (name.as_str().len() + 4) + 6 + most(real));
    let vip = to_json(&state.vip).map_err(in_words)?.len();
    if vip + reals.sum::<usize>() <= DEFINITION {
        return Ok(());
    }
    let reals = state.reals.iter().try_fold(0, |sum, (name, real)| {
        let (name, real) = (name.as_str().len() + 4, to_json(real).map_err(in_words)?.len());
        // The name stands there a second time, with its weight.
        Ok::<_, String>(sum + 2 * name + 6 + real)
    })?;
    match vip + reals {
        bytes if bytes > DEFINITION => Err(format!(
            "with its {} reals it takes {bytes} bytes of an assignment, which has room for {DEFINITION}: use fewer reals, \
             shorter names, or no unknown fields",
            state.reals.len()
        )),
        _ => Ok(()),
    }
}

fn in_words(error: RecordError) -> String {
    error.to_string()
}

/// Makes an assignment fit, and writes it: its history is as long as there is room for.
///
/// # Errors
/// If it does not fit without any.
pub(super) fn fit(assignment: &mut Assignment) -> Result<Vec<u8>, RecordError> {
    loop {
        match assignment.bytes() {
            Err(RecordError::TooLarge { .. }) if assignment.history.pop().is_some() => {}
            other => return other,
        }
    }
}

/// The VIPs of `all` that a head has room for: those that `are_in` it, and of the others the first.
pub(super) fn in_head<'a>(
    all: impl Iterator<Item = &'a VipName>,
    are_in: impl Fn(&VipName) -> bool,
) -> BTreeSet<&'a VipName> {
    // A name may stand there twice, the second time as one that is held; digest, epoch and punctuation beside it.
    let bytes = |name: &VipName| 2 * name.as_str().len() + 64;
    let (there, new): (Vec<&VipName>, Vec<&VipName>) = all.partition(|name| are_in(name));
    let mut sum: usize = there.iter().map(|name| bytes(name)).sum();
    let mut there: BTreeSet<&VipName> = there.into_iter().collect();
    for name in new {
        sum += bytes(name);
        if sum <= HEAD_VIPS {
            there.insert(name);
        }
    }
    there
}

/// The first of these nodes, those that are `known` before others.
pub(super) fn few_nodes(nodes: BTreeSet<NodeName>, known: &BTreeSet<NodeName>) -> BTreeSet<NodeName> {
    if nodes.len() <= MOST_NODES {
        return nodes;
    }
    let (old, new): (Vec<NodeName>, Vec<NodeName>) = nodes.into_iter().partition(|node| known.contains(node));
    old.into_iter().chain(new).take(MOST_NODES).collect()
}

/// Leaves out unknown fields that are too large to be copied.
pub(super) fn bound_extra(extra: &mut BTreeMap<String, serde_json::Value>) {
    if !extra.is_empty() && serde_json::to_vec(extra).map_or(true, |json| json.len() > EXTRA) {
        extra.clear();
    }
}

/// Leaves out of what predecessors wrote what is too large to be copied.
pub(super) fn bound_published(head: Option<&mut Head>, assignments: &mut BTreeMap<VipName, Arc<Assignment>>) {
    if let Some(head) = head {
        bound_extra(&mut head.extra);
        bound_extra(&mut head.cluster.extra);
    }
    for assignment in assignments.values_mut().filter(|assignment| !assignment.extra.is_empty()) {
        bound_extra(&mut Arc::make_mut(assignment).extra);
    }
}

const _: () =
    assert!(HEAD_VIPS + MOST_PROBLEMS * 2 * (LENGTH + 8) + 3 * 70 * MOST_NODES < MAX_STATE_BYTES - 16 * 1024);
const _: () = assert!(DEFINITION < MAX_STATE_BYTES);
