//! Weighted Maglev tables: which real owns each slot of a VIP.
//!
//! As in Maglev (Eisenbud et al., NSDI 2016, section 3.4) each real walks all slots in an order of its
//! own, given by an offset and a skip that come from its id, and claims slots on its way. Who
//! wins a slot differs from the paper, for the sake of weights and of fewer moved slots:
//!
//! 1. Every real is due a whole number of slots in exact proportion to its weight (Webster's method).
//!    It stops when it has them, so shares are exact to rounding at any ratio of weights.
//! 2. The `k`-th slot of a walk is reached at the time `H(k) / weight`, where `H(k)` is how long one takes
//!    on average to meet `k` of `m` slots at random. Of two reals that want a slot, the earlier one has it,
//!    *also when the other came to it first in the course of the computation*; that one walks on.
//!
//! Without the limits of step 1, step 2 is weighted rendezvous hashing, which moves nothing beyond the
//! minimum; the limits cost a little of that. In the paper the turns in which reals claim slots depend on
//! what is still free, so one real's absence shifts all later turns; here a time depends on nothing
//! but the real itself.
//!
//! The outcome is the one stable matching of slots and reals (Gale and Shapley, 1962; unique since both sides
//! rank by the same times). It depends on the seed, the table's size, the ids and the weights, and on nothing
//! else: not on the order of the reals, nor on any earlier table. All arithmetic is on integers.

use std::collections::HashMap;

use crate::apportion::apportion;
use crate::flow::Seed;

/// A server behind a VIP, as far as its table is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Real<'a> {
    /// Name, unique within the VIP. A real that keeps its id keeps its slots.
    pub id: &'a str,
    /// Share of the slots relative to the other reals' weights. 0: none at all; any other: at least one slot.
    pub weight: u16,
}

/// Number of slots in a table: a prime, so that every skip visits all slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableSize(u32);

impl TableSize {
    /// 65,537 slots, enough for shares within 1 % at 256 reals.
    pub const DEFAULT: Self = Self(65_537);
    /// 655,373 slots, for VIPs with thousands of reals.
    pub const LARGE: Self = Self(655_373);
    /// No table is larger than this many slots.
    pub const MAX: u32 = 1 << 20;

    /// Any prime from 2 up to [`TableSize::MAX`]: for tests and simulations.
    /// Configuration is read with `TableSize::try_from`, which takes the two supported sizes only.
    ///
    /// # Errors
    /// If `slots` is not a prime in that range.
    pub fn prime(slots: u32) -> Result<Self, TableSizeError> {
        let is_prime = slots >= 2 && (2..=slots.isqrt()).all(|divisor| !slots.is_multiple_of(divisor));
        if is_prime && slots <= Self::MAX { Ok(Self(slots)) } else { Err(TableSizeError::NotPrime(slots)) }
    }

    /// The number of slots.
    #[must_use]
    pub const fn slots(self) -> u32 {
        self.0
    }
}

impl Default for TableSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u32> for TableSize {
    type Error = TableSizeError;

    fn try_from(slots: u32) -> Result<Self, TableSizeError> {
        [Self::DEFAULT, Self::LARGE]
            .into_iter()
            .find(|size| size.0 == slots)
            .ok_or(TableSizeError::Unsupported(slots))
    }
}

/// A number of slots that no table can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableSizeError {
    /// Not one of the sizes a cluster may be configured with.
    #[error("table size {0} is not supported: use 65537 or 655373 slots")]
    Unsupported(u32),
    /// Not a prime, or out of range.
    #[error("table size {0} is not a prime from 2 to {max}", max = TableSize::MAX)]
    NotPrime(u32),
}

/// Reals that no table can be built for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Two reals of one VIP have the same id.
    #[error("real `{id}` is listed twice: give each real of a VIP an id of its own")]
    DuplicateId {
        /// The id.
        id: String,
    },
    /// More reals than can be told apart or than there are slots for.
    #[error("{count} reals are too many for one table: at most {most} fit")]
    TooManyReals {
        /// Reals given, or those of them with a weight.
        count: usize,
        /// The most that are allowed.
        most: u32,
    },
}

/// The owner of every slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    size: TableSize,
    /// Index of each slot's owner among the reals that the table was built from; empty when nobody
    /// owns anything.
    owners: Vec<u16>,
    /// Those reals' identities, by the same index.
    identities: Vec<u64>,
}

