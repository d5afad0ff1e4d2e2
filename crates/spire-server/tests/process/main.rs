//! The program `spire-server`, as people run it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod federation;
mod guide;
mod observed;
mod server;
