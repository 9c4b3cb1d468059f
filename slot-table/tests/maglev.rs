//! The promises of slot tables: every slot is owned, shares follow the weights at any ratio, one set of reals has one
//! table, and few slots move when the set changes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use proptest::prelude::*;
use slot_table::flow::Seed;
use slot_table::maglev::{BuildError, Disruption, Real, Table, TableSize, TableSizeError, build, disruption};

const SEED: Seed = Seed { k0: 0x6472_6f76_6572_2d74, k1: 0x6573_7473_2d73_6565 };
const M: f64 = 65_537.0;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("broker-{index}.mqtt.example.net")).collect()
}

fn reals<'a>(names: &'a [String], weights: &[u16]) -> Vec<Real<'a>> {
    names.iter().zip(weights).map(|(id, &weight)| Real { id, weight }).collect()
}

fn table(reals: &[Real<'_>]) -> Table {
    build(SEED, reals, TableSize::DEFAULT).unwrap()
}

fn shares(weights: &[u16]) -> Vec<u32> {
    table(&reals(&names(weights.len()), weights)).shares()
}

fn owner_ids<'a>(table: &Table, reals: &[Real<'a>]) -> Vec<&'a str> {
    table.owners().iter().map(|&owner| reals[usize::from(owner)].id).collect()
}

