//! The rules that nodes decide by. Pure: time is an argument, and there is no I/O.
//!
//! | question | module |
//! |---|---|
//! | Which nodes probe a real? | [`probers`] |
//! | What do the nodes' votes on a real come to? | [`verdict`] |
//! | What is held when it vanishes from the tree? | [`removal`] |
//!
//! Knows the records of `zk-schema`; knows no store, no network and no data plane. So whoever wants to know what a
//! cluster would do asks the same code: the daemon, `lbctl`, simulations, fuzzers.

pub mod probers;
pub mod removal;
pub mod verdict;
