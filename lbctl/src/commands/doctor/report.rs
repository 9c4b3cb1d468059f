//! The report.

use crate::output::Shown;
use crate::visible;
use serde::Serialize;
use std::fmt::Write as _;
use std::process::ExitCode;

/// Its severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It could not be looked at; what keeps it from that has a finding of its own, or is told.
    Skipped,
    /// It works, but not as well as it could, or not for long.
    Warning,
    /// A node cannot do its work so.
    Fault,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "WARNING",
            Self::Fault => "FAULT",
        }
    }
}

/// One check's outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The check: its id in `docs/lbctl.md`.
    pub(super) check: &'static str,
    /// The thing that was looked at, if there are several.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) subject: String,
    /// Its severity.
    pub(super) level: Level,
    /// The observation.
    pub(super) seen: String,
    /// The fix.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) fix: String,
}

impl Finding {
    fn new(check: &'static str, level: Level, seen: String, fix: String) -> Self {
        Self { check, subject: String::new(), level, seen, fix }
    }

    /// As it should be.
    pub(super) fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, seen.into(), String::new())
    }

    /// Not looked at, and why.
    pub(super) fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        Self::new(check, Level::Skipped, why.into(), String::new())
    }

    /// Not good.
    pub(super) fn warning(check: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, Level::Warning, seen.into(), fix.into())
    }

    /// Bad.
    pub(super) fn fault(check: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, Level::Fault, seen.into(), fix.into())
    }

    /// The same of this subject.
    pub(super) fn of(mut self, subject: impl ToString) -> Self {
        self.subject = subject.to_string();
        self
    }
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    faults: usize,
    warnings: usize,
    checks: Vec<Finding>,
}

impl Report {
    /// Of these findings.
    pub(super) fn new(checks: Vec<Finding>) -> Self {
        let count = |level| checks.iter().filter(|finding| finding.level == level).count();
        Self { faults: count(Level::Fault), warnings: count(Level::Warning), checks }
    }

    /// 0 without faults, else 1.
    pub(super) fn exit_code(&self) -> ExitCode {
        if self.faults == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
    }
}

impl Shown for Report {
    fn text(&self) -> String {
        let mut text = String::new();
        let width = self.checks.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        for Finding { check, subject, level, seen, fix } in &self.checks {
            let colon = if subject.is_empty() { "" } else { ": " };
            let _ = writeln!(text, "{:8} {check:width$}  {subject}{colon}{}", level.word(), one_line(seen));
            for line in fix.lines() {
                let _ = writeln!(text, "{:8} {:width$}  -> {line}", "", "");
            }
        }
        let (checks, faults, warnings) = (self.checks.len(), self.faults, self.warnings);
        let _ = writeln!(text, "{checks} checks: {faults} at fault, {warnings} with a warning");
        text
    }
}

/// Text that others wrote may have several lines.
fn one_line(text: &str) -> String {
    visible::line(&text.trim().replace('\n', "; ")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_shows_each_check_with_its_fix_and_counts() {
        let report = Report::new(vec![
            Finding::ok("kernel.version", "Linux 6.18.5"),
            Finding::fault("real.route", "no route", "ip route add …").of("mqtt/a"),
            Finding::warning("kernel.jit", "off\x1b[2J", "turn it on"),
        ]);
        assert_eq!(
            report.text(),
            "ok       kernel.version  Linux 6.18.5\n\
             FAULT    real.route      mqtt/a: no route\n                         -> ip route add …\n\
             WARNING  kernel.jit      off\\u{1b}[2J\n                         -> turn it on\n\
             3 checks: 1 at fault, 1 with a warning\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["faults"], 1);
        assert_eq!(json["checks"][1]["subject"], "mqtt/a");
        assert_eq!(json["checks"][1]["level"], "fault");
    }
}
