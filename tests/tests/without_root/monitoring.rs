//! What dashboard and alerts ask for exists: see `docs/metrics.md`, which another test compares with live nodes.

use std::collections::{BTreeMap, BTreeSet};

use drover_tests::documented;
use serde_json::Value;

const DASHBOARD: &str = include_str!("../../../monitoring/grafana/drover.json");
const ALERTS: &str = include_str!("../../../monitoring/prometheus/alerts.yaml");
const TESTS_OF_ALERTS: &str = include_str!("../../../monitoring/prometheus/alerts_test.yaml");
const RUNBOOK: &str = include_str!("../../../docs/operations.md");

/// Labels that Prometheus adds to every series.
const EVERYWHERE: [&str; 3] = ["instance", "job", "le"];

/// The words of PromQL that are no metrics' names.
fn is_of_the_language(word: &str) -> bool {
    const WORDS: &str = "abs absent and avg bool by changes clamp_max clamp_min count count_values delta group_left \
        histogram_quantile ignoring increase irate label_replace max max_over_time min min_over_time offset on or rate \
        scalar sort sum time topk unless vector without";
    WORDS.split_whitespace().any(|known| known == word)
}

/// The metrics of an expression, and the labels that it names.
fn identifiers(expression: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut metrics, mut labels) = (BTreeSet::new(), BTreeSet::new());
    let mut rest = expression;
    // Inside {…}, or in the list behind `by` and the like.
    let (mut in_braces, mut in_list, mut list_next) = (false, false, false);
    while let Some(next) = rest.chars().next() {
        let length =
            rest.find(|next: char| !next.is_ascii_alphanumeric() && next != '_').unwrap_or(rest.len());
        match next {
            '"' => {
                let end = rest[1..].find('"').expect("a string ends") + 2;
                rest = &rest[end..];
                continue;
            }
            // A range, such as [5m] or [$__rate_interval].
            '[' => {
                rest = &rest[rest.find(']').expect("a range ends")..];
                continue;
            }
            '{' => in_braces = true,
            '}' => in_braces = false,
            '(' => in_list = std::mem::take(&mut list_next),
            ')' => in_list = false,
            _ if next.is_ascii_alphabetic() => {
                let word = &rest[..length];
                if in_braces || in_list {
                    labels.insert(word.to_owned());
                } else if ["by", "without", "on", "ignoring", "group_left"].contains(&word) {
                    list_next = true;
                } else if !is_of_the_language(word) {
                    metrics.insert(word.to_owned());
                }
                rest = &rest[length..];
                continue;
            }
            _ if length > 0 => {
                rest = &rest[length..];
                continue;
            }
            _ => {}
        }
        rest = &rest[next.len_utf8()..];
    }
    (metrics, labels)
}

/// Asserts that all that `expression`, of `whose`, names is documented.
fn assert_known(whose: &str, expression: &str) {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, metric) in documented::of_nodes().into_iter().chain(documented::of_agents()) {
        let names = match metric.kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).to_vec(),
            _ => vec![name],
        };
        names.into_iter().for_each(|name| known.entry(name).or_default().extend(metric.labels.clone()));
    }
    known.insert("up".to_owned(), BTreeSet::new());
    let (metrics, labels) = identifiers(expression);
    assert!(!metrics.is_empty(), "{whose}: {expression}: names no metric");
    let mut allowed: BTreeSet<String> = EVERYWHERE.map(str::to_owned).into();
    for metric in &metrics {
        let of_metric = known.get(metric);
        allowed.extend(of_metric.unwrap_or_else(|| panic!("{whose}: {metric}: no such metric")).clone());
    }
    // `count_values` makes a label.
    allowed.insert("digest".to_owned());
    let unknown: Vec<&String> = labels.difference(&allowed).collect();
    assert!(unknown.is_empty(), "{whose}: {expression}: no such labels: {unknown:?}");
}

