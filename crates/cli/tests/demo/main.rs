//! `ah agent demo`, and the documents: what they tell people to type works as it is written.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod config;
mod documents;
mod monitoring;
mod play;
