//! What happens when things go wrong: real access points under load, cut, starved, and lied to.
//!
//! Crowds of executors are simulated in this process with the executor library itself; where the fault is
//! the executor's own, it is a real process. The access point is always one.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod certificates;
mod clock;
mod crashes;
mod crowd;
mod exec;
mod floods;
mod identities;
mod site;
mod spiffe;
mod storage;
mod storm;
