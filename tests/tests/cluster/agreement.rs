//! Nodes of a cluster that have the same tables, whatever happens to them and to what they serve.

use crate::{FLOWS, OTHERS, RATE, REALS, SOME};
use drover_tests::{Observer, PUBLISH, Settings, Site, Steady};

#[test]
fn no_two_nodes_ever_have_different_tables_for_one_vip_and_epoch() {
    let mut site = Site::of_two_services(3, Settings::default()).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    site.wait_settled().unwrap();
    let observer = Observer::start(&site).unwrap();
    let steady = Steady::start(&site.net.clients[0].host, PUBLISH, FLOWS, RATE).unwrap();
    steady.pass(SOME).unwrap();

    // Edits, one at a time and then as fast as can be.
    for weight in [50, 200] {
        site.set_weight("publish", "real-1", weight).unwrap();
        let expected = u16::try_from(weight).unwrap();
        site.wait_for_weights("publish", &[("real-1", expected), ("real-2", 100), ("real-3", 100)]).unwrap();
    }
    for weight in 1..=10 {
        site.set_weight("publish", "real-2", 100 + weight).unwrap();
        site.set_weight("subscribe", "real-3", 100 - weight).unwrap();
    }
    site.wait_for_weights("publish", &[("real-1", 200), ("real-2", 110), ("real-3", 100)]).unwrap();
    site.wait_for_weights("subscribe", &[("real-2", 100), ("real-3", 90)]).unwrap();

    // A follower is killed, misses edits, and returns.
    let (leader, _) = site.leader().unwrap();
    let follower = (leader + 1) % 3;
    site.kill(follower).unwrap();
    site.set_weight("publish", "real-1", 100).unwrap();
    site.set_weight("publish", "real-2", 100).unwrap();
    site.wait_for_weights("publish", &[("real-1", 100), ("real-2", 100), ("real-3", 100)]).unwrap();
    site.launch(follower).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();

    // A real dies and returns. Whose each flow is, is told by its last answer: each has one since the last change.
    steady.pass(SOME).unwrap();
    let death = steady.sent();
    site.net.cut(&site.net.reals[2], true).unwrap();
    site.wait_agreed(&[("publish", &["real-1", "real-2"]), ("subscribe", &["real-2"])]).unwrap();
    let dead = death..steady.sent();
    steady.pass(SOME).unwrap();
    site.net.cut(&site.net.reals[2], false).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();

    // The leader is killed and returns.
    site.kill(leader).unwrap();
    site.set_weight("subscribe", "real-3", 100).unwrap();
    site.wait_for_weights("subscribe", &[("real-2", 100), ("real-3", 100)]).unwrap();
    site.launch(leader).unwrap();
    site.wait_agreed(&[("publish", REALS), ("subscribe", OTHERS)]).unwrap();
    steady.pass(SOME).unwrap();

    let record = steady.stop().unwrap();
    let observed = observer.stop();
    let shared = observed.agreed();
    println!(
        "{} looks; {shared} tables were seen on more than one node; of {} requests {} were lost, while a real was dead \
         (numbers {dead:?})",
        observed.looks,
        record.sent,
        record.lost.len()
    );
    assert!(shared >= 10, "too little was seen: {observed:?}");
    observed.assert_no_table_was_empty();
    observed.assert_never_withdrawn(["node-1", "node-2", "node-3"]);
    record.assert_lost_only_with("real-3", &[dead]);
    assert!(!record.lost.is_empty(), "a real died unnoticed");
}
