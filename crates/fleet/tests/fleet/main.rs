//! The access point and the executor together in one process: real TLS, real store, real audit log.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod dashboard;
mod drain;
mod executor;
mod http;
mod metrics;
mod operators;
mod protocol;
mod raw;
mod registry;
mod sessions;
mod support;
mod why;
