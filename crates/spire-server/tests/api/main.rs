//! The server's APIs and commands, on sockets of this process (inventory sections 6 and 8).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod changes;
mod commands;
mod faults;
mod federation;
mod federation_commands;
mod local;
mod local_authority;
mod network;
mod policy;
mod rig;
mod wit;
