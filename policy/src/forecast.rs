//! Forecasts of what a leader makes of a tree: the leader itself is asked, before it has done so.

use crate::leader::{Leader, Problem, Published, Timeouts, View};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use zk_schema::RecordError;

/// When it is, since the leader took over: long ago, so that it has settled.
const START: Duration = Duration::from_secs(3600);
/// How long the leader is given to come to rest. Longer than all that it waits for: to judge what vanished, to let go
/// of reals whose agents did not take their leave, and to have new reals probed.
const REST: Duration = Duration::from_secs(60);
/// Between two of its turns.
const TURN: Duration = Duration::from_secs(1);

/// The tree acknowledges at once: a forecast asks what comes of a change, not how long that takes.
const AT_ONCE: Timeouts =
    Timeouts { session_timeout: Duration::ZERO, ack_timeout: Duration::ZERO, withdraw_after: Duration::ZERO };

/// Returns what the leader objects to in the tree as it is: `view` is what others wrote, `published` what leaders have
/// written. What vanished and is not judged yet is none of it.
///
/// # Errors
/// See [`Leader::decide`].
pub fn objections(view: &View, published: Published) -> Result<Vec<Problem>, RecordError> {
    let mut leader = leader(published);
    leader.decide(view, &BTreeSet::new(), START)?;
    Ok(leader.problems().to_vec())
}

/// Returns the leader as it is when it has come to rest, if nothing else changes in the tree: `view` is what others
/// wrote, `published` what leaders have written.
///
/// Probes are taken to find what they find now, and every real up that is new to them.
///
/// # Errors
/// See [`Leader::decide`].
pub fn at_rest(view: &View, published: Published) -> Result<Leader, RecordError> {
    let mut leader = leader(published);
    let mut view = view.clone();
    let mut now = START;
    while now < START + REST {
        if let Some(publication) = leader.decide(&view, &BTreeSet::new(), now)? {
            for node in &view.nodes {
                Arc::make_mut(view.votes.entry(node.clone()).or_default()).targets = publication.head.targets;
            }
            leader.published(publication, now);
        }
        now += TURN;
    }
    Ok(leader)
}

/// A leader of the same term, so that nothing is written anew for that alone.
fn leader(published: Published) -> Leader {
    let term = published.head.as_ref().map_or(1, |head| head.term);
    Leader::new(term, AT_ONCE, published, 0, Duration::ZERO)
}