impl Table {
    /// The number of slots, owned or not.
    #[must_use]
    pub fn size(&self) -> TableSize {
        self.size
    }

    /// Each slot's owner as an index into the slice of reals that was given to [`build`].
    ///
    /// Empty when no real has a weight, of the table's full size otherwise.
    #[must_use]
    pub fn owners(&self) -> &[u16] {
        &self.owners
    }

    /// The owner of one slot, or `None` when no real has a weight or there is no such slot.
    #[must_use]
    pub fn owner(&self, slot: u32) -> Option<usize> {
        self.owners.get(usize::try_from(slot).ok()?).copied().map(usize::from)
    }

    /// Returns the number of slots that each real owns, in the order of the reals given to [`build`].
    #[must_use]
    pub fn shares(&self) -> Vec<u32> {
        let mut shares = vec![0; self.identities.len()];
        for &owner in &self.owners {
            shares[usize::from(owner)] += 1;
        }
        shares
    }

    /// A fingerprint by which nodes find out whether they route alike.
    ///
    /// Equal for tables of one seed and size whose slots belong to the same ids, whatever the order in which
    /// the reals were listed; different, but for a chance of 2^-64, for all others. It does not protect from forgery.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let start = scatter(u64::from(self.size.0));
        self.owners.iter().fold(start, |state, &owner| scatter(state ^ self.identities[usize::from(owner)]))
    }

    /// [`digest`](Self::digest) of a table that is known by the id of each slot's owner: what was read back from where
    /// packets meet it.
    #[must_use]
    pub fn digest_of<'a>(seed: Seed, size: TableSize, owners: impl IntoIterator<Item = &'a str>) -> u64 {
        let mut identities = std::collections::HashMap::new();
        owners.into_iter().fold(scatter(u64::from(size.0)), |state, id| {
            let identity = *identities.entry(id).or_insert_with(|| identity(seed, id));
            scatter(state ^ identity)
        })
    }

    fn identity(&self, slot: usize) -> Option<u64> {
        self.owners.get(slot).map(|&owner| self.identities[usize::from(owner)])
    }
}

/// The slots that change between two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disruption {
    /// Slots whose owner differs.
    pub moved: u32,
    /// Slots that any table with the new shares would have had to move: the sum of what reals gained,
    /// or of what they lost if that is more.
    pub minimum: u32,
}

/// Compares two tables slot by slot. Both must have been built with the same seed and size.
///
/// # Panics
/// If the sizes differ.
#[must_use]
pub fn disruption(before: &Table, after: &Table) -> Disruption {
    assert_eq!(before.size, after.size, "only tables of one size can be compared");
    let mut moved = 0;
    let mut balance: HashMap<u64, i64> = HashMap::new();
    for slot in 0..before.owners.len().max(after.owners.len()) {
        let (old, new) = (before.identity(slot), after.identity(slot));
        if old != new {
            moved += 1;
            old.inspect(|&real| *balance.entry(real).or_default() -= 1);
            new.inspect(|&real| *balance.entry(real).or_default() += 1);
        }
    }
    let gained: i64 = balance.values().filter(|&&change| change > 0).sum();
    let lost: i64 = -balance.values().filter(|&&change| change < 0).sum::<i64>();
    let minimum = u32::try_from(gained.max(lost)).expect("no more than the slots that moved");
    Disruption { moved, minimum }
}

