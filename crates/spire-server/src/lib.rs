//! SPIRE server as a library; the binary `spire-server` is its command line.
//!
//! - [`store`]: what outlives a process, behind five small traits.
//! - [`ca`]: the X.509 and JWT authorities, their rotation, and what they sign.

pub mod ca;
pub mod store;
