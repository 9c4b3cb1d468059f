//! What several crates must agree on, without root: the memory store, documents and code.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod monitoring;
mod store_memory;
