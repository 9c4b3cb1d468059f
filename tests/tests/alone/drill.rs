//! The failover drills, by one of the shortest.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn drill(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drover-drill")).args(arguments).stderr(Stdio::piped()).output().unwrap()
}

#[test]
fn the_death_of_a_node_breaks_no_connection_and_is_told_as_one_line_of_json() {
    let output = drill(&["node-death", "--json"]);
    let timeline = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{}\n{timeline}", output.status);
    let lines = String::from_utf8(output.stdout).unwrap();
    let [line] = lines.lines().collect::<Vec<_>>()[..] else { panic!("not one line: {lines}") };
    let line: Value = serde_json::from_str(line).unwrap();

    assert_eq!((&line["drill"], &line["verdict"]), (&"node-death".into(), &"pass".into()), "{line}");
    assert_eq!((&line["broken"], &line["expected_broken"]), (&0.into(), &0.into()), "{line}");
    let figure = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("no figure {name}: {line}"));
    assert!(figure("connections") >= 200.0, "{line}");
    assert!(figure("packets") > 1000.0 && figure("packets_lost") < figure("packets") / 10.0, "{line}");
    assert!(figure("longest_gap_ms") > 0.0 && figure("steady_after_ms") > 0.0, "{line}");
    // The whole node went, so the router had to move on; of the daemon alone it took no notice.
    let steps = line["steps"].as_array().unwrap();
    let changes: Vec<bool> = steps.iter().map(|step| step["route_changes"].as_u64().unwrap() > 0).collect();
    assert_eq!(changes, [false, false, true], "{line}");
    assert_eq!(steps[0]["packets_lost"], 0, "{line}");
    assert!(timeline.contains("the router sends") && timeline.contains("steady"), "{timeline}");
}

#[test]
fn a_name_that_is_no_drill_is_refused_with_the_list_of_those_that_are() {
    let output = drill(&["earthquake", "--json"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{told}");
    let listed = drill(&["--list"]);
    assert!(listed.status.success());
    let listed = String::from_utf8(listed.stdout).unwrap();
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"node-death") && names.contains(&"all") && names.len() > 8, "{listed}");
    for new in ["tree-wipe", "stuck-node", "registry-flap", "two-at-once"] {
        assert!(names.contains(&new), "{new} is not in: {listed}");
    }
    for name in names {
        assert!(told.contains(name), "{name} is not in: {told}");
    }
}
