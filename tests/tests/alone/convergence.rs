//! The benchmark of convergence, in its shortest form.

use std::process::{Command, Stdio};

use serde_json::Value;

#[test]
fn every_case_is_measured_and_told_as_json() {
    let output = Command::new(env!("CARGO_BIN_EXE_drover-convergence"))
        .args(["--quick", "--json", "--rounds", "1", "--nodes", "3"])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", output.status);
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    assert!(lines.iter().all(|line| line["bench"] == "convergence"));
    let cases: Vec<&str> = lines.iter().map(|line| line["case"].as_str().unwrap()).collect();
    let wanted = [
        "conditions",
        "apply/nodes=3",
        "broker-death/nodes=3",
        "broker-death/nodes=3/silent",
        "leader-failover/nodes=3/session=2000ms/crash",
        "leader-failover/nodes=3/session=2000ms/stop",
        "footprint/vips=5/reals=20/nodes=3",
        "decide/vips=5/reals=20",
        "join/vips=5/reals=20",
        "conditions-after",
    ];
    assert_eq!(cases, wanted);

    let figure = |case: &str, name: &str| {
        let line = lines.iter().find(|line| line["case"] == case).unwrap();
        line[name].as_f64().unwrap_or_else(|| panic!("{case} has no {name}: {line}"))
    };
    // The edit comes first, then the decision, which a node knows before it has it in force.
    let moments = ["known_p50_ms", "p50_ms", "edit_p50_ms"].map(|name| figure("apply/nodes=3", name));
    assert!(moments[0] > 0.0 && moments.is_sorted(), "{moments:?}");
    for death in ["broker-death/nodes=3", "broker-death/nodes=3/silent"] {
        let parts = figure(death, "probing_p50_ms") + figure(death, "rest_p50_ms");
        assert!((parts - figure(death, "p50_ms")).abs() < 1.0, "{parts}");
    }
    // The session must expire: half of it is what a crash takes at the very least.
    assert!(figure("leader-failover/nodes=3/session=2000ms/crash", "p50_ms") > 1000.0);
    let footprint = |name| figure("footprint/vips=5/reals=20/nodes=3", name);
    assert!(footprint("znodes") > 30.0 && footprint("watches") > 30.0 && footprint("data_bytes") > 1000.0);
}
