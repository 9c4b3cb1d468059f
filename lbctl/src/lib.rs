//! The operator's command line of a Drover cluster.
//!
//! It knows the tree ([`zk_schema`]), how to reach it ([`coordination`]) and the arithmetic of tables
//! ([`slot_table`]). What it shows and changes is in ZooKeeper, so it
//! needs no BPF, no rights on the machine and no daemon; only `doctor` looks at the [`host`] that it runs on.
//!
//! - [`Cli`] is what can be typed, [`commands`] what is done.
//! - [`context`] is what every command needs: settings and a session.
//! - [`edit`] changes the tree: plans, asks, writes, and tells what became of it.
//! - [`tree`] reads the tree at one moment, and [`overview`] is what follows from it for those who look;
//!   [`placement`] says where flows go by it.
//! - [`reference`] is what can be typed, as Markdown.
//! - [`output`] prints for people or for scripts; [`paint`] is text with tones, [`time`] points in time and spans.
//!   Both show text of others by [`visible`] alone.

mod cli;
pub mod commands;
pub mod context;
pub mod edit;
pub mod host;
pub mod output;
pub mod overview;
pub mod paint;
pub mod placement;
pub mod reference;
#[cfg(test)]
mod testing;
pub mod time;
pub mod tree;
pub mod visible;

pub use cli::Cli;
