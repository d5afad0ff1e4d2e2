//! What the tests of every crate share.

pub mod ca;
pub mod postgres;
pub mod process;
pub mod provider_suite;
