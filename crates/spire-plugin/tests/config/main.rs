//! What server, agent and discovery provider are told, from their files and flags to the values that the daemons use.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

mod agent;
mod common;
mod oidc;
mod server;
