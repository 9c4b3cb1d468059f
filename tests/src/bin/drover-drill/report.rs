//! What a drill prints: a timeline as things happen, a line of JSON, and a table of all drills.

use std::cell::Cell;
use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::judge::{Allowed, Seen};

/// A timeline for people: on stdout, or on stderr where stdout is for programs.
#[derive(Debug)]
pub(crate) struct Voice {
    started: Instant,
    acted: Cell<Option<Instant>>,
    to_stderr: bool,
}

impl Voice {
    pub(crate) fn new(to_stderr: bool) -> Voice {
        Voice { started: Instant::now(), acted: Cell::new(None), to_stderr }
    }

    /// A heading.
    pub(crate) fn heading(&self, text: impl Display) {
        self.line(format_args!("\n{text}"));
    }

    /// From now on times are also given since this moment.
    pub(crate) fn act(&self, at: Instant) {
        self.acted.set(Some(at));
    }

    /// What has happened by now.
    pub(crate) fn note(&self, text: impl Display) {
        self.event(Instant::now(), text);
    }

    /// What happened at a moment.
    pub(crate) fn event(&self, at: Instant, text: impl Display) {
        let since = at.saturating_duration_since(self.started).as_secs_f64();
        let acted = self.acted.get().filter(|acted| at >= *acted);
        let acted = acted.map(|acted| format!("+{:.2} s", (at - acted).as_secs_f64())).unwrap_or_default();
        self.line(format_args!("   {since:6.1} s {acted:>9}  {text}"));
    }

    /// A line as it is.
    pub(crate) fn line(&self, text: impl Display) {
        // A reader that went away is no reason to end a drill half-way.
        let _ = if self.to_stderr {
            writeln!(io::stderr().lock(), "{text}")
        } else {
            writeln!(io::stdout().lock(), "{text}")
        };
    }
}

/// A step that is over.
#[derive(Clone, Debug)]
pub(crate) struct StepDone {
    pub(crate) what: String,
    pub(crate) allowed: Allowed,
    pub(crate) seen: Seen,
}

/// A drill that is over.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) drill: &'static str,
    /// What was done, in a few words.
    pub(crate) done: &'static str,
    /// What must hold, in words.
    pub(crate) expected: &'static str,
    pub(crate) steps: Vec<StepDone>,
    /// What else is to be told, by name.
    pub(crate) facts: Vec<(&'static str, Value)>,
    /// Why it could not be played to its end, if so.
    pub(crate) error: Option<String>,
    /// From the beginning, setting up included, to the end.
    pub(crate) took: Duration,
}

/// How a drill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Every promise was kept.
    Pass,
    /// One was not.
    Fail,
    /// It could not be played.
    Error,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Error => "error",
        }
    }
}

/// The figures of all steps together.
struct Totals {
    connections: usize,
    expected_broken: usize,
    broken: usize,
    packets: usize,
    lost: usize,
    gap: Duration,
    new: usize,
    refused: usize,
    last_refused: Option<Duration>,
    slowest_new: Duration,
    route_changes: usize,
    steady: Option<Duration>,
}

impl Outcome {
    pub(crate) fn verdict(&self) -> Verdict {
        match &self.error {
            _ if !self.wrong().is_empty() => Verdict::Fail,
            None if !self.steps.is_empty() => Verdict::Pass,
            _ => Verdict::Error,
        }
    }

