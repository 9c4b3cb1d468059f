//! Tests that judge by time, and so have the machine to themselves: `cargo xtask test` runs them one after the other when
//! all others have ended.

mod convergence;
mod drill;
