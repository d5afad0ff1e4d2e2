//! `ah agent doctor` on broken set-ups: the first check that fails names the true cause (ER-25).
//!
//! Each set-up is a function that breaks one thing of a site that works, and says which check has to fail first, and with
//! what words.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod certificates;
mod connection;
mod document;
mod exec;
mod production;
mod running;
mod settings;
mod site;
mod spiffe;
mod vault;
