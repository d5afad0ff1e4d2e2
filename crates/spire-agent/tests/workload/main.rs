//! The Workload API over a real socket: what it serves, to whom, and what happens when things go wrong.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod clients;
mod commands;
mod faults;
mod reflection;
mod rig;
mod rules;
mod sds;
