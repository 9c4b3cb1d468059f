//! The things that need attention.

use super::model::{Health, NodeView, Overview, Problem, Standing, VipView};
use super::real;
use crate::tree::Tree;
use std::collections::BTreeSet;
use zk_schema::tree::{Mode, paths};
use zk_schema::{NodeName, VipName};

/// The things that need attention, the gravest first: nobody decides, nodes, VIPs, records.
pub(super) fn problems(overview: &Overview, tree: &Tree) -> Vec<Problem> {
    let mut list = List(Vec::new());
    leadership(overview, tree, &mut list);
    for (name, node) in &overview.nodes {
        of_node(name, node, overview, &mut list);
    }
    for (name, vip) in &overview.vips {
        of_vip(name, vip, overview.at, &mut list);
    }
    records(tree, &mut list);
    flags(overview, tree, &mut list);
    list.0
}

struct List(Vec<Problem>);

impl List {
    fn cluster(&mut self, text: impl Into<String>) {
        self.0.push(Problem { vip: None, node: None, text: text.into(), passing: false });
    }

    fn node(&mut self, node: &NodeName, passing: bool, text: impl Into<String>) {
        self.0.push(Problem { vip: None, node: Some(node.clone()), text: text.into(), passing });
    }

    fn vip(&mut self, vip: &VipName, passing: bool, text: impl Into<String>) {
        self.0.push(Problem { vip: Some(vip.clone()), node: None, text: text.into(), passing });
    }

    /// The problem of each broken record, by its path.
    fn record(&mut self, text: &str) {
        let below = text.strip_prefix(paths::VIPS).and_then(|rest| rest.strip_prefix('/'));
        let name = below.and_then(|rest| rest.split(['/', ':']).next());
        let vip = name.and_then(|name| name.parse().ok());
        self.0.push(Problem { vip, node: None, text: text.to_owned(), passing: false });
    }
}

fn leadership(overview: &Overview, tree: &Tree, list: &mut List) {
    let nobody =
        !tree.unreadable.contains_key(paths::NODES) && !overview.nodes.values().any(|node| node.present);
    match (&overview.leader, overview.head) {
        (_, Some(_)) if nobody => {
            list.cluster(
                "no node is there: what is in force stays as it is, and nobody decides; see whether lb-node runs \
                 on the nodes and reaches ZooKeeper",
            );
        }
        (_, None) => {
            list.cluster("nothing was ever decided: no node has led yet; start nodes (lb-node run)");
        }
        (None, Some(_)) => list.cluster(format!(
            "{}: no leader's record, though there are decisions; the next leader makes it anew",
            paths::LEADER
        )),
        (Some(leader), Some(_)) if !leader.present => list.0.push(Problem {
            vip: None,
            node: Some(leader.node.clone()),
            text: format!("leader {} is gone and has no successor yet", leader.node),
            passing: true,
        }),
        (Some(leader), Some(_)) if !leader.leads => {
            let first = tree.line.iter().flat_map(|line| &line.candidates).next();
            let first = match first {
                None => "no node stands for election".to_owned(),
                Some(first) => format!("{} is the first in line and has not begun to lead", first.path),
            };
            list.0.push(Problem {
                vip: None,
                node: None,
                text: format!(
                    "no leader: {first}; {} led last. What is in force stays; see /readyz of the nodes (\"cannot lead\")",
                    leader.node
                ),
                passing: true,
            });
        }
        (Some(_), Some(_)) => {}
    }
    if let Some(frozen) = &overview.frozen {
        list.cluster(format!(
            "frozen{}: nothing changes, also when reals die; `lbctl unfreeze` ends it",
            frozen.words()
        ));
    }
}

