//! SPIRE server as a library; the binary `spire-server` is its command line.
//!
//! - [`store`]: what outlives a process, behind six small traits.
//! - [`entries`]: which of the entries an agent may serve, in memory.
//! - [`ca`]: the X.509 and JWT authorities, their rotation, and what they sign.
//! - [`keys`]: where the private keys of the authorities are.

pub mod ca;
pub mod entries;
pub mod keys;
pub mod store;
