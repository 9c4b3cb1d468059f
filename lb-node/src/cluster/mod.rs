//! A node among others: what it learns from the tree, what it tells there, and what it decides as their leader.
//!
//! | module | what it is | I/O |
//! |---|---|---|
//! | [`agent`] | a node's life in the tree, session after session | the store |
//! | [`lead`] | standing for election, and writing decisions while leading | the store |
//! | [`link`] | the state of a node's connection to the tree | |
//! | [`history`] | what is kept of its decisions | the store |
//! | [`peers`] | what other nodes tell a node that is cut off | UDP |
//! | [`vote`] | what this node's probes find, as a record | channels |
//! | [`simulated`] | nodes without packets | channels |
//! | [`cache`] | the last decision on disk | files |
//! | [`exclusions`] | what this node leaves out by its own judgement, on disk | files |

pub mod agent;
pub mod cache;
pub mod exclusions;
pub mod history;
pub mod lead;
pub mod link;
pub mod peers;
pub mod simulated;
pub mod vote;