/// Equal weights, extreme ones, zeros, and all between.
fn weights(count: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<u16>> {
    let any = prop_oneof![Just(0u16), Just(1), Just(u16::MAX), 1u16..=10, 0u16..=u16::MAX];
    let alike = 90u16..=110;
    prop_oneof![prop::collection::vec(any, count.clone()), prop::collection::vec(alike, count)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_slot_has_an_owner_with_a_weight(weights in weights(1..=256)) {
        let names = names(weights.len());
        let reals = reals(&names, &weights);
        let table = table(&reals);
        if weights.iter().all(|&weight| weight == 0) {
            prop_assert!(table.owners().is_empty());
        } else {
            prop_assert_eq!(table.owners().len(), 65_537);
            prop_assert!(table.owners().iter().all(|&owner| reals[usize::from(owner)].weight > 0));
        }
    }

    #[test]
    fn shares_are_within_one_percent_of_what_the_weights_ask_for(weights in weights(1..=256)) {
        let total: f64 = weights.iter().copied().map(f64::from).sum();
        prop_assume!(total > 0.0);
        let count = weights.len() as f64;
        for (&weight, share) in weights.iter().zip(shares(&weights)) {
            let due = M * f64::from(weight) / total;
            let error = (f64::from(share) - due).abs();
            // Of the whole table, as an absolute difference ...
            prop_assert!(error <= 0.01 * M, "weight {weight} of {total}: {share} slots, due {due:.1}");
            // ... of the real's own share, where one slot is not more than the error allowed ...
            prop_assert!(due < 164.0 || error <= 0.01 * due, "weight {weight} of {total}: {share} slots, due {due:.1}");
            // ... and the bound that the documentation states.
            prop_assert!(error <= due * count / M + 1.0, "weight {weight} of {total}: {share} slots, due {due:.1}");
        }
    }

    #[test]
    fn the_order_of_the_reals_does_not_matter(
        (weights, order) in weights(1..=256).prop_flat_map(|weights| {
            let order: Vec<usize> = (0..weights.len()).collect();
            (Just(weights), Just(order).prop_shuffle())
        })
    ) {
        let names = names(weights.len());
        let listed = reals(&names, &weights);
        let shuffled: Vec<Real<'_>> = order.iter().map(|&index| listed[index]).collect();
        let (one, other) = (table(&listed), table(&shuffled));
        prop_assert_eq!(owner_ids(&one, &listed), owner_ids(&other, &shuffled));
        prop_assert_eq!(one.digest(), other.digest());
        prop_assert_eq!(disruption(&one, &other), Disruption { moved: 0, minimum: 0 });
    }

    #[test]
    fn a_real_of_weight_zero_is_as_good_as_absent(weights in weights(2..=64), which: prop::sample::Index) {
        let which = which.index(weights.len());
        let names = names(weights.len());
        let mut present = reals(&names, &weights);
        present[which].weight = 0;
        let mut absent = present.clone();
        absent.remove(which);
        prop_assert_eq!(table(&present).digest(), table(&absent).digest());
    }

    #[test]
    fn small_tables_are_full_and_fair_too(
        weights in prop::collection::vec(1u16..=u16::MAX, 1..=31),
        m in prop::sample::select(vec![31u32, 37, 251, 4093]),
    ) {
        let names = names(weights.len());
        let table = build(SEED, &reals(&names, &weights), TableSize::prime(m).unwrap()).unwrap();
        let shares = table.shares();
        prop_assert_eq!(shares.iter().sum::<u32>(), m);
        prop_assert!(shares.iter().all(|&share| share > 0));
        for (a, b) in (0..weights.len()).flat_map(|a| (0..weights.len()).map(move |b| (a, b))) {
            prop_assert!(weights[a] < weights[b] || shares[a] + 1 >= shares[b], "{weights:?} got {shares:?}");
        }
    }
}

#[test]
fn one_to_ten_is_one_to_ten() {
    assert_eq!(shares(&[1, 10]), [5958, 59_579]);
    assert_eq!(shares(&[6553, 65_530]), [5958, 59_579]);
}

#[test]
fn one_to_65535_is_one_to_65535() {
    assert_eq!(shares(&[1, u16::MAX]), [1, 65_536]);
    let mut weights = [1; 1000];
    weights[500] = u16::MAX;
    let shares = shares(&weights);
    assert_eq!(shares[500], 65_537 - 999);
    assert!(shares.iter().enumerate().all(|(index, &share)| index == 500 || share == 1));
}

#[test]
fn a_real_with_the_smallest_weight_still_has_a_slot() {
    let mut weights = [u16::MAX; 256];
    weights[77] = 1;
    assert_eq!(shares(&weights)[77], 1);
}

#[test]
fn zeros_own_nothing_however_many() {
    let mut weights = vec![0; 1000];
    weights[3] = 1;
    weights[900] = 3;
    let shares = shares(&weights);
    assert_eq!((shares[3], shares[900]), (16_384, 49_153));
}

#[test]
fn without_weights_there_are_no_owners() {
    for weights in [&[][..], &[0, 0, 0]] {
        let names = names(weights.len());
        let table = table(&reals(&names, weights));
        assert_eq!(table.owners(), [0_u16; 0]);
        assert_eq!(table.owner(0), None);
        assert_eq!(table.shares(), vec![0; weights.len()]);
    }
}

#[test]
fn there_is_no_owner_beyond_the_end() {
    let table = table(&[Real { id: "a", weight: 1 }]);
    assert_eq!(table.owner(65_536), Some(0));
    assert_eq!(table.owner(65_537), None);
}

#[test]
fn an_id_listed_twice_is_refused_even_at_weight_zero() {
    let twice = [Real { id: "b1", weight: 5 }, Real { id: "b2", weight: 5 }, Real { id: "b1", weight: 0 }];
    let error = build(SEED, &twice, TableSize::DEFAULT).unwrap_err();
    assert_eq!(error, BuildError::DuplicateId { id: "b1".into() });
    assert_eq!(error.to_string(), "real `b1` is listed twice: give each real of a VIP an id of its own");
}

#[test]
fn more_reals_than_slots_are_refused_unless_they_have_no_weight() {
    let size = TableSize::prime(3).unwrap();
    let names = names(4);
    let error = build(SEED, &reals(&names, &[1; 4]), size).unwrap_err();
    assert_eq!(error, BuildError::TooManyReals { count: 4, most: 3 });
    assert_eq!(build(SEED, &reals(&names, &[1, 0, 1, 1]), size).unwrap().shares(), [1, 0, 1, 1]);
}

#[test]
fn more_reals_than_an_index_can_name_are_refused() {
    let names = names(65_536);
    let weights = vec![0; 65_536];
    let reals = reals(&names, &weights);
    let error = build(SEED, &reals, TableSize::LARGE).unwrap_err();
    assert_eq!(error, BuildError::TooManyReals { count: 65_536, most: 65_535 });
    assert!(build(SEED, &reals[1..], TableSize::LARGE).is_ok());
}

#[test]
fn the_supported_sizes_are_primes_and_nothing_else_is_configurable() {
    for size in [TableSize::DEFAULT, TableSize::LARGE] {
        assert_eq!(TableSize::prime(size.slots()), Ok(size));
        assert_eq!(TableSize::try_from(size.slots()), Ok(size));
    }
    assert_eq!(TableSize::try_from(251), Err(TableSizeError::Unsupported(251)));
    for bad in [0, 1, 4, 65_536, 65_539 * 3, 1_048_583, u32::MAX] {
        assert_eq!(TableSize::prime(bad), Err(TableSizeError::NotPrime(bad)));
    }
}

#[test]
fn large_tables_are_exact_for_a_thousand_reals() {
    let names = names(1000);
    let weights: Vec<u16> = (0..1000).map(|index| 50 + index % 100).collect();
    let total: f64 = weights.iter().copied().map(f64::from).sum();
    let table = build(SEED, &reals(&names, &weights), TableSize::LARGE).unwrap();
    assert_eq!(table.owners().len(), 655_373);
    for (&weight, share) in weights.iter().zip(table.shares()) {
        let due = 655_373.0 * f64::from(weight) / total;
        assert!((f64::from(share) - due).abs() <= 1.0, "weight {weight}: {share} slots, due {due:.1}");
    }
}

#[test]
fn tables_match_the_recorded_digests() {
    let names = names(5);
    let reals = reals(&names, &[100, 100, 1, 0, 65_535]);
    let digests = [TableSize::prime(13).unwrap(), TableSize::DEFAULT, TableSize::LARGE]
        .map(|size| build(SEED, &reals, size).unwrap().digest());
    assert_eq!(
        digests,
        [0x560d_aad7_56ba_6964, 0xc0ea_9672_574a_abd6, 0x5b21_50bd_53cb_2cf1],
        "tables have changed: nodes of the old version and of the new one would route differently"
    );
}

#[test]
fn digests_tell_seeds_sizes_ids_and_weights_apart() {
    let two = |id, weight| [Real { id: "b1", weight: 10 }, Real { id, weight }];
    let digest =
        |seed, reals: &[Real<'_>], m| build(seed, reals, TableSize::prime(m).unwrap()).unwrap().digest();
    let digests = [
        digest(SEED, &two("b2", 10), 251),
        digest(Seed { k0: SEED.k0 + 1, ..SEED }, &two("b2", 10), 251),
        digest(Seed { k1: SEED.k1 + 1, ..SEED }, &two("b2", 10), 251),
        digest(SEED, &two("b2", 10), 257),
        digest(SEED, &two("b3", 10), 251),
        digest(SEED, &two("b2", 11), 251),
        digest(SEED, &two("b2", 0), 251),
        digest(SEED, &[], 251),
        digest(SEED, &[], 257),
    ];
    let different: std::collections::HashSet<u64> = digests.into_iter().collect();
    assert_eq!(different.len(), digests.len(), "{digests:x?}");
}

/// Moved slots per slot of the minimum, over changes that each hit another real.
fn ratio(count: usize, changes: usize, change: impl Fn(&mut Vec<Real<'_>>, usize)) -> f64 {
    let names = names(count);
    let before = reals(&names, &vec![100; count]);
    let old = table(&before);
    let (mut moved, mut minimum) = (0, 0);
    for which in (0..changes).map(|trial| trial * count / changes) {
        let mut after = before.clone();
        change(&mut after, which);
        let found = disruption(&old, &table(&after));
        assert!(found.moved >= found.minimum);
        moved += found.moved;
        minimum += found.minimum;
    }
    f64::from(moved) / f64::from(minimum)
}

// Removal and addition are one and the same comparison read in two directions, since tables have no history.
#[test]
fn a_real_that_goes_or_comes_moves_little_beyond_the_minimum() {
    for (count, limit) in [(3, 1.01), (10, 1.03), (100, 1.4), (1000, 5.0)] {
        let ratio = ratio(count, count.min(10), |reals, which| {
            reals.remove(which);
        });
        assert!(ratio < limit, "one of {count} removed: {ratio:.3} times the minimum");
    }
}

#[test]
fn ten_percent_more_weight_moves_little_beyond_the_minimum() {
    for (count, limit) in [(3, 1.02), (10, 1.15), (100, 2.6), (1000, 9.0)] {
        let ratio = ratio(count, count.min(10), |reals, which| reals[which].weight = 110);
        assert!(ratio < limit, "one of {count} reweighted: {ratio:.3} times the minimum");
    }
}

#[test]
fn the_minimum_counts_what_changes_hands() {
    let [a, b, c] = ["a", "b", "c"].map(|id| Real { id, weight: 1 });
    let size = TableSize::prime(31).unwrap();
    let of = |reals: &[Real<'_>]| build(SEED, reals, size).unwrap();
    assert_eq!(disruption(&of(&[a]), &of(&[b])), Disruption { moved: 31, minimum: 31 });
    assert_eq!(disruption(&of(&[]), &of(&[b])), Disruption { moved: 31, minimum: 31 });
    assert_eq!(disruption(&of(&[b]), &of(&[])), Disruption { moved: 31, minimum: 31 });
    let lost_by_c = of(&[a, b, c]).shares()[2];
    assert_eq!(disruption(&of(&[a, b, c]), &of(&[b, a])).minimum, lost_by_c);
}
