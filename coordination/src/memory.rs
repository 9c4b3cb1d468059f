//! A tree in this process.
