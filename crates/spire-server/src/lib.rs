//! SPIRE server as a library; the binary `spire-server` is its command line.
//!
//! - [`store`]: what outlives a process, behind six small traits.
//! - [`entries`]: which of the entries an agent may serve, in memory.
//! - [`ca`]: the X.509 and JWT authorities, their rotation, and what they sign.
//! - [`api`]: the gRPC services, and who may call them.
//! - [`endpoints`]: the sockets that they are served on.
//! - [`federation`]: the own bundle for other trust domains, and theirs for the workloads here.
//! - [`publish`]: the own bundle to the world outside, by plugins.
//! - [`run`]: the daemon that all of it makes.
//! - [`keys`]: where the private keys of the authorities are.

pub mod api;
pub mod ca;
pub mod cli;
pub mod endpoints;
pub mod entries;
pub mod federation;
mod google;
pub mod ids;
pub mod keys;
pub mod moment;
mod plugins;
pub mod publish;
pub mod run;
pub mod store;
