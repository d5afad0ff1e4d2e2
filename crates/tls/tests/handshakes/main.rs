//! Real handshakes on loopback: who is let in, what each side is told, what a hostile peer can do.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod configurations;
mod hostile;
mod support;
mod told;
