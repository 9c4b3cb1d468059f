//! The rules that nodes decide by. Pure: time is an argument, and there is no I/O.
//!
//! | question | module |
//! |---|---|
//! | What does a leader decide? | [`leader`] |
//! | What does it write when the tree changes? | [`desk`] |
//! | What will it make of a change that nobody has written yet? | [`forecast`] |
//! | Which addresses does a node announce? | [`announce`] |
//! | Which nodes probe a real? | [`probers`] |
//! | What do the nodes' votes on a real come to? | [`verdict`] |
//! | What is held when it vanishes from the tree? | [`removal`] |
//! | Which reals of a VIP take connections when many look down? | [`panic`] |
//! | How long does a new VIP wait for its first verdicts? | [`first_round`](first_round()) |
//! | Which weights does a single node use: decided by itself, or a leader's but for what it finds down? | [`local`] |
//!
//! Knows the records of `zk-schema`; knows no store, no network and no data plane. So whoever wants to know what a
//! cluster would do asks the same code: the daemon, `lbctl`, simulations, fuzzers.

pub mod announce;
pub mod desk;
mod first_round;
pub mod forecast;
pub mod leader;
pub mod local;
pub mod panic;
pub mod probers;
pub mod removal;
pub mod verdict;

pub use first_round::{FIRST_NEXT_HOPS, first_round};
