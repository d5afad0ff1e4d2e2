//! The program `spire-server`, as people run it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod authorities;
mod aws;
mod doors;
mod federation;
mod full_disk;
mod guide;
mod keys;
mod nested;
mod observed;
mod policy;
mod server;
mod signals;
mod sinks;
mod upstreams;
mod vault;
