//! The hash of what nodes must agree on, or tell apart, by name.

/// FNV-1a of 64 bits (Fowler, Noll, Vo): fast on short texts and the same on every machine. Nothing that an attacker may
/// choose should depend on it.
#[must_use]
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
