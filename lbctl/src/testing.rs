//! A tree that unit tests start from.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use crate::tree::Tree;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zk_schema::Picture;
use zk_schema::picture::VipFound;
pub(crate) use zk_schema::testing::{found, name};
use zk_schema::tree::{Applied, Assignment, Entry, Head, Member, Mode, Target, Term, Vote};
use zk_schema::{CheckKind, Cluster, HealthCheck, Protocol, Real, RealName, Vip};

/// The time in tests, in seconds since 1970.
pub(crate) const NOW: u64 = 1_795_233_979;

pub(crate) fn target(real: &str) -> Target {
    Target { vip: name("mqtt"), real: name(real) }
}

/// Three nodes, of which `lb-2` leads, that serve `mqtt` with `a`, `b` and `c`, all in good order.
pub(crate) fn good() -> Tree {
    let mut vip = Vip::new("198.51.100.10".parse().unwrap(), 1883, Protocol::Tcp);
    vip.health = Some(HealthCheck::new(CheckKind::Tcp));
    let reals: BTreeMap<RealName, Real> =
        (1..).zip(["a", "b", "c"]).map(|(n, real)| (name(real), Real::new([10, 0, 0, n].into()))).collect();
    let assignment = Assignment {
        term: 3,
        epoch: 40,
        vip: vip.clone(),
        weights: reals.iter().map(|(real, record)| (real.clone(), record.weight)).collect(),
        reals: reals.clone(),
        since: 38,
        next: None,
        history: Vec::new(),
        held: None,
        held_reals: Default::default(),
        why: "the reals have been judged".into(),
        extra: Default::default(),
    };
    let head = Head {
        term: 3,
        epoch: 41,
        cluster: Cluster::default(),
        nodes: ["lb-1", "lb-2", "lb-3"].map(name).into(),
        peers: Default::default(),
        targets: 38,
        settling: false,
        lagging: BTreeSet::new(),
        cut_off: Default::default(),
        held_vips: Default::default(),
        held_nodes: Default::default(),
        problems: BTreeSet::new(),
        vips: [(name("mqtt"), Entry { epoch: 40, digest: "0".into() })].into(),
        extra: Default::default(),
    };
    let mut tree = Tree {
        picture: Picture { cluster: Some(found(Cluster::default())), ..Picture::default() },
        leader: Some(found(Term { node: name("lb-2"), term: 3, since: NOW - 7260 })),
        head: Some(found(head)),
        ..Tree::default()
    };
    let written = reals.into_iter().map(|(real, record)| (real, found(record))).collect();
    let mqtt = VipFound { vip: found(vip), has_reals: true, reals: written };
    tree.vips.insert(name("mqtt"), Arc::new(mqtt));
    tree.assignments.insert(name("mqtt"), found(assignment));
    for node in ["lb-1", "lb-2", "lb-3"] {
        let member = Member {
            instance: "i".into(),
            boot: "b".into(),
            source_v4: None,
            source_v6: None,
            admin: "127.0.0.1:9940".parse().unwrap(),
            software: "0.1.0".into(),
            started: NOW - 90_000,
            extra: Default::default(),
        };
        let applied = Applied {
            term: 3,
            epoch: 41,
            digest: "d".into(),
            mode: Mode::Live,
            announced: None,
            sources: Default::default(),
            boot: None,
            replaced: None,
            problem: None,
            extra: Default::default(),
        };
        tree.nodes.insert(name(node), found(member));
        tree.applied.insert(name(node), found(applied));
        tree.health.insert(name(node), found(Arc::new(Vote { targets: 38, ..Vote::default() })));
    }
    tree
}

pub(crate) fn assignment(tree: &mut Tree) -> &mut Assignment {
    tree.assignments.get_mut("mqtt").unwrap().record.as_mut().unwrap()
}

pub(crate) fn applied<'a>(tree: &'a mut Tree, node: &str) -> &'a mut Applied {
    tree.applied.get_mut(node).unwrap().record.as_mut().unwrap()
}
