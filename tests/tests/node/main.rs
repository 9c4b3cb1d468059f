//! A node that stands alone, its reals and its clients; the front; and the lab that all of it runs in.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod fault;
mod forwarding;
mod front;
mod health;
mod lab;
mod mtu;
mod operation;
mod restart;
mod service;
mod table;
