//! What each command promises, row by row of the contract, seen from outside its process.

mod access_point;
mod enroll;
mod handed_over;
mod keeping;
mod operate;

/// A dev executor that enrolls once.
const ONCE: &str = "--once=enrolled";
