//! Apportions slots to reals by weight.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Shares `slots` out in proportion to `weights`: whole numbers that add up to `slots`, at least 1 each.
///
/// The method is Webster's (Sainte-Laguë): as if every real divided its weight by one common divisor
/// and rounded. Unlike the method of largest remainders it is monotone: when one weight falls, no
/// *other* real loses a slot, so rounding alone never makes two untouched reals exchange one.
/// The departure from plain Webster is that nobody is rounded down to 0.
///
/// If rounding is a tie, the earlier real in the slice is served first.
///
/// The caller sees to it that all weights are in `1..=65535` and that there are no more of them than slots.
pub(crate) fn apportion(weights: &[u16], slots: u32) -> Vec<u32> {
    let reals = u32::try_from(weights.len()).expect("the caller has no more reals than slots");
    let total: u64 = weights.iter().copied().map(u64::from).sum();

    // Round for a table smaller by one slot per real: rounding up to 1 or to the next whole number adds
    // at most one each, so this cannot overshoot. All of it is part of the final shares, by monotony.
    let safe = u64::from(slots - reals);
    let due = |weight: u16| {
        let rounded = (2 * u64::from(weight) * safe + total) / (2 * total);
        u32::try_from(rounded.max(1)).expect("a share is not larger than the table")
    };
    let mut shares: Vec<u32> = weights.iter().copied().map(due).collect();

    let mut next: BinaryHeap<Claim> = weights
        .iter()
        .zip(&shares)
        .enumerate()
        .map(|(index, (&weight, &share))| Claim { weight, share, index })
        .collect();
    for _ in shares.iter().sum::<u32>()..slots {
        let Some(mut first) = next.peek_mut() else { break };
        first.share += 1;
        shares[first.index] = first.share;
    }
    shares
}

/// A real's claim to the next slot; the greatest is served first.
struct Claim {
    weight: u16,
    share: u32,
    index: usize,
}

impl Claim {
    /// Compares `weight / (share + 1/2)`, without dividing.
    fn urgency(&self, other: &Self) -> Ordering {
        let rounding_point = |claim: &Self| 2 * u64::from(claim.share) + 1;
        let this = u64::from(self.weight) * rounding_point(other);
        let that = u64::from(other.weight) * rounding_point(self);
        this.cmp(&that)
    }
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        self.urgency(other).then_with(|| other.index.cmp(&self.index))
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Claim {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Claim {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weights() -> impl Strategy<Value = Vec<u16>> {
        prop::collection::vec(prop_oneof![1u16..=10, 1u16..=u16::MAX, Just(1), Just(u16::MAX)], 1..300)
    }

    #[test]
    fn whole_shares_are_exact() {
        assert_eq!(apportion(&[1, 2, 7], 100), [10, 20, 70]);
        assert_eq!(apportion(&[u16::MAX; 4], 4), [1; 4]);
    }

    #[test]
    fn a_remainder_goes_to_the_first_of_equals() {
        assert_eq!(apportion(&[5, 5, 5], 11), [4, 4, 3]);
    }

    #[test]
    fn nobody_is_rounded_to_nothing() {
        assert_eq!(apportion(&[u16::MAX, 1, 1], 101), [99, 1, 1]);
    }

    proptest! {
        #[test]
        fn shares_add_up_and_each_is_at_least_one(weights in weights(), slots in 300u32..70_000) {
            let shares = apportion(&weights, slots);
            prop_assert_eq!(shares.iter().sum::<u32>(), slots);
            prop_assert!(shares.iter().all(|&share| share >= 1));
        }

        #[test]
        fn when_one_weight_falls_nobody_else_loses(
            weights in weights(), slots in 300u32..70_000, which: prop::sample::Index, to in 1u16..=u16::MAX,
        ) {
            let which = which.index(weights.len());
            let mut after = weights.clone();
            after[which] = to.min(weights[which]);
            let (before, after) = (apportion(&weights, slots), apportion(&after, slots));
            for (index, (before, after)) in before.iter().zip(&after).enumerate() {
                let in_step = if index == which { after <= before } else { after >= before };
                prop_assert!(in_step);
            }
        }
    }
}
