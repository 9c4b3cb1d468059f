//! Whatever changes in the tree, in whatever order: what is kept current is what is read anew.

use super::*;
use crate::{Protocol, to_json};
use proptest::prelude::*;

/// Places that znodes come and go at, some of them with names that are none.
const PLACES: [&str; 29] = [
    "/drover",
    "/drover/vips/a",
    "/drover/vips/a/reals/one",
    "/drover/vips/a/reals/two",
    "/drover/vips/a/reals/Bad",
    "/drover/vips/a/reals",
    "/drover/vips/a-b",
    "/drover/vips/a-b/reals/one",
    "/drover/vips/_no",
    "/drover/vips/_no/reals/one",
    "/drover/nodes/lb-1",
    "/drover/nodes/LB",
    "/drover/applied/lb-1",
    "/drover/applied/LB",
    "/drover/health/lb-1",
    "/drover/health/lb-2",
    "/drover/ops/freeze",
    "/drover/ops/drain/a.one",
    "/drover/ops/drain/nothing",
    "/drover/ops/confirm/a",
    "/drover/ops/confirm/_vips",
    "/drover/ops/confirm/_nodes",
    "/drover/ops/confirm/_no",
    "/drover/ops/maintenance/lb-1",
    "/drover/ops/maintenance/LB",
    "/drover/load/a/one",
    "/drover/election/lb-1-0000000001",
    "/drover/assignments",
    "/drover/assignments/a",
];

/// Contents that are written there: sound records of every kind, fit for the place or not, and others.
fn data(kind: u8) -> Vec<u8> {
    let mut real = Real::new([10, 0, 0, 1].into());
    match kind {
        0 => b"{}".to_vec(),
        1 => b"not JSON".to_vec(),
        2 => to_json(&Vip::new([198, 51, 100, 1].into(), 1883, Protocol::Tcp)).unwrap(),
        3 => to_json(&real).unwrap(),
        4 => {
            Registrant::new("boot/1/eth0").sign(&mut real);
            to_json(&real).unwrap()
        }
        5 => br#"{"until":100}"#.to_vec(),
        6 => br#"{"until":200}"#.to_vec(),
        7 => br#"{"targets":3,"down":{"a/one":{"since":1,"reason":"refused"}}}"#.to_vec(),
        8 => br#"{"term":1,"epoch":2,"digest":"","mode":"live"}"#.to_vec(),
        _ => br#"{"instance":"i","boot":"b","admin":"127.0.0.1:1","software":"1","started":1}"#.to_vec(),
    }
}

fn znode(kind: u8) -> Arc<Znode> {
    Arc::new(Znode { data: data(kind), version: 0, created: 0, modified: 0, owner: None })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_kept_current_is_what_is_read_anew(
        turns in prop::collection::vec(
            prop::collection::vec((0..PLACES.len(), prop::option::of(0..10_u8), prop::bool::weighted(0.2)), 0..8),
            1..20,
        ),
    ) {
        let mut follower = Follower::default();
        let mut contents = Contents::default();
        for edits in turns {
            for (place, kind, hidden) in edits {
                let path = PLACES[place];
                match kind {
                    Some(kind) => drop(contents.insert(path, znode(kind))),
                    None => drop(contents.remove(path)),
                }
                match hidden {
                    true => drop(contents.unreadable.insert(path.to_owned(), "may not be read".to_owned())),
                    false => drop(contents.unreadable.remove(path)),
                }
            }
            let seen = Arc::new(contents.clone());
            follower.follow(&seen);
            prop_assert_eq!(follower.picture(), &Picture::parse(&seen));
        }
    }
}

/// `vips` VIPs of as many `reals` each, and as many nodes that vote.
fn tree(vips: u8, reals: u8) -> Contents {
    let mut contents = Contents::default();
    for vip in 0..vips {
        contents.insert(&format!("/drover/vips/v{vip}"), znode(2));
        for real in 0..reals {
            contents.insert(&format!("/drover/vips/v{vip}/reals/r{real}"), znode(3));
        }
        contents.insert(&format!("/drover/nodes/n{vip}"), znode(9));
        contents.insert(&format!("/drover/health/n{vip}"), znode(7));
    }
    contents
}

#[test]
fn only_what_changed_is_parsed() {
    let mut contents = tree(20, 30);
    let mut follower = Follower::default();
    let mut parsed = |contents: &Contents| {
        let before = follower.parsed();
        follower.follow(&Arc::new(contents.clone()));
        follower.parsed() - before
    };
    assert_eq!(parsed(&contents), 20 * (1 + 30 + 1 + 1), "each record once");
    assert_eq!(parsed(&contents), 0, "read again, the same");
    contents.insert("/drover/vips/v7/reals/r3", znode(4));
    assert_eq!(parsed(&contents), 1, "a real");
    contents.insert("/drover/health/n3", znode(7));
    assert_eq!(parsed(&contents), 0, "written again as it was");
    contents.insert("/drover/health/n3", znode(0));
    assert_eq!(parsed(&contents), 1, "a vote");
    contents.remove("/drover/vips/v7/reals/r3");
    assert_eq!(parsed(&contents), 0, "a real that went");
    contents.insert("/drover/ops/drain/v1.r1", znode(5));
    contents.insert("/drover/ops/drain/v1.r2", znode(6));
    assert_eq!(parsed(&contents), 2, "flags");
    assert_eq!(parsed(&contents), 0);
}

#[test]
fn what_did_not_change_is_shared_with_what_was_read_before() {
    let mut contents = tree(2, 3);
    let mut follower = Follower::default();
    follower.follow(&Arc::new(contents.clone()));
    let before = follower.picture().clone();
    contents.insert("/drover/vips/v1/reals/r1", znode(1));
    follower.follow(&Arc::new(contents.clone()));
    let after = follower.picture();
    assert!(Arc::ptr_eq(&before.vips["v0"], &after.vips["v0"]));
    assert!(!Arc::ptr_eq(&before.vips["v1"], &after.vips["v1"]));
    let vote = |picture: &Picture, node: &str| Arc::clone(picture.health[node].record.as_ref().unwrap());
    assert!(["n0", "n1"].iter().all(|node| Arc::ptr_eq(&vote(&before, node), &vote(after, node))));
}
