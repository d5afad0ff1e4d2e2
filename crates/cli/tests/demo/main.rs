//! `ah agent demo` as a person starts it.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod play;
