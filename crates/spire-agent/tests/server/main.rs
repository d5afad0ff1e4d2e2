//! The agent against a server: what it gets, keeps and serves, and how it comes back when things go wrong.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod admin;
mod attestors;
mod bootstrap;
mod broker;
mod delegated;
mod fake;
mod faults;
mod full_disk;
mod killed;
mod lies;
mod manager;
mod measured;
mod news;
mod normal;
mod program;
mod reference;
mod rig;
