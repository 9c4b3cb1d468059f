//! Trees to test with.

use crate::tree::Tree;
use std::collections::BTreeMap;
use std::sync::Arc;
use zk_schema::picture::{Picture, VipFound};
use zk_schema::testing::found;
use zk_schema::tree::{Applied, Assignment, Entry, Head, Member, Mode, Target};
use zk_schema::{Cluster, Real, Vip, VipName};

/// A tree of VIPs and their reals, all of weight 100, where all is in force on the one node there is.
pub(crate) fn tree(reals: &[&str]) -> Tree {
    let picture = Picture { cluster: Some(found(Cluster::default())), ..Picture::default() };
    let mut tree = Tree { picture, ..Tree::default() };
    let targets = reals.iter().map(|text| text.parse::<Target>().expect("a target"));
    for (number, target) in (1_u8..).zip(targets) {
        let vips = u8::try_from(tree.vips.len()).expect("few");
        let vip = Vip::new([198, 51, 100, vips].into(), 1883, zk_schema::Protocol::Tcp);
        let new = || Arc::new(VipFound { vip: found(vip), has_reals: true, reals: BTreeMap::new() });
        let state = tree.vips.entry(target.vip).or_insert_with(new);
        Arc::make_mut(state).reals.insert(target.real, found(Real::new([10, 0, 0, number].into())));
    }
    put_in_force(&mut tree, 7);
    tree
}

/// Makes the leader take over what is wanted, and the node apply it.
pub(crate) fn put_in_force(tree: &mut Tree, epoch: u64) {
    tree.assignments.clear();
    let mut vips = BTreeMap::new();
    for (name, state) in &tree.picture.vips {
        let (Some(vip), reals) = (state.vip.ok(), &state.reals) else { continue };
        let reals: BTreeMap<_, _> =
            reals.iter().filter_map(|(name, real)| Some((name.clone(), real.ok()?.clone()))).collect();
        let is_out = |real: &zk_schema::RealName| {
            tree.picture.flags.drain.contains_key(&Target { vip: name.clone(), real: real.clone() })
        };
        let weights = reals.iter().filter(|(real, record)| record.weight > 0 && !is_out(real));
        let assignment = Assignment {
            term: 1,
            epoch,
            vip: vip.clone(),
            weights: weights.map(|(name, real)| (name.clone(), real.weight)).collect(),
            reals: reals.clone(),
            since: epoch,
            next: None,
            history: Vec::new(),
            held: None,
            held_reals: Default::default(),
            why: "a test".to_owned(),
            extra: BTreeMap::new(),
        };
        tree.assignments.insert(name.clone(), found(assignment));
        vips.insert(name.clone(), Entry { epoch, digest: String::new() });
    }
    let node: zk_schema::NodeName = "lb-1".parse().expect("a name");
    let head = Head {
        term: 1,
        epoch,
        cluster: Cluster::default(),
        nodes: [node.clone()].into(),
        peers: Default::default(),
        targets: epoch,
        settling: false,
        lagging: [].into(),
        cut_off: Default::default(),
        held_vips: Default::default(),
        held_nodes: Default::default(),
        problems: [].into(),
        vips,
        extra: BTreeMap::new(),
    };
    tree.head = Some(found(head));
    let member = Member {
        instance: "i".to_owned(),
        boot: "b".to_owned(),
        source_v4: None,
        source_v6: None,
        admin: ([127, 0, 0, 1], 9940).into(),
        software: "0".to_owned(),
        started: 0,
        extra: BTreeMap::new(),
    };
    tree.nodes.insert(node.clone(), found(member));
    let applied = Applied {
        term: 1,
        epoch,
        digest: String::new(),
        mode: Mode::Live,
        problem: None,
        announced: Some([[198, 51, 100, 0].into()].into()),
        sources: Default::default(),
        boot: None,
        replaced: None,
        extra: BTreeMap::new(),
    };
    tree.applied.insert(node, found(applied));
}

/// The record of a VIP, to change it.
pub(crate) fn vip(tree: &Tree, name: &str) -> (VipName, Vip) {
    let name: VipName = name.parse().expect("a name");
    let vip = tree.vips[&name].vip.ok().expect("sound").clone();
    (name, vip)
}
