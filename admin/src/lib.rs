//! The frame of Drover's admin pages, which the daemon and the real's agent serve and `lbctl` reads.
//!
//! - [`auth`] decides who gets in, by a token, a certificate, or both; [`files`] reads the files for it.
//! - [`server`] serves pages and limits what strangers can cost; [`pages`] has the answers that all programs share.
//! - [`client`] asks for pages.
//!
//! The content of pages belongs to the programs.

pub mod auth;
pub mod client;
pub mod files;
pub mod pages;
pub mod server;
mod token;

#[cfg(test)]
mod testing;
