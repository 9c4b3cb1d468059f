//! A node among others: what it learns from the tree, what it tells there, and what it decides as their leader.

pub mod leader;
pub mod probers;
pub mod verdict;