    /// What was not kept, by step.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let of_step = |step: &StepDone| {
            let wrong = step.allowed.judge(&step.seen);
            wrong.into_iter().map(|wrong| format!("{}: {wrong}", step.what)).collect::<Vec<_>>()
        };
        self.steps.iter().flat_map(of_step).collect()
    }

    /// The verdict, for people.
    pub(crate) fn told(&self) -> String {
        let mut told =
            format!("{}: {} after {:.0} s", self.drill, self.verdict().word(), self.took.as_secs_f64());
        for wrong in self.wrong() {
            let _ = write!(told, "\n   NOT KEPT: {wrong}");
        }
        if let Some(error) = &self.error {
            let _ = write!(told, "\n   could not go on: {error}");
        }
        told
    }

    fn totals(&self) -> Totals {
        let seen = || self.steps.iter().map(|step| &step.seen);
        let sum = |figure: fn(&Seen) -> usize| seen().map(figure).sum();
        let most = |figure: fn(&Seen) -> Duration| seen().map(figure).max().unwrap_or_default();
        let steady: Option<Vec<Duration>> = seen().map(|seen| seen.steady).collect();
        Totals {
            connections: seen().next().map_or(0, |first| first.connections),
            expected_broken: sum(|seen| seen.doomed),
            broken: sum(|seen| seen.doomed_broken + seen.others_broken.len()),
            packets: sum(|seen| seen.packets),
            lost: sum(|seen| seen.lost.len()),
            gap: most(|seen| seen.longest_gap),
            new: sum(|seen| seen.new),
            refused: sum(|seen| seen.refused.len()),
            last_refused: seen().filter_map(|seen| seen.refused.iter().max()).max().copied(),
            slowest_new: most(|seen| seen.slowest_new),
            route_changes: sum(|seen| seen.route_changes),
            steady: steady.and_then(|steady| steady.into_iter().max()),
        }
    }

    /// One JSON object, in one line.
    pub(crate) fn json(&self) -> String {
        let totals = self.totals();
        let in_flight = self.steps.iter().any(|step| step.allowed.lost_node.is_some());
        let mut members: Vec<(&str, Value)> = vec![
            ("drill", self.drill.into()),
            ("verdict", self.verdict().word().into()),
            ("connections", totals.connections.into()),
            ("expected_broken", totals.expected_broken.into()),
            ("broken", totals.broken.into()),
            ("packets", totals.packets.into()),
            ("expected_lost", if in_flight { "packets in flight" } else { "none" }.into()),
            ("packets_lost", totals.lost.into()),
            ("longest_gap_ms", ms(totals.gap)),
            ("new_connections", totals.new.into()),
            ("new_refused", totals.refused.into()),
            ("new_refused_until_ms", totals.last_refused.map_or(Value::Null, ms)),
            ("new_slowest_ms", ms(totals.slowest_new)),
            ("route_changes", totals.route_changes.into()),
            ("steady_after_ms", totals.steady.map_or(Value::Null, ms)),
            ("duration_ms", ms(self.took)),
            ("expected", self.expected.into()),
        ];
        members.extend(self.facts.iter().cloned());
        let wrong = self.wrong();
        if !wrong.is_empty() {
            members.push(("wrong", wrong.into()));
        }
        if let Some(error) = &self.error {
            members.push(("error", error.as_str().into()));
        }
        members.push(("steps", self.steps.iter().map(StepDone::json).collect()));
        object(&members)
    }
}

impl StepDone {
    fn json(&self) -> Value {
        let seen = &self.seen;
        json!({
            "step": self.what,
            "broken": seen.doomed_broken + seen.others_broken.len(),
            "expected_broken": seen.doomed,
            "packets_lost": seen.lost.len(),
            "longest_gap_ms": ms(seen.longest_gap),
            "new_refused": seen.refused.len(),
            "route_changes": seen.route_changes,
            "steady_after_ms": seen.steady.map_or(Value::Null, ms),
            "checks": seen.checks.iter().map(|check| json!({
                "promise": check.promise, "seen": check.seen, "kept": check.kept,
            })).collect::<Vec<_>>(),
        })
    }
}

/// A table of drills, and below it what was not kept and what could not be run.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut table = format!(
        "{:16}{:8}{:>8}{:>9}{:>6}{:>8}{:>10}{:>8}{:>8}  done\n",
        "drill", "verdict", "broken", "expected", "lost", "gap", "refused", "until", "steady"
    );
    for outcome in outcomes {
        let Totals {
            expected_broken,
            broken,
            connections,
            lost,
            gap,
            refused,
            new,
            last_refused,
            steady,
            ..
        } = outcome.totals();
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        let steady = steady.map_or("never".to_owned(), seconds);
        let _ = writeln!(
            table,
            "{:16}{:8}{:>8}{:>9}{:>6}{:>8}{:>10}{:>8}{:>8}  {}",
            outcome.drill,
            outcome.verdict().word(),
            format!("{broken}/{connections}"),
            expected_broken,
            lost,
            format!("{} ms", gap.as_millis()),
            format!("{refused}/{new}"),
            last_refused.map_or("-".to_owned(), seconds),
            steady,
            outcome.done
        );
    }
    for outcome in outcomes {
        for wrong in outcome.wrong() {
            let _ = writeln!(table, "{} NOT KEPT: {wrong}", outcome.drill);
        }
        if let Some(error) = &outcome.error {
            let _ = writeln!(table, "{} could not go on: {error}", outcome.drill);
        }
    }
    table
}

/// What the columns of [`table`] mean.
pub(crate) const LEGEND: &str = "\
broken: of the held connections; expected: those of brokers that were killed. lost: counted packets without an answer.
gap: the longest that a client waited for an answer whose broker lives. refused: of the new connections; until: how long.
steady: the longest that a step took until all was as it should be, the next new connections served.";

/// Writes a line to stdout, for programs.
pub(crate) fn line(text: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(())
}