/// The values of a field of the alerts' file, one per alert, with the alert's name.
fn of_alerts(field: &str) -> Vec<(String, String)> {
    let mut alert = String::new();
    let mut found = Vec::new();
    for line in ALERTS.lines() {
        let line = line.trim_start();
        if let Some(name) = line.strip_prefix("- alert: ") {
            alert = name.to_owned();
        } else if let Some(value) = line.strip_prefix(field).and_then(|rest| rest.strip_prefix(": ")) {
            found.push((alert.clone(), value.to_owned()));
        }
    }
    found
}

#[test]
fn every_metric_and_label_of_the_alerts_exists() {
    let expressions = of_alerts("expr");
    assert!(expressions.len() >= 18, "{}", expressions.len());
    for (alert, expression) in &expressions {
        assert_known(alert, expression);
    }
}

#[test]
fn every_alert_has_a_severity_words_and_a_section_in_the_runbook() {
    let alerts: Vec<String> = of_alerts("expr").into_iter().map(|(alert, _)| alert).collect();
    for field in ["severity", "summary", "description", "runbook_url"] {
        let with: Vec<String> = of_alerts(field).into_iter().map(|(alert, _)| alert).collect();
        assert_eq!(with, alerts, "{field}");
    }
    for (alert, url) in of_alerts("runbook_url") {
        let (_, anchor) = url.split_once("docs/operations.md#").expect("a place in the operations' document");
        assert_eq!(anchor, alert.to_lowercase(), "{url}");
        assert!(RUNBOOK.contains(&format!("\n### {alert}\n")), "{alert} has no section");
    }
}

#[test]
fn the_runbook_has_sections_of_alerts_alone_in_their_order() {
    let (_, sections) = RUNBOOK.split_once("\n## Alerts\n").expect("the alerts have a chapter");
    let sections: Vec<&str> = sections.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let alerts: Vec<String> = of_alerts("expr").into_iter().map(|(alert, _)| alert).collect();
    assert_eq!(sections, alerts);
}

#[test]
fn every_alert_has_a_test_in_which_it_fires() {
    let alerts: BTreeSet<String> = of_alerts("expr").into_iter().map(|(alert, _)| alert).collect();
    let checks = TESTS_OF_ALERTS.split("alertname: ").skip(1);
    let fire = checks.filter(|check| check.contains("exp_labels:"));
    let fire: BTreeSet<String> = fire.filter_map(|check| check.lines().next().map(str::to_owned)).collect();
    assert_eq!(fire, alerts);
}

#[test]
fn every_metric_and_label_of_the_dashboard_exists() {
    fn expressions(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                for (key, value) in object {
                    match value.as_str().filter(|_| key == "expr") {
                        Some(expression) => found.push(expression.to_owned()),
                        None => expressions(value, found),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
            _ => {}
        }
    }
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut found = Vec::new();
    expressions(&dashboard, &mut found);
    assert!(found.len() >= 30, "{}", found.len());
    for expression in &found {
        assert_known("dashboard", expression);
    }
}

#[test]
fn the_dashboard_is_one_that_grafana_can_import() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36);
    assert_eq!(dashboard["id"], Value::Null);
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "node", "vip"]);
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another's");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(x < 24 && taken.insert((x, y)), "{title}: overlaps another panel");
            }
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{title}");
            assert!(!panel["description"].as_str().unwrap().is_empty(), "{title}");
        }
    }
}

#[test]
fn what_an_expression_names_is_found() {
    let (metrics, labels) = identifiers(
        "sum by (vip, real) (rate(a_total{vip=~\"$vip\",reason!=\"x{y\"}[5m])) / on(vip) group_left() (b > 2e3) or vector(0)",
    );
    assert_eq!(metrics, ["a_total", "b"].map(str::to_owned).into());
    assert_eq!(labels, ["vip", "real", "reason"].map(str::to_owned).into());
}
