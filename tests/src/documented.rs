//! What `docs/metrics.md` says there is.

use std::collections::{BTreeMap, BTreeSet};

const DOCUMENT: &str = include_str!("../../docs/metrics.md");

/// A metric as it is documented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Documented {
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: String,
    /// Names of its labels, but for a histogram's `le`.
    pub labels: BTreeSet<String>,
}

/// Metrics by name.
pub type Metrics = BTreeMap<String, Documented>;

/// The metrics of a node.
#[must_use]
pub fn of_nodes() -> Metrics {
    section("## Nodes")
}

/// The metrics of a real's agent.
#[must_use]
pub fn of_agents() -> Metrics {
    section("## A real's agent")
}

/// What a page of metrics says, in the same terms. Labels of a metric without samples are unknown, and `None`.
#[must_use]
pub fn served(page: &str) -> BTreeMap<String, (String, Option<BTreeSet<String>>)> {
    let mut found = BTreeMap::new();
    for line in page.lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        let (ending, of_samples) = match kind {
            "counter" => ("_total", "_total"),
            "info" => ("_info", "_info"),
            "histogram" => ("", "_count"),
            _ => ("", ""),
        };
        let sample = format!("{name}{of_samples}");
        let series = page.lines().find_map(|line| {
            let rest = line.strip_prefix(&sample)?;
            (rest.starts_with('{') || rest.starts_with(' ')).then_some(rest)
        });
        let labels = series.map(|rest| {
            let inner =
                rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inner, _)| inner);
            let names = inner.split("\",").filter_map(|label| label.split_once('='));
            names.map(|(name, _)| name.to_owned()).collect()
        });
        found.insert(format!("{name}{ending}"), (kind.to_owned(), labels));
    }
    found
}

fn section(heading: &str) -> Metrics {
    let lines = DOCUMENT.lines().skip_while(|line| *line != heading).skip(1);
    let rows = lines.take_while(|line| !line.starts_with("## ")).filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let name = cells.next()?.trim_end_matches('`');
        let kind = cells.next()?;
        let is_metric = ["counter", "gauge", "histogram", "info"].contains(&kind);
        let labels = cells.next()?.split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        is_metric.then(|| (name.to_owned(), Documented { kind: kind.to_owned(), labels }))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_metrics_with_types_and_labels() {
        let nodes = of_nodes();
        assert!(nodes.len() > 40, "{nodes:?}");
        let labels: BTreeSet<String> = ["vip", "reason"].map(str::to_owned).into();
        assert_eq!(nodes["drover_drops_total"], Documented { kind: "counter".into(), labels });
        assert_eq!(nodes["drover_epoch"], Documented { kind: "gauge".into(), labels: BTreeSet::new() });
        assert!(of_agents().contains_key("drover_real_registered"));
    }

    #[test]
    fn a_page_is_read_by_what_its_samples_are_called() {
        let page = "# TYPE a counter\na_total{x=\"1\",y=\"2, }\"} 3\n# TYPE b gauge\nb 1\n# TYPE c histogram\n\
                    c_sum 1\nc_count 2\n# TYPE d gauge\n# EOF";
        let found = served(page);
        let names = |labels: &[&str]| Some(labels.iter().map(|label| (*label).to_owned()).collect());
        assert_eq!(found["a_total"], ("counter".into(), names(&["x", "y"])));
        assert_eq!(found["b"], ("gauge".into(), names(&[])));
        assert_eq!(found["c"], ("histogram".into(), names(&[])));
        assert_eq!(found["d"], ("gauge".into(), None));
    }
}