/// Gives every slot of a table to one of `reals`.
///
/// With `n` reals that have a weight, a real's share differs from `m · weight / sum of weights` by at most
/// half a slot, plus a fraction `n / (2 m)` of itself that makes up for the others' rounding, and is at
/// least one slot. At 256 reals and 65,537 slots that is 0.2 % of the share and half a slot. If some
/// weights are so small that less than half a slot is due for them, `n / m` takes the place of `n / (2 m)`.
///
/// If all weights are 0, or there are no reals, the table has no owners. The work is about `m · ln m` steps,
/// whatever the number of reals and their weights.
///
/// # Errors
/// If two reals have the same id, if there are more than 65,535 reals, or more reals with a weight than slots.
pub fn build(seed: Seed, reals: &[Real<'_>], size: TableSize) -> Result<Table, BuildError> {
    if reals.len() > usize::from(NOBODY) {
        return Err(BuildError::TooManyReals { count: reals.len(), most: u32::from(NOBODY) });
    }
    let identities: Vec<u64> = reals.iter().map(|real| identity(seed, real.id)).collect();

    // An order that does not depend on the caller's, and favours no name where ties are broken.
    let mut order: Vec<u16> = (0..NOBODY).take(reals.len()).collect();
    order.sort_unstable_by_key(|&index| (identities[usize::from(index)], reals[usize::from(index)].id));
    let id = |index: u16| reals[usize::from(index)].id;
    if let Some(twins) = order.windows(2).find(|pair| id(pair[0]) == id(pair[1])) {
        return Err(BuildError::DuplicateId { id: id(twins[0]).to_owned() });
    }

    order.retain(|&index| reals[usize::from(index)].weight > 0);
    if order.len() > size.0 as usize {
        return Err(BuildError::TooManyReals { count: order.len(), most: size.0 });
    }
    let weights: Vec<u16> = order.iter().map(|&index| reals[usize::from(index)].weight).collect();
    let walks: Vec<Walk> = if order.is_empty() {
        Vec::new()
    } else {
        let shares = apportion(&weights, size.0);
        let walk = |((&index, &weight), &share): ((&u16, &u16), &u32)| {
            Walk::new(identities[usize::from(index)], weight, share, size)
        };
        order.iter().zip(&weights).zip(&shares).map(walk).collect()
    };
    let owners = settle(walks, size).into_iter().map(|walk| order[usize::from(walk)]).collect();
    Ok(Table { size, owners, identities })
}

/// Stands for no walk in a [`Bid`]. There are fewer reals than this.
const NOBODY: u16 = u16::MAX;

/// One real on its way through the slots, each once, in steps of `skip` around the table.
#[derive(Clone, Copy)]
struct Walk {
    /// The slot that it comes to next.
    slot: u32,
    skip: u32,
    /// Slots visited so far.
    visited: u32,
    /// Slots that it is still due.
    wanted: u32,
    /// 2^32 / weight: how its time passes.
    pace: u64,
}

impl Walk {
    fn new(identity: u64, weight: u16, wanted: u32, size: TableSize) -> Self {
        let m = u64::from(size.0);
        let below = |bound: u64, bits: u64| u32::try_from(bits % bound).expect("sizes fit 32 bits");
        Self {
            slot: below(m, identity),
            skip: below(m - 1, scatter(identity ^ SKIP)) + 1,
            visited: 0,
            wanted,
            pace: (1 << 32) / u64::from(weight),
        }
    }
}

/// The claim to a slot: when the real gets there and, in the low 16 bits, which walk it is. The lowest wins.
type Bid = u64;
const WALK_BITS: Bid = NOBODY as Bid;
const UNCLAIMED: Bid = Bid::MAX;

/// Lets all reals walk until each has its due, and says whose each slot is, as an index into `walks`.
/// Empty if `walks` is.
///
/// The shares add up to the number of slots. So as long as somebody wants more there is an unclaimed
/// slot, and it is one that they have not visited, since a visited slot never becomes unclaimed: nobody
/// walks off the end. It takes about as many steps as picking slots at random until each was picked once.
fn settle(mut walks: Vec<Walk>, size: TableSize) -> Vec<u16> {
    if walks.is_empty() {
        return Vec::new();
    }
    let m = size.0;
    let arrivals = arrival_times(size);
    let mut bids = vec![UNCLAIMED; m as usize];
    let mut unsettled: Vec<u16> = (0..NOBODY).take(walks.len()).collect();
    while let Some(index) = unsettled.pop() {
        let mut walk = walks[usize::from(index)];
        while walk.wanted > 0 {
            let time = u64::from(arrivals[walk.visited as usize]) * walk.pace;
            let bid: Bid = time & !WALK_BITS | u64::from(index);
            let held = &mut bids[walk.slot as usize];
            let next = walk.slot + walk.skip;
            walk.slot = if next < m { next } else { next - m };
            walk.visited += 1;
            if bid < *held {
                let loser = std::mem::replace(held, bid);
                walk.wanted -= 1;
                if loser != UNCLAIMED {
                    let loser = walk_of(loser);
                    let wanted = &mut walks[usize::from(loser)].wanted;
                    if *wanted == 0 {
                        unsettled.push(loser);
                    }
                    *wanted += 1;
                }
            }
        }
        walks[usize::from(index)] = walk;
    }
    bids.into_iter().map(walk_of).collect()
}

fn walk_of(bid: Bid) -> u16 {
    u16::try_from(bid & WALK_BITS).expect("masked to 16 bits")
}

/// The times at which the slots of a walk are reached at weight 1, in units of 2^-28.
///
/// Somebody who keeps picking one of `m` slots at random, on average `m` times in a unit of time, has to wait
/// 1 / (m - k) for the next new one after `k`. Each slot is put in the middle of its wait. The sum stays below
/// 16, since `m` is at most 2^20.
fn arrival_times(size: TableSize) -> Vec<u32> {
    let mut now = 0;
    (1..=size.0)
        .rev()
        .map(|left| {
            let wait = (1 << 28) / left;
            let middle = now + wait / 2;
            now += wait;
            middle
        })
        .collect()
}

/// Tells the skip's bits from the offset's.
const SKIP: u64 = 0x736b_6970_736b_6970;

/// A real's id as a number, keyed with the seed.
fn identity(seed: Seed, id: &str) -> u64 {
    let start = scatter(seed.k0 ^ id.len() as u64);
    let state = id.as_bytes().chunks(8).fold(start, |state, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        scatter(state ^ u64::from_le_bytes(word))
    });
    scatter(state ^ seed.k1)
}

