//! Reals that register themselves, and what of a record others see.

use crate::Real;
use crate::records::Extra;
use serde_json::Value;

/// The field of a real's record that names its registrant.
const FIELD: &str = "registered_by";
/// The field of a registered real, in an assignment: it is there as long as its agent's session.
const REGISTERED: &str = "registered";
/// The field by which an agent that ends on purpose takes its leave.
const LEAVING: &str = "leaving";

/// Largest unknown fields of a record that are copied into what the leader writes, in bytes of JSON, all together.
///
/// Larger: a newer version's fields fit, but a few hundred reals fill an assignment, which has a limit.
pub const MAX_EXTRA_BYTES: usize = 1024;

/// Unknown fields that are left out of what the leader writes, since they are too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown fields of {0} bytes are left out of what nodes are told, which has room for {MAX_EXTRA_BYTES}; shorten them"
)]
pub struct ExtraTooLarge(usize);

/// The writer of a [`Real`]'s record that is not an operator's: the agent on the real's own host.
///
/// It is for agents to know their own records again. What is served depends only on whether the real is
/// [registered](Self::is_registered) and whether it is [leaving](Self::is_leaving): see [`settle`](Self::settle).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registrant(String);

impl Registrant {
    /// A registrant of this name, which no agent on another host has, nor this one for another interface.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the agent that registered `real`, if one did.
    #[must_use]
    pub fn of(real: &Real) -> Option<Self> {
        real.extra.get(FIELD)?.as_str().map(Self::new)
    }

    /// Makes `real` one that this agent registers.
    pub fn sign(&self, real: &mut Real) {
        real.extra.insert(FIELD.to_owned(), self.0.clone().into());
    }

    /// Makes `real` one that nobody has signed.
    pub fn strip(real: &mut Real) {
        real.extra.remove(FIELD);
    }

    /// Makes `real` one whose agent is about to end on purpose.
    pub fn take_leave(real: &mut Real) {
        real.extra.insert(LEAVING.to_owned(), true.into());
    }

    /// Makes a real's record what an assignment holds of it: whoever wrote it, that another agent did, or the same one
    /// after a reboot, is no change of the real. `is_ephemeral`: its znode ends with its agent's session.
    ///
    /// # Errors
    /// [`ExtraTooLarge`] if unknown fields were left out; the rest counts.
    pub fn settle(real: &mut Real, is_ephemeral: bool) -> Result<(), ExtraTooLarge> {
        let leaves = is_ephemeral && Self::is_leaving(real);
        Self::strip(real);
        for field in [REGISTERED, LEAVING] {
            real.extra.remove(field);
        }
        let bounded = bound(&mut real.extra);
        let marks = [(REGISTERED, is_ephemeral), (LEAVING, leaves)];
        real.extra.extend(
            marks.into_iter().filter(|(_, set)| *set).map(|(field, _)| (field.to_owned(), true.into())),
        );
        bounded
    }

    /// Returns whether a real of an assignment is there only as long as its agent's session.
    #[must_use]
    pub fn is_registered(real: &Real) -> bool {
        real.extra.get(REGISTERED) == Some(&Value::Bool(true))
    }

    /// Returns whether the real's agent has said that it ends.
    #[must_use]
    pub fn is_leaving(real: &Real) -> bool {
        real.extra.get(LEAVING) == Some(&Value::Bool(true))
    }
}

/// Leaves out a record's unknown fields where they are larger than [`MAX_EXTRA_BYTES`].
///
/// # Errors
/// [`ExtraTooLarge`] if it did.
pub fn bound(extra: &mut Extra) -> Result<(), ExtraTooLarge> {
    if extra.is_empty() {
        return Ok(());
    }
    let bytes = serde_json::to_vec(extra).map_or(usize::MAX, |json| json.len());
    if bytes > MAX_EXTRA_BYTES {
        extra.clear();
        return Err(ExtraTooLarge(bytes));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{from_json, to_json};

    #[test]
    fn the_registrant_of_a_record_is_read_from_its_bytes_and_leaves_only_a_mark_in_an_assignment() {
        let plain = Real::new("192.0.2.7".parse().unwrap());
        assert_eq!(Registrant::of(&plain), None);
        let registrant = Registrant::new("boot/42/eth0");
        let mut signed = plain.clone();
        registrant.sign(&mut signed);
        let mut read: Real = from_json(&to_json(&signed).unwrap()).unwrap();
        assert_eq!(Registrant::of(&read), Some(registrant));
        let mut copied = read.clone();
        Registrant::settle(&mut read, true).unwrap();
        assert_eq!((Registrant::of(&read), Registrant::is_registered(&read)), (None, true));
        Registrant::settle(&mut copied, false).unwrap();
        assert_eq!(copied, plain, "an operator's copy is an operator's record");
    }

    #[test]
    fn only_an_agent_takes_its_leave_and_no_record_brings_its_own_marks() {
        let mut real = Real::new("192.0.2.7".parse().unwrap());
        Registrant::take_leave(&mut real);
        real.extra.insert(REGISTERED.into(), true.into());
        let mut persistent = real.clone();
        Registrant::settle(&mut persistent, false).unwrap();
        assert_eq!(persistent.extra.len(), 0);
        Registrant::settle(&mut real, true).unwrap();
        assert!(Registrant::is_registered(&real) && Registrant::is_leaving(&real));
    }

    #[test]
    fn unknown_fields_that_are_too_large_are_left_out_and_told() {
        let mut real = Real::new("192.0.2.7".parse().unwrap());
        real.extra.insert("note".into(), "x".repeat(MAX_EXTRA_BYTES).into());
        let told = Registrant::settle(&mut real, true).unwrap_err().to_string();
        assert!(told.contains("unknown fields of 1035 bytes"), "{told}");
        assert!(real.extra.len() == 1 && Registrant::is_registered(&real));
        real.extra.insert("note".into(), "short".into());
        assert_eq!(bound(&mut real.extra), Ok(()));
        assert_eq!(real.extra.len(), 2);
    }
}
