//! What each command does. A command's module has its options and its `run`.

pub mod capture;
pub mod completions;
pub mod doctor;