/// Mixes all bits into all bits, one to one (Stafford's variant 13 of the murmur3 finaliser, the
/// output step of splitmix64), after a step that takes 0 elsewhere.
fn scatter(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, taken literally: all possible claims in order of time, each granted if the slot is
    /// free and the real still wants one.
    fn settle_by_sorting(walks: &[Walk], size: TableSize) -> Vec<u16> {
        let arrivals = arrival_times(size);
        let mut claims = Vec::new();
        for (index, walk) in (0..NOBODY).zip(walks) {
            for (step, &arrival) in (0u64..).zip(&arrivals) {
                let slot = (u64::from(walk.slot) + step * u64::from(walk.skip)) % u64::from(size.slots());
                let time = (u64::from(arrival) * walk.pace) & !WALK_BITS;
                claims.push((time, index, step, usize::try_from(slot).unwrap()));
            }
        }
        claims.sort_unstable();
        let mut wanted: Vec<u32> = walks.iter().map(|walk| walk.wanted).collect();
        let mut owners = vec![NOBODY; size.slots() as usize];
        for (_, index, _, slot) in claims {
            if owners[slot] == NOBODY && wanted[usize::from(index)] > 0 {
                owners[slot] = index;
                wanted[usize::from(index)] -= 1;
            }
        }
        owners
    }

    proptest! {
        #[test]
        fn the_earliest_claim_wins_whatever_the_course_of_the_computation(
            weights in prop::collection::vec(prop_oneof![1u16..=10, 1u16..=u16::MAX], 1..=29),
            m in prop::sample::select(vec![29u32, 257, 1021]),
            k0: u64,
        ) {
            let size = TableSize::prime(m).unwrap();
            let walks: Vec<Walk> = (0..)
                .zip(weights.iter().zip(apportion(&weights, m)))
                .map(|(n, (&weight, share))| Walk::new(scatter(k0 ^ n), weight, share, size))
                .collect();
            prop_assert_eq!(settle(walks.clone(), size), settle_by_sorting(&walks, size));
        }
    }

    #[test]
    fn arrival_times_rise_and_leave_room_for_the_slowest_pace() {
        let largest = (0..=TableSize::MAX).rev().find_map(|m| TableSize::prime(m).ok()).unwrap();
        for size in [TableSize::prime(2).unwrap(), TableSize::DEFAULT, TableSize::LARGE, largest] {
            let times = arrival_times(size);
            assert_eq!(times.len(), size.slots() as usize);
            assert!(times.is_sorted_by(|a, b| a < b));
            // Weight 1 has a pace of 2^32; its last bid must stay below that of nobody.
            assert!(
                (u64::from(*times.last().unwrap())).checked_mul(1 << 32).is_some_and(|last| last < UNCLAIMED)
            );
        }
    }

    #[test]
    fn ids_that_share_a_prefix_or_padding_have_identities_of_their_own() {
        let seed = Seed { k0: 1, k1: 2 };
        let ids = ["", "\0", "\0\0", "broker-1", "broker-1\0", "broker-10", "broker-11", "1broker-"];
        let identities: std::collections::HashSet<u64> = ids.iter().map(|id| identity(seed, id)).collect();
        assert_eq!(identities.len(), ids.len());
    }
}
