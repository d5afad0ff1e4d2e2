//! SPIRE agent as a library; the binary `spire-agent` is its command line.
//!
//! One half keeps the node's own identity and the cache of its workloads in step with the server; the other half
//! attests whoever calls the Workload API and serves what [`identities::Identities`] has for them.

pub mod cli;
pub mod identities;
pub mod workload;
