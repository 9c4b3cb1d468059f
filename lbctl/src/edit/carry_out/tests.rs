#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use crate::edit::{Edit, plan};
use coordination::memory::{MemorySession, MemoryStore};
use coordination::{Store as _, setup};
use zk_schema::{Cluster, Desired, DesiredFile, Real};

/// A session with a tree of VIPs, each with as many reals.
async fn tree_of(vips: &[&str], reals: u8) -> MemorySession {
    let session = MemoryStore::new().client("lbctl").connect().await.unwrap();
    setup::init(&session, &Cluster::default()).await.unwrap();
    let mut text = String::new();
    for (number, vip) in vips.iter().enumerate() {
        text.push_str(&format!(
            "[vips.{vip}]\naddress = \"198.51.100.{number}\"\nport = 1\nprotocol = \"tcp\"\n"
        ));
        for real in 1..=reals {
            text.push_str(&format!("[vips.{vip}.reals.r{real}]\naddress = \"10.0.{number}.{real}\"\n"));
        }
    }
    let vips = DesiredFile::parse(&text, "test").unwrap().vips;
    setup::write_desired(&session, &Desired { vips, ..Desired::default() }).await.unwrap();
    session
}

fn weigh(tree: &Tree, vip: &str, weight: u16) -> Vec<Edit> {
    let found = &tree.vips[vip];
    let edit = |(real, found): (&zk_schema::RealName, &Found<Real>)| {
        let target = Target { vip: vip.parse().unwrap(), real: real.clone() };
        Edit::PutReal(target, Real { weight, ..found.ok().unwrap().clone() })
    };
    found.reals.iter().map(edit).collect()
}

fn weights(tree: &Tree, vip: &str) -> Vec<u16> {
    tree.vips[vip].reals.values().map(|found| found.ok().unwrap().weight).collect()
}

#[tokio::test]
async fn a_plan_is_written_whole() {
    let session = tree_of(&["a", "b"], 2).await;
    let tree = Tree::read(&session).await.unwrap();
    let mut edits = weigh(&tree, "a", 7);
    edits.push(Edit::RemoveVip("b".parse().unwrap()));
    carry_out(&session, &plan::plan(&tree, edits, 0).unwrap()).await.unwrap();
    let now = Tree::read(&session).await.unwrap();
    assert_eq!(weights(&now, "a"), [7, 7]);
    assert!(!now.vips.contains_key("b"));
}

#[tokio::test]
async fn what_somebody_changed_in_the_meantime_stops_all_of_it_and_is_told() {
    let session = tree_of(&["a"], 2).await;
    let tree = Tree::read(&session).await.unwrap();
    let mine = plan::plan(&tree, weigh(&tree, "a", 7), 0).unwrap();
    let theirs = plan::plan(&tree, weigh(&tree, "a", 9).into_iter().skip(1).collect(), 0).unwrap();
    carry_out(&session, &theirs).await.unwrap();
    let halt = carry_out(&session, &mine).await.unwrap_err();
    let now = Tree::read(&session).await.unwrap();
    assert_eq!(weights(&now, "a"), [100, 9]);
    let path = "/drover/vips/a/reals/r2";
    assert_eq!(halt.error, Error::BadVersion(path.to_owned()));
    let text = halt.to_string();
    assert!(text.contains(path) && text.contains("Nothing was written") && text.contains("again"), "{text}");
    let what = what_changed(path, &tree, &now).unwrap();
    assert_eq!(what, "since version 0 of the znode (now 1): weight: 100 -> 9");
}

#[tokio::test]
async fn what_somebody_deleted_or_made_in_the_meantime_stops_it_too() {
    let session = tree_of(&["a", "b"], 1).await;
    let tree = Tree::read(&session).await.unwrap();
    let remove = |vip: &str| plan::plan(&tree, vec![Edit::RemoveVip(vip.parse().unwrap())], 0).unwrap();
    let add = |name: &str| {
        let target: Target = name.parse().unwrap();
        plan::plan(&tree, vec![Edit::PutReal(target, Real::new([10, 9, 9, 9].into()))], 0).unwrap()
    };
    // A real was added to what is to be deleted.
    carry_out(&session, &add("a/new")).await.unwrap();
    let halt = carry_out(&session, &remove("a")).await.unwrap_err();
    assert_eq!(halt.error, Error::NotEmpty("/drover/vips/a/reals".to_owned()));
    // The same real was added by two.
    let halt = carry_out(&session, &add("a/new")).await.unwrap_err();
    assert!(matches!(halt.error, Error::Exists(_)) && halt.to_string().contains("made by somebody else"));
    // The VIP is gone.
    carry_out(&session, &remove("b")).await.unwrap();
    let halt = carry_out(&session, &add("b/new")).await.unwrap_err();
    assert!(matches!(halt.error, Error::NoNode(_)) && halt.to_string().contains("deleted"), "{halt}");
}

#[tokio::test]
async fn a_plan_too_large_for_one_transaction_goes_vip_by_vip_and_tells_how_far_it_came() {
    let session = tree_of(&["a", "b", "c"], 250).await;
    let tree = Tree::read(&session).await.unwrap();
    let grow = |vip: &str| {
        let more = (1..=250_u8).map(|number| {
            let target: Target = format!("{vip}/new{number}").parse().unwrap();
            Edit::PutReal(target, Real::new([10, 100, 0, number].into()))
        });
        more.chain(weigh(&tree, vip, 3)).collect::<Vec<_>>()
    };
    let plan = plan::plan(&tree, ["a", "b", "c"].into_iter().flat_map(grow).collect(), 0).unwrap();
    assert_eq!(batches(&plan.steps).len(), 3);
    let theirs = plan::plan(&tree, weigh(&tree, "b", 9).into_iter().take(1).collect(), 0).unwrap();
    carry_out(&session, &theirs).await.unwrap();
    let halt = carry_out(&session, &plan).await.unwrap_err();
    assert_eq!((halt.done.len(), halt.left.len()), (500, 1_000));
    assert!(halt.to_string().contains("Written before that: "), "{halt}");
    let now = Tree::read(&session).await.unwrap();
    assert_eq!(now.vips["a"].reals.len(), 500);
    assert_eq!((now.vips["b"].reals.len(), now.vips["c"].reals.len()), (250, 250));
}
