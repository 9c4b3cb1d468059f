//! The part that the fuzzers share. `docs/security.md` says how they are run.
//!
//! A fuzzer's input is text or bytes as they come from outside, so that seeds can be read and findings replayed:
//! nothing is derived from it but the thing that is fed.
#![allow(clippy::unwrap_used, reason = "a fuzzer may unwrap: a panic is how it reports")]

pub mod answers;
pub mod files;
#[cfg(feature = "bpf")]
pub mod frames;
#[cfg(feature = "bpf")]
pub mod icmp;
pub mod memory;
#[cfg(feature = "bpf")]
pub mod packets;
pub mod records;
pub mod seeds;
pub mod tree;
#[cfg(feature = "bpf")]
pub mod tunnel;

// The programs' benches and judges are those of the end-to-end tests.
#[cfg(feature = "bpf")]
#[path = "../../dataplane/tests/dataplane/bench.rs"]
#[allow(dead_code, missing_docs, reason = "the tests use all of it")]
mod bench;
#[cfg(feature = "bpf")]
#[path = "../../dataplane/tests/dataplane/judge.rs"]
mod judge;
#[cfg(feature = "bpf")]
#[path = "../../dataplane/tests/dataplane/packet.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod packet;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;
