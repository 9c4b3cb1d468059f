//! What each command does. A command's module has its options and its `run`.

pub mod apply;
pub mod capture;
pub mod completions;
pub mod doctor;
pub mod export;
pub mod history;
pub mod init;
pub mod lookup;
pub mod node;
pub mod ops;
pub mod real;
pub mod status;
pub mod top;
pub mod vip;
