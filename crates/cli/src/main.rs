//! The `ah` command.
fn main() {}
