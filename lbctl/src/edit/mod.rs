//! Changing the tree: what is wanted is compared with what is there, shown, asked about, and written.
//!
//! - [`plan`] is pure: from a [`Tree`](crate::tree::Tree) and [`Edit`]s to a [`Plan`] of transactions, with all that is wrong or
//!   dangerous about it in words ([`danger`]).
//! - [`fields`] are records as flat lists of fields: to compare them, and to change some of them.
//! - [`carry_out`] writes a plan. Every write names the version that the plan was made against.
//! - [`effect`] tells what the leader and the nodes made of it.
//! - [`run`] is how every editing command goes: show, ask, write, tell.

pub mod carry_out;
pub mod danger;
pub mod effect;
pub mod fields;
pub mod flags;
pub mod names;
pub mod plan;
pub mod run;
pub mod step;
mod time;

pub use plan::Plan;
pub use step::{Action, Edit, FlagName, Object, Remark, Severity, Step};
pub use time::Span;

#[cfg(test)]
pub(crate) mod testing;
