//! Orders that others wrote: which to believe, and which are ahead of a leader's own. Pure.
//!
//! A node takes over only what is greater in (term, epoch) than what it has. So a leader must go on beyond what any node
//! has; but what is written there may be made up, and must not use the numbers up.

use super::problem::Problem;
use std::collections::BTreeMap;
use zk_schema::NodeName;
use zk_schema::tree::{Applied, MAX_ORDER_STEP, is_plausible};

/// The number after `number`.
pub(super) const fn next(number: u64) -> u64 {
    number.saturating_add(1)
}

/// Returns whether a node may have come to `order` where leaders have come to `known`.
#[must_use]
pub const fn credible(order: (u64, u64), known: (u64, u64)) -> bool {
    is_plausible(order)
        && order.0 <= known.0.saturating_add(MAX_ORDER_STEP)
        && order.1 <= known.1.saturating_add(MAX_ORDER_STEP)
}

/// Nodes that are ahead of a leader.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ahead {
    /// The greatest order that any of them has, as far as it is to be believed.
    pub(super) greatest: Option<(u64, u64)>,
    /// One for each.
    pub(super) problems: Vec<Problem>,
}

/// Returns the nodes that are ahead of `head`, if `next` is written next.
///
/// Problems do not tell the head's own order: they stand in the head, and each would make another one.
pub(super) fn ahead(applied: &BTreeMap<NodeName, Applied>, head: (u64, u64), next: (u64, u64)) -> Ahead {
    let mut ahead = Ahead::default();
    for (node, record) in applied.iter().filter(|(_, record)| record.order() > head) {
        let (node, order) = (node.clone(), record.order());
        if credible(order, next) {
            ahead.greatest = ahead.greatest.max(Some(order));
            ahead.problems.push(Problem::Ahead { node, order });
        } else {
            ahead.problems.push(Problem::MadeUp { node, order });
        }
    }
    ahead
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaders_may_have_come_to_is_believed_and_nothing_else() {
        assert!(credible((6, 50), (5, 11)) && credible((0, 0), (5, 11)));
        assert!(credible((MAX_ORDER_STEP, 1), (0, 0)) && !credible((MAX_ORDER_STEP + 1, 1), (0, 0)));
        assert!(!credible((1, u64::MAX), (1, u64::MAX)), "beyond what anybody comes to");
        assert_eq!(next(u64::MAX), u64::MAX);
    }
}
