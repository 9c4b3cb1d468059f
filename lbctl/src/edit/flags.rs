//! Operators' flags: which there are, and how they are set and taken away.

use super::plan::Edit;
use super::time::Span;
use crate::time::rfc3339_seconds;
use crate::visible;
use coordination::{Error, Session};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use zk_schema::tree::{Flag, Target, Znode, paths};
use zk_schema::{NodeName, VipName};

/// The field that tells a disabled real from one that is merely drained.
const DISABLED: &str = "disabled";

/// A flag that operators set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlagName {
    /// A real gets no new connections.
    Drain(Target),
    /// A node is out of service.
    Maintenance(NodeName),
    /// The leader changes nothing.
    Freeze,
    /// A VIP's suspect change may happen.
    Confirm(VipName),
    /// Most VIPs may go.
    ConfirmVips,
    /// Most nodes may be gone.
    ConfirmNodes,
}

impl FlagName {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::Drain(Target { vip, real }) => paths::drain(vip, real),
            Self::Maintenance(node) => paths::maintenance(node),
            Self::Freeze => paths::FREEZE.to_owned(),
            Self::Confirm(vip) => paths::confirm(vip),
            Self::ConfirmVips => paths::CONFIRM_VIPS.to_owned(),
            Self::ConfirmNodes => paths::CONFIRM_NODES.to_owned(),
        }
    }
}

impl fmt::Display for FlagName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain(target) => write!(f, "drain {target}"),
            Self::Maintenance(node) => write!(f, "maintenance {node}"),
            Self::Freeze => f.write_str("freeze"),
            Self::Confirm(vip) => write!(f, "confirm {vip}"),
            Self::ConfirmVips => f.write_str("confirm all VIPs"),
            Self::ConfirmNodes => f.write_str("confirm all nodes"),
        }
    }
}

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
