//! The frame of Drover's admin pages, which the daemon and the real's agent serve and `lbctl` reads: who gets in, by a
//! token or a certificate, what strangers can cost, and a client that knows the same rules.
//!
//! What the pages say is their programs' own.

pub mod auth;
pub mod client;
pub mod files;
pub mod pages;
pub mod server;
mod token;

#[cfg(test)]
mod testing;