/// An object whose members keep their order.
fn object(members: &[(&str, Value)]) -> String {
    let members: Vec<String> =
        members.iter().map(|(name, value)| format!("{}:{value}", Value::from(*name))).collect();
    format!("{{{}}}", members.join(","))
}

/// Milliseconds, with one decimal below a second.
fn ms(duration: Duration) -> Value {
    let micros = duration.as_micros();
    if micros < 1_000_000 {
        json!((duration.as_secs_f64() * 1e4).round() / 10.0)
    } else {
        json!(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Check;

    fn step(what: &str, seen: Seen) -> StepDone {
        let base = Seen { connections: 300, packets: 500, new: 20, ..Seen::default() };
        let seen = Seen { connections: base.connections, packets: base.packets, new: base.new, ..seen };
        StepDone { what: what.into(), allowed: Allowed::default(), seen }
    }

    fn outcome(steps: Vec<StepDone>, error: Option<&str>) -> Outcome {
        Outcome {
            drill: "fire",
            done: "a fire",
            expected: "nobody is burnt",
            steps,
            facts: vec![("old", "v1".into())],
            error: error.map(str::to_owned),
            took: Duration::from_secs(20),
        }
    }

    fn two_steps() -> Outcome {
        let first = Seen {
            longest_gap: Duration::from_micros(12_340),
            steady: Some(Duration::from_millis(1500)),
            ..Seen::default()
        };
        let second = Seen {
            longest_gap: Duration::from_millis(7),
            steady: Some(Duration::from_millis(300)),
            ..Seen::default()
        };
        outcome(vec![step("lit", first), step("put out", second)], None)
    }

    #[test]
    fn a_line_of_json_sums_steps_up_and_takes_the_worst_of_times() {
        let line = two_steps().json();
        assert!(line.starts_with(r#"{"drill":"fire","verdict":"pass","connections":300,"#), "{line}");
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["packets"], 1000);
        assert_eq!(value["new_connections"], 40);
        assert_eq!(value["longest_gap_ms"], 12.3);
        assert_eq!(value["steady_after_ms"], 1500);
        assert_eq!(value["new_refused_until_ms"], Value::Null);
        assert_eq!(value["old"], "v1");
        assert_eq!(value["steps"][1]["step"], "put out");
        assert!(value.get("wrong").is_none() && value.get("error").is_none());
    }

    #[test]
    fn a_promise_that_was_not_kept_fails_the_drill_and_names_its_step() {
        let mut failed = two_steps();
        let check = Check { promise: "it is out".into(), seen: "it burns".into(), kept: false };
        failed.steps[1].seen.checks.push(check);
        assert_eq!(failed.verdict(), Verdict::Fail);
        let value: Value = serde_json::from_str(&failed.json()).unwrap();
        assert_eq!(value["verdict"], "fail");
        assert_eq!(value["wrong"][0], "put out: not so: it is out: it burns");
        // It stays a failure when it could not be played to its end.
        failed.error = Some("no water".into());
        assert_eq!(failed.verdict(), Verdict::Fail);
    }

    #[test]
    fn a_drill_that_could_not_be_played_is_an_error_and_no_pass() {
        let none = outcome(Vec::new(), Some("no matches"));
        assert_eq!(none.verdict(), Verdict::Error);
        let value: Value = serde_json::from_str(&none.json()).unwrap();
        assert_eq!((&value["verdict"], &value["error"]), (&"error".into(), &"no matches".into()));
        assert_eq!(value["steady_after_ms"], Value::Null);
        assert_eq!(outcome(Vec::new(), None).verdict(), Verdict::Error);
    }

    #[test]
    fn the_table_has_a_row_for_each_drill_and_tells_what_was_wrong_below() {
        let mut failed = two_steps();
        failed.steps[0].seen.steady = None;
        let table = table(&[two_steps(), failed, outcome(Vec::new(), Some("no matches"))]);
        let rows: Vec<&str> = table.lines().collect();
        assert!(
            rows[1].contains("pass") && rows[1].contains("0/300") && rows[1].contains("1.5 s"),
            "{table}"
        );
        assert!(rows[2].contains("fail") && rows[2].contains("never"), "{table}");
        assert!(rows[3].contains("error"), "{table}");
        assert_eq!(rows[4], "fire NOT KEPT: lit: it did not become steady in time");
        assert_eq!(rows[5], "fire could not go on: no matches");
        let columns = |row: &str| row.find("  a fire").or_else(|| row.find("  done"));
        assert!(rows[..4].iter().all(|row| columns(row) == columns(rows[0])), "{table}");
    }
}
