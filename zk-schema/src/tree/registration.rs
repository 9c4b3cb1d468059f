//! Reals that register themselves.

use crate::Real;

/// The field of a real's record that names its registrant.
const FIELD: &str = "registered_by";

/// Who wrote a [`Real`]'s record, where that was not an operator: the agent on the real's own host.
///
/// It is for agents to know their own records again. Nothing that is served depends on it, so whoever decides what is
/// served [takes it off](Self::strip).
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

    /// Who registered `real`, if anybody.
    #[must_use]
    pub fn of(real: &Real) -> Option<Self> {
        real.extra.get(FIELD)?.as_str().map(Self::new)
    }

    /// Makes `real` one that this agent registers.
    pub fn sign(&self, real: &mut Real) {
        real.extra.insert(FIELD.to_owned(), self.0.clone().into());
    }

    /// Makes `real` one that anybody may have defined.
    pub fn strip(real: &mut Real) {
        real.extra.remove(FIELD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{from_json, to_json};

    #[test]
    fn the_registrant_of_a_record_is_read_from_its_bytes_and_leaves_no_trace_when_stripped() {
        let plain = Real::new("192.0.2.7".parse().unwrap());
        assert_eq!(Registrant::of(&plain), None);
        let registrant = Registrant::new("boot/42/eth0");
        let mut signed = plain.clone();
        registrant.sign(&mut signed);
        let mut read: Real = from_json(&to_json(&signed).unwrap()).unwrap();
        assert_eq!(Registrant::of(&read), Some(registrant));
        Registrant::strip(&mut read);
        assert_eq!(read, plain);
    }
}
