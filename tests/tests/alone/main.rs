//! Tests that judge by time, and so have the machine to themselves: `cargo xtask test` runs them one after the other when
//! all others have ended.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod convergence;
mod drill;
