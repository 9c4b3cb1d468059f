//! What each command does. A command's module has its options and its `run`.

pub mod apply;
pub mod completions;
pub mod export;
pub mod init;
pub mod node;
pub mod ops;
pub mod real;
pub mod vip;
pub mod history;
pub mod lookup;
pub mod status;
pub mod top;
pub mod capture;
pub mod completions;
pub mod doctor;