fn of_node(name: &NodeName, node: &NodeView, overview: &Overview, list: &mut List) {
    if !node.present {
        let told = match node.applied {
            Some(applied) => {
                format!(", with term {} epoch {} in force when last heard of", applied.term, applied.epoch)
            }
            None => String::new(),
        };
        let told = match node.cut_off {
            true => format!(
                "{told}; it announced addresses then, so that it may forward by old tables: if it does not return, stop its \
                 routing daemon or its link"
            ),
            false => told,
        };
        list.node(
            name,
            false,
            format!("{name} is gone{told}: see whether lb-node runs there and reaches ZooKeeper; `lbctl node rm {name}` if it will not return"),
        );
        return;
    }
    if let Some(problem) = &node.problem {
        list.node(name, false, format!("{name} cannot apply what is newer: {problem}"));
    }
    if node.differs {
        list.node(name, false, format!(
            "{name} has other tables than the rest at the same epoch (digest {}): restart lb-node there, and report it",
            node.digest.as_deref().unwrap_or("none")
        ));
    }
    match node.mode {
        Some(Mode::Static) => list.node(
            name,
            true,
            format!("{name} is static: it was cut off from the tree, and keeps what it had"),
        ),
        Some(Mode::Autonomous) => list.node(
            name,
            true,
            format!("{name} is autonomous: cut off for long, it leaves out reals that it finds down itself"),
        ),
        Some(Mode::Live) => {}
        None => list.node(name, true, format!("{name} has nothing in force yet")),
    }
    match node.behind {
        Some(behind) if node.lagging && behind > 0 => list.node(
            name,
            false,
            format!(
                "{name} is {behind} epochs behind, and the leader no longer waits for it: see /readyz there"
            ),
        ),
        Some(behind) if behind > 0 => {
            list.node(
                name,
                true,
                format!("{name} is {behind} {} behind", if behind == 1 { "epoch" } else { "epochs" }),
            );
        }
        _ if node.lagging => list.node(name, true, format!("{name} was late, and has caught up")),
        _ => {}
    }
    let applied_term = node.applied.map(|applied| applied.term);
    let head_term = overview.head.map(|head| head.term);
    if node.behind == Some(0) && applied_term < head_term {
        list.node(name, true, format!("{name} has a head of an earlier term in force"));
    }
}

fn of_vip(name: &VipName, vip: &VipView, now: u64, list: &mut List) {
    match vip.standing {
        Standing::New => list.vip(name, true, format!("{name}: defined, and not served yet")),
        Standing::Deleted => list.vip(name, true, format!("{name}: deleted, and still served")),
        Standing::Edited => {
            list.vip(
                name,
                true,
                format!("{name}: its records differ from what is in force: not accepted yet"),
            );
        }
        Standing::Served => {}
    }
    let in_table = vip.reals.values().filter(|real| real.weight > 0).count();
    if vip.epoch.is_some() && in_table == 0 {
        let fix = if vip.reals.is_empty() { ": give it reals" } else { "" };
        list.vip(name, false, format!("{name}: no real takes connections, its packets are dropped{fix}"));
    }
    if let Some(held) = &vip.held {
        list.vip(name, false, format!("{name}: {held}"));
    }
    for (real_name, real) in vip.reals.iter().filter(|(_, real)| real.health == Health::Down) {
        list.vip(name, false, format!("{name}/{real_name} is {}", real::down(real, now)));
    }
}

/// Things that the leader refuses or holds back, and those that cannot be read here.
fn records(tree: &Tree, list: &mut List) {
    let head = tree.head.as_ref().and_then(|found| found.ok());
    let mut told = BTreeSet::new();
    let path = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
    for problem in head.into_iter().flat_map(|head| &head.problems) {
        told.insert(path(problem));
        list.record(problem);
    }
    for problem in tree.problems().iter().filter(|problem| !told.contains(&path(problem))) {
        list.record(problem);
    }
}

/// Flags that have no object, and those that are to be taken back.
fn flags(overview: &Overview, tree: &Tree, list: &mut List) {
    let now = overview.at;
    for (name, flag) in tree.flags.confirm.iter().filter(|(_, flag)| flag.counts(now)) {
        let (what, which) = match name.as_str() {
            "_vips" => ("most VIPs may vanish at once".to_owned(), "--vips"),
            "_nodes" => ("most nodes may vanish at once".to_owned(), "--nodes"),
            vip => (format!("{vip}'s panic threshold does not hold"), vip),
        };
        let words = super::FlagView::from(flag).words();
        let text = format!("confirmed{words}: {what}; `lbctl unconfirm {which}` when that has happened");
        let vip = name.parse().ok();
        list.0.push(Problem { vip, node: None, text, passing: false });
    }
    for (target, _) in tree.flags.drain.iter().filter(|(_, flag)| flag.counts(now)) {
        let there = overview.vips.get(&target.vip).is_some_and(|vip| vip.reals.contains_key(&target.real));
        if !there {
            let path = paths::drain(&target.vip, &target.real);
            list.vip(
                &target.vip,
                false,
                format!("{path} drains a real that there is not: `lbctl real undrain {target}`"),
            );
        }
    }
    for (node, _) in tree.flags.maintenance.iter().filter(|(_, flag)| flag.counts(now)) {
        if !overview.nodes.contains_key(node) {
            let path = paths::maintenance(node);
            list.node(
                node,
                false,
                format!("{path} is about a node that there is not: `lbctl node undrain {node}`"),
            );
        }
    }
}
