//! What several crates must agree on, without root: the memory store, documents and code.

mod monitoring;
mod store_memory;
