//! What is wanted, what is to be written for it, and what there is to know before. Plain data.

use super::fields::FieldChange;
use crate::visible;
use coordination::Change;
use serde::Serialize;
use std::fmt;
use zk_schema::tree::{Flag, Target, Znode, paths};
use zk_schema::{NodeName, Real, Vip, VipName};

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

/// Something that is wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// A VIP of this record; its reals stay as they are.
    PutVip(VipName, Vip),
    /// A real of this record.
    PutReal(Target, Real),
    /// No such VIP, and none of its reals.
    RemoveVip(VipName),
    /// No such real.
    RemoveReal(Target),
    /// A flag, in place of the one that is there.
    PutFlag(FlagName, Flag, Option<Znode>),
    /// No such flag, in place of the one that is there.
    RemoveFlag(FlagName, Znode),
    /// Nothing of what a node that is gone had in force.
    ForgetNode(NodeName),
}

/// A change of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The thing that changes.
    pub object: Object,
    /// How.
    pub action: Action,
    /// In which fields; none where it goes.
    pub fields: Vec<FieldChange>,
    /// The writes that it takes.
    pub changes: Vec<Change>,
}

/// The kinds of things that can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A VIP.
    Vip(VipName),
    /// A real.
    Real(Target),
    /// A flag.
    Flag(FlagName),
    /// The record of what a node has in force.
    Node(NodeName),
}

/// The way in which something changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It comes.
    Create,
    /// It stays, with other fields.
    Change,
    /// It goes.
    Delete,
}

/// Something to know before a plan is carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// Its severity.
    pub severity: Severity,
    /// In words.
    pub text: String,
}

/// The severity of a [`Remark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It is good to know.
    Note,
    /// It has a price.
    Warning,
    /// It is asked about.
    Danger,
}

impl Remark {
    pub(crate) fn note(text: impl Into<String>) -> Self {
        Self { severity: Severity::Note, text: text.into() }
    }

    pub(crate) fn warning(text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, text: text.into() }
    }

    pub(crate) fn danger(text: impl Into<String>) -> Self {
        Self { severity: Severity::Danger, text: text.into() }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Danger => "danger",
        };
        write!(f, "{word}: {}", visible::line(&self.text))
    }
}

impl Object {
    /// Returns the kind of thing: `vip`, `real`, `flag` or `node`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Vip(_) => "vip",
            Self::Real(_) => "real",
            Self::Flag(_) => "flag",
            Self::Node(_) => "node",
        }
    }

    /// Its name among its kind.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Vip(name) => name.to_string(),
            Self::Real(target) => target.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Node(name) => name.to_string(),
        }
    }

    /// Its znode.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::Vip(name) => paths::vip(name),
            Self::Real(target) => paths::real(&target.vip, &target.real),
            Self::Flag(flag) => flag.path(),
            Self::Node(name) => paths::applied(name),
        }
    }

    /// The VIP whose assignment it may change.
    #[must_use]
    pub const fn vip(&self) -> Option<&VipName> {
        match self {
            Self::Vip(name) => Some(name),
            Self::Real(target) | Self::Flag(FlagName::Drain(target)) => Some(&target.vip),
            Self::Flag(_) | Self::Node(_) => None,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}

impl fmt::Display for Step {
    /// One line, and one for each field.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.action {
            Action::Create => '+',
            Action::Change => '~',
            Action::Delete => '-',
        };
        writeln!(f, "{sign} {}", self.object)?;
        self.fields.iter().try_for_each(|field| writeln!(f, "    {field}"))
    }
}
