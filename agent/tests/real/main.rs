//! Decapsulation at a real: the program by itself, packet by packet, and the whole on a host of its
//! own. Needs root; namespaces and mounts are private to the test's threads and end with them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod bench;
mod host;
mod packet;
mod program;
