//! The arithmetic on which nodes, agents and tools must agree bit for bit.
//!
//! [`flow`] maps a connection to a slot and compiles into BPF as well as on the host;
//! [`maglev`] gives the slots to reals by weight; [`placement`] is both, for records of a tree. Everything here is pure: no clock, no randomness,
//! no I/O.
#![cfg_attr(not(feature = "std"), no_std)]

#[cfg(feature = "std")]
mod apportion;
pub mod flow;
#[cfg(feature = "std")]
pub mod maglev;
#[cfg(feature = "std")]
pub mod placement;
