//! Atomic operations on map values that all CPUs share.
//!
//! `core::sync::atomic` offers none of them here, as the compiler's description of the BPF target claims no
//! compare-and-exchange. The kernel has it since Linux 5.12. LLVM emits it for 64 bits; that of 32 bits, and an
//! addition that returns what was there, want the whole program to be built for 32-bit registers (`alu32`), and then
//! the verifier loses track of packets' ends.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

/// Adds to a word.
///
/// # Safety
/// `at` must be valid and aligned.
#[inline(always)]
pub unsafe fn add(at: *mut u64, value: u64) {
    // SAFETY: as the caller promises.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(at, value) };
}

/// Replaces a word if it is still `old`; otherwise what it is.
///
/// # Safety
/// `at` must be valid and aligned.
#[inline(always)]
pub unsafe fn replace(at: *mut u64, old: u64, new: u64) -> Result<(), u64> {
    // SAFETY: as the caller promises.
    let (found, done) =
        unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(at, old, new) };
    if done { Ok(()) } else { Err(found) }
}
