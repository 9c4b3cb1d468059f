//! What each command does. A command's module has its options and its `run`.

pub mod completions;
pub mod history;
pub mod lookup;
pub mod status;
pub mod top;
