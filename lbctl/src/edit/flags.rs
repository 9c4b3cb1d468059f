//! Operators' flags: which there are, and how they are set and taken away.

use super::step::{Edit, FlagName};
use super::time::Span;
use crate::time::rfc3339_seconds;
use crate::visible;
use coordination::{Error, Session};
use serde_json::Value;
use std::collections::BTreeMap;
use zk_schema::tree::{Flag, Znode};

/// The field that tells a disabled real from one that is merely drained.
const DISABLED: &str = "disabled";

/// A flag as it stands in the tree.
///
/// # Errors
/// If the store fails.
pub async fn find<S: Session>(session: &S, name: &FlagName) -> Result<Option<Znode>, Error> {
    Ok(session.read(&[name.path()]).await?.into_iter().next().flatten())
}

/// An order to take a flag away.
///
/// # Errors
/// If it is not there, or the store fails.
pub async fn removal<S: Session>(session: &S, name: FlagName, missing: &str) -> anyhow::Result<Edit> {
    match find(session, &name).await? {
        Some(znode) => Ok(Edit::RemoveFlag(name, znode)),
        None => anyhow::bail!("{missing}. Nothing was written."),
    }
}

/// A flag of `by`'s, set at `now` (seconds since 1970) for `span`, or for good.
#[must_use]
pub fn flag(by: &str, why: &str, span: Option<Span>, now: u64) -> Flag {
    Flag {
        by: by.to_owned(),
        why: why.to_owned(),
        until: span.map(|Span(span)| now.saturating_add(span.as_secs())),
        ..Flag::default()
    }
}

/// The reason for a flag, and the time for which it counts.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Reason {
    /// Why, for others to read.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,

    /// For how long, e.g. 90s, 30m or 2h; then it ceases to count by itself.
    #[arg(long = "for", value_name = "TIME")]
    pub span: Option<Span>,
}

/// Makes a drain one that only `real enable` ends.
#[must_use]
pub fn disabling(mut flag: Flag) -> Flag {
    flag.extra.insert(DISABLED.to_owned(), true.into());
    flag
}

/// Returns whether the drain is one that only `real enable` ends.
#[must_use]
pub fn is_disabling(flag: &Flag) -> bool {
    flag.extra.get(DISABLED).and_then(Value::as_bool) == Some(true)
}

/// Tells who set it, what for, and until when: `by anna: disk, until 2027-01-15T08:00:00Z`.
#[must_use]
pub fn told(flag: &Flag) -> String {
    let mut text =
        if flag.by.is_empty() { "by somebody".to_owned() } else { format!("by {}", visible::line(&flag.by)) };
    if !flag.why.is_empty() {
        text.push_str(&format!(": {}", visible::line(&flag.why)));
    }
    if let Some(until) = flag.until {
        text.push_str(&format!(", until {}", rfc3339_seconds(until)));
    }
    text
}

/// Its fields, but for those that say nothing.
#[must_use]
pub fn fields(flag: &Flag) -> BTreeMap<String, Value> {
    match serde_json::to_value(flag) {
        Ok(Value::Object(object)) => object.into_iter().filter(|(_, value)| *value != "").collect(),
        _ => BTreeMap::new(),
    }
}
