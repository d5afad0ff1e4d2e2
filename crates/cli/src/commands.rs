//! One file for each command.

pub mod audit;
pub mod completions;
