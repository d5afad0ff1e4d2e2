//! The store and what is kept of it in memory, on SQLite, PostgreSQL and MariaDB.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;
mod conformance;
mod entry_cache;
mod faults;
mod known_agents;
mod mariadb;
mod metered;
mod rds;
mod schema;
