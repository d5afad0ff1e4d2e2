//! Tests of the identity providers and their supervisor through what they offer to others.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;
mod conformance;
mod dev;
mod exec;
mod extra_roots;
mod files;
mod pki;
mod spiffe;
mod supervise;
mod vault;
