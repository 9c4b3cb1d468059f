//! The dependencies that crates may have: the picture in docs/architecture.md, as a check.

use crate::metadata::Metadata;
use crate::{process, workspace::Workspace};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

/// The dependencies that crates of this workspace may have on each other, each with its reason. Those of tests
/// (`[dev-dependencies]`) are free.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("slot-table", "zk-schema", "tables are built from the weights and names of records"),
    ("policy", "zk-schema", "rules decide on records"),
    ("coordination", "zk-schema", "what is followed, elected and kept is records"),
    ("lb-ebpf", "slot-table", "the flow hash compiles into BPF"),
    ("health", "host", "a log line that may repeat is bounded"),
    ("health", "zk-schema", "checks are records"),
    ("dataplane", "bpf-build", "it builds the programs that it loads"),
    ("dataplane", "host", "it asks the machine for interfaces, routes and pinned links"),
    ("dataplane", "lb-ebpf", "it loads the programs and writes their maps"),
    ("dataplane", "slot-table", "it builds tables"),
    ("dataplane", "zk-schema", "VIPs, reals and weights are records"),
    ("agent", "admin", "it has admin pages"),
    ("agent", "bpf-build", "it builds the program that it loads"),
    ("agent", "coordination", "a real registers itself in the tree"),
    ("agent", "host", "it runs on a machine"),
    ("agent", "lb-ebpf", "it loads the program and writes its maps"),
    ("agent", "zk-schema", "it reads and writes records"),
    ("lb-node", "admin", "it has admin pages"),
    ("lb-node", "agent", "its command line starts it"),
    ("lb-node", "coordination", "a node of a cluster lives in the tree"),
    ("lb-node", "dataplane", "it forwards packets"),
    ("lb-node", "health", "it probes reals"),
    ("lb-node", "host", "it runs on a machine"),
    ("lb-node", "lb-ebpf", "counters have its types"),
    ("lb-node", "pcapng", "it captures packets"),
    ("lb-node", "policy", "it decides by the rules"),
    ("lb-node", "zk-schema", "it reads files and records"),
    ("lbctl", "admin", "it asks for admin pages"),
    ("lbctl", "coordination", "it edits the tree"),
    ("lbctl", "host", "its doctor looks at the machine"),
    ("lbctl", "lb-ebpf", "its doctor sends packets: their numbers and checksum"),
    ("lbctl", "pcapng", "it merges captures"),
    ("lbctl", "policy", "it predicts what the leader will do"),
    ("lbctl", "slot-table", "it says where a flow goes"),
    ("lbctl", "zk-schema", "it reads files and records"),
    ("drover-tests", "coordination", "scenes are written into trees"),
    ("drover-tests", "dataplane", "the benchmark runs packets through it"),
    ("drover-tests", "health", "probes are answered without sockets"),
    ("drover-tests", "lb-ebpf", "counters are read from maps"),
    ("drover-tests", "lb-node", "nodes run in it"),
    ("drover-tests", "policy", "what nodes do is held against the rules"),
    ("drover-tests", "slot-table", "so is where flows go"),
    ("drover-tests", "testbed", "hosts, links, clients and servers are its"),
    ("drover-tests", "zk-schema", "scenes are made of records"),
];

/// Crates that must not come to depend on another, by whatever way, each with its reason. `cargo tree` resolves the
/// features that a crate has when it is built alone.
const APART: &[(&str, &str, &str)] = &[
    ("zk-schema", "tokio", "records are plain data"),
    ("slot-table", "tokio", "the arithmetic is pure"),
    ("policy", "tokio", "rules are pure: time is an argument, and nothing is awaited"),
    ("policy", "coordination", "rules know no store"),
    ("health", "aya", "checks need no BPF toolchain"),
    ("health", "coordination", "a probe knows no cluster"),
    ("dataplane", "policy", "it does what it is told, whoever decided"),
    ("dataplane", "coordination", "it knows no cluster"),
    ("agent", "dataplane", "a real forwards nothing"),
    ("agent", "policy", "a real decides nothing"),
    ("lbctl", "aya", "operators run it where there is no BPF"),
    ("host", "aya", "lbctl uses it"),
    ("admin", "aya", "lbctl uses it"),
];

/// Problems with the dependencies, a line each.
pub(super) fn problems(workspace: &Workspace, metadata: &Metadata) -> Result<Vec<String>> {
    let mut problems = wrong(&metadata.dependencies(), ALLOWED);
    for (from, to, why) in APART {
        let mut tree = process::cargo(workspace);
        tree.args(["tree", "--offline", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
        let needed = process::output(tree.args(["--package", from]))?;
        if needs(&needed, to) {
            problems.push(format!(
                "{from} must not depend on {to}, as {why}: `cargo tree -e normal,build -p {from} -i {to}` shows the way"
            ));
        }
    }
    Ok(problems)
}

/// Returns whether `tree`, a package and its version on each line, contains `package`.
fn needs(tree: &str, package: &str) -> bool {
    tree.lines().any(|line| line.split(' ').next() == Some(package))
}

type Table = [(&'static str, &'static str, &'static str)];

fn wrong(dependencies: &BTreeMap<String, BTreeSet<String>>, allowed: &Table) -> Vec<String> {
    let is_ours = |name: &String| dependencies.contains_key(name);
    let mut wrong = Vec::new();
    for (from, to) in dependencies.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to))) {
        if is_ours(to) && !allowed.iter().any(|(one, other, _)| (*one, *other) == (from.as_str(), to)) {
            wrong.push(format!(
                "{from} depends on {to}: take that out, or add the edge and its reason to xtask/src/test/edges.rs and to \
                 docs/architecture.md"
            ));
        }
    }
    for (from, to, why) in allowed {
        if !dependencies.get(*from).is_some_and(|all| all.contains(*to)) {
            wrong.push(format!(
                "{from} no longer depends on {to} ({why}): take the edge out of xtask/src/test/edges.rs"
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_that_is_not_in_the_table_and_one_that_is_gone_are_found() {
        let dependencies = [("a", &["b", "serde"][..]), ("b", &["c"]), ("c", &["aya"])];
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let dependencies = dependencies.map(|(from, to)| (from.to_owned(), names(to))).into();
        assert_eq!(wrong(&dependencies, &[("a", "b", ""), ("b", "c", "")]), Vec::<String>::new());
        let found = wrong(&dependencies, &[("a", "b", ""), ("a", "c", "x")]);
        let starts = ["b depends on c", "a no longer depends on c (x)"];
        assert!(found.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{found:?}");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_package_is_found_by_its_whole_name() {
        let tree = "lbctl v0.1.0 (/w/lbctl)\naya-obj v0.3.0\ntokio v1.50.0 (*)\n";
        assert!(needs(tree, "tokio") && !needs(tree, "aya"));
    }
}
